"""The files of a diffusers folder: which are read, and their hash."""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from impasto.errors import UserError
from impasto.files import read_object

LARGE = 64_000_000  # bytes; hashing less takes no time


VARIANT = "fp16"  # of weights, in their files' names; read where there are no others


OF_VARIANT = re.compile(r".+\..+\.safetensors|.+\.index\..+\.json")


READ = {".safetensors", ".json", ".txt", ".model"}  # of a base: no pickles, no second format


SCHEDULER = "scheduler/scheduler_config.json"


def pipeline_class(folder: Path) -> str:
    """The pipeline class that a diffusers folder names."""
    name = model_index(folder).get("_class_name")
    if not isinstance(name, str):
        raise UserError(f"{folder}/model_index.json cannot be read")
    return name


def model_index(folder: Path) -> dict[str, Any]:
    """What the `model_index.json` of a diffusers folder says. Raises UserError when it cannot be read."""
    try:
        return read_object(folder / "model_index.json")
    except FileNotFoundError:
        raise UserError(f"{folder} is not a diffusers folder: it has no model_index.json") from None
    except (OSError, ValueError):
        raise UserError(f"{folder}/model_index.json cannot be read") from None


def folder_hash(folder: Path) -> str:
    """sha256 over weights, configs and tokenisers of a diffusers folder: what makes its pictures, and nothing else (see
    `counted`).

    A weight file that is a link into the hub's cache is known there by its sha256 already; the versions of libraries
    that configs state do not count.
    """
    total = hashlib.sha256()
    for file in counted(folder):
        total.update(f"{file.relative_to(folder).as_posix()} {file_hash(file)}\n".encode())
    return total.hexdigest()


def counted(folder: Path) -> list[Path]:
    """The files of a diffusers folder that are read: `model_index.json`, and those of the components that it names; not
    how they came about (`card.json`), and not what another tool has fetched into the same folder."""
    parts = {name for name, value in model_index(folder).items() if isinstance(value, list) and value and value[0]}
    files = [file for part in folder.iterdir() if part.name in parts for file in read_of(part)]
    named = [file for file in files if file.name != "card.json"]
    return sorted([folder / "model_index.json", *without_variants(named)])


def read_of(part: Path) -> list[Path]:
    """The files of a component's folder that are read (READ), those in linked folders too."""
    return sorted(file for file in below(part) if file.suffix in READ)


def below(folder: Path, above: frozenset[Path] = frozenset()) -> Iterator[Path]:
    """The files in a folder and in those below. Links to folders are followed, but for those that lead back up."""
    if not folder.is_dir() or folder.resolve() in above:
        return
    for entry in folder.iterdir():
        if entry.is_file():
            yield entry
        else:
            yield from below(entry, above | {folder.resolve()})


def without_variants(files: list[Path]) -> list[Path]:
    """Components' files but for those of a variant, such as "model.fp16.safetensors", beside plain weights, which are
    what is read."""
    plain = {file.parent for file in files if file.suffix == ".safetensors" and not OF_VARIANT.fullmatch(file.name)}
    return [file for file in files if file.parent not in plain or not OF_VARIANT.fullmatch(file.name)]


def file_hash(file: Path) -> str:
    """sha256 of one file of a base. Raises UserError for a configuration that cannot be read."""
    blob = file.resolve().name
    if file.suffix == ".safetensors" and re.fullmatch(r"[0-9a-f]{64}", blob):
        return blob
    if file.name.endswith(("config.json", "model_index.json")):
        try:
            content = read_object(file)
        except ValueError:
            raise UserError(f"the base is damaged: {str(file)!r} cannot be read; fetch it again") from None
        for key in ("_diffusers_version", "transformers_version"):
            content.pop(key, None)
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    if file.stat().st_size < LARGE:
        return sha256(file)
    return remembered(file)


def remembered(file: Path) -> str:
    """sha256 of a large file, kept in the cache for as long as its size and its time of change stay the same."""
    from impasto.files import atomic, cache_dir

    state = file.stat()
    told = {"path": str(file.resolve()), "size": state.st_size, "mtime_ns": state.st_mtime_ns}
    note = cache_dir("hashes", hashlib.sha256(told["path"].encode()).hexdigest()[:24] + ".json")
    try:
        known = json.loads(note.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        known = {}
    if {key: known.get(key) for key in told} != told:
        known = told | {"sha256": sha256(file)}
        with atomic(note) as temporary:
            temporary.write_text(json.dumps(known), encoding="utf-8")
    return known["sha256"]


def sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def outlined(configs: Mapping[str, Any]) -> Path:
    """A folder in the cache, named by its contents, that holds these JSON files and nothing else."""
    from impasto.files import atomic, cache_dir

    key = hashlib.sha256(json.dumps(configs, sort_keys=True).encode()).hexdigest()
    folder = cache_dir("outlines", key[:24])
    for name, content in configs.items():
        if not (folder / name).is_file():
            with atomic(folder / name) as temporary:
                temporary.write_text(json.dumps(content, indent=2), encoding="utf-8")
    return folder


def variant(part: Path) -> str | None:
    """VARIANT where a component's folder holds such weights alone, as `save_pretrained(variant=...)` writes them."""
    names = [file.stem for file in part.glob("*.safetensors")]
    plain = any("." not in name for name in names)
    return VARIANT if not plain and any(f".{VARIANT}" in name for name in names) else None


@contextmanager
def damage(folder: Path, part: str = "") -> Iterator[None]:
    """Whatever the libraries raise about files that they cannot read, as one line; a full disk is told as that."""
    import torch
    from safetensors import SafetensorError

    from impasto.failures import disk_full

    try:
        yield
    except (UserError, torch.OutOfMemoryError):
        raise
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        if disk_full(error):
            raise
        said = str(error).strip().splitlines()
        of = f"{part} of the base" if part else "the base"
        raise UserError(
            f"{of} {str(folder)!r} cannot be loaded: a file is missing, damaged or no safetensors "
            f"({said[0][:200] if said else type(error).__name__}); fetch it again"
        ) from error
