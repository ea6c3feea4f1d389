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

LARGE = 64_000_000  # bytes from which hashes are cached
VARIANT = "fp16"  # in the names of weight files; read where there are no others
VARIANT_NAME = re.compile(r".+\..+\.safetensors|.+\.index\..+\.json")
SUFFIXES = {".safetensors", ".json", ".txt", ".model"}  # of the files that are read: no pickles
SCHEDULER = "scheduler/scheduler_config.json"


def pipeline_class(folder: Path) -> str:
    """The pipeline class named in a diffusers folder's `model_index.json`."""
    name = model_index(folder).get("_class_name")
    if not isinstance(name, str):
        raise UserError(f"{folder}/model_index.json cannot be read")
    return name


def model_index(folder: Path) -> dict[str, Any]:
    """The content of a diffusers folder's `model_index.json`. Raises UserError when it cannot be read."""
    try:
        return read_object(folder / "model_index.json")
    except FileNotFoundError:
        raise UserError(f"{folder} is not a diffusers folder: it has no model_index.json") from None
    except (OSError, ValueError):
        raise UserError(f"{folder}/model_index.json cannot be read") from None


def folder_hash(folder: Path) -> str:
    """sha256 over weights, configs and tokenisers of a diffusers folder (see `hashed_files`).

    For a link into the hub's cache, the sha256 in the blob's name is used. Library versions in configs are ignored.
    """
    total = hashlib.sha256()
    for file in hashed_files(folder):
        total.update(f"{file.relative_to(folder).as_posix()} {file_hash(file)}\n".encode())
    return total.hexdigest()


def hashed_files(folder: Path) -> list[Path]:
    """The files that determine a base's output: `model_index.json` and the files of the components that it names,
    without `card.json` and unused variants."""
    parts = {name for name, value in model_index(folder).items() if isinstance(value, list) and value and value[0]}
    files = [file for part in folder.iterdir() if part.name in parts for file in component_files(part)]
    named = [file for file in files if file.name != "card.json"]
    return sorted([folder / "model_index.json", *without_variants(named)])


def component_files(part: Path) -> list[Path]:
    """The files of a component's folder with one of SUFFIXES, sorted; links are followed."""
    return sorted(file for file in walk(part) if file.suffix in SUFFIXES)


def walk(folder: Path, above: frozenset[Path] = frozenset()) -> Iterator[Path]:
    """The files of a folder, recursively. Links to folders are followed unless they lead to a folder in `above`."""
    if not folder.is_dir() or folder.resolve() in above:
        return
    for entry in folder.iterdir():
        if entry.is_file():
            yield entry
        else:
            yield from walk(entry, above | {folder.resolve()})


def without_variants(files: list[Path]) -> list[Path]:
    """`files` without variants such as "model.fp16.safetensors" in folders that have plain weights."""
    plain = {file.parent for file in files if file.suffix == ".safetensors" and not VARIANT_NAME.fullmatch(file.name)}
    return [file for file in files if file.parent not in plain or not VARIANT_NAME.fullmatch(file.name)]


def file_hash(file: Path) -> str:
    """sha256 of one file of a base. Raises UserError when a configuration cannot be parsed."""
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
    return cached_sha256(file)


def cached_sha256(file: Path) -> str:
    """sha256 of a file, cached while its size and modification time are unchanged."""
    from impasto.files import atomic, cache_dir

    state = file.stat()
    identity = {"path": str(file.resolve()), "size": state.st_size, "mtime_ns": state.st_mtime_ns}
    note = cache_dir("hashes", hashlib.sha256(identity["path"].encode()).hexdigest()[:24] + ".json")
    try:
        known = json.loads(note.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        known = {}
    if {key: known.get(key) for key in identity} != identity:
        known = identity | {"sha256": sha256(file)}
        with atomic(note) as temporary:
            temporary.write_text(json.dumps(known), encoding="utf-8")
    return known["sha256"]


def sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_config_folder(configs: Mapping[str, Any]) -> Path:
    """A folder in the cache, named by its contents, that holds exactly these JSON files, {relative path: content}."""
    from impasto.files import atomic, cache_dir

    key = hashlib.sha256(json.dumps(configs, sort_keys=True).encode()).hexdigest()
    folder = cache_dir("outlines", key[:24])
    for name, content in configs.items():
        if not (folder / name).is_file():
            with atomic(folder / name) as temporary:
                temporary.write_text(json.dumps(content, indent=2), encoding="utf-8")
    return folder


def variant(part: Path) -> str | None:
    """VARIANT if a component's folder holds weights of that variant only (`save_pretrained(variant=)`), else None."""
    names = [file.stem for file in part.glob("*.safetensors")]
    plain = any("." not in name for name in names)
    return VARIANT if not plain and any(f".{VARIANT}" in name for name in names) else None


@contextmanager
def explain_load_errors(folder: Path, part: str = "") -> Iterator[None]:
    """Turn the libraries' errors about unreadable files into one UserError; a full disk is re-raised as it is."""
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
        lines = str(error).strip().splitlines()
        what = f"{part} of the base" if part else "the base"
        raise UserError(
            f"{what} {str(folder)!r} cannot be loaded: a file is missing, damaged or not safetensors "
            f"({lines[0][:200] if lines else type(error).__name__}); fetch it again"
        ) from error
