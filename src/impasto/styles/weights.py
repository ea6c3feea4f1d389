"""The weights of a style on disk: one safetensors file that knows its own content."""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from impasto.errors import UserError
from impasto.styles.parts import WEIGHTS as WEIGHTS
from impasto.styles.parts import read_parts

HASH = "modelspec.hash_sha256"


def write_tensors(file: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """A safetensors file that knows its own content: `modelspec.hash_sha256`, of the bytes behind the header.

    The same tensors and metadata make the same bytes, and so the same `style_hash`: safetensors itself writes metadata
    in another order each time, so the header (its length in 8 bytes, JSON, spaces up to a multiple of 8) is ours.
    """
    from safetensors.torch import save

    data = memoryview(save(dict(tensors)))
    start = 8 + int.from_bytes(data[:8], "little")
    digest = hashlib.sha256(data[start:]).hexdigest()
    own = {"format": "pt", HASH: f"0x{digest}", "impasto.version": version("impasto")}
    told = {"__metadata__": dict(sorted({**metadata, **own}.items()))} | json.loads(bytes(data[8:start]))
    header = json.dumps(told, ensure_ascii=False, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    with file.open("wb") as stream:
        for part in (len(header).to_bytes(8, "little"), header, data[start:]):
            stream.write(part)


def read_file(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file. Raises UserError when it is damaged, or is none: see `check_file`."""
    check_file(file)
    with safe_open(file, "pt") as opened:
        return {key: opened.get_tensor(key) for key in opened.keys()}, dict(opened.metadata() or {})  # noqa: SIM118


@contextmanager
def naming(file: Path) -> Iterator[None]:
    """Put the file's name before what is wrong with it."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{file}: {error}") from None


def check_file(file: Path) -> None:
    """Raise UserError unless `file` is a whole safetensors file; one of ours has to match the hash that it states."""
    try:
        with safe_open(file, "pt") as opened:
            metadata = opened.metadata() or {}
    except SafetensorError as error:
        with file.open("rb") as stream:
            if stream.read(2) in (b"PK", b"\x80\x02", b"\x80\x04"):
                raise UserError(f"{file} is a pickle under another name: it can run code and is not read") from None
        raise UserError(f"{file} is damaged: {error}") from None
    if "impasto.version" in metadata and HASH in metadata:
        with file.open("rb") as stream:
            stream.seek(int.from_bytes(stream.read(8), "little"), 1)
            if f"0x{hashlib.file_digest(stream, 'sha256').hexdigest()}" != metadata[HASH]:
                raise UserError(f"{file} is damaged: its tensors are not those that were saved, make or copy it again")


def style_file(path: Path | str) -> Path:
    """The weights of a style: the file itself, or that of the first part in its folder. Raises UserError when there is
    none."""
    path = Path(path)
    file = path / read_parts(path)[0].file if path.is_dir() else path
    if not file.is_file():
        state = path / "state"
        why = "its training has not finished (the same command resumes)" if state.is_dir() else f"no {file.name} there"
        raise UserError(f"style {str(path)!r} cannot be loaded: {why if path.is_dir() else 'no such file or folder'}")
    if file.suffix != ".safetensors":
        raise UserError(f"style {str(path)!r} is not a safetensors file: other formats can run code and are not read")
    return file


def is_folders_weights(file: Path) -> bool:
    """Whether `file` is a part of the style folder in which it lies."""
    return any(file.name == part.file for part in read_parts(file.parent))


def style_hash(path: Path | str) -> str:
    """sha256 of a style's weights; of several parts one over theirs."""
    first, hashes = style_file(path), []
    files = [first.parent / part.file for part in read_parts(first.parent)] if Path(path).is_dir() else [first]
    for file in files:
        with file.open("rb") as stream:
            hashes.append(hashlib.file_digest(stream, "sha256").hexdigest())
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("\n".join(hashes).encode()).hexdigest()


def split_strength(style: str) -> tuple[Path, float | None]:
    """(runs/neon, 0.8) for "runs/neon:0.8", strength None when none is given. UserError when there is no such style."""
    path, colon, strength = str(style).rpartition(":")
    if not colon or Path(style).exists():
        style_file(style)
        return Path(style), None
    try:
        value = float(strength)
    except ValueError:
        raise UserError(f"style {style!r}: after the colon comes a number, as in {path}:0.8") from None
    if not math.isfinite(value):
        raise UserError(f"style {style!r}: the strength must be a finite number, as in {path}:0.8")
    style_file(path)
    return Path(path), value
