"""Time to style: seconds of training until the judged style is first at 90 % of the best that either run ever reaches.

    python benchmarks/time_to_style.py --peer train_dreambooth_lora_sd3.py --torchvision /tmp/torchvision --out X.json

impasto runs the recipe style-friendly with the settings of the base's card; the peer is diffusers' script with its own
defaults (learning rate, rank, batch, noise law, weight decay): only picture, prompt, 128 pixels, seed and the number of
steps are set, which it has no useful default for (500, as in its README). There is one reference picture; the peer's
loader makes a batch of one from it, whatever its batch size.

Both save their adapter every so many steps. Of every snapshot, pictures of evaluation concepts are drawn by
`impasto.generation.generate` (same seeds and prompts) and judged by the style judge, as `impasto evaluate` does; that
time does not count. A snapshot's seconds are those between the start of the first step and the end of its own, saving
what came before it included; the start-up (imports, loading, encoding) is reported apart, and so are CPU seconds, which
other work on the machine hardly changes. The style is a secondary held-out one: the primary ones only report (--style).
"""

import argparse
import json
import math
import os
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from train_speed import Row, about, add_common, execute, spelled, write, write_reference

SHARE = 0.9  # of the best accuracy
ARMS = ("impasto", "peer")
CLOCKS = ("seconds", "cpu_seconds")


def schedule(steps: int, snapshots: int) -> tuple[int, list[int]]:
    """(steps between two snapshots, the steps that have one): at most `snapshots`, evenly, the last step among them."""
    if not 1 <= snapshots <= steps:
        raise ValueError(f"{snapshots} snapshots of {steps} steps: there must be 1 to {steps}")
    every = math.ceil(steps / snapshots)
    at = list(range(every, steps + 1, every))
    return every, at if at[-1] == steps else [*at, steps]


def training_seconds(ends: Sequence[float], step: int) -> float:
    """From the start of step 1, which is its end minus a median step, to the end of `step`."""
    usual = statistics.median(b - a for a, b in pairwise(ends)) if len(ends) > 1 else 0.0
    return ends[step - 1] - ends[0] + usual


def first_reach(curve: Sequence[Row], threshold: float) -> Row | None:
    """The first point of a curve whose style accuracy is at least `threshold`; None when there is none."""
    return next((point for point in curve if point["style_accuracy"] >= threshold), None)


def verdict(curves: dict[str, list[Row]], base: float) -> Row:
    """Threshold, the point at which each run reached it, and how many times faster impasto was, per clock.

    base: the accuracy with no adapter. `ratio` is None, and `why` says why, when there is nothing to compare.
    """
    best = max(point["style_accuracy"] for curve in curves.values() for point in curve)
    reached = {arm: first_reach(curve, SHARE * best) for arm, curve in curves.items()}
    result: Row = {"base": base, "best": best, "threshold": SHARE * best, "reached": reached, "ratio": None}
    ours, peer = reached["impasto"], reached["peer"]
    if base >= SHARE * best:
        return result | {"why": "the base alone is as good as the best of both runs: nothing can be concluded"}
    if ours is None:
        return result | {"why": "impasto did not get there within its steps"}
    if peer is None:
        last = curves["peer"][-1]
        least = {clock: last[clock] / ours[clock] for clock in CLOCKS}
        return result | {"at_least": least, "why": "the peer did not get there within its steps"}
    return result | {"ratio": {clock: peer[clock] / ours[clock] for clock in CLOCKS}}


def table(result: Row) -> str:
    """Markdown: what was reached and when, then both curves."""
    found = result["verdict"]
    lines = [
        f"Style {result['style']}, reference {result['reference']}, {result['prompts']} prompts; style accuracy of the "
        f"true pictures {result['true']:.3f}, of the base {found['base']:.3f}, best of both runs {found['best']:.3f}; "
        f"threshold {found['threshold']:.3f}.",
        "",
        "| | best | step | seconds | CPU seconds | start-up, CPU seconds |",
        "|---|---|---|---|---|---|",
    ]
    for arm, curve in result["curves"].items():
        point = found["reached"][arm]
        when = f"{point['step']} | {point['seconds']:.1f} | {point['cpu_seconds']:.1f}" if point else "never | |"
        best = max(p["style_accuracy"] for p in curve)
        lines.append(f"| {arm} | {best:.3f} | {when} | {result['start_cpu_seconds'][arm]:.1f} |")
    if found["ratio"]:
        lines += ["", f"impasto is {found['ratio']['seconds']:.2f} times faster ({found['ratio']['cpu_seconds']:.2f} "
                  "in CPU seconds)."]  # fmt: skip
    elif "at_least" in found:
        lines += ["", f"impasto is at least {found['at_least']['seconds']:.2f} times faster: {found['why']}."]
    else:
        lines += ["", f"No ratio: {found['why']}."]
    lines += [
        "",
        "| run | step | seconds | CPU seconds | style accuracy | concept top-5 |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {arm} | {p['step']} | {p['seconds']:.1f} | {p['cpu_seconds']:.1f} | {p['style_accuracy']:.3f} "
        f"| {p['concept_top5']:.3f} |"
        for arm, curve in result["curves"].items()
        for p in curve
    ]
    return "\n".join(lines)


def command(arm: str, o: argparse.Namespace, work: Path, caption: str) -> list[str]:
    """What one side runs; the peer's defaults are left alone."""
    from impasto.bases.embedded import ensure

    picture, out = work / "pictures" / "reference.png", work / arm
    steps = steps_of(arm, o)
    every = schedule(steps, o.snapshots)[0]
    if arm == "impasto":
        flags = {"base": "mini-sd3", "recipe": "style-friendly", "image": picture, "caption": caption, "out": out}
        flags |= {"steps": steps, "size": o.resolution, "seed": o.seed, "precision": "fp32"}
        flags |= {"checkpoint_every": every, "keep": steps}
        return ["impasto", "train", *spelled(flags, "-"), "--no-preview"]
    flags = {"pretrained_model_name_or_path": ensure("mini-sd3"), "instance_data_dir": picture.parent}
    flags |= {"instance_prompt": caption, "output_dir": out, "resolution": o.resolution, "seed": o.seed}
    flags |= {"max_train_steps": steps, "checkpointing_steps": every, "mixed_precision": "no"}
    return [str(o.peer.resolve()), *spelled(flags, "_"), *o.peer_flags.split()]


def steps_of(arm: str, o: argparse.Namespace) -> int:
    """impasto's as the base's card says, unless told."""
    from impasto.config import resolve

    return o.peer_steps if arm == "peer" else o.steps or resolve("style-friendly", "mini-sd3").optim.steps


def trained(arm: str, o: argparse.Namespace, work: Path, caption: str) -> Row:
    """Train one side into `work`, or take what the same command left there; returns the runner's record."""
    record, arguments = work / f"{arm}.json", command(arm, o, work, caption)
    if record.is_file() and (found := json.loads(record.read_text()))["command"] == arguments:
        return found
    shutil.rmtree(work / arm, ignore_errors=True)  # a run that goes on would lack the times of its first steps
    return execute(arguments, record, o.torchvision if arm == "peer" else None, o.threads)


def snapshot(arm: str, step: int, steps: int, work: Path) -> Path:
    """The style file of a snapshot, in diffusers' layout."""
    from impasto.styles.weights import WEIGHTS

    if arm == "peer":
        folder = work / arm / f"checkpoint-{step}"
        return (folder if folder.is_dir() or step < steps else work / arm) / WEIGHTS
    return style_of_state(work / arm / "state" / f"step-{step:06d}.safetensors", work / "styles" / f"{step}" / WEIGHTS)


def style_of_state(state: Path, file: Path) -> Path:
    """A saved state's adapter as a style file. Its scale is 1 (alpha = rank), which is what no metadata means."""
    from safetensors.torch import load_file, save_file

    names = {name: t for name, t in load_file(state).items() if name.startswith("adapter/")}
    tensors = {"transformer." + name.removeprefix("adapter/").replace(".default.", "."): t for name, t in names.items()}
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, file)
    return file


def scorer(plan: Any, o: argparse.Namespace) -> Callable[[Sequence[str]], Row]:
    """`score(styles)`: the judges on pictures of the plan's evaluation concepts, drawn with these styles."""
    import numpy as np

    from impasto.generation import generate
    from impasto.judges.model import Judges
    from impasto.pretrain.score import judge
    from impasto.sampling.sample import Sampling

    judges, prompts = Judges.load(), [plan.prompt(concept) for concept in plan.prompts_for]
    style, concepts = np.full(len(prompts), plan.style), np.array(plan.prompts_for)

    def score(styles: Sequence[str]) -> Row:
        sampling = Sampling(o.sampling_steps, negative="", style_guidance=0.0, base_guidance=0.0)
        drawn = generate("mini-sd3", prompts, styles=styles, seed=o.seed, sampling=sampling, precision="fp32")
        return judge(judges, np.stack([np.asarray(image) for image, _ in drawn]), style, concepts)

    return score


def true_accuracy(plan: Any) -> float:
    """The style judge on the true pictures of the same concepts."""
    from impasto.evaluation.truth import true_pictures
    from impasto.judges.model import Judges

    pictures = list(true_pictures(plan.style, plan.prompts_for).values())
    return float((Judges.load().style(pictures).argmax(1) == plan.style).float().mean())


def options(args: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_common(parser)
    parser.add_argument("--style", help="a held-out style; the first secondary one when not given")
    parser.add_argument("--concept", help="what the reference shows; the first reference concept when not given")
    parser.add_argument("--steps", type=int, help="of impasto; the base's own when not given")
    parser.add_argument("--peer-steps", type=int, default=500)
    parser.add_argument("--peer-flags", default="", help='more flags of the script, as one string: "--repeats 4"')
    parser.add_argument("--snapshots", type=int, default=10, help="of each run")
    parser.add_argument("--prompts", type=int, default=24, help="evaluation concepts")
    parser.add_argument("--sampling-steps", type=int, help="the base's own when not given")
    parser.add_argument("--work", type=Path, help="keep the trainings here, and use those that are there")
    o = parser.parse_args(args)
    if not o.peer.is_file():
        parser.error(f"--peer: there is no {o.peer}")
    return o


def main(args: Sequence[str] | None = None) -> Row:
    o = options(args)
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    from impasto.artworld import load_meta

    meta = load_meta()
    style = o.style or meta["style_names"][meta["split"]["secondary_styles"][0]]
    with tempfile.TemporaryDirectory() as scratch:
        work = (o.work or Path(scratch)).resolve()
        plan = write_reference(work, style, o.concept, o.prompts)
        caption, score = plan.prompt(plan.concept), scorer(plan, o)
        records = {arm: trained(arm, o, work, caption) for arm in ARMS}
        result: Row = {"about": about(o), "style": style, "reference": meta["concepts"][plan.concept]["label"]}
        result |= {"prompts": len(plan.prompts_for), "true": true_accuracy(plan)}
        result["start_cpu_seconds"] = {arm: record["step_ends_cpu"][0] for arm, record in records.items()}
        result["base"], result["curves"] = score(()), {arm: [] for arm in ARMS}
        for arm, record in records.items():
            steps = steps_of(arm, o)
            for step in schedule(steps, o.snapshots)[1]:
                point = {"step": step, "seconds": training_seconds(record["step_ends"], step)}
                point["cpu_seconds"] = training_seconds(record["step_ends_cpu"], step)
                point["seconds_with_start"] = record["step_ends"][step - 1]
                point |= score([str(snapshot(arm, step, steps, work))])
                result["curves"][arm].append(point)
                print(arm, {k: round(v, 3) for k, v in point.items()}, file=sys.stderr, flush=True)
                if all(result["curves"].values()):
                    result["verdict"] = verdict(result["curves"], result["base"]["style_accuracy"])
                    write(o.out, result, table(result))
    print(table(result))
    return result


if __name__ == "__main__":
    main()
