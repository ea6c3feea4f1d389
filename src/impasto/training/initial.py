"""Training that starts from a finished LoRA, `--init-from`.

The style's update of each layer is the new adapter's at step 0, exactly: with rank R >= r of the style,

    A = [A_s; A_0],  B = [B_s (alpha_s / r) / (alpha / R), 0]        A_0: R - r rows as an adapter begins

Layers that the style lacks begin as ever. The optimiser begins afresh.
"""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from impasto.adapters.base import adapter_of
from impasto.adapters.config import LoRA, TextLoRA
from impasto.config import TrainConfig
from impasto.errors import UserError, nearest
from impasto.families.base import Family
from impasto.interop.lora.write import Adapter
from impasto.styles.convert import open_style
from impasto.styles.metadata import read_about
from impasto.styles.weights import style_hash


def read_initial(config: TrainConfig) -> Adapter | None:
    """The LoRA of `config.init_from`, a style folder or a LoRA file of any tool; None where none is given. Raises
    UserError where it cannot be read, and where the run trains no LoRA."""
    if config.init_from is None:
        return None
    if not isinstance(config.adapter, LoRA):
        raise UserError("--init-from starts a LoRA: leave it out, or train --adapter lora")
    own, _ = open_style(config.init_from, base=config.base)
    encoders = [part for part in own.components if part.startswith("text_encoder")]
    if encoders and not isinstance(config.text, TextLoRA):
        raise UserError(
            f"style {str(config.init_from)!r} has a LoRA on {encoders[0]}: add --text lora to go on with it"
        )
    return own


def check_initial(config: TrainConfig, family: Family, model: nn.Module) -> None:
    """Raise UserError where the run's LoRA cannot hold the style: other layers, a smaller rank, other widths. Warns
    where the style states another base. model: the denoiser, also on the meta device."""
    own = read_initial(config)
    if own is None:
        return
    shapes = adapter_of(config.adapter).shapes
    assert shapes is not None and config.init_from is not None
    known = shapes(family, config.adapter, model)
    for layer, lora in own.layers.items():
        part, _, name = layer.partition(".")
        if part == family.part:
            check_shapes(config.init_from, name, lora, {half: known.get(f"{name}.lora_{half}") for half in "AB"}, known)
    stated = read_about(config.init_from).base
    if stated not in (None, config.base):
        warnings.warn(f"style {str(config.init_from)!r} was trained on {stated}, not on {config.base}", stacklevel=2)


def check_shapes(style: Path, layer: str, lora: Any, shapes: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    """Raise UserError unless the LoRA of one layer fits into A and B of these shapes."""
    a, b = shapes["A"], shapes["B"]
    if a is None or b is None:
        layers = list(dict.fromkeys(name.rpartition(".lora_")[0] for name in known))
        hint = nearest(layer, layers).partition("known: ")[0]
        raise UserError(f"style {str(style)!r} has a LoRA on {layer}, which --targets leaves out: {hint}add it")
    if lora.rank > a[0]:
        raise UserError(
            f"style {str(style)!r} has rank {lora.rank} and this run {a[0]}: give --rank {lora.rank}, or make it "
            f"smaller first (impasto resize {style} --rank {a[0]} --out ...)"
        )
    if tuple(lora.down.shape[1:]) != tuple(a[1:]) or lora.up.shape[0] != b[0]:
        raise UserError(f"style {str(style)!r} was not trained for this base: {layer} has other widths there")


def load_initial(config: TrainConfig, family: Family, named: Mapping[str, nn.Parameter]) -> None:
    """Put the style of `config.init_from` into the adapters on a base; nothing where none is given. named: the trained
    parameters. Raises UserError as `check_initial`."""
    own = read_initial(config)
    if own is None:
        return
    shapes = {name.replace(".default.weight", ""): tuple(p.shape) for name, p in named.items()}
    with torch.no_grad():
        for layer, lora in own.layers.items():
            part, _, name = layer.partition(".")
            model: Any = family.denoiser if part == family.part else getattr(family.clip, part)
            prefix = "" if part == family.part else f"{part}."
            if f"{prefix}{name}.lora_A" not in shapes:  # transformers 5 has CLIP without it
                name = name.removeprefix("text_model.")
            at = f"{prefix}{name}"
            assert config.init_from is not None
            check_shapes(config.init_from, at, lora, {half: shapes.get(f"{at}.lora_{half}") for half in "AB"}, shapes)
            peft = model.peft_config["default"]
            a, b = (named[f"{at}.lora_{half}.default.weight"] for half in "AB")
            a[: lora.rank] = lora.down
            b.zero_()
            b[:, : lora.rank] = (lora.up.float() * (lora.scale * peft.r / peft.lora_alpha)).reshape(
                b[:, : lora.rank].shape
            )


def provenance_of_initial(config: TrainConfig) -> dict[str, Any]:
    """What `style.json` states of the style that a run started from; {} where it started from none."""
    if config.init_from is None:
        return {}
    about = read_about(config.init_from)
    return {"init_from": {"style": about.name, "sha256": style_hash(config.init_from), "base": about.base}}
