"""Is the checkpoint that `--evaluate.every` chooses better than the last step? On the *secondary* held-out styles.

    python tools/measure_checkpoint_rule.py run --base mini-sd15      # into checkpoint-rule.jsonl; resumes
    python tools/measure_checkpoint_rule.py report

One reference of each secondary style, the base's own recipe with STEPS steps, scored every 50. `impasto compare` reads
three styles at five strengths on free concepts (neither evaluation nor reference concepts), by style at equal text, the
text of the last step at its own strength:

    last      the weights of the last step
    chosen    the weights of the chosen step, sampled as the base's card says
    advised   the same weights with the advised strength and style guidance
"""

import argparse
import json
import shutil
from pathlib import Path
from statistics import mean
from typing import Any

from search_recipe import REFERENCES, references_of

from impasto.compare.comparison import TABLE, compare
from impasto.compare.references import build
from impasto.config import resolve
from impasto.files import atomic
from impasto.styles.parts import STYLE_JSON
from impasto.training.checkpoint_style import checkpoint_style
from impasto.training.train import train
from impasto.training.watch import choose, read_rows

OUT = Path("docs/results/compare/checkpoint-rule.jsonl")
STEPS = 300


def measure(base: str, row: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Train on one reference and compare; the result's row."""
    folder.mkdir(parents=True, exist_ok=True)
    file, run = folder / "references.json", folder / "advised"
    file.write_text(json.dumps([row]), encoding="utf-8")
    reference = build(row, (), 0, "references")
    watched = {"evaluate.every": 50, "keep": 0, "steps": STEPS, "preview": False, "tensorboard": False}
    config = resolve(None, base, image=(reference.image,), caption=(reference.caption,), out=run, **watched)
    train(config)
    rows = read_rows(run)
    step = choose(rows, config.evaluate.margin)["step"]
    chosen = folder / "chosen"
    shutil.rmtree(chosen, ignore_errors=True)
    shutil.copytree(run, chosen, ignore=shutil.ignore_patterns("state", "checkpoints", STYLE_JSON))
    last = folder / "last"
    shutil.rmtree(last, ignore_errors=True)
    shutil.copytree(checkpoint_style(run, STEPS), last)
    names = [str(one) for one in (last, chosen, run)]
    compare(names, folder / "comparison", base, references=file, row="last", precision="bf16")
    table = json.loads((folder / "comparison" / TABLE).read_text(encoding="utf-8"))
    read = {one["recipe"]: one["equal_text"] for one in table["rows"]}
    advised = json.loads((run / STYLE_JSON).read_text(encoding="utf-8"))["sampling"]
    return {
        "base": base,
        "style": row["style"],
        "step": step,
        "evaluations": rows,
        "sampling": advised,
        "text": table["text"],
        **{name: own["style"] for name, own in read.items()},
    }


def run(base: str) -> None:
    done = read()
    for row in references_of(len(REFERENCES)):
        if not any(one["base"] == base and one["style"] == row["style"] for one in done):
            done.append(measure(base, row, Path("runs") / "checkpoint-rule" / base / row["style"]))
            with atomic(OUT) as file:
                file.write_text("".join(json.dumps(one) + "\n" for one in done), encoding="utf-8")


def read() -> list[dict[str, Any]]:
    return [json.loads(line) for line in OUT.read_text(encoding="utf-8").splitlines()] if OUT.is_file() else []


def report() -> None:
    """A line per training; style at equal text."""
    rows = read()
    print("| base | style | chosen step | last | chosen | advised |\n|---|---|---|---|---|---|")
    for one in rows:
        values = " | ".join("-" if one[key] is None else f"{one[key]:.3f}" for key in ("last", "chosen", "advised"))
        print(f"| {one['base']} | {one['style']} | {one['step']} | {values} |")
    for key in ("chosen", "advised"):
        gains = [one[key] - one["last"] for one in rows if one[key] is not None]
        missed = len(rows) - len(gains)
        print(f"{key} - last: {mean(gains):+.3f} over {len(gains)}; {missed} do not reach the text of the last step")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "report"))
    parser.add_argument("--base", default="mini-sd3")
    given = parser.parse_args()
    report() if given.what == "report" else run(given.base)
