"""The text tower of a base: "frozen", trained "along" with the base, or "new" (random weights, trained along).

A contrastively trained tower groups concepts by colour (of 93 directions of the embeddings of first words, 6 remain:
docs/log/2026-11.md), and a base conditioned on it learns shapes slowly. A tower trained along replaces that of the
package's small CLIP, whose image tower then has to be retrained: `impasto pretrain clip`.
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
    """A text tower with random weights and the configuration of a saved CLIPModel's."""
    torch.manual_seed(seed)
    config: Any = CLIPConfig.from_pretrained(clip).text_config
    return CLIPTextModelWithProjection(config)


def write_text(tower: CLIPTextModelWithProjection, clip: Path, out: Path) -> None:
    """Write `clip` with its text weights replaced by `tower` (fp16) to `out`, which may be the same folder.

    The new card marks the image tower as stale.
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
