"""Files of a workspace, as commands leave them, and what stands for the commands."""

import hashlib
import json
import socket
import sys
from pathlib import Path

from PIL import Image, ImageDraw

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
    """A style "ink" with a run's files, fifteen candidates, a reference and its concepts."""
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
    concepts = {
        "version": 1, "image_sha256": hashlib.sha256(reference.read_bytes()).hexdigest(), "width": 96, "height": 96,
        "base": "mini-sd3", "finder": "boxes", "caption": "a sun and a moon in ink style", "style": "ink",
        "form": "{concept} in {style} style",
        "concepts": [{"phrase": "sun", "box": [0, 0, 40, 40]}, {"phrase": "moon", "box": [50, 50, 90, 90]}],
    }  # fmt: skip
    (root / "concepts" / "sun").mkdir(parents=True)
    (root / "concepts" / "sun" / "concepts.json").write_text(json.dumps(concepts), encoding="utf-8")
