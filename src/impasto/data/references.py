"""Reference pictures: any picture file -> plain RGB, or one clear line about what is wrong with it."""

import hashlib
import io
import warnings
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from impasto.data.colours import to_srgb
from impasto.errors import UserError

MAX_PIXELS = 100_000_000  # a picture of 10,000 x 10,000; decoding it takes .3 GB
MIN_SIDE = 8
MAX_PROFILE = 1 << 26  # bytes of an unpacked colour profile; Pillow gives up at 1 MB
ANIMATED, TRANSPARENT = "has several frames: the first one is used", "is transparent: it is put on white"
UNFIT = "has a colour profile that is damaged or of another kind of picture: it is read as sRGB"
PNG, TEXTS = b"\x89PNG\r\n\x1a\n", (b"tEXt", b"zTXt", b"iTXt")
TURNED = (b"XML:com.adobe.xmp\0", b"Raw profile type exif\0")  # texts that may say which side is up
NOTES = (ANIMATED, TRANSPARENT, UNFIT)


@dataclass(frozen=True)
class Reference:
    """One reference picture: where it was, what is in it (sRGB, upright), and the sha256 of its file.

    alpha: its transparency (8 bits, 255 is opaque), None when nothing in it is transparent. notes: what was decided.
    """

    path: Path
    image: Image.Image
    sha256: str
    alpha: Image.Image | None = None
    notes: tuple[str, ...] = ()

    def pixels(self, size: int, height: int | None = None) -> Tensor:
        """(1, 3, height, size) in [-1, 1], a square without a height: the middle, resized."""
        return to_tensor(ImageOps.fit(self.image, (size, height or size), Image.Resampling.LANCZOS))


def to_tensor(image: Image.Image) -> Tensor:
    """RGB -> (1, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)[None].float() / 127.5 - 1


def read(path: Path | str, size: int = MIN_SIDE) -> Reference:
    """The picture at `path`, first frame, on white, 8 bits, upright; a warning for each thing that had to be decided.

    size: pixels that it will be trained at. Raises UserError when it is missing, unreadable, empty, too large to
    decode safely (seen in its header, before any pixel is) or too small.
    """
    reference = load(path)
    if min(reference.image.size) < size:
        say(reference.path, enlarged(*reference.image.size, size))
    for note in reference.notes:
        say(reference.path, note)
    return reference


def load(path: Path | str, colours: bool = True) -> Reference:
    """As `read`, without a warning. colours: False leaves every value as it is, whatever a colour profile says."""
    path = Path(path)
    data = content(path)
    try:
        image, alpha, notes = decode(data, path, colours)
    except UnidentifiedImageError:
        raise UserError(f"image {str(path)!r} is not a picture of a known format (PNG, JPEG, WebP, ...)") from None
    except (UserError, MemoryError):
        raise
    except Exception as error:  # Pillow's readers raise whatever a cut or bent file leads them to, IndexError for one
        raise UserError(f"image {str(path)!r} is damaged: {error}") from None
    return Reference(path, image, hashlib.sha256(data).hexdigest(), alpha, notes)


def content(path: Path) -> bytes:
    """The bytes of a picture file. Raises UserError when there are none."""
    if path.is_dir():
        raise UserError(f"image {str(path)!r} is a folder, not a picture")
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"image {str(path)!r} does not exist") from None
    except OSError as error:
        raise UserError(f"image {str(path)!r} cannot be read: {error.strerror}") from None
    if not data:
        raise UserError(f"image {str(path)!r} is empty (0 bytes)")
    return data


def decode(data: bytes, path: Path, colours: bool = True) -> tuple[Image.Image, Image.Image | None, tuple[str, ...]]:
    """(the first frame as upright sRGB, its alpha, notes). Raises what Pillow raises, UserError for a size out of
    bounds."""
    notes = []
    data, profile = lean(data)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data))
    except Image.DecompressionBombError:
        raise UserError(f"image {str(path)!r} is too large: more than {MAX_PIXELS // 10**6} megapixels") from None
    with image:
        width, height = image.size
        if width * height > MAX_PIXELS:
            raise UserError(
                f"image {str(path)!r} is too large: {width} x {height}, more than 100 megapixels; resize it"
            )
        if min(width, height) < MIN_SIDE:
            raise UserError(
                f"image {str(path)!r} is too small: {width} x {height} pixels, {MIN_SIDE} at least each way"
            )
        if getattr(image, "n_frames", 1) > 1:
            notes.append(ANIMATED)
            image.seek(0)
        image.load()
        if profile is not None:
            image.info["icc_profile"] = profile
        rgb, alpha, fits = to_rgb(ImageOps.exif_transpose(image), path, colours)
    return rgb, alpha, (*notes, *([TRANSPARENT] if alpha else []), *([] if fits else [UNFIT]))


def lean(data: bytes) -> tuple[bytes, bytes | None]:
    """(a PNG without the texts that are not about its pixels, its colour profile apart), anything else as it is.

    Pillow refuses a picture for a compressed text or profile of more than 1 MB; a ComfyUI workflow may be that large,
    and so may a printer's profile. The profile is b"" where it is damaged, None where there is none.
    """
    at, profile = len(PNG), None
    kept = [data[:at]]
    while data.startswith(PNG) and len(data) - at >= 12:  # a chunk: length, kind, content, sum
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        kind = data[at + 4 : at + 8]
        if kind == b"iCCP":
            profile = unpacked(data[at + 8 : end - 4])
        elif kind not in TEXTS or data.startswith(TURNED, at + 8):
            kept.append(data[at:end])
        at = end
    return b"".join([*kept, data[at:]]), profile


def unpacked(chunk: bytes) -> bytes:
    """The profile of an iCCP chunk (name, 0, method, deflated); b"" when it is damaged or larger than MAX_PROFILE."""
    stream = zlib.decompressobj()
    try:
        profile = stream.decompress(chunk.partition(b"\0")[2][1:], MAX_PROFILE)
    except zlib.error:
        return b""
    return profile if stream.eof else b""


def to_rgb(image: Image.Image, path: Path, colours: bool = True) -> tuple[Image.Image, Image.Image | None, bool]:
    """Any mode to (sRGB, alpha, whether its profile fits): 16 bits scaled (Pillow would clip them), transparency on
    white, CMYK resolved. What has no profile counts as sRGB."""
    profiled = colours and "icc_profile" in image.info and image.mode != "LAB"
    profile = image.info.get("icc_profile") or b""
    if image.mode.startswith("I"):
        values, key = np.asarray(image), image.info.get("transparency")
        image = Image.fromarray((values.astype(np.float64).clip(0, 65535) / 257).round().astype(np.uint8))
        if key is not None:  # the one level that is transparent
            image.putalpha(Image.fromarray(np.where(values == key, 0, 255).astype(np.uint8)))
    if image.mode == "F":
        raise UserError(f"image {str(path)!r} holds floating-point values: save it with 8 or 16 bits")
    alpha = None
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        alpha = image.getchannel("A")
        alpha = None if np.asarray(alpha).min() == 255 else alpha
    fits = True
    try:
        rgb = to_srgb(image, profile) if profiled else image.convert("RGB")
    except ValueError:
        rgb, fits = image.convert("RGB"), False
    if alpha:
        rgb.putalpha(alpha)
        rgb = Image.alpha_composite(Image.new("RGBA", image.size, "white"), rgb).convert("RGB")
    rgb.info.pop("icc_profile", None)  # or it would be written into copies
    return rgb, alpha, fits


def enlarged(width: int, height: int, size: int) -> str:
    return f"is {width} x {height} and will be enlarged to {size} x {size}"


def say(path: Path, what: str) -> None:
    warnings.warn(f"image {str(path)!r} {what}", stacklevel=2)
