"""StyleDrop's adapter: a residual bottleneck behind the outputs of cross-attention and of the MLP of each layer.

    y = e + gelu(e Wd) Wu,   e the output of the sub-layer, before it is added to its input

Sohn et al. 2023, arXiv 2306.00983, appendix. Wd ~ truncated N(0, .02^2), Wu = 0; shared (first round, width 4): one
pair of matrices for all cross-attentions and one for all MLPs, with biases per layer. It is the bottleneck of
`adapters.kv_bottleneck` at another place. In a joint-attention block (SD3, FLUX) both are those of the image stream.
"""

from torch import nn

from impasto.adapters import kv_bottleneck
from impasto.adapters.base import Adapter
from impasto.adapters.config import BLOCK_OUTPUTS, KVBottleneck, StyleDrop
from impasto.families.base import Family


def bottleneck(settings: StyleDrop) -> KVBottleneck:
    """The same as settings of `adapters.kv_bottleneck`."""
    return KVBottleneck(dim=settings.dim, shared=settings.shared, location=BLOCK_OUTPUTS)


def attach(family: Family, settings: StyleDrop, seed: int) -> dict[str, nn.Parameter]:
    """As `kv_bottleneck.attach`."""
    return kv_bottleneck.attach(family, bottleneck(settings), seed)


def count(family: Family, settings: StyleDrop, model: nn.Module) -> int:
    """Unshared 2 L 2 D H; shared 2 (2 D H + L (H + D)), for L layers of width D."""
    return kv_bottleneck.count_on(family, bottleneck(settings), model)


def shapes(family: Family, settings: StyleDrop, model: nn.Module) -> dict[str, tuple[int, ...]]:
    return kv_bottleneck.shapes(family, bottleneck(settings), model)


def only_matrices(family: Family, settings: StyleDrop, model: nn.Module) -> bool:
    return kv_bottleneck.only_matrices(family, bottleneck(settings), model)


ADAPTER = Adapter(
    attach,
    count,
    only_matrices,
    kind="styledrop",
    mergeable=False,
    state=kv_bottleneck.state,
    load=kv_bottleneck.load,
    shapes=shapes,
)
