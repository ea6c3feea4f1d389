"""The two judges: small networks that classify style and concepts of an image, trained on real art of all styles.

They are used for measurement only: nothing is trained against them, and settings chosen by them (learning rate, steps,
noise laws) are chosen on the secondary held-out styles or on train styles, never on reported ones. The style judge has
the 19 styles of the art world, the concept judge its 1,194 concepts. Both are ResNets over images in [0, 1]. Style is
texture, so the style judge pools mean and standard deviation over all positions of every stage's map h_k:

    p = softmax(W BN([mean_xy h_k, std_xy h_k]_k))

Objects have a position and a size, so the concept judge pools the logits at all positions of its last map, for the
image and for the image at half size; this finds small objects in scenes and objects that fill the canvas:

    z_c = log mean_kxy exp(L_ck(x, y)),    p_c = sigmoid(z_c)

`card.json` beside the weights describes weights, training and measured scores.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from impasto.errors import UserError
from impasto.files import MODELS

FOLDER = MODELS / "judges"
BATCH = 64  # images per forward pass


@dataclass(frozen=True)
class NetConfig:
    """A residual network.

    stem: channels of a 3x3 stem of stride 2 before a first stage of stride 2; 0: a 7x7 stem of stride 4 before a first
    stage of stride 1. Later stages have stride 2. pool: "statistics" (of all stages' maps) or "places" (log-mean-exp of
    the last map's logits over positions and over `levels` scales: the image, its half, ...).
    """

    classes: int
    size: int
    stem: int
    widths: tuple[int, ...]
    depths: tuple[int, ...]
    pool: str
    levels: int = 1


class Block(nn.Module):
    """relu(skip(x) + BN(conv(relu(BN(conv(x)))))), 3x3 convolutions; the skip is pooled and projected if needed."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.skip = nn.Conv2d(inputs, outputs, 1, bias=False) if inputs != outputs else nn.Identity()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm2(self.conv2(functional.relu(self.norm1(self.conv1(x)))))
        return functional.relu(self.skip(functional.avg_pool2d(x, self.stride) if self.stride > 1 else x) + h)


class Net(nn.Module):
    """Images [n, 3, H, W] in [0, 1] -> logits [n, classes]."""

    def __init__(self, config: NetConfig) -> None:
        super().__init__()
        self.config = config
        width = config.stem or config.widths[0]
        self.stem = nn.Conv2d(3, width, *((3, 2, 1) if config.stem else (7, 4, 3)), bias=False)
        self.norm = nn.BatchNorm2d(width)
        blocks = []
        for stage, (outputs, depth) in enumerate(zip(config.widths, config.depths, strict=True)):
            for i in range(depth):
                blocks.append(Block(width, outputs, 2 if i == 0 and (stage > 0 or config.stem) else 1))
                width = outputs
        self.blocks = nn.Sequential(*blocks)
        self.ends = {sum(config.depths[: k + 1]) - 1 for k in range(len(config.depths))}  # last block of each stage
        statistics = 2 * sum(config.widths)
        if config.pool == "statistics":
            self.standard = nn.BatchNorm1d(statistics)
            self.head = nn.Linear(statistics, config.classes)
        else:
            self.context = nn.Linear(width, width)
            self.head = nn.Linear(width, config.classes)

    def maps(self, x: Tensor) -> list[Tensor]:
        """The last map of each stage, non-negative, [n, widths[k], H/4/2^k, W/4/2^k]."""
        x = functional.relu(self.norm(self.stem(2 * x - 1)))
        maps = []
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i in self.ends:
                maps.append(x)
        return maps

    def embed(self, x: Tensor) -> Tensor:
        """Normalised mean and standard deviation of every stage's map, [n, 2 sum(widths)]; for pool "statistics"."""
        maps = [h.float().flatten(2) for h in self.maps(x)]
        return self.standard(torch.cat([f(h) for h in maps for f in (_mean, _std)], 1))

    def classify(self, h: Tensor) -> Tensor:
        """The last map [n, d, h, w] -> logits [n, classes], log-mean-exp over positions; for pool "places"."""
        places = h.flatten(2).transpose(1, 2)  # [n, places, d]
        places = functional.relu(places + self.context(places.mean(1, keepdim=True)))
        logits = self.head(places).float()
        return torch.logsumexp(logits, 1) - float(np.log(logits.shape[1]))

    def forward(self, x: Tensor) -> Tensor:
        if self.config.pool == "statistics":
            return self.head(self.embed(x))
        scales = [functional.avg_pool2d(x, 2**k) if k else x for k in range(self.config.levels)]
        logits = torch.stack([self.classify(self.maps(scale)[-1]) for scale in scales])
        return torch.logsumexp(logits, 0) - float(np.log(len(scales)))


def _mean(h: Tensor) -> Tensor:
    return h.mean(2)


def _std(h: Tensor) -> Tensor:
    return (h.var(2, unbiased=False) + 1e-5).sqrt()


class Judges:
    """Both judges. Images are float [n, 3, H, W] in [0, 1], or a sequence of PIL images.

    Images are resized (area) to `size`; transparency is composited on white. fp32, deterministic; an image's scores do
    not depend on the batch.

    `style_names`, `kinds` (the coarse kind of each style, e.g. "mono-line"), `kind_names` (the distinct ones, sorted),
    `labels` (the concepts), `concept_threshold` (probability from which a concept counts as present; chosen for 1 %
    false positives per absent concept on true scenes), `card` (training and measured scores).
    """

    def __init__(self, style: Net, concept: Net, card: dict[str, Any]) -> None:
        self.card = card
        self.style_names: list[str] = card["style_names"]
        self.kinds: list[str] = card["kinds"]
        self.kind_names = sorted(set(self.kinds))
        self.labels: list[str] = card["labels"]
        self.concept_threshold: float = card["concept_threshold"]
        self._style, self._concept = style.eval(), concept.eval()
        members = [[kind == name for name in self.kind_names] for kind in self.kinds]
        self._kind_of = torch.tensor(members, dtype=torch.float32)  # [19, kinds], one-hot rows

    @classmethod
    def load(cls, folder: Path | str | None = None) -> "Judges":
        """The packaged judges, or those of another folder with style.safetensors, concept.safetensors and card.json."""
        folder = Path(folder) if folder is not None else FOLDER
        if not (folder / "card.json").is_file():
            raise UserError(f"no judges in {folder}: card.json is missing (train them: impasto.judges.training)")
        card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
        return cls(_load_net(folder, card, "style"), _load_net(folder, card, "concept"), card)

    def style(self, images: Tensor | Sequence[Image.Image]) -> Tensor:
        """Style probabilities, softmax, [n, 19], in the order of `style_names`."""
        return _run(self._style, images, self._style.config.size).softmax(-1)

    def kind(self, images: Tensor | Sequence[Image.Image]) -> Tensor:
        """Probabilities of the coarse kinds, [n, kinds], in the order of `kind_names`: sums over their styles."""
        return self.style(images) @ self._kind_of

    def concept(self, images: Tensor | Sequence[Image.Image]) -> Tensor:
        """Independent concept probabilities (sigmoid), [n, 1194], in the order of `labels`."""
        return _run(self._concept, images, self._concept.config.size).sigmoid()

    def style_features(self, images: Tensor | Sequence[Image.Image]) -> Tensor:
        """The style judge's embedding, L2-normalised, [n, 528]: for styles outside its classes."""
        return functional.normalize(_run(self._style.embed, images, self._style.config.size))


def describe(net: Net, weights: Path) -> dict[str, Any]:
    """A network's entry of the card: configuration, number of parameters, sha256 of its weights."""
    parameters = sum(p.numel() for p in net.parameters())
    return {"net": asdict(net.config), "parameters": parameters, "sha256": sha256(weights)}


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _load_net(folder: Path, card: dict[str, Any], which: str) -> Net:
    weights = folder / f"{which}.safetensors"
    if not weights.is_file() or sha256(weights) != card[which]["sha256"]:
        raise UserError(f"{weights} is missing or is not the file that card.json describes")
    config = card[which]["net"]
    net = Net(NetConfig(**{**config, "widths": tuple(config["widths"]), "depths": tuple(config["depths"])}))
    net.load_state_dict({name: value.float() for name, value in load_file(weights).items()}, strict=False)
    return net.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


@torch.no_grad()
def _run(function: Callable[[Tensor], Tensor], images: Tensor | Sequence[Image.Image], size: int) -> Tensor:
    """`function` over all images in batches; a result of length 0 for no images."""
    out = [function(batch) for batch in _batches(images, size)]
    return torch.cat(out) if out else function(torch.ones(1, 3, size, size))[:0]


def _batches(images: Tensor | Sequence[Image.Image], size: int) -> Iterator[Tensor]:
    """Float batches [<= BATCH, 3, size, size] in [0, 1]."""
    for start in range(0, len(images), BATCH):
        chunk = images[start : start + BATCH]
        if isinstance(chunk, Tensor):
            if chunk.ndim != 4 or chunk.shape[1] != 3 or not chunk.is_floating_point():
                raise ValueError(f"images must be float [n, 3, H, W] in [0, 1], not {chunk.dtype} {list(chunk.shape)}")
            batch = _resize(chunk.float(), size)
        else:
            batch = torch.cat([_resize(_tensor(image), size) for image in chunk])
        yield batch.clamp(0, 1).contiguous(memory_format=torch.channels_last)


def _resize(x: Tensor, size: int) -> Tensor:
    return x if x.shape[-2:] == (size, size) else functional.interpolate(x, (size, size), mode="area")


def _tensor(image: Image.Image) -> Tensor:
    """PIL -> [1, 3, H, W] in [0, 1], on white."""
    rgba = image.convert("RGBA")
    flat = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return torch.from_numpy(np.array(flat)).permute(2, 0, 1)[None].float() / 255
