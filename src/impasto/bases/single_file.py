"""Single-file checkpoints: convert a `model.safetensors` in its authors' layout to a diffusers folder, once.

The architecture is detected by tensor names; the configurations come with the package (`configs/<architecture>`), so
that no network is needed. diffusers' `from_single_file` converts; components that the file lacks (always tokenisers,
often text encoders and autoencoder) are linked from the folder `--components`. The result is cached under a hash of the
contents of both, and is loaded like any other base.
"""

import json
import math
import os
import shutil
import warnings
from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any

from impasto.bases.hub import part_config
from impasto.errors import UserError
from impasto.families.files import SCHEDULER, component_files, file_hash, without_variants, write_config_folder
from impasto.files import atomic_folder, cache_dir

CONFIGS = Path(__file__).with_name("configs")
PREFIX = "model.diffusion_model."
PICKLES = {".ckpt", ".pt", ".pth", ".bin", ".pkl"}
CARD_NAMES = {  # by architecture
    "flux-dev": "black-forest-labs/FLUX.1-dev",
    "flux-schnell": "black-forest-labs/FLUX.1-schnell",
    "sd3-medium": "stabilityai/stable-diffusion-3-medium-diffusers",
    "sd35-medium": "stabilityai/stable-diffusion-3.5-medium",
    "sd35-large": "stabilityai/stable-diffusion-3.5-large",
    "sdxl": "stabilityai/stable-diffusion-xl-base-1.0",
    "sd15": "stable-diffusion-v1-5/stable-diffusion-v1-5",
}
CLIP_L, CLIP_G, T5 = (f"text_encoders.{name}.transformer." for name in ("clip_l", "clip_g", "t5xxl"))
TEXT_ENCODER_PREFIXES = {  # by pipeline class, the tensor name prefixes of text encoders
    "FluxPipeline": {"text_encoder": CLIP_L, "text_encoder_2": T5},
    "StableDiffusion3Pipeline": {"text_encoder": CLIP_L, "text_encoder_2": CLIP_G, "text_encoder_3": T5},
    "StableDiffusionXLPipeline": {
        "text_encoder": "conditioner.embedders.0.transformer.",
        "text_encoder_2": "conditioner.embedders.1.model.",
    },
    "StableDiffusionPipeline": {"text_encoder": "cond_stage_model.transformer."},
}
IMAGE_INPUT = {  # by pipeline class, a model whose input has more channels than its output
    "FluxPipeline": "a FLUX.1 with an image input (Fill, Depth, Canny)",
    "StableDiffusionXLPipeline": "an inpainting model",
    "StableDiffusionPipeline": "an inpainting model",
}
VAE_PREFIXES = ("first_stage_model.", "vae.")
OPTIONAL = {"StableDiffusion3Pipeline": {"text_encoder_3", "tokenizer_3"}}  # only together
CLIPS_ALONE = "prompts are encoded by the CLIPs alone (77 tokens)"
BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
Shapes = Mapping[str, tuple[int, ...]]


def is_checkpoint(base: str) -> bool:
    """Whether `base` is the path of a safetensors file. Raises UserError for a pickle, GGUF, or a missing file."""
    path = Path(base)
    if path.suffix == ".gguf" and path.is_file():
        raise UserError(f"base {base!r} is GGUF, which is not read: get its safetensors version (see --quantize)")
    if path.suffix in PICKLES and (path.is_file() or path.suffix == ".ckpt"):
        raise UserError(f"base {base!r} is a pickle, which can run code and is not read: get its safetensors version")
    if path.suffix != ".safetensors":
        return False
    if not path.is_file():
        raise UserError(f"base {base!r} does not exist")
    return True


def read_header(file: Path) -> tuple[dict[str, tuple[int, ...]], dict[str, str]]:
    """(name -> shape, name -> dtype) of a file's tensors. Raises UserError when it cannot be read."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "pt") as tensors:
            slices = {name: tensors.get_slice(name) for name in tensors.keys()}  # noqa: SIM118
            shapes = {name: tuple(s.get_shape()) for name, s in slices.items()}
            return shapes, {name: s.get_dtype() for name, s in slices.items()}
    except (SafetensorError, OSError) as error:
        raise UserError(f"base {str(file)!r} is damaged, or not a safetensors file: {error}; fetch it again") from None


def unsupported(base: str, what: str) -> UserError:
    """The error for a base of another kind."""
    return UserError(f"base {base!r} is {what}: impasto reads FLUX.1, SD3, SD3.5, SDXL and SD1.5 files")


def detect_architecture(shapes: Shapes, file: Path | str = "") -> str:
    """The architecture, a key of CARD_NAMES, by tensor names (FLUX.1-Kontext's equal dev's).

    Raises UserError for any other, naming it if known.
    """

    def refuse(what: str) -> UserError:
        return unsupported(str(file), what)

    names = {name.removeprefix(PREFIX): shape for name, shape in shapes.items()}
    if any(".lora_" in name or name.startswith("lora_") for name in names):
        raise UserError(f"base {str(file)!r} is a LoRA, not a base: give it to generate as --style")
    if any(name.endswith(("scale_weight", "weight_scale", "scaled_fp8")) for name in names):
        raise refuse("stored in scaled 8 bits")
    if "double_blocks.0.img_attn.qkv.weight" in names:
        if "distilled_guidance_layer.in_proj.bias" in names or "single_stream_modulation.lin.weight" in names:
            raise refuse("a relative of FLUX.1 (Chroma or FLUX.2)")
        if names["img_in.weight"][1] != names["final_layer.linear.weight"][0]:
            raise refuse(IMAGE_INPUT["FluxPipeline"])
        return "flux-dev" if "guidance_in.in_layer.weight" in names else "flux-schnell"
    if "joint_blocks.0.context_block.attn.qkv.weight" in names:
        if "joint_blocks.0.x_block.attn2.qkv.weight" in names:
            return "sd35-medium"
        return "sd35-large" if "joint_blocks.0.x_block.attn.ln_q.weight" in names else "sd3-medium"
    if "input_blocks.0.0.weight" not in names:
        raise refuse("none of them, or in another layout (a diffusers folder is given as a folder)")
    if names["input_blocks.0.0.weight"][1] != names["out.2.weight"][0]:
        raise refuse(IMAGE_INPUT["StableDiffusionPipeline"])
    if "edm_mean" in names or "edm_vpred.sigma_max" in names:
        raise refuse("trained on an EDM schedule")
    if "label_emb.0.0.weight" in names:
        if "conditioner.embedders.0.model.text_projection" in names:
            raise refuse("SDXL's refiner")
        return "sdxl"
    if "cond_stage_model.model.token_embedding.weight" in names:
        raise refuse("SD2.x, which is read from its diffusers folder")
    return "sd15"


def card_name(file: Path) -> str:
    """The name in cards.toml of a file's card."""
    return CARD_NAMES[detect_architecture(read_header(file)[0], file)]


def config_folder(file: Path, components: Path | None = None, configs: Path | None = None) -> Path:
    """The configurations, without weights, of the folder that `convert` would make; reads only the file's header.

    For components that neither the file nor `components` holds, the shipped configurations are used. Raises UserError
    when the file cannot be read or its architecture is unknown.
    """
    shapes, _ = read_header(file)
    config = (configs or CONFIGS) / detect_architecture(shapes, file)
    texts = {f.relative_to(config).as_posix(): json.loads(f.read_text(encoding="utf-8")) for f in plain_files(config)}
    in_file = components_in_file(shapes, texts["model_index.json"])
    for name in texts if components is not None else ():
        part, _, file_name = name.partition("/")
        if file_name and part not in in_file:
            texts[name] = part_config(str(components), name) or texts[name]
    scheduler = scheduler_config(config, shapes)
    texts["model_index.json"]["scheduler"] = ["diffusers", scheduler["_class_name"]]
    return write_config_folder(texts | {SCHEDULER: scheduler})


def scheduler_config(config: Path, shapes: Shapes) -> dict[str, Any]:
    """The shipped scheduler's config, updated by marker tensors of the file: "v_pred" of v-prediction fine-tunes of
    SDXL, "ztsnr" of those with zero terminal SNR, whose sampling has to start at that level (PNDM cannot)."""
    scheduler = json.loads((config / SCHEDULER).read_text(encoding="utf-8"))
    if "v_pred" in shapes:
        scheduler |= {"prediction_type": "v_prediction", "rescale_betas_zero_snr": "ztsnr" in shapes}
        scheduler |= {"timestep_spacing": "trailing"} if "ztsnr" in shapes else {}
    if scheduler.get("rescale_betas_zero_snr") and scheduler["_class_name"] == "PNDMScheduler":
        scheduler["_class_name"] = "DDIMScheduler"
        scheduler.pop("skip_prk_steps", None)
    return scheduler


def convert(file: Path, components: Path | None, configs: Path | None = None) -> Path:
    """The diffusers folder of a checkpoint, written to the cache if it is not there yet.

    components: a diffusers folder for the components that the file lacks. configs: instead of CONFIGS. Raises UserError
    when the file cannot be read, its architecture is unknown, or a component is in neither.
    """
    shapes, types = read_header(file)
    name = detect_architecture(shapes, file)
    config = (configs or CONFIGS) / name
    index = json.loads((config / "model_index.json").read_text(encoding="utf-8"))
    in_file, elsewhere = split_components(file, shapes, index, components)
    used = component_tensors(shapes, index)
    precision = target_dtype({types[key] for key in used})
    key_content = {"file": file_hash(file), "architecture": name, "precision": precision}
    key_content |= {"configs": {f.relative_to(config).as_posix(): file_hash(f) for f in plain_files(config)}}
    key_content |= {part: {f.name: file_hash(f) for f in plain_files(folder)} for part, folder in elsewhere.items()}
    key_content |= {"scheduler": scheduler_config(config, shapes)} if shapes.keys() >= {"v_pred", "ztsnr"} else {}
    key = json.dumps(key_content, sort_keys=True)
    folder = cache_dir("bases", f"{file.stem}-{digest(key)[:12]}")
    if is_converted(folder):
        repair_links(folder, elsewhere)
    else:
        check_disk_space(file, folder, sum(math.prod(shapes[key]) for key in used) * BYTES[precision])
        with atomic_folder(folder, is_converted) as scratch:
            write_folder(scratch, file, config, index, in_file, elsewhere, shapes, precision)
    return folder


def is_converted(folder: Path) -> bool:
    """Whether the conversion into `folder` is complete (its index is written last)."""
    return (folder / "model_index.json").exists()


def split_components(
    file: Path, shapes: Shapes, index: Mapping[str, Any], components: Path | None
) -> tuple[set[str], dict[str, Path]]:
    """(names of the components in the file, {name: folder} of the others). Raises UserError when a required component
    is in neither; warns when an optional one is."""
    optional, in_file = OPTIONAL.get(index["_class_name"], set()), components_in_file(shapes, index)
    wanted = {name for name, value in index.items() if isinstance(value, list) and value[0]} - in_file - {"scheduler"}
    elsewhere = {name: components / name for name in sorted(wanted) if components and (components / name).is_dir()}
    absent = wanted - set(elsewhere)
    without = absent & optional if "text_encoder_3" in absent else set()
    if missing := sorted(absent - without):
        where = f", nor does {str(components)!r}" if components else ""
        hint = f" ({' and '.join(sorted(without))} too: without, {CLIPS_ALONE})" if without else ""
        raise UserError(
            f"base {str(file)!r} does not hold {', '.join(missing)}{where}: "
            f"name a diffusers folder that has them with --components{hint}"
        )
    if without:
        warnings.warn(f"base {str(file)!r} has no text_encoder_3: {CLIPS_ALONE}", stacklevel=3)
    return in_file, elsewhere


def components_in_file(shapes: Shapes, index: Mapping[str, Any]) -> set[str]:
    """Names of the components that the file holds."""
    prefixes = TEXT_ENCODER_PREFIXES[index["_class_name"]] | {"unet": "", "transformer": "", "vae": VAE_PREFIXES}
    present = [name for name in prefixes if index.get(name, [None])[0]]
    return {name for name in present if any(key.startswith(prefixes[name]) for key in shapes)}


def component_tensors(shapes: Shapes, index: Mapping[str, Any]) -> list[str]:
    """Names of the components' tensors, without noise schedule and EMA weights."""
    if not any(key.startswith(PREFIX) for key in shapes):  # a denoiser alone, without prefix
        return list(shapes)
    return [
        key
        for key in shapes
        if key.startswith((PREFIX, *VAE_PREFIXES, *TEXT_ENCODER_PREFIXES[index["_class_name"]].values()))
    ]


def target_dtype(types: AbstractSet[str]) -> str:
    """The dtype of the converted weights: their own if it is a 16-bit one, bfloat16 for 8 bits, else float32."""
    floats = {"F8" if kind.startswith("F8") else kind for kind in types if kind.startswith(("F", "BF"))}
    if "F8" in floats or floats == {"BF16"}:
        return "bfloat16"
    return "float16" if floats == {"F16"} else "float32"


def write_folder(
    folder: Path,
    file: Path,
    config: Path,
    index: dict[str, Any],
    in_file: set[str],
    elsewhere: Mapping[str, Path],
    shapes: Shapes,
    precision: str,
) -> None:
    """Convert the components in the file to `precision`, link the others, write `model_index.json` last."""
    import diffusers
    import torch

    from impasto.families.base import quiet
    from impasto.families.files import explain_load_errors

    parts = {name for name, value in index.items() if isinstance(value, list)}
    dtype = getattr(torch, precision)
    with quiet(), explain_load_errors(file):
        try:
            pipe = getattr(diffusers, index["_class_name"]).from_single_file(
                str(file), config=str(config), local_files_only=True, dtype=dtype, **dict.fromkeys(parts - in_file)
            )
        except NotImplementedError:  # raised by torch for a meta tensor without data
            raise UserError(f"base {str(file)!r} lacks tensors of a {config.name}: fetch it again") from None
        for name in in_file:
            part = getattr(pipe, name)
            if hasattr(part, "tie_weights"):
                part.tie_weights()
            unset = [key for key, p in part.state_dict().items() if p.is_meta]
            if unset:
                raise UserError(f"base {str(file)!r} lacks {len(unset)} tensors of its {name}, {unset[0]!r} first")
            part.save_pretrained(folder / name)
    for name, source in elsewhere.items():
        for part_file in plain_files(source):
            link(part_file, folder / name / part_file.relative_to(source))
    (folder / SCHEDULER).parent.mkdir()
    scheduler = scheduler_config(config, shapes)
    (folder / SCHEDULER).write_text(json.dumps(scheduler, indent=2), encoding="utf-8")
    index["scheduler"] = ["diffusers", scheduler["_class_name"]]
    there = in_file | set(elsewhere) | {"scheduler"}
    index = {name: [None, None] if name in parts - there else value for name, value in index.items()}
    (folder / "impasto.json").write_text(
        json.dumps({"name": CARD_NAMES[config.name], "license": "other"}), encoding="utf-8"
    )
    (folder / "model_index.json").write_text(json.dumps(index, indent=2), encoding="utf-8")


def plain_files(folder: Path) -> Iterator[Path]:
    """The files of a component's folder that are read: no pickles, no variants beside plain weights."""
    yield from without_variants(component_files(folder))


def link(source: Path, target: Path) -> None:
    """Link `target` to `source`; copy where the file system has no links."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        target.symlink_to(source.resolve())
    except OSError:
        shutil.copy(source, target)


def repair_links(folder: Path, elsewhere: Mapping[str, Path]) -> None:
    """Recreate the broken links of a converted folder. elsewhere: components with the same contents, {name: folder}."""
    for name, source in elsewhere.items():
        for part_file in plain_files(source):
            target = folder / name / part_file.relative_to(source)
            if not target.exists():
                temporary = target.with_name(f".{os.getpid()}.{target.name}")
                link(part_file, temporary)
                temporary.replace(target)


def check_disk_space(file: Path, folder: Path, need: int) -> None:
    """Raise UserError unless the cache's disk has 1.05 x `need` bytes free."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder.parent).free
    if free < 1.05 * need:
        raise UserError(
            f"base {str(file)!r} needs {need / 1e9:.1f} GB in {folder.parent}, which has {free / 1e9:.1f}: free space, "
            "or set IMPASTO_CACHE to another disk"
        )


def digest(text: str) -> str:
    import hashlib

    return hashlib.sha256(text.encode()).hexdigest()
