"""Settings of the adapters, and of what is trained of the text encoders."""

from dataclasses import dataclass
from typing import Literal

from impasto.coerce import check_numbers
from impasto.errors import UserError, nearest

POOLS, HYPERS, VARIANTS = ("mean", "sum", "token"), ("multiplicative", "additive"), ("all", "paper-text")


@dataclass(frozen=True, kw_only=True)
class LoRA:
    """Low-rank updates B A of linear and convolution layers."""

    rank: int = 32
    """Rank of the adapter."""
    alpha: float | None = None
    """Scale = alpha / rank; the rank when not given."""
    targets: tuple[str, ...] = ("attention",)
    """Layers: kinds (attention; image_stream, text_stream; convolution) or endings of layer names (to_q)."""

    def __post_init__(self) -> None:
        check_numbers(self, above_0=("rank", "alpha"))


@dataclass(frozen=True, kw_only=True)
class FullRankLoRA:
    """All of some layers' weights as a LoRA: A is the identity and frozen, B is trained, see `adapters.full_rank`."""

    targets: tuple[str, ...] = ("cross_attention_kv",)
    """Layers of one input width: kinds (cross_attention_kv) or endings of layer names (attn2.to_k)."""
    block_first_token: bool = False
    """No gradient through the layers' output at the first token, as Custom Diffusion's code has it."""


@dataclass(frozen=True, kw_only=True)
class StyleInject:
    """StyleInject: routed low-rank updates and AdaIN; the equations are in `adapters.styleinject.layers`."""

    rank: int = 32
    """Rows of each down matrix A_i."""
    alpha: float | None = None
    """The low-rank update is scaled by alpha / rank; the rank when not given."""
    n: int = 16
    """Number of down matrices A_i that the router mixes."""
    targets: tuple[str, ...] = ("to_q", "to_v")
    """Layers: kinds (attention; convolution) or endings of layer names (to_q)."""
    dma: bool = True
    """The router mixes the A_i per image; without it n is 1."""
    sta: bool = True
    """The AdaIN term; without dma and sta it is a LoRA."""
    router_pool: str = "mean"
    """What is routed: the mean or sum over an image's tokens, or each token."""
    hyper: str = "multiplicative"
    """AdaIN's new standard deviation: multiplicative, sigma (1 + Gamma s + c), or additive, sigma + Gamma s + c."""
    variant: str = "all"
    """all: the full layer on all targets (the paper's Table IV); paper-text: a LoRA on to_v (its section V-A)."""

    def __post_init__(self) -> None:
        check_numbers(self, above_0=("rank", "n", "alpha"), prefix="adapter.")
        for name, known in (("router_pool", POOLS), ("hyper", HYPERS), ("variant", VARIANTS)):
            if getattr(self, name) not in known:
                given = str(getattr(self, name))
                raise UserError(f"unknown adapter.{name} {given!r}: {nearest(given, known)}")

    @property
    def plain(self) -> tuple[str, ...]:
        """Endings of the layers that get a LoRA instead of the full layer."""
        return ("to_v",) if self.variant == "paper-text" else ()


@dataclass(frozen=True, kw_only=True)
class FullFineTuning:
    """All weights of the denoiser, see `adapters.full`."""


BLOCK_OUTPUTS = "attention-and-mlp"
"""StyleDrop's location of a bottleneck, see `StyleDrop`."""
LOCATIONS = {
    "kv": ("cross_attention_kv",),
    "q": ("cross_attention_q",),
    "out": ("cross_attention_out",),
    "all": ("cross_attention_kv", "cross_attention_q", "cross_attention_out"),
    BLOCK_OUTPUTS: ("cross_attention_out", "mlp_out"),
}
"""Kinds of layers of a family, by location of a `KVBottleneck`."""


@dataclass(frozen=True, kw_only=True)
class KVBottleneck:
    """FineStyle's adapter: bottlenecks behind keys and values of cross-attention, see `adapters.kv_bottleneck`."""

    dim: int = 4
    """Width of the bottleneck."""
    shared: bool = False
    """One pair of matrices for all layers, with a bias per layer."""
    location: str = "kv"
    """Behind the keys and values of cross-attention (kv, FineStyle), its queries (q), its output (out), all of these,
    or the outputs of cross-attention and MLP (attention-and-mlp, StyleDrop)."""

    def __post_init__(self) -> None:
        check_numbers(self, above_0=("dim",), prefix="adapter.")
        if self.location not in LOCATIONS:
            raise UserError(f"unknown adapter.location {self.location!r}: {nearest(self.location, list(LOCATIONS))}")


@dataclass(frozen=True, kw_only=True)
class StyleDrop:
    """StyleDrop's adapter: bottlenecks behind cross-attention and MLP, see `adapters.styledrop`."""

    dim: int = 4
    """Width of the bottleneck: 4 in the paper's first round, 32 in its second."""
    shared: bool = True
    """One pair of matrices for all layers, with a bias per layer, as in the paper's first round."""

    def __post_init__(self) -> None:
        check_numbers(self, above_0=("dim",), prefix="adapter.")


@dataclass(frozen=True, kw_only=True)
class FrozenText:
    """The text encoders stay as they are; captions are encoded once."""


@dataclass(frozen=True, kw_only=True)
class TextLoRA:
    """A LoRA of the CLIP text encoders is trained as well; never of T5."""

    lr: float | None = None
    """Its learning rate; half of lr when not given (with prodigy: lr)."""
    rank: int | None = None
    """Its rank; the adapter's, or 32, when not given."""
    alpha: float | None = None
    """Its scale = alpha / rank; the adapter's, or its rank, when not given."""

    def __post_init__(self) -> None:
        check_numbers(self, above_0=("lr", "rank", "alpha"), prefix="text.")


@dataclass(frozen=True, kw_only=True)
class TextToken:
    """New tokens of the CLIP text encoders are trained, one per style; see `adapters.token`."""

    tokens: tuple[str, ...] = ("<style1>",)
    """Names of the tokens, as captions and prompts have them."""
    words: tuple[str, ...] = ()
    """The style words that each token stands for and is initialised with, one text per token."""
    rows: Literal["all", "1"] = "all"
    """Rows of a token: all, one per sub-token of its words, or 1, their mean."""
    lr: float | None = None
    """Their learning rate; lr when not given."""

    def __post_init__(self) -> None:
        check_numbers(self, above_0=("lr",), prefix="text.")
        if not self.tokens or len(set(self.tokens)) < len(self.tokens):
            raise UserError(f"text.tokens must be different names such as <style1> <style2>, not {self.tokens}")
        if self.words and len(self.words) != len(self.tokens):
            raise UserError(f"{len(self.tokens)} text.tokens but {len(self.words)} text.words: give one text for each")
