"""Files of a workspace, as commands leave them, and what stands for the commands."""

import hashlib
import json
import socket
import sys
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from safetensors.torch import save_file

FAKE = (sys.executable, str(Path(__file__).with_name("fake_command.py")))
"""Stands for `python -m impasto.cli.main`: writes what the command would, in no time."""
RECIPE = """base = "mini-sd3"
recipe = "instastyle"

[data]
caption = ["cat, ink drawing"]

[method]
name = "instastyle"
select = "human"
n = 5
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def fill(root: Path) -> None:
    """A style "ink" with a run's files and scores, fifteen candidates, a reference and its concepts, a comparison."""
    image = Image.new("RGB", (96, 96), "orange")
    ImageDraw.Draw(image).ellipse((20, 20, 70, 70), fill="navy")
    reference = root / "references" / "sun.png"
    image.save(reference)
    folder = root / "styles" / "ink"
    (folder / "previews").mkdir(parents=True)
    (folder / "candidates").mkdir()
    (folder / "state").mkdir()
    for name in ("reference.png", "previews/step-000010-0.png", *(f"candidates/{i:02d}.png" for i in range(1, 16))):
        image.save(folder / name)
    (folder / "recipe.toml").write_text(RECIPE, encoding="utf-8")
    things = [f"thing {i}" for i in range(1, 16)]
    (folder / "state/candidates.json").write_text(json.dumps({"objects": things, "files": {}}), encoding="utf-8")
    save_file({"x": torch.zeros(1)}, folder / "pytorch_lora_weights.safetensors")
    (folder / "metrics.jsonl").write_text("".join(f'{{"step": {i}, "loss": 0.5}}\n' for i in range(1, 7)))
    rows = [{"step": step, "style": style, "text": 0.2} for step, style in ((2, 0.5), (4, 0.7), (6, 0.6))]
    (folder / "evaluations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    grid = [{"strength": s, "style_guidance": 2.0, "style": s, "text": 0.3} for s in (0.5, 0.7)]
    advice = {"sampling": {"strength": 0.7, "style_guidance": 2.0}, "advice": {"margin": 0.1, "grid": grid}}
    (folder / "style.json").write_text(json.dumps(advice))
    (folder / "scores.json").write_text(
        json.dumps({"style_accuracy": 0.75, "clip_t": 0.2345, "dino_i_reference": None})
    )
    (root / "comparisons" / "first").mkdir(parents=True)
    (root / "comparisons" / "first" / "index.html").write_text("<h1>2 methods on 1 reference</h1>")
    (root / "comparisons" / "first" / "table.json").write_text("{}")
    concepts = {
        "version": 1, "image_sha256": hashlib.sha256(reference.read_bytes()).hexdigest(), "width": 96, "height": 96,
        "base": "mini-sd3", "finder": "boxes", "caption": "a sun and a moon in ink style", "style": "ink",
        "form": "{concept} in {style} style",
        "concepts": [{"phrase": "sun", "box": [0, 0, 40, 40]}, {"phrase": "moon", "box": [50, 50, 90, 90]}],
    }  # fmt: skip
    (root / "concepts" / "sun").mkdir(parents=True)
    (root / "concepts" / "sun" / "concepts.json").write_text(json.dumps(concepts), encoding="utf-8")
