"""Packs what the device machine needs into the ignored folder .gpu/, and says what would travel.

    python scripts/gpu/pack.py --concepts core_concepts     # art world (train styles only) and wheels; then the sizes
    python scripts/gpu/pack.py --wheels                     # only the wheels, for a bench in a lease of its own
    python scripts/gpu/pack.py --sizes                      # only the sizes of every call
    python scripts/gpu/pack.py --stash [PATH ...]           # move tracked files out of the tree for the time of the run
    python scripts/gpu/pack.py --unstash                    # and back

One call carries 64 MiB: the working tree (tracked files, and untracked ones that git does not ignore) and what is named
in `carry`. An art world that does not fit beside the rest goes in several loads: .gpu/cache-2, .gpu/cache-3, ... in a
`load` call each, .gpu/cache with the training itself. The machine keeps them in /tmp while it is held.
"""

import argparse
import datetime
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import kit
import numpy as np
from kit import MIB, KitError

ROOT = Path(__file__).resolve().parents[2]
LIMIT, MARGIN = 64 * MIB, MIB  # what may travel; what is kept free for the transfer's own headers
WHEELS = ("diffusers", "importlib_metadata", "lazy-importer")  # imported on the way, and not on the device machine
CHECK_WHEELS = ("tyro", "docstring-parser", "typeguard", "torchao", "bitsandbytes")  # for checks.py, with --checks
CUDA = "cuda130"  # the device machine's; bitsandbytes carries ten others
PLATFORMS = (*(f"manylinux_2_{n}_x86_64" for n in (28, 27, 24, 17)), "manylinux2014_x86_64", "manylinux1_x86_64")
# What the device machine has of the wheels' needs (KINDS.md, 2026-11), with the version where it was told.
DEVICE = {
    "filelock": None,
    "huggingface-hub": "1.33.0",
    "numpy": "2.5.2",
    "packaging": None,
    "pillow": None,
    "regex": None,
    "requests": None,
    "safetensors": "0.8.0",
    "torch": "2.11.0",
    "typing-extensions": None,
    "zipp": None,
}
DENOISERS = ("src/impasto/models/mini-sd3/transformer", "src/impasto/models/mini-sd15/unet")
STASH = Path.home() / ".cache" / "impasto" / "gpu-stash"


def chosen(data: kit.Arrays, concepts: str) -> list[np.ndarray]:
    """Rows of the train styles' pictures, in groups: core_everywhere first, then core_concepts, then all."""
    from impasto.artworld import load_meta

    split = load_meta()["split"]
    lists = {"core_everywhere": split["core_everywhere"], "core_concepts": split["core_concepts"]}
    lists["all"] = list(range(len(load_meta()["concepts"])))
    if concepts not in lists:
        raise KitError(f"--concepts {concepts}: {', '.join(lists)}")
    left = np.isin(data["style_id"], split["train_styles"])
    out = []
    for name, ids in lists.items():
        mine = left & np.isin(data["concept_id"], [*ids, *split["evaluation_concepts"]])
        out.append(np.flatnonzero(mine))
        left &= ~mine
        if name == concepts:
            break
    return out


def plan(size: np.ndarray, groups: Sequence[np.ndarray], first: int, later: int) -> list[np.ndarray]:
    """Rows per load, the training call's first: `first` bytes fit beside it, `later` bytes into a `load` call."""
    rows = np.concatenate(groups)
    end = np.cumsum(size[rows])
    loads, start, room = [], 0, first
    while start < len(rows):
        stop = int(np.searchsorted(end, (end[start - 1] if start else 0) + room, side="right"))
        if stop == start:
            raise KitError("what travels beside the art world leaves no room for it: see --sizes, --stash")
        loads.append(rows[start:stop])
        start, room = stop, later
    return loads


def pack_world(out: Path, concepts: str, source: Path, first: int, later: int) -> list[Path]:
    """Write .gpu/cache (and .gpu/cache-2, ...) with the train styles' pictures of `concepts`; returns the folders."""
    from impasto.artworld import load_meta

    meta = load_meta()
    data = kit.read_world(source)
    loads = plan(data["size"], chosen(data, concepts), first, later)
    for old in out.glob("cache*"):
        shutil.rmtree(old)
    packing = datetime.datetime.now(datetime.UTC).isoformat()
    folders = []
    for k, rows in enumerate(loads, 1):
        folder = out / ("cache" if k == 1 else f"cache-{k}")
        note = {"packing": packing, "concepts": concepts, "load": k, "loads": len(loads), "pictures": len(rows)}
        kit.write_world(folder / kit.WORLD, kit.cut_world(data, np.sort(rows)), note)
        styles, counts = np.unique(data["style_id"][rows], return_counts=True)
        built = {meta["style_names"][s]: int(n) for s, n in zip(styles, counts, strict=True)}
        kit.write_json(folder / "artworld" / "meta.json", {"built": {"styles": built}, **note})
        folders.append(folder)
    return folders


def pack_wheels(out: Path, constraints: Path, names: Sequence[str] = WHEELS) -> None:
    """Download the wheels in the versions of constraints.txt, and check that the device has what they need."""
    lines = [line.split("==") for line in constraints.read_text().split() if "==" in line]
    pinned = {canonical(name): version for name, version in lines}
    versions = {name: pinned[canonical(name)] for name in names}
    have = {canonical(path.name.split("-")[0]): path.name.split("-")[1] for path in out.glob("*.whl")}
    if have != {canonical(name): version for name, version in versions.items()}:
        shutil.rmtree(out, ignore_errors=True)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        command += ["--python-version", "3.12", "--implementation", "cp", "-d", str(out)]
        command += [part for platform in PLATFORMS for part in ("--platform", platform)]
        subprocess.run([*command, *(f"{name}=={version}" for name, version in versions.items())], check=True)
        for wheel in out.glob("bitsandbytes-*.whl"):
            slim(wheel)
    if problems := unmet(sorted(out.glob("*.whl"))):
        raise KitError("; ".join(problems))


def slim(wheel: Path) -> None:
    """Leave out a wheel's libraries for other devices than CPU and the CUDA of the device machine."""
    import zipfile

    def stays(name: str) -> bool:
        return not name.endswith(".so") or CUDA in name or "cpu" in name

    temporary = wheel.with_suffix(".slim")
    with zipfile.ZipFile(wheel) as old, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as new:
        for name in filter(stays, old.namelist()):
            data = old.read(name)
            if name.endswith(".dist-info/RECORD"):
                data = b"".join(line for line in data.splitlines(True) if stays(line.decode().split(",")[0]))
            new.writestr(name, data)
    temporary.replace(wheel)


def pack_models(out: Path, bases: Sequence[str], root: Path = ROOT, side: Path = STASH) -> None:
    """Write .gpu/models: the denoisers of packaged bases, for `--start package` and checks.py; from the stash, or the
    tree."""
    shutil.rmtree(out, ignore_errors=True)
    for base in bases:
        name = next((name for name in DENOISERS if f"/{base}/" in name), None)
        if name is None:
            raise KitError(f"unknown base {base!r}")
        found = [place / name for place in (side / "files", root) if any((place / name).glob("*.safetensors"))]
        if not found:
            raise KitError(f"{name} is neither in the tree nor stashed")
        shutil.copytree(found[0], out / Path(name).relative_to("src/impasto/models"))


def canonical(name: str) -> str:
    """A package's name as registries compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def unmet(wheels: Sequence[Path]) -> list[str]:
    """What the wheels require that is neither among them nor, in a fitting version, on the device machine."""
    import zipfile

    from packaging.requirements import Requirement

    carried, problems = {}, []
    for wheel in wheels:
        name, version, *_ = wheel.name.split("-")
        carried[canonical(name)] = version
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            name = next(n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
            lines = archive.read(name).decode().split("\n\n")[0].splitlines()
        for line in lines:
            if not line.startswith("Requires-Dist:"):
                continue
            need = Requirement(line.partition(":")[2].strip())
            if need.marker and not need.marker.evaluate({"python_version": "3.12", "extra": ""}):
                continue
            key = canonical(need.name)
            version = carried.get(key, DEVICE.get(key))
            if key not in carried and key not in DEVICE:
                problems.append(f"{wheel.name} needs {need}, which is neither carried nor on the device machine")
            elif version and not need.specifier.contains(version):
                problems.append(f"{wheel.name} needs {need}, but {version} would be there")
    return problems


def pack_start(out: Path, state: Path, base: str = "mini-sd3") -> dict[str, Any]:
    """Write .gpu/start/transformer: the EMA of a checkpoint, fp16, and the card's training record beside it."""
    import torch
    from safetensors.torch import load_file, save_file

    if not (state / "state.json").exists():
        raise KitError(f"{state} holds no checkpoint (state.json is missing)")
    meta = json.loads((state / "state.json").read_text())
    tensors = load_file(state / meta["tensors"])
    if any(name.startswith("tower.") for name in tensors):
        raise KitError(f"{state} has a text tower of its own: export it (impasto pretrain --export), --start package")
    ema = {name.removeprefix("ema."): t.half() for name, t in tensors.items() if name.startswith("ema.")}
    if not all(bool(torch.isfinite(t).all()) for t in ema.values()):
        raise KitError(f"{state}: the EMA is not finite in fp16")
    shutil.rmtree(out, ignore_errors=True)
    (out / "transformer").mkdir(parents=True)
    save_file(ema, out / "transformer" / "diffusion_pytorch_model.safetensors")
    seen = {key: meta[key] for key in ("step", "pictures", "seconds", "sessions", "devices")}
    kit.write_json(out / "card.json", {"name": base, "training": seen})
    layers = len({name.split(".")[1] for name in ema if name.startswith("transformer_blocks.")})
    return {"layers": layers, "pictures": seen["pictures"], "bytes": folder_bytes(out)}


def folder_bytes(folder: Path) -> int:
    """Bytes of all files under it; 0 where there is none."""
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) if folder.is_dir() else 0


def tree_files(root: Path) -> dict[str, int]:
    """Bytes of every file that travels without being named: tracked, or untracked and not ignored; and shared/."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=root,
        check=True,
        capture_output=True,
    )
    names = sorted({os.fsdecode(name) for name in listed.stdout.split(b"\0") if name})
    sizes = {name: (root / name).lstat().st_size for name in names if os.path.lexists(root / name)}
    for path in (root / "shared").rglob("*") if (root / "shared").is_dir() else ():
        if path.is_file():
            sizes[str(path.relative_to(root))] = path.stat().st_size
    return sizes


def calls(root: Path, out: Path) -> list[tuple[str, list[str]]]:
    """(verb, carry) of every call, in order."""

    def relative(path: Path) -> str:
        return str(path.relative_to(root)) if path.is_relative_to(root) else str(path)

    loads = sorted((p for p in out.glob("cache-*")), key=lambda p: int(p.name.rpartition("-")[2]))
    early = [out / "whl"] if (out / "models").is_dir() else []  # no room for both beside the art world
    main = [p for p in (out / "cache", out / "whl", out / "start", out / "models") if p.is_dir() and p not in early]
    first = [[*loads[:1], *early]] if loads or early else []
    carried = [*first, *([p] for p in loads[1:])]
    return [
        *(("load", [*map(relative, paths)]) for paths in carried),
        ("start", [*map(relative, main)]),
        ("attach", []),
    ]


def show_sizes(root: Path, out: Path) -> bool:
    """Print what every call would send; whether all fit."""
    tree = tree_files(root)
    total = sum(tree.values())
    print(f"working tree: {total / MIB:.1f} MiB in {len(tree)} files; the largest:")
    for name, size in sorted(tree.items(), key=lambda item: -item[1])[:10]:
        print(f"  {size / MIB:6.2f}  {name}")
    fits = True
    for verb, carry in calls(root, out):
        sizes = [folder_bytes(root / name) for name in carry]
        whole = total + sum(sizes)
        named = ", ".join(f"{name} {size / MIB:.1f}" for name, size in zip(carry, sizes, strict=True)) or "nothing"
        print(f"{verb:6} {whole / MIB:5.1f} of {LIMIT / MIB:.0f} MiB   carry: {named}")
        if whole > LIMIT - MARGIN:
            fits = False
            print(f"       {(whole - LIMIT + MARGIN) / MIB:.1f} MiB too much: {advice(tree)}")
    return fits


def advice(tree: dict[str, int]) -> str:
    """What could be left out."""
    weights = sum(size for name, size in tree.items() if name.startswith(DENOISERS))
    judges = sum(size for name, size in tree.items() if name.startswith("src/impasto/models/judges"))
    ways = (
        [f"--stash (the denoisers of the bases, {weights / MIB:.1f} MiB; not needed to begin from scratch)"]
        if weights
        else []
    )
    ways += [f"--stash src/impasto/models/judges ({judges / MIB:.1f} MiB; scores are then made here)"] if judges else []
    return "; ".join([*ways, "pack again: the art world then goes in more loads"])


def stash(root: Path, paths: Sequence[str], side: Path = STASH) -> dict[str, Any]:
    """Move files out of the tree to `side`: copied, read back and compared before any is removed."""
    if (side / "stash.json").exists():
        raise KitError(f"{side} already holds a stash: --unstash first")
    files: list[Path] = []
    for name in paths:
        path = (root / name).resolve()
        if not path.exists() or not path.is_relative_to(root):
            raise KitError(f"{name} is not a file or folder of {root}")
        files += [path] if path.is_file() else [p for p in sorted(path.rglob("*")) if p.is_file()]
    if not files:
        raise KitError(f"there is nothing in {', '.join(paths)}")
    shutil.rmtree(side, ignore_errors=True)  # leavings of a stash that broke off before its record was written
    record: dict[str, Any] = {"root": str(root), "files": {}}
    for path in files:
        name = str(path.relative_to(root))
        digest = kit.sha256(path)
        copy = side / "files" / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, copy)
        with copy.open("rb") as file:
            os.fsync(file.fileno())
        if kit.sha256(copy) != digest or kit.sha256(path) != digest:
            raise KitError(f"{name} changed while it was copied: nothing was moved")
        record["files"][name] = digest
    kit.write_json(side / "stash.json", record)
    for name, digest in record["files"].items():
        if kit.sha256(root / name) != digest:
            raise KitError(f"{name} changed after it was copied: it was left in place; --unstash puts the others back")
        (root / name).unlink()
    return record


def unstash(root: Path, side: Path = STASH) -> dict[str, Any]:
    """Put the stashed files back. Refuses, before it touches anything, where other content stands in their place."""
    if not (side / "stash.json").exists():
        raise KitError(f"{side} holds no stash")
    record = json.loads((side / "stash.json").read_text())
    if record["root"] != str(root):
        raise KitError(f"this stash was taken from {record['root']}, not from {root}")
    for name, digest in record["files"].items():
        if (root / name).exists() and kit.sha256(root / name) != digest:
            raise KitError(f"{name} was made anew meanwhile: move one of the two away; the stashed one is in {side}")
        if not (root / name).exists() and kit.sha256(side / "files" / name) != digest:
            raise KitError(f"{side / 'files' / name} is damaged: get {name} from git (git checkout -- {name})")
    for name, digest in record["files"].items():
        if (root / name).exists():
            continue
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(side / "files" / name, root / name)
        if kit.sha256(root / name) != digest:
            raise KitError(f"{name} could not be written back whole; the stashed one is in {side}")
    shutil.rmtree(side)
    return record


def options(args: Sequence[str] | None = None) -> argparse.Namespace:
    """Flags."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--concepts", default="core_concepts", help="core_everywhere, core_concepts or all")
    parser.add_argument("--out", type=Path, default=ROOT / ".gpu")
    parser.add_argument("--world", type=Path, help="the art world's data file; by default that of the cache")
    parser.add_argument(
        "--from-ema", nargs="?", const="", metavar="STATE", help="begin from a checkpoint's EMA (default: mini-sd3's)"
    )
    parser.add_argument(
        "--bases", nargs="*", default=[], help="packaged bases to bring with the start; wheels then go before"
    )
    parser.add_argument("--checks", action="store_true", help="the wheels that checks.py needs as well")
    parser.add_argument("--sizes", action="store_true")
    parser.add_argument("--wheels", action="store_true", help="only the wheels: all that `bench` needs")
    parser.add_argument("--stash", nargs="*", metavar="PATH", help=f"default: {' '.join(DENOISERS)}")
    parser.add_argument("--unstash", action="store_true")
    return parser.parse_args(args)


def main(args: Sequence[str] | None = None) -> bool:
    """Whether everything fits."""
    o = options(args)
    if o.stash is not None:
        record = stash(ROOT, o.stash or [name for name in DENOISERS if (ROOT / name).exists()])
        print(f"moved {len(record['files'])} files to {STASH}; bring them back with --unstash")
        return show_sizes(ROOT, o.out)
    if o.unstash:
        record = unstash(ROOT)
        print(f"{len(record['files'])} files are back in place")
        subprocess.run(["git", "status", "--short", "--", *record["files"]], cwd=ROOT, check=True)
        return True
    if o.sizes:
        return show_sizes(ROOT, o.out)
    pack_wheels(o.out / "whl", ROOT / "constraints.txt", (*WHEELS, *(CHECK_WHEELS if o.checks else ())))
    pack_models(o.out / "models", o.bases)
    if o.wheels:
        tree = tree_files(ROOT)
        sent = sum(tree.values()) + folder_bytes(o.out / "whl")
        print(f"bench: {sent / MIB:.1f} of {LIMIT // MIB} MiB, carry {o.out / 'whl'}")
        if sent > LIMIT - MARGIN:
            print(f"       {(sent - LIMIT + MARGIN) / MIB:.1f} MiB too much: {advice(tree)}")
        return sent <= LIMIT - MARGIN
    shutil.rmtree(o.out / "start", ignore_errors=True)
    if o.from_ema is not None:
        from impasto.files import cache_dir

        print("start:", json.dumps(pack_start(o.out / "start", Path(o.from_ema or cache_dir("pretrain", "mini-sd3")))))
    from impasto.artworld import cache_dir as world_dir
    from impasto.artworld.world import DATA_NAME

    source = o.world or world_dir() / DATA_NAME
    if not source.is_file():
        raise KitError(f"{source} is missing: impasto artworld build")
    tree = sum(tree_files(ROOT).values())
    wheels, models = folder_bytes(o.out / "whl"), folder_bytes(o.out / "models")
    beside = tree + folder_bytes(o.out / "start") + (models or wheels)
    room = LIMIT - MARGIN - MIB // 2  # the data file's own index
    later = room - tree - (wheels if models else 0)
    folders = pack_world(o.out, o.concepts, source, room - beside, later)
    for folder in folders:
        note = kit.load_note(folder / kit.WORLD)
        print(f"{folder.name}: {note['pictures']} pictures, {folder_bytes(folder) / MIB:.1f} MiB")
    return show_sizes(ROOT, o.out)


if __name__ == "__main__":
    try:
        sys.exit(0 if main() else 1)
    except KitError as error:
        sys.exit(f"pack.py: {error}")
