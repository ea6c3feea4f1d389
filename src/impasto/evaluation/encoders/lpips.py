"""LPIPS v0.1 (Zhang et al. 2018): a distance of two images in the features of AlexNet or VGG-16.

    d(a, b) = sum_l mean_xy w_l . (f_l(a) - f_l(b))^2,  f_l: activations of length 1 at each position

Two published files, converted, in one folder: the network of torchvision ("features.0.weight", ...) and the weights of
the layers ("lin0.model.1.weight", ...). Which network it is follows from its shapes. Images are not resized; of two of
different sizes the second is resized (bicubic) to the first one's.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import max_pool2d, relu

from impasto.errors import UserError
from impasto.evaluation.encoders.base import Distance, batches, placed
from impasto.evaluation.encoders.pixels import to_unit
from impasto.evaluation.encoders.weights import fill, read_weights, width

ROW = "lpips"
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
EPS = 1e-10
PAIRS = 16  # in a forward pass


@dataclass(frozen=True)
class Layout:
    """convolutions: (position in torchvision's `features`, stride, padding). taps: convolutions after which features
    are compared. pool: (kernel, stride) of the pooling before each convolution in `pooled`."""

    convolutions: tuple[tuple[int, int, int], ...]
    taps: tuple[int, ...]
    pooled: tuple[int, ...]
    pool: tuple[int, int]


LAYOUTS = {
    "alex": Layout(((0, 4, 2), (3, 1, 2), (6, 1, 1), (8, 1, 1), (10, 1, 1)), (0, 3, 6, 8, 10), (3, 6), (3, 2)),
    "vgg": Layout(
        tuple((i, 1, 1) for i in (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)),
        (2, 7, 14, 21, 28),
        (5, 10, 17, 24),
        (2, 2),
    ),
}


class Network(nn.Module):
    """shapes: those of the convolutions' weights, by position."""

    def __init__(self, layout: Layout, shapes: dict[int, tuple[int, ...]]) -> None:
        super().__init__()
        self.layout = layout
        self.features = nn.ModuleDict(
            {
                str(i): nn.Conv2d(shapes[i][1], shapes[i][0], shapes[i][2:], stride, padding)  # pyright: ignore
                for i, stride, padding in layout.convolutions
            }
        )
        self.lin = nn.ParameterList(torch.zeros(1, shapes[i][0], 1, 1) for i in layout.taps)

    def activations(self, x: Tensor) -> list[Tensor]:
        """Images [n, 3, H, W] in [-1, 1] -> maps [n, c, h, w] whose vectors have length 1."""
        shift, scale = (torch.tensor(values, device=x.device)[:, None, None] for values in (SHIFT, SCALE))
        x, found = (x - shift) / scale, []
        for i, _, _ in self.layout.convolutions:
            x = max_pool2d(x, *self.layout.pool) if i in self.layout.pooled else x
            x = relu(self.features[str(i)](x))
            if i in self.layout.taps:
                found.append(x / (x.square().sum(1, keepdim=True).sqrt() + EPS))
        return found

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Distances [n] of pairs of images [n, 3, H, W] in [-1, 1]."""
        pairs = zip(self.lin, self.activations(a), self.activations(b), strict=True)
        return sum(((w * (f - g).square()).sum(1).mean((1, 2)) for w, f, g in pairs), torch.zeros(len(a)).to(a))


@dataclass(frozen=True)
class Lpips(Distance):
    @torch.no_grad()
    def distances(self, images: Sequence[Image.Image], others: Sequence[Image.Image]) -> Tensor:
        """d(image, other) >= 0 of each pair, [n]."""
        pairs, found = list(zip(images, others, strict=True)), []
        for _, same in groupby(pairs, key=lambda pair: pair[0].size):  # pairs of one size go together
            for batch in batches(list(same), PAIRS):
                a = torch.stack([2 * to_unit(image) - 1 for image, _ in batch])
                b = torch.stack([2 * to_unit(fitted(other, image.size)) - 1 for image, other in batch])
                found.append(self.model(a.to(self.device), b.to(self.device)).cpu())
        return torch.cat(found)


def fitted(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """RGB of a size (width, height), resized (bicubic) where it has another."""
    return image if image.size == size else image.convert("RGB").resize(size, Image.Resampling.BICUBIC)


def load(source: Path | str, device: str = "cpu", row: str = ROW) -> Lpips:
    """From a folder with both converted files. Raises UserError."""
    state = read_weights(source, row)
    lin = sorted(name for name in state if name.startswith("lin"))
    if "features.0.weight" not in state or not lin:
        lacks = "the network (alexnet or vgg16 of torchvision)" if lin else "the layers' weights (lpips/weights/v0.1)"
        raise UserError(f"encoder {row}: {source} lacks {lacks}: convert both files into one folder")
    kind = "alex" if width(state, "features.0.weight", row)[-1] == 11 else "vgg"
    layout = LAYOUTS[kind]
    shapes = {i: width(state, f"features.{i}.weight", row) for i, _, _ in layout.convolutions}
    wanted = {f"features.{i}.{part}": state[f"features.{i}.{part}"] for i in shapes for part in ("weight", "bias")}
    wanted |= {f"lin.{k}": state[name] for k, name in enumerate(lin)}
    model = fill(Network(layout, shapes), wanted, row)
    return Lpips(row, placed(model, device, source))
