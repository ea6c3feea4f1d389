"""One schema for a training run. A recipe file, a base's card and the flags are three ways to fill it in.

Who wins: a flag beats what the base's card says for this recipe, that beats the recipe, that beats the card's own
`train` table, and that beats the defaults below, which are the paper's (Style-Friendly SNR sampler, appendix A.4).
"""

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from math import inf
from pathlib import Path
from typing import Any, Literal, get_origin, get_type_hints

from impasto.coerce import check_seed, convert
from impasto.errors import UserError, nearest
from impasto.files import PACKAGE
from impasto.sampling.config import Append

RECIPES = PACKAGE / "recipes"


@dataclass(frozen=True)
class TrainConfig:
    """Train a style on one or a few reference pictures."""

    base: str = "mini-sd3"
    """Base model: an embedded one, a diffusers folder, a .safetensors checkpoint, or a hub id."""
    components: Path | None = None
    """A diffusers folder for what a .safetensors checkpoint does not hold: tokenisers, text encoders, autoencoder."""
    image: Append[tuple[Path, ...]] = ()
    """A reference picture, or a folder of them; may be given several times."""
    caption: Append[tuple[str, ...]] = ()
    """What it shows and in what style: "a rocket in pixel art style". One for each picture, or one for all; in folders
    for those without a caption of their own (a .txt beside the picture, or metadata.jsonl)."""
    trigger: str = ""
    """What stands for [trigger] in captions: a word or two of your own."""
    caption_prefix: str = ""
    """Put before every caption."""
    caption_dropout: float = 0.0
    """Share of draws that see an empty caption."""
    repeats: Append[tuple[int, ...]] = ()
    """How often the pictures of each --image count: one number for each; 1, or N in a folder called N_name."""
    mask: Literal["off", "files", "alpha"] = "off"
    """Loss masks: files (a.mask.png, masks/a.png; white counts) or alpha (what is opaque counts)."""
    buckets: Literal["auto", "on", "off"] = "auto"
    """Keep aspect ratios, in buckets of the same area; off cuts squares. auto: on for folders."""
    crops: int = 1
    """Crops of each picture that are prepared; one of them is drawn per step. 1 is the middle only."""
    flip: bool = False
    """Draw mirrored pictures half of the time."""
    skip_bad: bool = False
    """Leave out pictures and captions that cannot be used, with a warning each, where a folder would be refused."""
    out: Path = Path("runs/style")
    """The style folder. The same command again goes on where it stopped."""
    recipe: str = "style-friendly"
    """A recipe by name, or a TOML file of any keys on this page; the base's own when not given (style-friendly, on the
    embedded bases style-friendly-128px)."""

    noise: str = "style-friendly"
    """Noise law: style-friendly, sd3, logit-normal, uniform, truncated-normal."""
    noise_mean: float | None = None
    """Its mean: style-friendly and truncated-normal of log-SNR (lower = more noise), logit-normal of logit(t) (higher =
    more noise)."""
    noise_std: float | None = None
    """Its standard deviation, in the same unit."""
    noise_shift: float | None = None
    """Time shift, of logit-normal, sd3 and uniform only (higher = more noise)."""
    noise_low: float | None = None
    """Of truncated-normal: its lowest log-SNR; the base's own when not given."""
    noise_high: float | None = None
    """Its highest."""
    offset_noise: float = 0.0
    """Shift every channel of the noise as a whole, by so many standard deviations; 0 is off."""

    objective: str = "denoise"
    """What the loss compares: denoise (prediction and target), dco (that, beside the base's own error)."""
    dco_beta: float = 1.0
    """Of dco: how far an item is fitted beyond the base; the paper's baseline has 1, DCO's own code 1000."""
    dco_reduction: Literal["mean", "sum"] = "mean"
    """Of dco: an item's error is the mean or the sum over its latents."""
    prior_weight: float = 0.0
    """Weight of keeping the base's own predictions on other captions; 0 switches it off."""
    prior_batch: int = 2
    """Pictures of the base per forward pass, when prior_weight is above 0; never more than batch."""
    prior_prompt: Append[tuple[str, ...]] = ()
    """A caption that shall stay as it is; may be given several times. Those of the base's card when not given."""
    adapter: str = "lora"
    """Which weights move."""
    text_encoder_lora: bool = False
    """Train a LoRA of the CLIP text encoders as well; never of T5."""
    text_encoder_lr: float | None = None
    """Its learning rate; half of lr when not given (with prodigy: lr)."""
    rank: int = 32
    """Rank of the adapter."""
    alpha: float | None = None
    """Its alpha (scale = alpha / rank); the rank when not given."""
    targets: tuple[str, ...] = ("attention",)
    """Layers: kinds (attention; image_stream, text_stream; convolution) or endings of layer names (to_q)."""

    lr: float = 1e-4
    """Learning rate; 1 with prodigy, which multiplies it by its own."""
    steps: int = 300
    """Optimiser steps."""
    batch: int = 1
    """Draws of (picture, noise level, noise) per forward pass."""
    accumulate: int = 4
    """Forward passes per optimiser step."""
    weight_decay: float = 0.0
    """Decoupled weight decay."""
    clip: float = 1.0
    """Largest gradient norm; 0 does not clip."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """How the learning rate falls after the warm-up."""
    warmup: int = 0
    """Steps in which the learning rate rises from 0."""
    ema: float = 0.0
    """Decay of the moving average of the adapter that is saved; 0 saves the adapter itself."""

    size: int = 1024
    """Pixels, square; with buckets the area is that of this square."""
    seed: int = 0
    """Every draw is a function of (seed, step, item)."""
    device: str = "auto"
    """cpu, cuda, mps or auto."""
    precision: str = "auto"
    """Of the frozen base: fp32, bf16 or auto (bf16 on CUDA). The adapter is always float32."""

    checkpoint_every: int = 50
    """Steps between two saved states."""
    keep: int = 2
    """Saved states that are kept; 0 keeps all."""
    preview: bool = True
    """Draw previews at the end (and on the way, see preview_every)."""
    preview_every: int = 0
    """Steps between two previews; 0 draws them at the end only."""
    preview_prompt: Append[tuple[str, ...]] = ()
    """A preview's prompt, may be given several times; the captions when not given."""
    tensorboard: bool = True
    """Write tensorboard logs into the style folder."""

    optimizer: str = "adamw"
    """How a gradient becomes a step: adamw, adamw8bit, prodigy, muon."""
    weighting: str = "none"
    """Weight of the loss by noise level: none, min-snr, soft-min-snr, debiased; not for rectified flows."""
    gamma: float = 5.0
    """SNR at which min-snr and soft-min-snr turn."""
    checkpointing: float | None = None
    """Share of the blocks that are computed again in the backward pass, 0 to 1; as memory asks when not given."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Compile the repeated blocks: auto does on CUDA, when the run is long enough to gain from it."""
    quantize: Literal["auto", "none", "nf4", "int8", "fp8"] = "auto"
    """The frozen base in fewer bits: auto does when it would not fit otherwise."""
    offload: Literal["auto", "on", "off"] = "auto"
    """The frozen base in main memory, layer by layer on the device (CUDA): auto does when nothing else fits."""
    attention: str = "auto"
    """One of diffusers' attention backends (FLUX: native, flash, xformers, ...); auto is torch's own choice."""
    push_to_hub: str | None = None
    """Publish the finished style in the Hub's repository owner/name."""
    hub_private: bool = False
    """Make that repository a private one, where it is new."""
    wandb: bool = False
    """Log to Weights & Biases (the extra wandb; WANDB_MODE=offline keeps it here)."""


FREE = (
    *("out", "recipe", "base", "components", "image", "device", "checkpoint_every", "keep"),
    *("preview", "preview_every", "preview_prompt", "tensorboard", "wandb", "skip_bad"),
    *("checkpointing", "compile", "offload", "attention", "push_to_hub", "hub_private"),
)
"""Keys that do not change what is learnt: bases and pictures are compared by their content instead."""


def check_ranges(config: TrainConfig) -> TrainConfig:
    """The config itself. Raises UserError where a number is out of range."""
    positive = (
        *("rank", "lr", "steps", "batch", "accumulate", "prior_batch"),
        *("checkpoint_every", "size", "gamma", "crops", "dco_beta"),
    )
    at_least_0 = ("prior_weight", "weight_decay", "clip", "warmup", "ema", "preview_every", "keep")
    for key in positive + at_least_0:
        value = getattr(config, key)
        if not (value > 0 or (value == 0 and key in at_least_0)) or (value == inf and key != "clip"):
            what = "a finite number " if value == inf else ""
            raise UserError(f"{key} must be {what}{'above' if key in positive else 'at least'} 0, not {value}")
    for key in ("alpha", "text_encoder_lr"):
        if (value := getattr(config, key)) is not None and not 0 < value < inf:
            raise UserError(f"{key} must be above 0, not {value}")
    check_seed(config.seed)
    if config.text_encoder_lr is not None and not config.text_encoder_lora:
        raise UserError("text_encoder_lr has no effect without text_encoder_lora")
    if config.hub_private and not config.push_to_hub:
        raise UserError("hub_private goes with push_to_hub")
    if config.text_encoder_lora and config.prior_weight:
        raise UserError(
            "text_encoder_lora and prior_weight exclude each other: the prior's captions are embedded once, by the base"
        )
    if not 0 <= config.offset_noise <= 1:
        raise UserError(f"offset_noise must be from 0 to 1 (.1 is usual), not {config.offset_noise}")
    if config.ema >= 1:
        raise UserError(f"ema must be below 1 (for example 0.99), not {config.ema}")
    if not 0 <= config.caption_dropout <= 1:
        raise UserError(f"caption_dropout must be from 0 to 1, not {config.caption_dropout}")
    if any(count < 1 for count in config.repeats):
        raise UserError(f"repeats must be at least 1, not {min(config.repeats)}")
    if config.checkpointing is not None and not 0 <= config.checkpointing <= 1:
        raise UserError(f"checkpointing is a share, 0 to 1, not {config.checkpointing}")
    if config.warmup > config.steps:
        raise UserError(f"warmup {config.warmup} is more than steps {config.steps}: the rate would never reach lr")
    if config.schedule not in ("constant", "linear", "cosine"):
        raise UserError(f"unknown schedule {config.schedule!r}: {nearest(config.schedule, SCHEDULES)}")
    return config


SCHEDULES = ["constant", "linear", "cosine"]
OWN_RATES = {"prodigy": 1.0}
"""Learning rates of optimisers that do not take the base's."""


def recipes() -> dict[str, Path]:
    """The recipes that come with the package."""
    return {file.stem: file for file in sorted(RECIPES.glob("*.toml"))}


def read_recipe(name: str) -> dict[str, Any]:
    """The keys of a recipe: one of the package's by name, or a TOML file. Strict: see `check_keys`."""
    known = recipes()
    file = known.get(name, Path(name))
    try:
        content = tomllib.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, IsADirectoryError):
        raise UserError(f"unknown recipe {name!r}: {nearest(name, list(known))}, or a TOML file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"recipe {str(file)!r} is no valid TOML: {error}") from None
    content.pop("impasto", None)  # what the recipe.toml of a run says about itself
    return check_keys(content, f"recipe {name!r}")


def check_keys(content: dict[str, Any], where: str) -> dict[str, Any]:
    """`content` with values in the types of TrainConfig. Raises UserError on an unknown key or a wrong type."""
    types = get_type_hints(TrainConfig, include_extras=False)
    result = {}
    for key, value in content.items():
        if key not in types:
            raise UserError(f"{where}: unknown key {key!r}: {nearest(key, list(types))}")
        result[key] = convert(value, types[key], f"{where}: {key}")
    return result


def check_values(content: Mapping[str, Any], where: str) -> None:
    """Raise UserError where a key of TrainConfig has a value of another type. Others pass, and so do choices that are
    not known here: another version may have them."""
    for key, kind in get_type_hints(TrainConfig, include_extras=False).items():
        if key in content:
            convert(content[key], str if get_origin(kind) is Literal else kind, f"{where}: {key}")


def resolve(recipe: str | None = None, base: str | None = None, **explicit: Any) -> TrainConfig:
    """The config of `recipe` (the base's own when it is None, see `default_recipe`) on `base` (the recipe's own when it
    is None, else mini-sd3); `explicit` keys win.

    Raises UserError on an unknown recipe, key or type.
    """
    from impasto.bases.cards import card

    recipe = default_recipe(base) if recipe is None else recipe
    content = read_recipe(recipe)
    base = str(content.get("base", TrainConfig.base)) if base is None else base
    known = card(base)
    train = dict(known.get("train", {}))
    if "size" in known:
        train["size"] = known["size"]
    special = known.get("recipes", {}).get(recipe, {})
    keys = check_keys(train, f"card of {base!r}") | content | check_keys(special, f"card of {base!r}")
    if explicit.get("noise", law := keys.get("noise", TrainConfig.noise)) != law:  # another law: its own parameters
        keys = {key: value for key, value in keys.items() if not key.startswith("noise_")}
    optimizer = explicit.get("optimizer", keys.get("optimizer", TrainConfig.optimizer))
    keys["lr"] = rate(optimizer, (train, content, special))
    keys |= check_keys(explicit, "settings")
    return replace(TrainConfig(), **(keys | {"recipe": recipe, "base": base}))


def default_recipe(base: str | None = None) -> str:
    """The recipe of `base` (mini-sd3 when it is None) where none is given: its card's, else style-friendly."""
    from impasto.bases.cards import card

    return str(card(TrainConfig.base if base is None else base).get("recipe", TrainConfig.recipe))


def recipe_note(config: TrainConfig) -> str | None:
    """One line where the law for 1024 px is used on an embedded base, which has a recipe of its own; else None."""
    own = default_recipe(config.base)
    if own == TrainConfig.recipe or config.recipe != TrainConfig.recipe:
        return None
    if config.noise_mean != read_recipe(TrainConfig.recipe)["noise_mean"]:
        return None
    return (
        f"recipe {config.recipe} has the noise law for 1024 px; {config.base} works at {config.size} px, where the "
        f"same noise hides less: its own recipe is {own}"
    )


def rate(optimizer: str, said: Sequence[Mapping[str, Any]]) -> float:
    """The learning rate for `optimizer` in what is said one after the other, the last one counting; one that was said
    for optimisers of the other kind (OWN_RATES, or the base's) does not count."""
    found, current = OWN_RATES.get(optimizer, TrainConfig.lr), TrainConfig.optimizer
    for keys in said:
        current = keys.get("optimizer", current)
        if "lr" in keys and OWN_RATES.get(current) == OWN_RATES.get(optimizer):
            found = float(keys["lr"])
    return found


def as_dict(config: TrainConfig) -> dict[str, Any]:
    """Plain values (paths as strings, tuples as lists), None left out: what TOML and JSON can hold."""
    plain = {}
    for field in fields(config):
        value = getattr(config, field.name)
        if isinstance(value, tuple):
            value = [item if isinstance(item, int | float) else str(item) for item in value]
        elif isinstance(value, Path):
            value = str(value)
        if value is not None:
            plain[field.name] = value
    return plain
