"""Colour profiles: what a picture's numbers mean, told in sRGB.

A profile (ICC.1:2022) maps device values to colours; Little CMS goes from there to sRGB, relative colorimetric with
black point compensation, as editors do. Of a profile that is sRGB's within `NEAR` every value stays as it is.
"""

import io
from functools import cache

import numpy as np
from PIL import Image, ImageCms

NEAR = 2  # of 255: tables of sRGB are rounded here and there


def to_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    """An image without transparency as RGB in sRGB. profile: ICC, of RGB, CMYK or grey.

    Raises ValueError when the profile is damaged, or of another kind of picture.
    """
    try:
        own = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        mode = fitting(image, profile[16:20])  # the header's field of the colour space
        intent, flags = ImageCms.Intent.RELATIVE_COLORIMETRIC, ImageCms.Flags.BLACKPOINTCOMPENSATION
        transform = ImageCms.buildTransform(own, ImageCms.createProfile("sRGB"), mode, "RGB", intent, flags)
    except (OSError, ImageCms.PyCMSError) as error:
        raise ValueError(f"no profile that can be read: {error}") from None
    if mode != "CMYK":
        before, after = probe(mode), np.asarray(transform.apply(probe(mode)))
        if np.abs(np.asarray(before.convert("RGB")).astype(int) - after).max() <= NEAR:
            return image.convert("RGB")
    return transform.apply(image.convert(mode))


def fitting(image: Image.Image, space: bytes) -> str:
    """The mode in which a profile of a colour space reads the image. Raises ValueError when there is none."""
    if space == b"CMYK" and image.mode == "CMYK":
        return "CMYK"
    if space == b"RGB " and image.mode != "CMYK":
        return "RGB"
    if space == b"GRAY" and image.convert("L").convert("RGB").tobytes() == image.convert("RGB").tobytes():
        return "L"
    raise ValueError(f"a profile of {space!r} on a picture of {image.mode!r}")


@cache
def probe(mode: str) -> Image.Image:
    """All levels of grey, or 17 a channel of RGB."""
    if mode == "L":
        return Image.fromarray(np.arange(256, dtype=np.uint8)[None])
    levels = np.linspace(0, 255, 17).round().astype(np.uint8)
    return Image.fromarray(np.stack(np.meshgrid(levels, levels, levels), -1).reshape(17, -1, 3))
