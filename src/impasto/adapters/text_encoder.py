"""LoRA on the CLIP text encoders, trained beside the denoiser's: the one case in which a text encoder is in the loop.

Captions go through the CLIPs with gradient at every step, and what was cached of them is replaced; T5 is never trained,
and what it said stays cached. diffusers' layers (q, k, v and out of every attention) and names ("text_encoder_lora_…").
"""

import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from impasto.adapters import lora
from impasto.config import TrainConfig
from impasto.data.batch import Batch
from impasto.errors import UserError
from impasto.families.base import Condition, Family

LAYERS = ["k_proj", "out_proj", "q_proj", "v_proj"]
PREFIX = "text_encoder"  # of the names of everything trained here


def rates(config: TrainConfig) -> dict[str, float]:
    """Learning rates by prefix of names: half of the denoiser's when none is given, prodigy's one rate for all."""
    if not config.text_encoder_lora:
        return {}
    usual = config.lr if config.optimizer == "prodigy" else config.lr / 2
    return {PREFIX: usual if config.text_encoder_lr is None else config.text_encoder_lr}


def check(config: TrainConfig, family: Family, shards: bool) -> None:
    """Raise UserError where the text encoders cannot be trained; says in one line what stays frozen."""
    if not config.text_encoder_lora:
        return
    if not family.clip_parts:
        raise UserError("--text-encoder-lora trains CLIP, and this base has none: leave it out")
    if shards:
        raise UserError("--text-encoder-lora does not work with a base sharded over processes: leave one of them out")
    if any(name.startswith(PREFIX) and name not in family.clip_parts for name in family.encoder_parts):
        warnings.warn("--text-encoder-lora trains the CLIP encoders; T5 stays as it is", stacklevel=2)


def add(config: TrainConfig, family: Family) -> dict[str, nn.Parameter]:
    """Put a LoRA called "default" on every CLIP of `family.clip`; returns its parameters, float32, "text_encoder.…".

    Nothing is loaded, and {} returned, when the config does not ask for it. See `lora.attach`.
    """
    if not config.text_encoder_lora:
        return {}
    parameters: dict[str, nn.Parameter] = {}
    for part in family.clip_parts:
        encoder = getattr(family.clip, part).requires_grad_(False).eval()
        parameters |= lora.attach(encoder, config.rank, config.alpha, LAYERS, config.seed, prefix=f"{part}.")
    return parameters


def current(family: Family, prompts: Sequence[str], cond: Condition) -> Condition:
    """`cond` of `prompts` as the CLIPs have it now, with gradient; `cond` itself when they are not trained."""
    if "clip" not in vars(family):
        return cond
    return family.embed_clip(prompts, cond)


def anew(family: Family, batch: Batch) -> Batch:
    """The batch with its captions' `current` condition, the base's own beside it; the batch itself when no text encoder
    is trained."""
    cond = current(family, batch.prompts, batch.cond)
    return batch if cond is batch.cond else replace(batch, cond=cond, base_cond=batch.cond)


def state(family: Family) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """{component: (tensors, configuration)} of the adapters on the CLIPs, {} when they are not trained.

    Under the names of files: transformers 5 has some CLIPs without "text_model.", which other readers look for.
    """
    from peft.utils import get_peft_model_state_dict

    found = {}
    for part in family.clip_parts if "clip" in vars(family) else ():
        encoder = getattr(family.clip, part)
        config = encoder.peft_config["default"].to_dict()
        config["target_modules"] = sorted(config["target_modules"])  # a set has another order each time
        tensors = get_peft_model_state_dict(encoder, adapter_name="default")
        named = {f"text_model.{name.removeprefix('text_model.')}": t.cpu() for name, t in tensors.items()}
        found[part] = named, config
    return found
