"""The preprocessing of torchvision's transforms, on PIL images: what CSD, ImageReward and LPIPS were published with."""

import numpy as np
import torch
from PIL import Image
from torch import Tensor

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def resize_crop(image: Image.Image, size: int) -> Image.Image:
    """RGB `size` x `size`: the shorter side resized to `size` (bicubic, antialiased), the middle of the longer one.

    As `Resize(size, BICUBIC)` and `CenterCrop(size)`: the longer side is rounded down, the crop's offset to the nearest
    even of two equally near ones.
    """
    image = image.convert("RGB")
    short, long = sorted(image.size)
    new = [size if side == short else int(size * side / short) for side in image.size] if short != long else [size] * 2
    image = image.resize((new[0], new[1]), Image.Resampling.BICUBIC)
    left, top = (round((side - size) / 2) for side in new)
    return image.crop((left, top, left + size, top + size))


def to_unit(image: Image.Image) -> Tensor:
    """float32 [3, H, W] in [0, 1]."""
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).float() / 255


def clip_pixels(images: list[Image.Image], size: int = 224) -> Tensor:
    """float32 [n, 3, size, size], resized, cropped and normalised as CLIP's inputs."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (CLIP_MEAN, CLIP_STD))
    return torch.stack([(to_unit(resize_crop(image, size)) - mean) / std for image in images])
