"""impasto's own commands on a real CUDA device: what a machine without one cannot run.

    python checks.py mini --out checks.json                  # the embedded bases, each command compared with the CPU's
    python checks.py make-flux --folder /dev/shm/flux        # FLUX.1-dev's sizes, random bf16 weights, and a style
    python checks.py flux --folder /dev/shm/flux --out ...   # train and generate with it, on 80 GB and with 24 GB free

A card of 24 GB is stood in for by a process that holds the rest of the memory. Every line says what was run, how long
it took and what came of it; the JSON has it all, losses included. Nothing here passes or fails: a person reads it.
"""

import argparse
import itertools
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from impasto.families import files

Row = dict[str, Any]
MAIN = "from impasto.cli.main import main; main()"
GB = 1e9


def used_memory() -> float | None:
    """What nvidia-smi says is used of the device, in GB."""
    if not shutil.which("nvidia-smi"):
        return None
    ask = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    done = subprocess.run(ask, capture_output=True, text=True)
    return float(done.stdout.split()[0]) * 2**20 / GB if done.returncode == 0 else None


def impasto(name: str, *args: str, limit: float = 150.0, watch: Path | None = None) -> Row:
    """Run an impasto command; its JSON, its exit code, and the end of what it said.

    watch: a run's folder, whose steps' seconds (the median, the first two left out) and the device's peak are told.
    """
    begun = time.monotonic()
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", MAIN, *args, "--json"]
    before, peak, seen, times = used_memory(), 0.0, 0, []
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(command, stdout=out, stderr=said, text=True)
        looked = begun
        while process.poll() is None:
            if time.monotonic() - begun > limit:
                process.kill()
            if watch and (n := len(losses(watch))) > seen:
                seen = n
                times.append(time.monotonic())
            if watch and before is not None and time.monotonic() - looked > 0.5:
                peak, looked = max(peak, (used_memory() or 0.0) - before), time.monotonic()
            time.sleep(0.01 if watch else 0.1)
        row: Row = {"check": name, "command": " ".join(args), "rc": process.returncode}
        row["took"] = round(time.monotonic() - begun, 1)
        out.seek(0)
        said.seek(0)
        try:
            row["json"] = json.loads(out.read().strip().splitlines()[-1])
        except (ValueError, IndexError):
            row["json"] = None
        row["said"] = said.read()[-1500:]
    mine = losses(Path(args[args.index("--out") + 1])) if args[0] == "train" else []
    end = row["said"].strip().splitlines()[-2:] if row["rc"] else []
    print(f"  {name} rc {row['rc']} {row['took']} s", [round(x, 4) for x in mine[:6]], *end, flush=True)
    if watch:
        steps = [b - a for a, b in itertools.pairwise(times)][1:]
        row |= {"step": round(statistics.median(steps), 3) if steps else None, "peak": round(peak, 1)}
        row |= {"loading": round(times[0] - begun, 1) if times else None}
    return row


def losses(folder: Path) -> list[float]:
    """The loss column of a run."""
    file = folder / "metrics.jsonl"
    if not file.exists():
        return []
    return [row["loss"] for row in map(json.loads, file.read_text().splitlines()) if "loss" in row]


def away(here: Sequence[float], there: Sequence[float]) -> float | None:
    """The largest relative difference of two loss columns; None where they are not as long."""
    if len(here) != len(there) or not here:
        return None
    return round(max(abs(a - b) / abs(b) for a, b in zip(here, there, strict=True)), 6)


def picture(path: Path, size: int = 128) -> Path:
    """A reference: a red disc with a rim."""
    from PIL import Image, ImageDraw

    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", (size, size), "white")
    box = (size // 6, size // 6, size - size // 6, size - size // 6)
    ImageDraw.Draw(image).ellipse(box, fill=(200, 40, 40), outline=(20, 20, 60), width=max(2, size // 20))
    image.save(path)
    return path


def difference(here: Path, there: Path) -> float | None:
    """Mean absolute difference of the pictures of two folders, in 255ths."""
    import numpy as np
    from PIL import Image

    names = sorted(p.name for p in there.glob("[0-9]*.png")) if there.is_dir() else []
    if not names or any(not (here / name).exists() for name in names):
        return None
    pairs = [[np.asarray(Image.open(f / name).convert("RGB"), float) for f in (here, there)] for name in names]
    return round(float(np.mean([np.abs(a - b).mean() for a, b in pairs])), 3)


def at_once(workers: int, jobs: Sequence[tuple[str, str, tuple[str, ...]]]) -> list[Row]:
    """The rows of (base, name, arguments), so many commands at a time."""
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(lambda job: impasto(f"{job[0]} {job[2][0]} {job[1]}", *job[2]), jobs))


def mini(o: argparse.Namespace, say: Any) -> None:
    """Both embedded bases: training and drawing in every way that needs a GPU, `--jobs` commands at a time."""
    work = o.work / "mini"
    reference = str(picture(work / "ref.png"))
    caption = "a ball, pixel art drawing"
    base_flags = ("--image", reference, "--caption", caption, "--steps", "6", "--batch", "4", "--no-preview",
                  "--no-tensorboard", "--checkpoint-every", "3")  # fmt: skip
    fp32 = ("--precision", "fp32")
    ways: list[tuple[str, tuple[str, ...]]] = [
        ("cpu", ("--device", "cpu", *fp32)),
        ("fp32", fp32),
        ("bf16", ()),
        ("offload", (*fp32, "--offload", "on")),
        ("checkpointing", (*fp32, "--checkpointing", "1")),
        ("compile", (*fp32, "--compile", "on")),
        ("dco", (*fp32, "--objective", "dco", "--objective.beta", "1000")),
        ("prior", (*fp32, "--prior.weight", "1")),
        ("text-encoder", (*fp32, "--text lora")),
        ("int8", ("--quantize", "int8")),
        ("fp8", ("--quantize", "fp8")),
        ("nf4", ("--quantize", "nf4")),
        ("adamw8bit", (*fp32, "--optimizer", "adamw8bit")),
        ("muon", (*fp32, "--optimizer", "muon")),
    ]
    jobs = [(b, n, ("train", "--base", b, *base_flags, *f, "--out", str(work / f"{b}-{n}")))
            for b in o.bases for n, f in ways]  # fmt: skip
    for (base, name, _), row in zip(jobs, at_once(o.jobs, jobs), strict=True):
        mine = losses(work / f"{base}-{name}")
        say(row | {"losses": mine, "from cpu": away(mine, losses(work / f"{base}-cpu"))})
    draws: list[tuple[str, tuple[str, ...]]] = [
        ("cpu", ("--device", "cpu")),
        ("cuda", ()),
        ("int8", ("--quantize", "int8")),
        ("nf4", ("--quantize", "nf4")),
        ("switch", ("--switch-at", "-2", "--switch-to", "a ball")),
    ]
    jobs = [(b, n, ("generate", "--base", b, "--style", str(work / f"{b}-fp32"), "--prompt", "a cat, pixel art",
                    "--count", "2", "--seed", "3", *f, "--out", str(work / f"{b}-draw-{n}")))
            for b in o.bases for n, f in draws]  # fmt: skip
    for (base, name, _), row in zip(jobs, at_once(o.jobs, jobs), strict=True):
        say(row | {"from cpu": difference(work / f"{base}-draw-{name}", work / f"{base}-draw-cpu")})
    for base in o.bases:  # the other ways in which a pipeline lies on a device, forced: a mini base always fits
        say(spread_ways(base, work / f"{base}-fp32"))


def spread_ways(base: str, style: Path) -> Row:
    """The same picture whole, part by part and layer by layer: largest difference to "whole", in 255ths."""
    code = f"""
import json, sys
from pathlib import Path
import numpy as np
from PIL import Image
from impasto import devices
from impasto.cli.main import main
out = {{}}
for how in ("whole", "by part", "by layer"):
    devices.inference_placement = lambda parts, pixels, free, how=how: how
    folder = Path({str(style)!r}).parent / f"{base}-{{how.replace(' ', '-')}}"
    sys.argv = ["impasto", "generate", "--base", {base!r}, "--style", {str(style)!r}, "--prompt", "a cat, pixel art",
                "--seed", "3", "--out", str(folder), "--json"]
    try:
        main()
    except SystemExit as stop:
        out[how] = f"exit {{stop.code}}"
pictures = {{}}
for how in ("whole", "by part", "by layer"):
    file = Path({str(style)!r}).parent / f"{base}-{{how.replace(' ', '-')}}" / "0000.png"
    pictures[how] = np.asarray(Image.open(file).convert("RGB"), float) if file.exists() else None
for how, value in pictures.items():
    if value is not None:
        out[how] = float(np.abs(value - pictures["whole"]).max())
print(json.dumps(out))
"""
    begun = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=200)
    last = (done.stdout.strip().splitlines() or ["null"])[-1]
    return {"check": f"{base} generate, spread", "rc": done.returncode, "took": round(time.monotonic() - begun, 1),
            "json": json.loads(last) if done.returncode == 0 else None, "said": done.stderr[-1500:]}  # fmt: skip


def random_weights(shape: Sequence[int], name: str, block: Any, shift: int) -> Any:
    """Weights of a layer out of one random block, repeated from `shift` on: drawing 12e9 numbers takes a minute. As
    small as a layer's usually are at first; norms are ones."""
    import torch

    if len(shape) == 1 and name.endswith("weight"):
        return torch.ones(shape, dtype=block.dtype, device=block.device)
    inputs = math.prod(shape[1:]) if len(shape) > 1 else 2500
    own = (block * inputs**-0.5).roll(-shift % len(block))
    flat = torch.empty(math.prod(shape), dtype=block.dtype, device=block.device)
    whole = len(flat) // len(block) * len(block)
    flat[:whole].view(-1, len(block)).copy_(own.expand(whole // len(block), -1))
    flat[whole:] = own[: len(flat) - whole]
    return flat.view(*shape)


def fill(model: Any, block: Any) -> None:
    """Give a model that lies on the meta device `random_weights`, each parameter from another place of the block on."""
    import torch

    for i, (name, old) in enumerate(list(model.named_parameters())):
        owner, _, own = name.rpartition(".")
        new = random_weights(old.shape, name, block, 7919 * i)
        setattr(model.get_submodule(owner), own, torch.nn.Parameter(new, requires_grad=False))
    if hasattr(model, "tie_weights"):
        model.tie_weights()


def make_style(folder: Path, transformer: Any, block: Any) -> None:
    """A style beside the base, on every to_q: what is drawn with, also where nothing was trained."""
    from impasto.styles.weights import WEIGHTS, write_tensors

    tensors = {}
    for i, (name, layer) in enumerate(transformer.named_modules()):
        if name.endswith("attn.to_q"):
            for half, shape in (("A", (4, layer.in_features)), ("B", (layer.out_features, 4))):
                tensors[f"transformer.{name}.lora_{half}.weight"] = random_weights(shape, "", block, 104729 * i).cpu()
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(folder / WEIGHTS, tensors, {})


def make_flux(o: argparse.Namespace) -> None:
    """A FLUX.1-dev folder of random bf16 weights: the sizes of `bases/configs/flux-dev`, but for a T5 of four layers
    (it only takes time to write), and small tokenisers; a style beside it. Its hash is taken here, as every command
    asks for it. "made" is written last."""
    import diffusers
    import torch
    import transformers
    from accelerate import init_empty_weights

    import impasto.bases as bases

    sys.path.insert(0, str(o.tests))
    import tiny

    configs = Path(bases.__file__).parent / "configs" / "flux-dev"
    begun = time.monotonic()
    shutil.rmtree(o.folder, ignore_errors=True)
    shutil.copytree(configs, o.folder)
    shutil.rmtree(style := style_of(o.folder), ignore_errors=True)
    block = torch.randn(1_000_003, generator=torch.Generator().manual_seed(0)).to(o.device, torch.bfloat16)
    index = json.loads((configs / "model_index.json").read_text())
    for part in ("text_encoder", "vae", "text_encoder_2", "transformer"):
        settings = json.loads((configs / part / "config.json").read_text())
        settings |= {"num_layers": 4} if part == "text_encoder_2" else {}
        settings |= LITTLE.get(part, {}) if o.little else {}
        library = {"diffusers": diffusers, "transformers": transformers}[index[part][0]]
        kind = getattr(library, index[part][1])
        with init_empty_weights():
            if index[part][0] == "diffusers":
                model: Any = kind.from_config(settings)
            else:
                model = kind(kind.config_class.from_dict(settings))
        fill(model, block)
        model.save_pretrained(o.folder / part)
        if part == "transformer":
            make_style(style, model, block)
        print(f"{part}: {sum(p.numel() for p in model.parameters()) / 1e9:.2f}e9, {time.monotonic() - begun:.0f} s",
              flush=True)  # fmt: skip
        del model
        if o.device != "cpu":
            torch.cuda.empty_cache()
    tiny.clip_tokenizer(77).save_pretrained(o.folder / "tokenizer")
    words = tiny.t5_tokenizer()
    words.model_max_length = 512
    words.save_pretrained(o.folder / "tokenizer_2")
    files.folder_hash(o.folder)
    (o.folder / "made").write_text("")
    print(f"made, {time.monotonic() - begun:.0f} s", flush=True)


def style_of(base: Path) -> Path:
    """The folder of the style that `make_flux` writes beside a base."""
    return base.with_name(f"{base.name}-style")


LITTLE = {
    "transformer": {"num_layers": 2, "num_single_layers": 2, "attention_head_dim": 128, "num_attention_heads": 2},
    "text_encoder_2": {"num_layers": 2, "d_ff": 64},
}


@contextmanager
def free_memory(gb: float | None) -> Iterator[float]:
    """A process beside that holds all but `gb` of the device's memory; yields what is free, in GB."""
    if gb is None:
        yield 0.0
        return
    code = f"""
import sys, torch
free, total = torch.cuda.mem_get_info()
held = torch.empty(int(max(0, free - {gb} * 1e9)), dtype=torch.uint8, device="cuda")
print(torch.cuda.mem_get_info()[0] / 1e9, flush=True)
sys.stdin.read()
"""
    hog = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield float((hog.stdout or sys.stdin).readline())
    finally:
        hog.communicate()


def flux(o: argparse.Namespace, say: Any) -> None:
    """The commands of a user with FLUX.1-dev, as `--what` lists them."""
    work = o.work / "flux"
    reference = str(picture(work / "ref.png", o.size))
    train = ("train", "--base", str(o.folder), "--image", reference, "--caption", "a rocket in neon style",
             "--size", str(o.size), "--steps", str(o.steps), "--no-preview", "--no-tensorboard")  # fmt: skip
    generate = ("generate", "--base", str(o.folder), "--style", str(style_of(o.folder)), "--prompt", "a neon cat",
                "--steps", "4", "--size", str(o.size), "--seed", "1")  # fmt: skip
    known: dict[str, tuple[float | None, tuple[str, ...]]] = {
        "auto": (None, (*train, "--out", str(work / "auto"))),
        "auto-24": (24.0, (*train, "--out", str(work / "auto-24"))),
        "nf4-24": (24.0, (*train, "--quantize", "nf4", "--out", str(work / "nf4-24"))),
        "offload-24": (24.0, (*train, "--offload", "on", "--out", str(work / "offload-24"))),
        "generate": (None, (*generate, "--out", str(work / "whole"))),
        "generate-part": (30.0, (*generate, "--out", str(work / "part"))),
        "generate-layer": (16.0, (*generate, "--out", str(work / "layer"))),
        "generate-int8": (24.0, (*generate, "--quantize", "int8", "--out", str(work / "int8"))),
    }
    end = time.monotonic() + o.seconds
    if not (o.folder / "made").is_file():
        say({"check": "flux", "rc": None, "said": f"{o.folder} is not made (yet): make-flux, and its log"})
        return
    for name in o.what:
        gb, args = known[name]
        if (left := end - time.monotonic()) < 20:
            say({"check": f"flux {name}", "rc": None, "said": "no time left"})
            continue
        with free_memory(gb) as free:
            folder = work / name if args[0] == "train" else None
            left = end - time.monotonic()  # holding the memory took some
            row = impasto(f"flux {name}", *args, limit=min(left, o.limit), watch=folder)
        if folder:
            row |= {"losses": losses(folder)}
        else:
            row |= {"from whole": difference(Path(args[-1]), work / "whole")}
        say(row | {"free": round(free, 1)})


def main() -> None:
    """Run what was asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=("mini", "make-flux", "flux"))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--work", type=Path, default=Path("/tmp/impasto-checks"))
    parser.add_argument("--bases", nargs="+", default=["mini-sd3", "mini-sd15"])
    parser.add_argument("--jobs", type=int, default=4)
    parser.add_argument("--folder", type=Path, default=Path("/dev/shm/flux"))
    parser.add_argument("--tests", type=Path, default=Path(__file__).resolve().parents[2] / "tests")
    parser.add_argument("--little", action="store_true", help="make-flux: two layers, to try it")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=200.0, help="flux: for all of its commands")
    parser.add_argument("--limit", type=float, default=90.0, help="seconds for one command")
    parser.add_argument("--what", nargs="+", default=["generate", "generate-part", "generate-int8", "auto", "auto-24",
                                                      "offload-24", "nf4-24", "generate-layer"])  # fmt: skip
    o = parser.parse_args()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    rows: list[Row] = json.loads(o.out.read_text()) if o.out and o.out.is_file() else []  # an earlier check's

    def say(row: Row) -> None:
        rows.append(row)
        known = {k: row[k] for k in ("from cpu", "from whole", "free", "step", "peak", "loading") if k in row}
        print(f"{row['check']:32} rc {row['rc']} {row.get('took', 0):6.1f} s {known}", flush=True)
        if row.get("json") and "running" in row["json"]:
            print(f"    {row['json']['running']}", flush=True)
        if row["rc"] != 0:
            print("    " + "\n    ".join(row["said"].strip().splitlines()[-4:]), flush=True)
        if o.out:
            o.out.parent.mkdir(parents=True, exist_ok=True)
            o.out.write_text(json.dumps(rows, indent=1))

    if o.verb == "make-flux":
        make_flux(o)
    else:
        {"mini": mini, "flux": flux}[o.verb](o, say)


if __name__ == "__main__":
    main()
