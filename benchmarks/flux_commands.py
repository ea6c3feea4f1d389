"""impasto's own commands on a base of FLUX.1-dev's size with random weights, on CUDA: seconds, memory, images.

    python benchmarks/flux_commands.py make --folder /dev/shm/flux  # 27 GB: FLUX.1-dev's sizes in bf16, and a style
    python benchmarks/flux_commands.py run --folder /dev/shm/flux --out flux.json

A GPU of 24 GB is simulated by a process that holds the rest of the memory. Each row is one command: exit code, seconds,
median seconds per step, peak memory in GB, losses or the difference to the images of the whole pipeline (mean, of 255).
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
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw

from impasto.bases import cards
from impasto.families.files import folder_hash
from impasto.styles.weights import WEIGHTS, write_tensors

Row = dict[str, Any]
MAIN = "from impasto.cli.main import main; main()"
SMALL = {  # --small: to try it
    "transformer": {"num_layers": 2, "num_single_layers": 2, "attention_head_dim": 128, "num_attention_heads": 2},
    "text_encoder_2": {"num_layers": 2, "d_ff": 64},
}
RUNS: dict[str, tuple[float | None, str, tuple[str, ...]]] = {  # name: (free memory in GB or all, command, flags)
    "generate": (None, "generate", ()),
    "generate-part": (30.0, "generate", ()),
    "generate-int8": (24.0, "generate", ("--quantize", "int8")),
    "auto": (None, "train", ()),
    "auto-24": (24.0, "train", ()),
    "offload-24": (24.0, "train", ("--offload", "on")),
    "nf4-24": (24.0, "train", ("--quantize", "nf4")),
    "generate-layer": (16.0, "generate", ()),
}


def random_weights(shape: Sequence[int], name: str, block: torch.Tensor, shift: int) -> torch.Tensor:
    """N(0, 1 / inputs) out of one random block [n], repeated from `shift` on (12e9 numbers would take a minute to
    draw); norms are ones."""
    if len(shape) == 1 and name.endswith("weight"):
        return torch.ones(shape, dtype=block.dtype, device=block.device)
    inputs = math.prod(shape[1:]) if len(shape) > 1 else 2500
    own = (block * inputs**-0.5).roll(-shift % len(block))
    flat = torch.empty(math.prod(shape), dtype=block.dtype, device=block.device)
    whole = len(flat) // len(block) * len(block)
    flat[:whole].view(-1, len(block)).copy_(own.expand(whole // len(block), -1))
    flat[whole:] = own[: len(flat) - whole]
    return flat.view(*shape)


def fill(model: Any, block: torch.Tensor) -> None:
    """Replace the parameters of a model on the meta device by `random_weights`, each with a shift of its own."""
    for i, (name, old) in enumerate(list(model.named_parameters())):
        owner, _, own = name.rpartition(".")
        new = random_weights(old.shape, name, block, 7919 * i)
        setattr(model.get_submodule(owner), own, torch.nn.Parameter(new, requires_grad=False))
    if hasattr(model, "tie_weights"):
        model.tie_weights()


def style_of(base: Path) -> Path:
    """The folder of the style that `make_flux` writes beside a base."""
    return base.with_name(f"{base.name}-style")


def make_style(folder: Path, transformer: Any, block: torch.Tensor) -> None:
    """Write a LoRA of rank 4 on every to_q."""
    tensors = {}
    for i, (name, layer) in enumerate(transformer.named_modules()):
        if name.endswith("attn.to_q"):
            for half, shape in (("A", (4, layer.in_features)), ("B", (layer.out_features, 4))):
                tensors[f"transformer.{name}.lora_{half}.weight"] = random_weights(shape, "", block, 104729 * i).cpu()
    folder.mkdir(parents=True)
    write_tensors(folder / WEIGHTS, tensors, {})


def make_flux(folder: Path, device: str, small: bool = False) -> None:
    """Write a FLUX.1-dev folder of random bf16 weights, and a style beside it.

    Sizes are those of `bases/configs/flux-dev`, but for a T5 of four layers (it only takes time to write) and small
    tokenisers. Its hash is taken here, as every command asks for it. The file "made" is written last.
    """
    import diffusers
    import transformers
    from accelerate import init_empty_weights

    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
    import tiny

    configs, begun = Path(cards.__file__).parent / "configs" / "flux-dev", time.monotonic()
    for old in (folder, style_of(folder)):
        shutil.rmtree(old, ignore_errors=True)
    shutil.copytree(configs, folder)
    block = torch.randn(1_000_003, generator=torch.Generator().manual_seed(0)).to(device, torch.bfloat16)
    index = json.loads((configs / "model_index.json").read_text())
    for part in ("text_encoder", "vae", "text_encoder_2", "transformer"):
        settings = json.loads((configs / part / "config.json").read_text())
        settings |= {"num_layers": 4} if part == "text_encoder_2" else {}
        settings |= SMALL.get(part, {}) if small else {}
        library, kind = {"diffusers": diffusers, "transformers": transformers}[index[part][0]], index[part][1]
        with init_empty_weights():
            cls = getattr(library, kind)
            model: Any = (
                cls.from_config(settings) if library is diffusers else cls(cls.config_class.from_dict(settings))
            )
        fill(model, block)
        model.save_pretrained(folder / part)
        if part == "transformer":
            make_style(style_of(folder), model, block)
        count = sum(p.numel() for p in model.parameters())
        print(f"{part}: {count / 1e9:.2f}e9 parameters, {time.monotonic() - begun:.0f} s", flush=True)
    tiny.clip_tokenizer(77).save_pretrained(folder / "tokenizer")
    words = tiny.t5_tokenizer()
    words.model_max_length = 512
    words.save_pretrained(folder / "tokenizer_2")
    folder_hash(folder)
    (folder / "made").write_text("")


def used_memory() -> float | None:
    """Memory in use on the device by nvidia-smi, in GB."""
    if not shutil.which("nvidia-smi"):
        return None
    query = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    done = subprocess.run(query, capture_output=True, text=True)
    return float(done.stdout.split()[0]) * 2**20 / 1e9 if done.returncode == 0 else None


@contextmanager
def free_memory(gb: float | None) -> Iterator[float | None]:
    """Hold all but `gb` GB of the device's memory in another process; yields what is free, in GB."""
    if gb is None:
        yield None
        return
    code = f"""
import sys, torch
free, total = torch.cuda.mem_get_info()
held = torch.empty(int(max(0, free - {gb} * 1e9)), dtype=torch.uint8, device="cuda")
print(torch.cuda.mem_get_info()[0] / 1e9, flush=True)
sys.stdin.read()
"""
    holder = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout
        yield round(float(holder.stdout.readline()), 1)
    finally:
        holder.communicate()


def losses(run: Path) -> list[float]:
    """The loss column of a run's metrics.jsonl."""
    file = run / "metrics.jsonl"
    rows = map(json.loads, file.read_text().splitlines()) if file.exists() else ()
    return [row["loss"] for row in rows if "loss" in row]


def difference(here: Path, there: Path) -> float | None:
    """Mean absolute difference of the images of two folders, of 255; None where `here` lacks one of them."""
    names = sorted(p.name for p in there.glob("[0-9]*.png"))
    if not names or any(not (here / name).exists() for name in names):
        return None
    pairs = [[np.asarray(Image.open(f / name).convert("RGB"), float) for f in (here, there)] for name in names]
    return round(float(np.mean([np.abs(a - b).mean() for a, b in pairs])), 3)


def measure(args: Sequence[str], out: Path, limit: float) -> Row:
    """Run an impasto command: exit code, seconds, the end of stderr; of a training its losses, the median seconds of
    its steps (the first left out) and the device's peak memory in GB."""
    begun, before, peak, ends, looked = time.monotonic(), used_memory(), 0.0, [], 0.0
    with tempfile.TemporaryFile("w+") as stdout, tempfile.TemporaryFile("w+") as stderr:
        process = subprocess.Popen([sys.executable, "-c", MAIN, *args, "--json"], stdout=stdout, stderr=stderr)
        while process.poll() is None:
            if time.monotonic() - begun > limit:
                process.kill()
            if len(losses(out)) > len(ends):
                ends.append(time.monotonic())
            if before is not None and time.monotonic() - looked > 0.5:
                peak, looked = max(peak, (used_memory() or 0.0) - before), time.monotonic()
            time.sleep(0.01)
        stderr.seek(0)
        row: Row = {"command": " ".join(args), "rc": process.returncode, "stderr": stderr.read()[-1500:]}
    row |= {"seconds": round(time.monotonic() - begun, 1), "peak_gb": round(peak, 1)}
    if ends:
        steps = [b - a for a, b in itertools.pairwise(ends)][1:]
        row |= {"losses": losses(out), "first_step": round(ends[0] - begun, 1)}
        row |= {"step": round(statistics.median(steps), 3) if steps else None}
    return row


def run(o: argparse.Namespace, done: Callable[[Row], None]) -> None:
    """Run the commands that `--what` names, in this order; `done` is called with each row."""
    reference = o.work / "ref.png"
    o.work.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", (o.size, o.size), "white")
    box = (o.size // 6, o.size // 6, o.size - o.size // 6, o.size - o.size // 6)
    ImageDraw.Draw(image).ellipse(box, fill=(200, 40, 40), outline=(20, 20, 60), width=max(2, o.size // 20))
    image.save(reference)
    flags = {
        "train": ("--image", str(reference), "--caption", "a rocket in neon style", "--steps", str(o.steps),
                  "--no-preview", "--no-tensorboard"),
        "generate": ("--style", str(style_of(o.folder)), "--prompt", "a neon cat", "--steps", "4", "--seed", "1"),
    }  # fmt: skip
    end = time.monotonic() + o.seconds
    for name in o.what:
        gb, verb, own = RUNS[name]
        out, row = o.work / name, {"name": name}
        with free_memory(gb) as free:
            if (left := end - time.monotonic()) < 20:
                done(row | {"rc": None, "stderr": "no time left"})
                continue
            args = (verb, "--base", str(o.folder), "--size", str(o.size), *flags[verb], *own, "--out", str(out))
            row |= measure(args, out, min(left, o.limit)) | {"free_gb": free}
        done(row | ({"from_whole": difference(out, o.work / "generate")} if verb == "generate" else {}))


def main(args: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=("make", "run"))
    parser.add_argument("--folder", type=Path, default=Path("/dev/shm/flux"))
    parser.add_argument("--device", default="cpu", help="make: where the weights are made")
    parser.add_argument("--small", action="store_true", help="make: two layers")
    parser.add_argument("--out", type=Path, help="run: JSON; the rows of an earlier call are kept")
    parser.add_argument("--work", type=Path, default=Path("/tmp/flux-commands"))
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=600.0, help="of all commands")
    parser.add_argument("--limit", type=float, default=90.0, help="of one command")
    parser.add_argument("--what", nargs="+", choices=RUNS, default=list(RUNS))
    o = parser.parse_args(args)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if o.verb == "make":
        return make_flux(o.folder, o.device, o.small)
    if not (o.folder / "made").is_file():
        sys.exit(f"{o.folder} is not complete: flux_commands.py make --folder {o.folder}")
    rows: list[Row] = json.loads(o.out.read_text()) if o.out and o.out.is_file() else []

    def done(row: Row) -> None:
        rows.append(row)
        print({k: v for k, v in row.items() if k not in ("command", "stderr")}, flush=True)
        if row["rc"] != 0:
            print("    " + "\n    ".join(row["stderr"].strip().splitlines()[-4:]), flush=True)
        if o.out:
            o.out.parent.mkdir(parents=True, exist_ok=True)
            o.out.write_text(json.dumps(rows, indent=1))

    return run(o, done)


if __name__ == "__main__":
    main()
