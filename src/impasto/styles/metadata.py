"""What a LoRA file says of itself, all of it strings: `modelspec.*`, kohya's `ss_*`, and our own `impasto.*`.

modelspec 1.0.1 (github.com/Stability-AI/ModelSpec) with the architectures of sd-scripts' library/sai_model_spec.py; of
`ss_*` what its train_network.py writes and UIs read. `impasto.*` is for what no one else has a key for: the noise law,
its parameters (of log-SNR), hashes of base and references, scores.
"""

import json
import re
import tomllib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from safetensors import safe_open

from impasto.bases.cards import card, cards, embedded
from impasto.bases.hub import part_config
from impasto.bases.single_file import read_header
from impasto.config import read_recipe_file
from impasto.data import captions
from impasto.errors import UserError
from impasto.families.files import pipeline_class
from impasto.files import read_object
from impasto.interop.lora.layouts import ARCHITECTURES, PIPELINES
from impasto.interop.lora.read import ARCHITECTURE_KEYS, parse_architecture
from impasto.interop.lora.write import Adapter
from impasto.noise.laws import PARAMETERS
from impasto.styles.weights import check_file, is_folders_weights, style_file

IMPLEMENTATION = {
    "flux": "https://github.com/black-forest-labs/flux",
    "sd3": "diffusers",
    "sdxl": "https://github.com/Stability-AI/generative-models",
    "sd15": "diffusers",
}
BASE_VERSION = {"flux": "flux1", "sdxl": "sdxl_base_v1-0"}
NETWORK = {"flux": "networks.lora_flux", "sd3": "networks.lora_sd3", "sdxl": "networks.lora", "sd15": "networks.lora"}
LISTS = ("captions", "caption_counts", "references_sha256")  # under [impasto] of recipe.toml
KEPT = ("modelspec.", "ss_", "sshs_", "impasto.")
"""Beginnings of the keys that go from one file of a style to the next."""
NAMES_PATHS = ("ss_dataset_dirs", "ss_reg_dataset_dirs", "ss_datasets", "ss_tag_frequency", "ss_vae_name")
REPO = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*", re.ASCII)
"""A hub id, as the Hub takes it."""
PATH = re.compile(r"(^|[\s\"'(\[=:,])(/[^/\s]|~/|\.{1,2}/|[A-Za-z]:[\\/]|\\\\)")


@dataclass(frozen=True)
class About:
    """A style beside its tensors. recipe: the resolved one, {} for a style that was not trained here; inputs: the
    hashes and versions that it met; metadata: of the weights' file."""

    file: Path
    recipe: dict[str, Any] = field(default_factory=dict)
    inputs: dict[str, Any] = field(default_factory=dict)
    scores: dict[str, Any] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The folder's name, or the file's."""
        return self.file.parent.resolve().name if is_folders_weights(self.file) else self.file.stem

    @property
    def base(self) -> str | None:
        """The base that it was trained on, None when nothing says so."""
        return self.recipe.get("base") or self.metadata.get("impasto.base")

    @property
    def captions(self) -> list[str]:
        """Those that it was trained on, with prefix and trigger; of a folder's the most common ones."""
        if own := captions.of_run(self.recipe, self.inputs):
            return own
        try:
            given = json.loads(self.metadata.get("impasto.captions", "[]"))
        except (ValueError, RecursionError):
            given = []
        listed = [given] if isinstance(given, str) else given if isinstance(given, list) else []
        return [str(caption) for caption in listed]

    @property
    def trigger(self) -> str | None:
        """What calls it: its trigger where the captions hold it, as far as they are known, else the first caption."""
        return called_by(self.recipe.get("trigger") or self.metadata.get("impasto.trigger"), self.captions)

    def local(self, base: str | None) -> bool:
        """Whether `base` is a folder or a file, see `is_local`; of its own base the style may say so itself."""
        stated = self.inputs.get("base_local", self.metadata.get("impasto.base_local") == "true" or None)
        return bool(base) and is_local(base or "", stated if base == self.base else None)


def called_by(trigger: str | None, captions: Sequence[str]) -> str | None:
    """What calls a style: its trigger where the captions hold it, as far as they are known, else the first caption."""
    if trigger and (not captions or any(trigger.lower() in caption.lower() for caption in captions)):
        return trigger
    return captions[0] if captions else None


def is_local(base: str, stated: bool | None = None) -> bool:
    """Whether a base is a folder or a file, of this machine or of the one that trained on it.

    All is that is neither embedded nor a hub id. Of those it is what the run `stated`; a run of before that was kept
    says None, and it is whether there is one here.
    """
    if base not in embedded() and (not REPO.fullmatch(base) or base.endswith(".safetensors")):
        return True
    return Path(base).exists() if stated is None else bool(stated)


def about(style: Path | str, metadata: Mapping[str, str]) -> About:
    """What the files beside a style's weights say. metadata: of the weights. UserError when recipe.toml is damaged."""
    file = style_file(style)
    kept = {key: value for key, value in metadata.items() if key.startswith(KEPT)}
    if not is_folders_weights(file) or not (file.parent / "recipe.toml").is_file():
        return About(file, metadata=kept)
    try:
        recipe, own = read_recipe_file(file.parent / "recipe.toml")
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{file.parent / 'recipe.toml'} is damaged: {error}") from None
    inputs = {key: value for key, value in own.items() if key not in LISTS or isinstance(value, list)}
    scores = file.parent / "scores.json"
    try:
        known = json.loads(scores.read_text(encoding="utf-8")).items() if scores.is_file() else ()
    except (ValueError, AttributeError, RecursionError):
        raise UserError(f"{scores} is damaged: `impasto evaluate` writes it again") from None
    means = {key: value for key, value in known if isinstance(value, int | float)}
    return About(file, recipe, inputs, means, kept)


def read_about(style: Path | str) -> About:
    """What a style says of itself, see `about`. Raises UserError when its weights or its recipe.toml are damaged."""
    file = style_file(style)
    check_file(file)
    with safe_open(file, "pt") as opened:
        return about(style, opened.metadata() or {})


def quantized_base(about: About) -> str | None:
    """In how few bits the base was that a style was trained on: "nf4", "int8", "fp8"; None in full, or not about."""
    kind = about.recipe.get("quantize", about.metadata.get("impasto.quantize"))
    return None if kind in (None, "none", "auto") else str(kind)


def known_card(base: str | None, architecture: str) -> dict[str, Any]:
    """The card of a base, or of its architecture when there is no such base here."""
    default = cards().get(PIPELINES[architecture], {})
    try:
        return default | card(base) if base else default
    except UserError:
        return default


def architecture_of(base: str | None) -> str | None:
    """flux, sd3, sdxl or sd15 for a base that is known or here, else None."""
    if not base:
        return None
    if Path(base, "model_index.json").is_file():
        return ARCHITECTURES.get(pipeline_class(Path(base)))
    try:
        return ARCHITECTURES.get(card(base).get("pipeline", ""))
    except UserError:
        return None


def unet_config(base: str | None) -> dict[str, Any]:
    """The configuration of the base's U-Net where that is here, else {}. Raises UserError when it is damaged."""
    from impasto.bases.loader import locate

    if not base or not (Path(base).is_dir() or base in embedded()):
        return {}
    file = locate(base) / "unet" / "config.json"
    try:
        return read_object(file) if file.is_file() else {}
    except (OSError, ValueError):
        raise UserError(f"the base {base!r} is damaged: unet/config.json cannot be read") from None


def linear_projection(base: str | None) -> bool | None:
    """`use_linear_projection` of the base's U-Net (False where its configuration lacks it), None where none is here."""
    config = unet_config(base)
    return bool(config.get("use_linear_projection", False)) if config else None


def layers_per_block(base: str | None) -> int:
    """Of the base's U-Net where that is here, else 2 (SD1.5, SDXL). Raises UserError when it is damaged."""
    n = unet_config(base).get("layers_per_block", 2)
    if not isinstance(n, int):
        raise UserError(f"{base!r} has another number of layers in each of its blocks ({n}), which no other tool knows")
    return n


def describe(adapter: Adapter, style: About, *, private: bool = False) -> dict[str, str]:
    """The metadata of a file with this adapter. private: nothing that names a path or a folder of this machine.

    What the style's file said already stays, where this does not know better.
    """
    recipe, known = style.recipe, known_card(style.base, adapter.architecture)
    ranks = sorted({lora.rank for lora in adapter.layers.values()})
    alphas = sorted({lora.alpha for lora in adapter.layers.values()})
    example = next(iter(style.captions), style.trigger)
    local = style.local(style.base)
    other = [
        key for key in ARCHITECTURE_KEYS if parse_architecture(style.metadata.get(key, "")) != adapter.architecture
    ]
    other += ["impasto.base", "impasto.base_local", "ss_sd_model_name"] if local and private else []
    kept = {key: value for key, value in style.metadata.items() if key not in other}
    by = recipe.get("recipe") or kept.get("impasto.recipe")
    guessed = known.get("size") if style.base and "modelspec.resolution" not in kept else None
    size = recipe.get("size") or guessed
    told = kept if not style.base else {}  # a file of another tool may know its base better than we do
    predicts = prediction(style.base, known) if adapter.architecture in ("sdxl", "sd15") else None
    model = base_model(adapter, known, predicts)
    spec = {
        "sai_model_spec": "1.0.1",
        "architecture": told.get("modelspec.architecture", f"{model}/lora" if model else None),
        "implementation": IMPLEMENTATION[adapter.architecture],
        "title": style.name,
        "resolution": f"{size}x{size}" if size else None,
        "description": "A style, trained with impasto" if recipe else None,
        "date": datetime.fromtimestamp(int(style.file.stat().st_mtime)).isoformat(),
        "license": told.get("modelspec.license", known.get("license_name") or known.get("license")),
        "trigger_phrase": style.trigger,
        "usage_hint": f"Name the style as its captions did: {example}" if example else None,
        "prediction_type": {"v_prediction": "v"}.get(predicts or "", predicts),
        "tags": "style",
    }
    kohya = {
        "v2": told.get("ss_v2", str(is_sd2(adapter, known))),
        "base_model_version": told.get("ss_base_model_version", base_version(adapter, known, predicts)),
        "network_module": NETWORK[adapter.architecture],
        "network_dim": ranks[0] if len(ranks) == 1 else "Dynamic",
        "network_alpha": alphas[0] if len(alphas) == 1 else "Dynamic",
        "output_name": style.name,
        "sd_model_name": None if local and private else Path(style.base or "").name if local else style.base,
    }
    if recipe:
        kohya |= trained(recipe, style, private)
    own = {
        "recipe": Path(by).name if by and private else by,
        **{key: recipe.get(key) for key in ("noise", *(f"noise_{name}" for name in PARAMETERS), "objective")},
        "offset_noise": recipe.get("offset_noise") or None,
        **{key: recipe.get(key) for key in ("prior_weight", "targets", "ema", "quantize")},
        **{key: style.inputs.get(key) for key in ("base_sha256", "references_sha256")},
        "architecture": adapter.architecture,
        "base": None if local and private else style.base,
        "base_local": True if local and not private else None,
        "captions": style.captions or None,
        "trigger": recipe.get("trigger") or None,
        "images": None if private else recipe.get("image"),
        "scores": style.scores or None,
    }
    result = dict(kept)
    for prefix, values in (("modelspec", spec), ("ss", kohya), ("impasto", own)):
        separator = "_" if prefix == "ss" else "."
        result |= {f"{prefix}{separator}{key}": text(value) for key, value in values.items() if value is not None}
    return without_paths(result) if private else result


def prediction(base: str | None, known: Mapping[str, Any]) -> str | None:
    """ "epsilon" or "v_prediction", as far as a U-Net base tells: by the mark in a single file, its card, or its
    scheduler's configuration."""
    if not base:
        return None
    if Path(base).is_file():
        try:
            return "v_prediction" if "v_pred" in read_header(Path(base))[0] else "epsilon"
        except UserError:
            return None
    if "predicts" in known and not Path(base).is_dir():
        return known["predicts"]
    config = part_config(base, "scheduler/scheduler_config.json")
    return config.get("prediction_type", "epsilon") if config else None


def is_sd2(adapter: Adapter, known: Mapping[str, Any]) -> bool:
    """SD2's U-Net has SD1's layers, but reads a text encoder that is 1024 wide, not 768."""
    widths = {
        lora.down.shape[1] for name, lora in adapter.layers.items() if name.endswith(("attn2.to_k", "attn2.to_v"))
    }
    spec = known.get("modelspec", "")
    return adapter.architecture == "sd15" and (1024 in widths or spec.startswith("stable-diffusion-v2"))


def base_model(adapter: Adapter, known: Mapping[str, Any], predicts: str | None) -> str | None:
    """modelspec.architecture without "/lora"; None for an SD2 that does not tell which one it is."""
    spec = known.get("modelspec", adapter.architecture)
    if is_sd2(adapter, known) and not spec.startswith("stable-diffusion-v2"):
        return {"v_prediction": "stable-diffusion-v2-768-v", "epsilon": "stable-diffusion-v2-512"}.get(predicts or "")
    return spec


def base_version(adapter: Adapter, known: Mapping[str, Any], predicts: str | None) -> str | None:
    """ss_base_model_version as sd-scripts says it: for SD3 the size ("5-large"), None where that is not known."""
    spec = known.get("modelspec", "")
    if adapter.architecture == "sd3":
        return spec.removeprefix("stable-diffusion-3-") if spec.startswith("stable-diffusion-3-") else None
    if adapter.architecture == "sd15":
        return ("sd_v2_v" if predicts == "v_prediction" else "sd_v2") if is_sd2(adapter, known) else "sd_v1"
    return BASE_VERSION[adapter.architecture]


def trained(recipe: Mapping[str, Any], style: About, private: bool) -> dict[str, Any]:
    """kohya's keys of a training run, under the names and in the forms that its train_network.py writes."""
    size, images = recipe.get("size"), recipe.get("image") or []
    pictures = style.inputs.get("pictures") or len(style.inputs.get("references_sha256") or images)
    first = Path(images[0]).resolve() if images and not private else None
    folder = (first if first.is_dir() else first.parent).name if first else style.name
    texts, counts = style.captions, style.inputs.get("caption_counts") or []
    tags: Counter[str] = Counter()
    for caption, n in zip(texts, counts if len(counts) == len(texts) else [1] * len(texts), strict=True):
        tags.update(dict.fromkeys((tag.strip().lower() for tag in caption.split(",") if tag.strip()), n))
    return {
        "seed": recipe.get("seed"),
        "steps": recipe.get("steps"),
        "max_train_steps": recipe.get("steps"),
        "learning_rate": recipe.get("lr"),
        "unet_lr": recipe.get("lr"),
        "text_encoder_lr": recipe.get("text_encoder_lr"),
        "lr_scheduler": recipe.get("schedule"),
        "lr_warmup_steps": recipe.get("warmup"),
        "optimizer": recipe.get("optimizer", "torch.optim.adamw.AdamW"),
        "max_grad_norm": recipe.get("clip"),
        "noise_offset": recipe.get("offset_noise") or None,
        "resolution": f"({size}, {size})" if size else None,
        "num_train_images": pictures or None,
        "batch_size_per_device": recipe.get("batch"),
        "gradient_accumulation_steps": recipe.get("accumulate"),
        "tag_frequency": {folder: tags} if tags else None,
        "training_comment": f"impasto, recipe {Path(str(recipe.get('recipe'))).name}, noise {recipe.get('noise')}",
    }


def without_paths(metadata: Mapping[str, str]) -> dict[str, str]:
    """What names no path: without kohya's keys of data folders, and without any value in which a path is seen."""
    own = metadata.get("ss_training_comment", "").startswith("impasto, ")
    dropped = [key for key in NAMES_PATHS if not (own and key == "ss_tag_frequency")]
    return {key: value for key, value in metadata.items() if key not in dropped and not PATH.search(value)}


def text(value: Any) -> str:
    """Strings as they are, everything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
