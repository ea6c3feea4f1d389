"""Read LoRA files of any tool.

Tensors of unknown layers, incomplete LoRAs and other adapters raise UserError with name and reason; nothing is skipped
silently. Besides the layouts of layouts.py, the suffixes of older diffusers, peft with named adapters, ai-toolkit and
OneTrainer are supported.
"""

import json
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from impasto.errors import UserError
from impasto.interop.lora.layouts import (
    CONVOLUTIONS,
    DENOISER,
    DEPTH,
    LINEAR_PROJECTION,
    PROJECTIONS,
    TEXT_ENCODERS,
    XLABS,
    Names,
    names,
    part_widths,
    text_names,
)
from impasto.interop.lora.write import ADAPTER_METADATA, Adapter, Lora, same_kernel, swap, unfuse

ROLES = {
    "down": (
        "lora_A.weight",
        "lora_A.default.weight",
        "lora_down.weight",
        "lora.down.weight",
        "lora_linear_layer.down.weight",
    ),
    "up": ("lora_B.weight", "lora_B.default.weight", "lora_up.weight", "lora.up.weight", "lora_linear_layer.up.weight"),
    "alpha": ("alpha",),
}
SUFFIX_ROLES = {f".{ending}": role for role, endings in ROLES.items() for ending in endings}
SUFFIX_ROLES |= {
    "_lora.down.weight": "down",
    "_lora.up.weight": "up",
}  # diffusers before 0.22: "processor.to_q_lora.down"
SUFFIX_ROLES |= {".down.weight": "down", ".up.weight": "up"}  # XLabs: "processor.qkv_lora1.down"
PEFT = "base_model.model."
"""In names of peft's own files, whose alpha is in adapter_config.json."""
EMBEDDING = r"bundle_emb\..+|.*string_to_param\..+|[^.]+"
"""Names of the tensors of a textual-inversion embedding, alone or bundled with a LoRA (OneTrainer, A1111)."""
PLAIN = "diffusers' pipelines load plain LoRA"
NON_LORA_SUFFIXES = {
    r"dora_scale|lora_magnitude_vector(\..+)?": f"DoRA: it rescales the base's weights ({PLAIN})",
    r"lokr_\w+": f"LoKr (Kronecker products): {PLAIN}",
    r"hada_\w+": f"LoHa (Hadamard products): {PLAIN}",
    r"oft_\w+": f"OFT: it rotates the base's weights ({PLAIN})",
    r"lora_mid\.weight": f"LoCon in Tucker form: {PLAIN}",
    r"diff|diff_b|w_norm|b_norm|set_weight|lora_B\.bias": "not a low-rank update (a whole weight, norm or bias)",
}
"""{suffix of other adapters' tensors, a regular expression: what it is}."""


def group_layers(tensors: Mapping[str, Tensor], lora_only: bool = False) -> dict[str, dict[str, Tensor]]:
    """{layer: {"down", "up" and optionally "alpha"}} by tensor names. Raises UserError on anything else.

    lora_only: skip bundled embeddings.
    """
    embeddings = [key for key in tensors if re.fullmatch(EMBEDDING, key)]
    if embeddings and len(embeddings) == len(tensors):
        raise UserError(
            f"it is a textual-inversion embedding ({first_three(embeddings)}), not a LoRA: "
            "pipe.load_textual_inversion of diffusers reads it"
        )
    if embeddings and not lora_only:
        raise UserError(
            f"a textual-inversion embedding is bundled with the LoRA ({first_three(embeddings)}): "
            "--lora-only imports the LoRA without it"
        )
    tensors = {key: tensor for key, tensor in tensors.items() if key not in embeddings}
    found: dict[str, dict[str, Tensor]] = {}
    unknown = []
    for key, tensor in tensors.items():
        for ending, why in NON_LORA_SUFFIXES.items():
            if re.search(rf"\.({ending})$", key):
                raise UserError(f"{key!r} is {why}")
        ending = next((e for e in SUFFIX_ROLES if key.endswith(e)), None)
        if ending is None:
            unknown.append(key)
        else:
            found.setdefault(key.removesuffix(ending).rstrip("_"), {})[SUFFIX_ROLES[ending]] = tensor
    if not any("down" in pair for pair in found.values()):
        raise UserError("it contains no LoRA" + (f", but {first_three(unknown)}" if unknown else ""))
    if unknown:
        raise UserError(f"tensors that are not part of a LoRA: {first_three(unknown)}")
    halves = [f"{layer} has no {half}" for layer, pair in found.items() for half in ("down", "up") if half not in pair]
    if halves:
        raise UserError(f"incomplete layers: {first_three(halves)}")
    for layer, pair in found.items():
        down, up = tuple(pair["down"].shape), tuple(pair["up"].shape)
        if len(down) != len(up) or len(down) < 2 or down[0] != up[1] or 0 in down + up:
            raise UserError(f"layer {layer!r}: down and up have incompatible shapes {down} and {up}")
        if "alpha" in pair and pair["alpha"].numel() != 1:
            raise UserError(f"layer {layer!r}: its alpha has {pair['alpha'].numel()} values, not one")
    check_finite(tensors)
    return found


def read(
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str] | None = None,
    *,
    architecture: str | None = None,
    layers_per_block: int = 2,
    linear_projection: bool | None = None,
    denoiser_only: bool = False,
    lora_only: bool = False,
) -> Adapter:
    """The LoRA of a file in any layout. architecture: detected from metadata and names if not given.

    linear_projection: of the base's U-Net (layouts.PROJECTIONS); detected if not given, and if that fails its layers
    stay as they are in the file. denoiser_only: skip text encoders. lora_only: skip bundled embeddings. Raises
    UserError with name and reason for anything that cannot be read.
    """
    pairs = group_layers(tensors, lora_only)
    architecture = architecture or detect_architecture(pairs, metadata or {})
    if linear_projection is None:
        linear_projection = detect_linear_projection(pairs, architecture, metadata or {})
    known = names(architecture, layers_per_block)
    layers: dict[str, Lora] = {}
    unknown, beyond, t5 = [], [], []
    for stem, pair in pairs.items():
        component, name = split_layer_name(stem, architecture)
        if component == "t5":
            if pair["up"].float().count_nonzero() and not denoiser_only:
                t5.append(stem)
            continue
        published = False
        if component in ("", DENOISER[architecture]):
            parts, published = resolve(name, known)
            component = DENOISER[architecture]
        else:
            parts = resolve_text(name) if component in TEXT_ENCODERS[architecture] else None
            if parts and denoiser_only:
                continue
        if parts is None:
            (beyond if exceeds_depth(name, architecture) else unknown).append(stem)
            continue
        rank = pair["down"].shape[0]
        alpha = pair["alpha"].item() if "alpha" in pair else read_alpha(metadata or {}, f"{component}.{parts[0]}", rank)
        lora = Lora(pair["down"], pair["up"], alpha or float(rank))
        kernel = layer_kernel(parts[0], lora.kernel, linear_projection)
        if not same_kernel(lora.kernel, kernel):
            raise UserError(f"layer {stem!r}: its kernel is {lora.kernel}, that of {architecture} is {kernel}")
        lora = lora.with_kernel(kernel)
        rows = lora.up.shape[0]
        widths = part_widths(len(parts), rows, lora.down.shape[1])
        if sum(widths) != rows or min(widths) < 1:
            raise UserError(f"layer {stem!r}: its {rows} rows do not fit {len(parts)} fused layers")
        if published:
            lora = swap(parts[0], lora)
        for part, part_lora in zip(parts, unfuse(lora, len(parts)), strict=True):
            if part_lora is not None:
                layers[f"{component}.{part}"] = part_lora
    if beyond:
        raise UserError(f"it is for another model: {architecture} has fewer blocks ({first_three(beyond)})")
    if unknown:
        raise UserError(f"{first_three(unknown)}: {architecture} has no layer of that name")
    if t5:
        raise UserError(
            f"{first_three(t5)}: a LoRA on T5, which diffusers does not support; "
            "--denoiser-only skips the text encoders"
        )
    if not layers:
        raise UserError("all its LoRAs are zero: it has no effect")
    return Adapter(architecture, layers)


def resolve(name: str, known: Names) -> tuple[tuple[str, ...] | None, bool]:
    """(diffusers' names of a layer named in any naming, None if unknown; whether `name` is the published one)."""
    if xlabs := re.fullmatch(r"((double|single)_blocks)\.(\d+)\.(\w+)", name):
        name = f"{xlabs[1]}.{xlabs[3]}.{XLABS[xlabs[1]].get(xlabs[4], xlabs[4])}"
        if name.endswith(".qkv") and xlabs[2] == "single":
            parts = known.fused.get(name.replace("qkv", "linear1"))
            return parts and parts[:3], True
    name = known.dotted.get(name.replace(".", "_"), name)
    if name in known.place:
        return (name,), False
    return known.fused.get(name), True


def layer_kernel(layer: str, stated: tuple[int, ...], linear_projection: bool | None) -> tuple[int, ...]:
    """The kernel of a base's layer, () for a matrix; `stated`, that in the file, where it is a convolution's."""
    if layer.endswith(PROJECTIONS) and ".attentions." in layer:
        return stated if linear_projection is None else () if linear_projection else (1, 1)
    return (stated or (1, 1)) if layer.endswith(CONVOLUTIONS) else ()


def detect_linear_projection(
    layers: Mapping[str, Mapping[str, Tensor]], architecture: str, metadata: Mapping[str, str]
) -> bool | None:
    """Whether a U-Net's PROJECTIONS are matrices, by its architecture, a stated SD2, or the width of the text states;
    None if that is unknown."""
    stated = "".join(metadata.get(key, "").lower() for key in ARCHITECTURE_KEYS)
    if architecture == "sdxl" or re.search(r"sd_?v?2|diffusion-v2", stated):
        return True
    columns = [pair["down"].shape[1] for stem, pair in layers.items() if re.search(r"attn2[._](to_k|to_v)$", stem)]
    return LINEAR_PROJECTION.get(columns[0]) if columns else None


def exceeds_depth(name: str, architecture: str) -> bool:
    """Whether a layer's block number exceeds the architecture's depth (DEPTH)."""
    found = re.match(r"(\w+?_blocks)[._](\d{1,9})[._]", name)
    return found is not None and int(found[2]) >= DEPTH.get(architecture, {}).get(found[1], math.inf)


def resolve_text(name: str) -> tuple[str, ...] | None:
    """`resolve` for a layer of a CLIP tower, which transformers 5 saves without "text_model."."""
    name = name.replace(".", "_")
    known = text_names()
    found = known.get(name) or known.get(f"text_model_{name}")
    return (found,) if found else None


def split_layer_name(stem: str, architecture: str) -> tuple[str, str]:
    """(component, layer) of a layer's name in a file; the component is "t5", or "" if the name has none."""
    denoiser = DENOISER[architecture]
    stem = stem.replace(".processor.", ".").replace(PEFT, "", 1)  # the former: diffusers before 0.22, XLabs
    for prefix in ("diffusion_model.", f"{denoiser}.", "lora_unet_"):
        if stem.startswith(prefix):
            return denoiser, modernise_name(stem.removeprefix(prefix))
    if stem.startswith("lora_transformer_"):  # OneTrainer
        return denoiser, stem.removeprefix("lora_transformer_")
    for prefix in ("lora_te3_", "text_encoders.t5xxl.", "text_encoder_3."):
        if stem.startswith(prefix):
            return "t5", stem
    for prefix, component in (
        *((f"lora_te{n}_", "text_encoder") for n in ("", "1")),
        *(("lora_te2_", "text_encoder_2"), ("text_encoder.", "text_encoder"), ("text_encoder_2.", "text_encoder_2")),
        ("text_encoders.clip_l.transformer.", "text_encoder"),
        ("text_encoders.clip_h.transformer.", "text_encoder"),
        ("text_encoders.clip_g.transformer.", "text_encoder_2"),
    ):
        if stem.startswith(prefix):
            t5 = component not in TEXT_ENCODERS[architecture] and architecture == "flux"
            return "t5" if t5 else component, modernise_name(stem.removeprefix(prefix))
    return "", modernise_name(stem)


def modernise_name(name: str) -> str:
    """Convert names of diffusers before 0.22: "to_out" for "to_out.0", and the attention of CLIP."""
    if name.endswith(".to_out"):
        return f"{name}.0"
    if ".self_attn.to_" in name:
        return name.replace(".self_attn.to_", ".self_attn.") + "_proj"
    return name


def read_alpha(metadata: Mapping[str, str], layer: str, rank: int) -> float:
    """alpha from `lora_adapter_metadata`, such that alpha / rank is the scale; the rank if it is not stated."""
    from peft.utils.other import get_pattern_key

    stated = adapter_config(metadata)
    component, _, name = layer.partition(".")
    config = {k.partition(".")[2]: v for k, v in stated.items() if k.startswith(f"{component}.")}
    if config.get("use_dora"):
        raise UserError(f"its metadata states DoRA, which rescales the base's weights ({PLAIN})")
    try:
        pattern = config.get("alpha_pattern") or {}
        alpha = pattern.get(get_pattern_key(list(pattern), name), config.get("lora_alpha"))
        alpha = float(rank) if alpha is None else float(alpha) * (math.sqrt(rank) if config.get("use_rslora") else 1.0)
    except (AttributeError, TypeError, ValueError, OverflowError, re.error):
        alpha = math.nan
    if not math.isfinite(alpha):
        raise UserError(f"its metadata is damaged: the alpha of {layer!r} in {ADAPTER_METADATA} is not a number")
    return alpha


def adapter_config(metadata: Mapping[str, str]) -> dict[str, Any]:
    """The content of diffusers' metadata key, {} if missing. Raises UserError when it is not a JSON object."""
    try:
        stated = json.loads(metadata.get(ADAPTER_METADATA) or "{}")
    except (json.JSONDecodeError, RecursionError):
        stated = None
    if not isinstance(stated, dict):
        raise UserError(f"its metadata is damaged: {ADAPTER_METADATA} is not a JSON object")
    return stated


LAYER_MARKS = {  # in the names of a file's layers
    "flux": ("double_blocks", "single_blocks", "single_transformer_blocks"),
    "sd3": ("joint_blocks", "attn2.to_add_out", "context_block"),
    "sdxl": ("lora_te2_", "text_encoder_2.", "clip_g", "add_embedding", "label_emb"),
    "sd15": ("lora_te_", "down_blocks.0.attentions", "down_blocks_0_attentions", "up_blocks.3.", "up_blocks_3_"),
}
ARCHITECTURE_KEYS = ("modelspec.architecture", "ss_base_model_version")
ARCHITECTURE_PATTERNS = {
    "flux": r"flux([.-]?1)?(-krea)?(-dev|-schnell)?",
    "sd3": r"(stable-diffusion-v?3|sd_?3m?)([.-]5)?(-m|-medium|-large|-large-turbo)?|5-large|5-medium|medium",
    "sdxl": r"stable-diffusion-xl(-v(1|1-0|0-9))?(-base)?(-1\.0)?|sdxl([_-]base)?([_-]v?(1[.-]0|0[.-]9))?",
    "sd15": r"stable-diffusion-(v1([.-][45])?|v2([.-]1)?(-512|-768-v)?)|sd_?v?[12]([._-]?[0145])?(_v)?|sd1x(-1\.[45])?",
}
"""Values of ARCHITECTURE_KEYS for each architecture as written by sd-scripts, OneTrainer, ai-toolkit, SimpleTuner and
impasto (SD2 has SD1's layer names). Others mean other models, some with the same layer names (chroma, flux-2-dev)."""
UNET_MARKS = ("down_blocks", "up_blocks", "mid_block", "input_blocks", "output_blocks", "middle_block")


def parse_architecture(statement: str) -> str | None:
    """The architecture that a value of STATING's keys is for; None if it is not supported."""
    name = statement.lower().partition("/")[0]
    return next(
        (architecture for architecture, known in ARCHITECTURE_PATTERNS.items() if re.fullmatch(known, name)), None
    )


def check_architecture(metadata: Mapping[str, str], expected: str | None = None) -> str | None:
    """`expected`, or the architecture stated in the metadata, None if there is neither.

    Raises UserError when the metadata state an unsupported architecture or one other than `expected`.
    """
    for key in ARCHITECTURE_KEYS:
        stated = metadata.get(key, "")
        if stated.lower() in ("", "none", "unknown"):
            continue
        own = parse_architecture(stated)
        if own is None or own != (expected or own):
            what = f"another architecture than {expected}" if own else "not a supported base"
            raise UserError(
                f"its metadata states {stated!r} ({key}), {what}; "
                f"`impasto import --architecture {expected or 'NAME'}` overrides that"
            )
        expected = own
    return expected


def detect_architecture(layers: Mapping[str, Mapping[str, Tensor]], metadata: Mapping[str, str]) -> str:
    """The architecture of a file: from its metadata, else from names and widths of its layers.

    layers: see `group_layers`. Raises UserError when it cannot be determined.
    """
    if architecture := check_architecture(metadata):
        return architecture
    stems = list(layers)
    is_unet = any(mark in stem for stem in stems for mark in UNET_MARKS)
    for architecture, marks in LAYER_MARKS.items():
        right_kind = architecture in ("sdxl", "sd15") if is_unet else architecture in ("flux", "sd3")
        if right_kind and any(mark in stem for stem in stems for mark in marks):
            return architecture
    columns = [pair["down"].shape[1] for stem, pair in layers.items() if re.search(r"attn2[._](to_k|to_v)$", stem)]
    if is_unet and columns and columns[0] in (768, 2048):
        return {768: "sd15", 2048: "sdxl"}[columns[0]]
    columns = [pair["down"].shape[1] for stem, pair in layers.items() if re.search(r"attn[._]to_q$", stem)]
    if not is_unet and columns and columns[0] in (1536, 2432, 3072):
        return "flux" if columns[0] == 3072 else "sd3"
    raise UserError("its base cannot be determined: give --base or --architecture")


def first_three(items: Iterable[str]) -> str:
    """The first three items, and the number of the others."""
    items = sorted(items)
    more = f" and {len(items) - 3} more" if len(items) > 3 else ""
    return ", ".join(items[:3]) + more


def check_finite(tensors: Mapping[str, Tensor]) -> None:
    """Raise UserError naming a tensor with infinities or NaN, which would generate black images."""
    for name, tensor in tensors.items():
        if not tensor.float().isfinite().all():
            raise UserError(f"tensor {name!r} holds NaN or infinite values")
