"""Steps per second and peak memory of a LoRA training, side by side with diffusers' own script, in one run.

    python benchmarks/train_speed.py --peer train_dreambooth_lora_sd3.py --torchvision /tmp/torchvision

Every arm trains the same mini-sd3 on the same picture with the same batch, rank, layers (attention of both streams),
precision and threads, each in a process of its own, one after the other in turns (A B C D A B C D). Two pairs:

    impasto          `impasto train`, recipe style-friendly: one T5 token, 256 in one batch of twenty (the base's card)
    peer             the script as it comes: 77 T5 tokens, and the picture through the autoencoder at every step
    impasto, lean    one T5 token in all batches
    peer, lean       the same, and --cache_latents: the two do the same arithmetic

A round's rate is 1 over the median time between two ends of `Optimizer.step`; the first steps are left out (start-up,
warming up). `mean` counts every steady step instead, the rare long ones too (256 tokens, a saved state). Reported is
the median over rounds, by the clock and in CPU seconds: the first is what a user feels, the second is what can be
compared while other work shares the machine.
"""

import argparse
import datetime
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
WARM_UP = 3  # steps that are not counted
CAPTION_STYLE = "symbola"  # a secondary held-out style; what is drawn does not matter for speed
AGAINST = {"peer": "impasto", "peer, lean": "impasto, lean"}
ARMS = ("impasto", "peer", "impasto, lean", "peer, lean")
Row = dict[str, Any]


def gaps(ends: Sequence[float], warm_up: int = WARM_UP) -> list[float]:
    """Seconds between the ends of consecutive steps, those of the first `warm_up` left out. ValueError when too few."""
    if len(ends) < warm_up + 2:
        raise ValueError(f"{len(ends)} steps are too few: {warm_up} are warming up and two must remain")
    steady = ends[warm_up:]
    return [b - a for a, b in pairwise(steady)]


def round_row(result: Row, warm_up: int = WARM_UP) -> Row:
    """One round of one arm: rates in steps per second, by the clock and per CPU second, start-up and peak memory."""
    wall, cpu = gaps(result["step_ends"], warm_up), gaps(result["step_ends_cpu"], warm_up)
    row = {
        "steps": len(result["step_ends"]),
        "steps_per_s": 1 / statistics.median(wall),
        "mean_steps_per_s": len(wall) / sum(wall),
        "steps_per_cpu_s": 1 / statistics.median(cpu),
        "mean_steps_per_cpu_s": len(cpu) / sum(cpu),
        "first_step_s": result["step_ends"][0],
        "first_step_cpu_s": result["step_ends_cpu"][0],
        "memory_mb": result["memory_mb"],
    }
    return row | ({"device_mb": result["device_mb"]} if "device_mb" in result else {})


def summary(rounds: dict[str, list[Row]]) -> dict[str, Row]:
    """Per arm that ran the median over its rounds, and impasto's ratio to each peer arm (memory: its share of it)."""
    arms = {
        name: {key: statistics.median(row[key] for row in rows) for key in rows[0]}
        for name, rows in rounds.items()
        if rows
    }
    for name, ours in AGAINST.items():
        if name in arms and ours in arms:
            keys = [key for key in arms[name] if key.startswith(("steps_per", "mean_steps", "memory", "device"))]
            arms[name]["ratio"] = {key: arms[ours][key] / arms[name][key] for key in keys}
    return arms


def table(arms: dict[str, Row]) -> str:
    """Markdown."""
    lines = [
        "| | steps/s | per CPU s | mean per CPU s | first step, CPU s | peak memory, MB | impasto beside it |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in arms.items():
        memory = row.get("device_mb", row["memory_mb"])
        ratio = row.get("ratio")
        against = ""
        if ratio:
            against = f"{ratio['steps_per_cpu_s']:.2f}x (mean {ratio['mean_steps_per_cpu_s']:.2f}x), "
            against += f"memory {ratio.get('device_mb', ratio['memory_mb']):.2f}x"
        lines.append(
            f"| {name} | {row['steps_per_s']:.2f} | {row['steps_per_cpu_s']:.2f} | {row['mean_steps_per_cpu_s']:.2f} "
            f"| {row['first_step_cpu_s']:.1f} | {memory:.0f} | {against} |"
        )
    return "\n".join(lines)


def command(arm: str, o: argparse.Namespace, work: Path, base: Path, caption: str) -> list[str]:
    """What one arm runs. The peer's data set holds the picture `batch` times: its loader makes no larger batch."""
    picture, out = work / "pictures" / "reference.png", work / arm.replace(", ", "-")
    if arm.startswith("impasto"):
        flags = {
            "base": lean_base(base, work) if arm.endswith("lean") else base,
            "recipe": "style-friendly",
            "image": picture,
            "caption": caption,
            "out": out,
        }
        flags |= {"rank": o.rank, "steps": o.steps, "batch": o.batch, "accumulate": 1, "size": o.resolution}
        flags |= {"seed": o.seed, "precision": "bf16" if o.precision == "bf16" else "fp32"}
        return ["impasto", "train", *spelled(flags, "-"), "--no-preview"]
    flags = {"pretrained_model_name_or_path": base, "instance_data_dir": picture.parent, "instance_prompt": caption}
    flags |= {"output_dir": out, "rank": o.rank, "max_train_steps": o.steps, "train_batch_size": o.batch}
    flags |= {"repeats": o.batch, "resolution": o.resolution, "seed": o.seed}
    flags |= {"mixed_precision": "bf16" if o.precision == "bf16" else "no", "checkpointing_steps": 50}
    lean = ["--max_sequence_length", "1", "--cache_latents"] if arm == "peer, lean" else []
    return [str(o.peer.resolve()), *spelled(flags, "_"), *lean]


def lean_base(base: Path, work: Path) -> Path:
    """The same base with a card of its own: one T5 token in every batch."""
    folder = work / "lean-base"
    if not folder.is_dir():
        shutil.copytree(base.resolve(), folder, copy_function=os.symlink)  # files are links, folders are not
        card = json.loads((base / "impasto.json").read_text())
        (folder / "impasto.json").unlink()
        (folder / "impasto.json").write_text(json.dumps(card | {"text_lengths": {"1": 1.0}}))
    return folder


def spelled(flags: dict[str, Any], joint: str) -> list[str]:
    """{"a_b": 1} -> ["--a_b", "1"], or "--a-b"."""
    return [part for key, value in flags.items() for part in ("--" + key.replace("_", joint), str(value))]


def execute(arguments: Sequence[str], out: Path, torchvision: Path | None, threads: int) -> Row:
    """Run a command through runner.py in a process of its own; returns what it noted. RuntimeError when it failed."""
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    extra = ["--torchvision", str(torchvision)] if torchvision else []
    whole = [sys.executable, str(HERE / "runner.py"), str(out), *extra, "--", *arguments]
    done = subprocess.run(whole, env=environment, capture_output=True, text=True, check=False)
    if done.returncode or not out.is_file():
        raise RuntimeError(
            f"{' '.join(arguments)}\nended with {done.returncode}:\n{done.stdout[-2000:]}{done.stderr[-4000:]}"
        )
    return json.loads(out.read_text())


def write_reference(work: Path, style: str, concept: str | None = None, prompts: int = 1) -> Any:
    """Put the reference picture of a held-out style into `work`/pictures; returns the demo's plan of that style."""
    from impasto.demo import make_plan
    from impasto.evaluation.truth import true_pictures

    plan = make_plan(work, style, concept, "mini-sd3", 0, prompts)
    (work / "pictures").mkdir(parents=True, exist_ok=True)
    true_pictures(plan.style, [plan.concept])[plan.concept].save(work / "pictures" / "reference.png")
    return plan


def about(o: argparse.Namespace) -> Row:
    """Date, machine, versions, settings."""
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=HERE, capture_output=True, text=True, check=False)
    packages = ("torch", "diffusers", "transformers", "peft", "accelerate")
    settings = {key: str(value) if isinstance(value, Path) else value for key, value in vars(o).items()}
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {cpu_name()}",
        "commit": commit.stdout.strip(),
        "load": os.getloadavg(),
        "versions": {name: version(name) for name in packages},
        "settings": settings,
    }


def cpu_name() -> str:
    """As /proc/cpuinfo has it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.processor())


def add_common(parser: argparse.ArgumentParser) -> None:
    """Flags that both benchmarks have."""
    parser.add_argument("--peer", type=Path, required=True, help="diffusers' train_dreambooth_lora_sd3.py")
    parser.add_argument("--torchvision", type=Path, help="folder of torchvision where the Python in use has none")
    parser.add_argument("--threads", type=int, default=1, help="OMP_NUM_THREADS of every arm")
    parser.add_argument("--resolution", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="JSON; a Markdown table is written beside it")


def write(out: Path | None, result: Row, text: str) -> None:
    """JSON, and Markdown beside it, when asked for."""
    from impasto.files import atomic

    if out:
        with atomic(out) as file:
            file.write_text(json.dumps(result, indent=1) + "\n")
        with atomic(out.with_suffix(".md")) as file:
            file.write_text(text + "\n")


def options(args: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_common(parser)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    o = parser.parse_args(args)
    if o.steps < WARM_UP + 2:
        parser.error(f"--steps must be at least {WARM_UP + 2}")
    if not o.peer.is_file():
        parser.error(f"--peer: there is no {o.peer}")
    return o


def main(args: Sequence[str] | None = None) -> dict[str, Row]:
    o = options(args)
    from impasto.bases.embedded import ensure

    base = ensure("mini-sd3")
    rounds: dict[str, list[Row]] = {arm: [] for arm in o.arms}
    arms: dict[str, Row] = {}
    told = about(o)
    with tempfile.TemporaryDirectory() as folder:
        plan = write_reference(Path(folder), CAPTION_STYLE)
        for i in range(o.rounds):
            for arm in o.arms:
                work = Path(folder) / f"round-{i}"
                work.mkdir(exist_ok=True)
                if not (work / "pictures").exists():
                    (work / "pictures").symlink_to(Path(folder) / "pictures")
                arguments = command(arm, o, work, base, plan.prompt(plan.concept))
                result = execute(arguments, work / f"{arm}.json", o.torchvision if arm in AGAINST else None, o.threads)
                rounds[arm].append(round_row(result))
                said = {key: round(value, 3) for key, value in rounds[arm][-1].items()}
                print(f"round {i + 1}, {arm}: {said}", file=sys.stderr, flush=True)
                arms = summary(rounds)
                write(o.out, {"about": told, "arms": arms, "rounds": rounds}, table(arms))
    print(table(arms))
    return arms


if __name__ == "__main__":
    main()
