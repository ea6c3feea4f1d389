"""Full fine-tuning: all weights of the denoiser are trained, in float32.

The style folder is a diffusers folder too: the other components are linked (or copied) from the base, so that it is a
`--base` by itself, and loads with `DiffusionPipeline.from_pretrained`. As a style it is a difference from the base:

    W = W_base + strength (W_tuned - W_base)
"""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from impasto.adapters.base import PLAIN_SAMPLING, Adapter
from impasto.adapters.config import FullFineTuning
from impasto.errors import UserError
from impasto.families.base import Family
from impasto.families.files import component_files
from impasto.files import atomic

WRAPPED = ".base_layer"  # in the names of layers that carry an adapter


def attach(family: Family, config: FullFineTuning, seed: int) -> dict[str, nn.Parameter]:
    """Make all parameters of `family.denoiser` float32 and trainable; returns them by name."""
    model = family.denoiser.float()
    family.dtype = torch.float32
    model.requires_grad_(True)
    return dict(model.named_parameters())


def count(family: Family, config: FullFineTuning, model: nn.Module) -> int:
    """Parameters of `model`."""
    return sum(p.numel() for p in model.parameters())


def shapes(family: Family, config: FullFineTuning, model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Shapes of the parameters of `model` by name."""
    return {name: tuple(p.shape) for name, p in model.named_parameters()}


def only_matrices(family: Family, config: FullFineTuning, model: nn.Module) -> bool:
    return all(p.ndim == 2 for p in model.parameters())


def state(family: Family) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The denoiser's tensors under diffusers' names."""
    return {name: t.detach().cpu().contiguous() for name, t in family.denoiser.state_dict().items()}, {}


def write_model_folder(family: Family, folder: Path, weights: Path) -> None:
    """Make `folder` a diffusers folder: `weights` as its denoiser, everything else of the base.

    Files are hard links where the file system has them, else copies. `impasto.json` holds the base's card.
    """
    index = json.loads((family.folder / "model_index.json").read_text(encoding="utf-8"))
    parts = [name for name, value in index.items() if isinstance(value, list) and value[0]]
    for part in parts:
        (folder / part).mkdir(parents=True, exist_ok=True)
        if part == family.part:
            model = folder / part
            for file in (family.folder / part).glob("*.json"):
                if "index" not in file.name:  # that of weights in several files
                    shutil.copyfile(file, model / file.name)
            place_file(weights, model / "diffusion_pytorch_model.safetensors")
            continue
        for file in component_files(family.folder / part):
            target = folder / part / file.relative_to(family.folder / part)
            target.parent.mkdir(parents=True, exist_ok=True)
            place_file(file, target)
    with atomic(folder / "impasto.json") as file:
        file.write_text(json.dumps(dict(family.card), indent=1), encoding="utf-8")
    with atomic(folder / "model_index.json") as file:  # last: with it the folder is a base
        shutil.copyfile(family.folder / "model_index.json", file)


def place_file(source: Path, target: Path) -> None:
    """Put a file at `target`: a hard link to it, or a copy."""
    target.unlink(missing_ok=True)
    try:
        os.link(source.resolve(), target)
    except OSError:  # another file system, or one without links
        with atomic(target) as file:
            shutil.copyfile(source, file)


def load(pipe: Any, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], name: str, strength: float) -> None:
    """Move the weights of a pipeline's denoiser towards the tuned ones by the share `strength`, in place.

    Raises UserError when names or shapes are not those of this base.
    """
    model: nn.Module = getattr(pipe, "unet", None) or pipe.transformer
    own = {name.replace(WRAPPED, ""): p for name, p in (*model.named_parameters(), *model.named_buffers())}
    wrong = [key for key, tensor in tensors.items() if key not in own or own[key].shape != tensor.shape]
    if wrong or not tensors:
        first = f", {wrong[0]!r} first" if wrong else ""
        raise UserError(
            f"this model was not trained from this base: {len(wrong)} of {len(tensors)} tensors do not fit{first}"
        )
    with torch.no_grad():
        for key, tensor in tensors.items():
            mixed = torch.lerp(own[key].float(), tensor.float().to(own[key].device), strength)
            own[key].copy_(tensor if strength == 1 else mixed)


ADAPTER = Adapter(
    attach,
    count,
    only_matrices,
    kind="full",
    mergeable=False,
    state=state,
    load=load,
    shapes=shapes,
    write_base=write_model_folder,
    replaces_base=True,
    sampling=PLAIN_SAMPLING,
)
