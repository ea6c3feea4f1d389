"""The text tower of a base: frozen as it is in the package, trained along with the base, or begun anew and then so.

A tower that was trained contrastively groups things by their colours (of 93 directions that the embeddings of first
words have, 6 are left: docs/log/2026-11.md), and a base that hears only that learns shapes slowly. What is trained
along goes into the small CLIP of the package, whose image tower must then be trained to meet it (`impasto pretrain
clip`).
"""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig, CLIPTextModelWithProjection

from impasto.files import atomic

MODES = ("frozen", "along", "new")


def new_tower(clip: Path, seed: int) -> CLIPTextModelWithProjection:
    """A text tower of random weights, in the shape of a saved CLIPModel's."""
    torch.manual_seed(seed)
    config: Any = CLIPConfig.from_pretrained(clip).text_config
    return CLIPTextModelWithProjection(config)


def write_text(tower: CLIPTextModelWithProjection, clip: Path, out: Path) -> None:
    """Write `clip` with `tower` (fp16) in place of its text half into `out`, which may be the same folder.

    The card then says that the image tower is still that of before.
    """
    stored = load_file(clip / "model.safetensors")
    own = {name: value.detach().half().cpu().contiguous() for name, value in tower.state_dict().items()}
    text = {name: value for name, value in own.items() if not name.endswith("position_ids")}
    if unknown := set(text) - set(stored):
        raise ValueError(f"{clip} has no {sorted(unknown)[:3]}")
    if out != clip:
        shutil.copytree(clip, out)
    with atomic(out / "model.safetensors") as path:
        save_file(stored | text, path, metadata={"format": "pt"})
    with atomic(out / "card.json") as path:
        card = {"name": "small CLIP", "text_tower": "trained along with a base", "image_tower": "of before: stale"}
        path.write_text(json.dumps(card, indent=1), encoding="utf-8")
