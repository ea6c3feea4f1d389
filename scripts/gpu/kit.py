"""What both machines share: hashes, files cut into parts that may come back, art worlds cut and joined.

Only numpy, safetensors and the standard library are imported at the top: `load` calls need nothing else.
"""

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

MIB = 2**20
PART = 16 * MIB - 2**16  # a file that comes back may have 16 MiB
FILES_BACK = 8
WORLD = Path("artworld") / "artworld128.safetensors"
COLUMNS = ("webp", "offset", "style_id", "concept_id")
SPLIT = "impasto-gpu-load"

Arrays = dict[str, np.ndarray]


class KitError(Exception):
    """What is wrong, in one line that says what to do."""


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(MIB):
            digest.update(chunk)
    return digest.hexdigest()


def write_json(path: Path, value: Any) -> None:
    """Write JSON beside `path`, then rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", "utf-8")
    temporary.replace(path)


def split(path: Path, limit: int = PART) -> list[str]:
    """Cut a file larger than `limit` bytes into `<name>.part0`, `.part1`, ...; returns the names that stand for it."""
    if path.stat().st_size <= limit:
        return [path.name]
    names = []
    with path.open("rb") as file:
        while chunk := file.read(limit):
            names.append(f"{path.name}.part{len(names)}")
            (path.parent / names[-1]).write_bytes(chunk)
    path.unlink()
    return names


def describe(folder: Path, limit: int = PART) -> dict[str, Any]:
    """Cut what is too large in `folder`; returns {name: {bytes, sha256, parts: {name: sha256}}} of every file."""
    out = {}
    for path in sorted(p for p in folder.iterdir() if p.is_file()):
        whole, size = sha256(path), path.stat().st_size
        names = split(path, limit)
        parts = {name: whole if name == path.name else sha256(folder / name) for name in names}
        out[path.name] = {"bytes": size, "sha256": whole, "parts": parts}
    return out


def assemble(folder: Path, files: Mapping[str, Any], target: Path) -> list[str]:
    """Check and join the `files` of `describe` from `folder` into `target`; returns what is wrong, a line each.

    Nothing is written unless everything is right.
    """
    wrong = []
    for name, entry in files.items():
        for part, digest in entry["parts"].items():
            if not (folder / part).is_file():
                wrong.append(f"{part} is missing")
            elif sha256(folder / part) != digest:
                wrong.append(f"{part} is not the file that was sent (sha256 differs)")
        if Path(name).name != name:
            wrong.append(f"{name!r} is not a plain file name")
    if wrong:
        return wrong
    target.mkdir(parents=True, exist_ok=True)
    for name, entry in files.items():
        with (target / name).open("wb") as file:
            for part in entry["parts"]:
                file.write((folder / part).read_bytes())
        if sha256(target / name) != entry["sha256"]:
            wrong.append(f"{name}: its parts do not make the whole (sha256 differs)")
    return wrong


def read_world(path: Path) -> Arrays:
    """webp (bytes, one after the other), size, style_id, concept_id, and row: the place in the whole art world."""
    with safe_open(path, "numpy") as file:
        data = {name: file.get_tensor(name) for name in COLUMNS}
        row = file.get_tensor("row") if "row" in file.keys() else np.arange(len(data["style_id"]))  # noqa: SIM118
    return {
        "webp": data["webp"],
        "size": np.diff(data["offset"]),
        "style_id": data["style_id"],
        "concept_id": data["concept_id"],
        "row": row.astype(np.int32),
    }


def cut_world(data: Arrays, rows: np.ndarray) -> Arrays:
    """Some of its pictures, in the order of `rows`."""
    end = np.cumsum(data["size"])
    webp = [data["webp"][end[r] - data["size"][r] : end[r]] for r in rows]
    return {
        "webp": np.concatenate(webp) if webp else np.empty(0, np.uint8),
        **{name: data[name][rows] for name in ("size", "style_id", "concept_id", "row")},
    }


def write_world(path: Path, data: Arrays, note: Mapping[str, Any]) -> None:
    """A data file that `impasto.artworld.load` reads, with `row` beside, and `note` in its header."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {
        "webp": np.ascontiguousarray(data["webp"]),
        "offset": np.concatenate([[0], np.cumsum(data["size"])]).astype(np.int64),
        "style_id": data["style_id"].astype(np.int16),
        "concept_id": data["concept_id"].astype(np.int16),
        "row": data["row"].astype(np.int32),
    }
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    save_file(tensors, temporary, {SPLIT: json.dumps(note)})
    temporary.replace(path)


def load_note(path: Path) -> dict[str, Any]:
    """What `write_world` put into the header: concepts, load, loads, pictures."""
    with safe_open(path, "numpy") as file:
        return json.loads((file.metadata() or {}).get(SPLIT, "{}"))


def join_worlds(paths: Sequence[Path], target: Path) -> dict[str, Any]:
    """Join the loads of one packing into `target`, in the whole art world's order; returns the note.

    Raises KitError where a load is missing, is there twice, or comes from another packing.
    """
    notes = [load_note(path) for path in paths]
    packings = {note.get("packing") for note in notes}
    if len(packings) != 1 or None in packings:
        raise KitError("the loads come from several packings: carry those of one run of pack.py")
    have, want = sorted(note["load"] for note in notes), list(range(1, notes[0]["loads"] + 1))
    if have != want:
        raise KitError(f"loads {have} are here, {want} are needed: make the `load` calls first")
    data = [read_world(path) for path in paths]
    joined = {name: np.concatenate([d[name] for d in data]) for name in data[0]}
    joined = cut_world(joined, np.argsort(joined["row"], kind="stable"))
    note = {**notes[0], "load": 1, "loads": 1, "pictures": len(joined["row"])}
    write_world(target, joined, note)
    return note


def copy_export(run: Path, out: Path) -> list[str]:
    """Copy the newest export of a training run, and its log as it is now, to `out`; returns the names."""
    exports = sorted(p for p in (run / "export").glob("[0-9]*") if (p / "manifest.json").exists())
    out.mkdir(parents=True, exist_ok=True)
    for path in sorted(exports[-1].iterdir()) if exports else []:
        shutil.copy(path, out / path.name)
    if (log := run / "state" / "log.jsonl").exists():
        shutil.copy(log, out / "log.jsonl")
    names = sorted(p.name for p in out.iterdir())
    if len(names) > FILES_BACK:
        print(f"{len(names)} files in {out}, only {FILES_BACK} come back: {', '.join(names)}", file=sys.stderr)
    return names


def main(args: Iterable[str]) -> None:
    """`kit.py join TARGET LOAD...` and `kit.py collect RUN OUT`, for pretrain.sh."""
    verb, *rest = args
    if verb == "join":
        print("art world:", json.dumps(join_worlds([Path(p) for p in rest[1:]], Path(rest[0]))))
    elif verb == "collect":
        print("collected:", ", ".join(copy_export(Path(rest[0]), Path(rest[1]))))
    else:
        raise KitError(f"unknown verb {verb!r}: join or collect")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except KitError as error:
        sys.exit(f"kit.py: {error}")
