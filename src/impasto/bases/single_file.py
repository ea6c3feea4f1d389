"""Single-file checkpoints: `model.safetensors` in its authors' own layout, made an ordinary diffusers folder once.

What a file is, its tensors' names say; the configurations come with the package (`configs/<architecture>`), so that no
network is asked. diffusers' `from_single_file` converts; what the file does not hold (always the tokenisers, often text
encoders and autoencoder) is linked from the folder that `--components` names. The result lies in the cache, named by
the contents of both, and is read like any other base.
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
from impasto.families.files import SCHEDULER, file_hash, outlined, read_of, without_variants
from impasto.files import atomic_folder, cache_dir

CONFIGS = Path(__file__).with_name("configs")
PREFIX = "model.diffusion_model."
PICKLES = {".ckpt", ".pt", ".pth", ".bin", ".pkl"}
BASES = {  # architecture: the base whose card it goes by
    "flux-dev": "black-forest-labs/FLUX.1-dev",
    "flux-schnell": "black-forest-labs/FLUX.1-schnell",
    "sd3-medium": "stabilityai/stable-diffusion-3-medium-diffusers",
    "sd35-medium": "stabilityai/stable-diffusion-3.5-medium",
    "sd35-large": "stabilityai/stable-diffusion-3.5-large",
    "sdxl": "stabilityai/stable-diffusion-xl-base-1.0",
    "sd15": "stable-diffusion-v1-5/stable-diffusion-v1-5",
}
CLIP_L, CLIP_G, T5 = (f"text_encoders.{name}.transformer." for name in ("clip_l", "clip_g", "t5xxl"))
HOLDS = {  # pipeline class: where a file that holds a component has it
    "FluxPipeline": {"text_encoder": CLIP_L, "text_encoder_2": T5},
    "StableDiffusion3Pipeline": {"text_encoder": CLIP_L, "text_encoder_2": CLIP_G, "text_encoder_3": T5},
    "StableDiffusionXLPipeline": {
        "text_encoder": "conditioner.embedders.0.transformer.",
        "text_encoder_2": "conditioner.embedders.1.model.",
    },
    "StableDiffusionPipeline": {"text_encoder": "cond_stage_model.transformer."},
}
VAE = ("first_stage_model.", "vae.")
OPTIONAL = {"StableDiffusion3Pipeline": {"text_encoder_3", "tokenizer_3"}}  # of no use without each other
CLIPS_ALONE = "prompts are read by the CLIPs alone (77 tokens)"
BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
Shapes = Mapping[str, tuple[int, ...]]


def is_file(base: str) -> bool:
    """Whether `base` is written like a checkpoint file. Raises UserError for a pickle, for GGUF, and for a file that is
    not."""
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
    """Names with shapes, and names with types, of a file's tensors. Raises UserError when it cannot be read."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "pt") as tensors:
            slices = {name: tensors.get_slice(name) for name in tensors.keys()}  # noqa: SIM118
            shapes = {name: tuple(s.get_shape()) for name, s in slices.items()}
            return shapes, {name: s.get_dtype() for name, s in slices.items()}
    except (SafetensorError, OSError) as error:
        raise UserError(f"base {str(file)!r} is damaged, or no safetensors file: {error}; fetch it again") from None


def architecture(shapes: Shapes, file: Path | str = "") -> str:
    """One of BASES by the names of the tensors; FLUX.1-Kontext has dev's, and is taken for dev.

    Raises UserError for anything else, saying what it is if known.
    """

    def refuse(what: str) -> UserError:
        return UserError(f"base {str(file)!r} is {what}: impasto reads FLUX.1, SD3, SD3.5, SDXL and SD1.5 files")

    names = {name.removeprefix(PREFIX): shape for name, shape in shapes.items()}
    if any(".lora_" in name or name.startswith("lora_") for name in names):
        raise UserError(f"base {str(file)!r} is a LoRA, not a base: give it to generate as --style")
    if any(name.endswith(("scale_weight", "weight_scale", "scaled_fp8")) for name in names):
        raise refuse("stored in scaled 8 bits")
    if "double_blocks.0.img_attn.qkv.weight" in names:
        if "distilled_guidance_layer.in_proj.bias" in names or "single_stream_modulation.lin.weight" in names:
            raise refuse("a relative of FLUX.1 (Chroma or FLUX.2)")
        if names["img_in.weight"][1] != names["final_layer.linear.weight"][0]:
            raise refuse("a FLUX.1 that takes a picture (Fill, Depth, Canny)")
        return "flux-dev" if "guidance_in.in_layer.weight" in names else "flux-schnell"
    if "joint_blocks.0.context_block.attn.qkv.weight" in names:
        if "joint_blocks.0.x_block.attn2.qkv.weight" in names:
            return "sd35-medium"
        return "sd35-large" if "joint_blocks.0.x_block.attn.ln_q.weight" in names else "sd3-medium"
    if "input_blocks.0.0.weight" not in names:
        raise refuse("none of them, or in another layout (a diffusers folder is given as a folder)")
    if names["input_blocks.0.0.weight"][1] != names["out.2.weight"][0]:
        raise refuse("an inpainting model")
    if "edm_mean" in names or "edm_vpred.sigma_max" in names:
        raise refuse("trained on an EDM schedule")
    if "label_emb.0.0.weight" in names:
        if "conditioner.embedders.0.model.text_projection" in names:
            raise refuse("SDXL's refiner")
        return "sdxl"
    if "cond_stage_model.model.token_embedding.weight" in names:
        raise refuse("SD2.x, which is read from its diffusers folder")
    return "sd15"


def base_card(file: Path) -> str:
    """The name of the card that a file goes by."""
    return BASES[architecture(read_header(file)[0], file)]


def outline(file: Path, components: Path | None = None, configs: Path | None = None) -> Path:
    """The folder that `convert` would make, of configurations alone: nothing is read but the file's header.

    What neither the file nor components holds is described by the shipped configurations. Raises UserError when the
    file cannot be read or is of no known architecture.
    """
    shapes, _ = read_header(file)
    config = (configs or CONFIGS) / architecture(shapes, file)
    texts = {f.relative_to(config).as_posix(): json.loads(f.read_text(encoding="utf-8")) for f in files(config)}
    inside = held(shapes, texts["model_index.json"])
    for name in texts if components is not None else ():
        part, _, file_name = name.partition("/")
        if file_name and part not in inside:
            texts[name] = part_config(str(components), name) or texts[name]
    scheduler = scheduler_config(config, shapes)
    texts["model_index.json"]["scheduler"] = ["diffusers", scheduler["_class_name"]]
    return outlined(texts | {SCHEDULER: scheduler})


def scheduler_config(config: Path, shapes: Shapes) -> dict[str, Any]:
    """The shipped scheduler as the file's marks change it: "v_pred", which v-prediction fine-tunes of SDXL carry, and
    "ztsnr", of those that go to zero terminal SNR: their drawing has to begin at that level, which PNDM cannot."""
    scheduler = json.loads((config / SCHEDULER).read_text(encoding="utf-8"))
    if "v_pred" in shapes:
        scheduler |= {"prediction_type": "v_prediction", "rescale_betas_zero_snr": "ztsnr" in shapes}
        scheduler |= {"timestep_spacing": "trailing"} if "ztsnr" in shapes else {}
    if scheduler.get("rescale_betas_zero_snr") and scheduler["_class_name"] == "PNDMScheduler":
        scheduler["_class_name"] = "DDIMScheduler"
        scheduler.pop("skip_prk_steps", None)
    return scheduler


def convert(file: Path, components: Path | None, configs: Path | None = None) -> Path:
    """The diffusers folder of a checkpoint, made in the cache where it is not there yet.

    components: a diffusers folder for what the file does not hold. configs: instead of CONFIGS. Raises UserError when
    the file cannot be read, is of no known architecture, or when something is in neither.
    """
    shapes, types = read_header(file)
    name = architecture(shapes, file)
    config = (configs or CONFIGS) / name
    index = json.loads((config / "model_index.json").read_text(encoding="utf-8"))
    inside, outside = split(file, shapes, index, components)
    used = own_weights(shapes, index)
    precision = stored_as({types[key] for key in used})
    told = {"file": file_hash(file), "architecture": name, "precision": precision}
    told |= {"configs": {f.relative_to(config).as_posix(): file_hash(f) for f in files(config)}}
    told |= {part: {f.name: file_hash(f) for f in files(folder)} for part, folder in outside.items()}
    told |= {"scheduler": scheduler_config(config, shapes)} if shapes.keys() >= {"v_pred", "ztsnr"} else {}
    key = json.dumps(told, sort_keys=True)
    folder = cache_dir("bases", f"{file.stem}-{digest(key)[:12]}")
    if converted(folder):
        link_again(folder, outside)
    else:
        room(file, folder, sum(math.prod(shapes[key]) for key in used) * BYTES[precision])
        with atomic_folder(folder, converted) as scratch:
            write(scratch, file, config, index, inside, outside, shapes, precision)
    return folder


def converted(folder: Path) -> bool:
    """Whether a checkpoint has been converted into `folder`: its index is written last."""
    return (folder / "model_index.json").exists()


def split(
    file: Path, shapes: Shapes, index: Mapping[str, Any], components: Path | None
) -> tuple[set[str], dict[str, Path]]:
    """Components that the file holds, and the folders of the others. Raises UserError when one is nowhere; warns of
    what can be done without."""
    optional, inside = OPTIONAL.get(index["_class_name"], set()), held(shapes, index)
    wanted = {name for name, value in index.items() if isinstance(value, list) and value[0]} - inside - {"scheduler"}
    outside = {name: components / name for name in sorted(wanted) if components and (components / name).is_dir()}
    absent = wanted - set(outside)
    without = absent & optional if "text_encoder_3" in absent else set()
    if missing := sorted(absent - without):
        where = f", nor does {str(components)!r}" if components else ""
        beside = f" ({' and '.join(sorted(without))} too: without, {CLIPS_ALONE})" if without else ""
        raise UserError(
            f"base {str(file)!r} does not hold {', '.join(missing)}{where}: "
            f"name a diffusers folder that has them with --components{beside}"
        )
    if without:
        warnings.warn(f"base {str(file)!r} has no text_encoder_3 with it: {CLIPS_ALONE}", stacklevel=3)
    return inside, outside


def held(shapes: Shapes, index: Mapping[str, Any]) -> set[str]:
    """The components that the file holds."""
    holds = HOLDS[index["_class_name"]] | {"unet": "", "transformer": "", "vae": VAE}
    return {name for name in holds if index.get(name, [None])[0] and any(key.startswith(holds[name]) for key in shapes)}


def own_weights(shapes: Shapes, index: Mapping[str, Any]) -> list[str]:
    """The tensors that components are made of: no noise schedule, no second (averaged) U-Net."""
    if not any(key.startswith(PREFIX) for key in shapes):  # the denoiser alone, under its bare names
        return list(shapes)
    return [key for key in shapes if key.startswith((PREFIX, *VAE, *HOLDS[index["_class_name"]].values()))]


def stored_as(types: AbstractSet[str]) -> str:
    """The type that weights are converted to: their own where it is one of 16 bits, bfloat16 for 8, else float32."""
    floats = {"F8" if kind.startswith("F8") else kind for kind in types if kind.startswith(("F", "BF"))}
    if "F8" in floats or floats == {"BF16"}:
        return "bfloat16"
    return "float16" if floats == {"F16"} else "float32"


def write(
    folder: Path,
    file: Path,
    config: Path,
    index: dict[str, Any],
    inside: set[str],
    outside: Mapping[str, Path],
    shapes: Shapes,
    precision: str,
) -> None:
    """Convert what is inside to `precision`, link what is outside, and say so in `model_index.json`, written last."""
    import diffusers
    import torch

    from impasto.families.base import quiet
    from impasto.families.files import damage

    parts = {name for name, value in index.items() if isinstance(value, list)}
    dtype = getattr(torch, precision)
    with quiet(), damage(file):
        try:
            pipe = getattr(diffusers, index["_class_name"]).from_single_file(
                str(file), config=str(config), local_files_only=True, dtype=dtype, **dict.fromkeys(parts - inside)
            )
        except NotImplementedError:  # torch's word for a tensor that was promised and never filled
            raise UserError(f"base {str(file)!r} lacks tensors of a {config.name}: fetch it again") from None
        for name in inside:
            part = getattr(pipe, name)
            if hasattr(part, "tie_weights"):
                part.tie_weights()
            unset = [key for key, p in part.state_dict().items() if p.is_meta]
            if unset:
                raise UserError(f"base {str(file)!r} lacks {len(unset)} tensors of its {name}, {unset[0]!r} first")
            part.save_pretrained(folder / name)
    for name, source in outside.items():
        for part_file in files(source):
            link(part_file, folder / name / part_file.relative_to(source))
    (folder / SCHEDULER).parent.mkdir()
    scheduler = scheduler_config(config, shapes)
    (folder / SCHEDULER).write_text(json.dumps(scheduler, indent=2), encoding="utf-8")
    index["scheduler"] = ["diffusers", scheduler["_class_name"]]
    there = inside | set(outside) | {"scheduler"}
    index = {name: [None, None] if name in parts - there else value for name, value in index.items()}
    (folder / "impasto.json").write_text(json.dumps({"name": BASES[config.name], "license": "other"}), encoding="utf-8")
    (folder / "model_index.json").write_text(json.dumps(index, indent=2), encoding="utf-8")


def files(folder: Path) -> Iterator[Path]:
    """What of a component's folder is read: no pickles, no second format, no variant beside plain weights."""
    yield from without_variants(read_of(folder))


def link(source: Path, target: Path) -> None:
    """`target` is `source`, without a second copy where the file system can do that."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        target.symlink_to(source.resolve())
    except OSError:
        shutil.copy(source, target)


def link_again(folder: Path, outside: Mapping[str, Path]) -> None:
    """Put right the links of a converted folder whose targets have moved. outside: components of the same contents."""
    for name, source in outside.items():
        for part_file in files(source):
            target = folder / name / part_file.relative_to(source)
            if not target.exists():
                fresh = target.with_name(f".{os.getpid()}.{target.name}")
                link(part_file, fresh)
                fresh.replace(target)


def room(file: Path, folder: Path, need: int) -> None:
    """Raise UserError unless the cache's disk has room for `need` bytes, and a little more."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder.parent).free
    if free < 1.05 * need:
        raise UserError(
            f"base {str(file)!r} needs {need / 1e9:.1f} GB in {folder.parent}, which has {free / 1e9:.1f}: make room, "
            "or set IMPASTO_CACHE to another disk"
        )


def digest(text: str) -> str:
    import hashlib

    return hashlib.sha256(text.encode()).hexdigest()
