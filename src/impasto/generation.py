"""Generating: prompts and seeds -> pictures, by the base's ordinary diffusers pipeline, with or without styles.

Picture i starts from `torch.Generator("cpu").manual_seed(seed + i)`, so that plain diffusers repeats it, whatever the
batch; the number and every other setting are in the PNG.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from impasto.bases import loader
from impasto.coerce import check_seed
from impasto.errors import UserError
from impasto.execution import apply as running
from impasto.families.base import check_size
from impasto.files import writable_folder
from impasto.guidance import bind_all, style_guidance
from impasto.sampling.config import GenerateConfig
from impasto.sampling.output import check_targets, clear_leftovers, next_number
from impasto.sampling.png import Info, save_png
from impasto.sampling.prompts import check_prompts, read_prompts
from impasto.sampling.sample import Sampling, encoder, sample
from impasto.styles import defaults as style_defaults
from impasto.styles.load import load_style
from impasto.styles.metadata import quantized_base, read_about
from impasto.styles.weights import split_strength, style_hash


def generate(
    base: str,
    prompts: Sequence[str],
    *,
    styles: Sequence[str] = (),
    seed: int = 0,
    count: int = 1,
    sampling: Sampling | None = None,
    guidances: Sequence[Any] | None = None,
    device: str = "auto",
    precision: str = "auto",
    components: Path | None = None,
    quantize: str = "none",
) -> Iterator[tuple[Image.Image, Info]]:
    """`count` pictures per prompt, in order, each with its Info; picture i has the seed `seed + i`.

    styles: style folders or files, each with an optional strength, "runs/neon:0.8". guidances: settings of
    `guidance.GUIDANCES`, such as `PromptSwitch("{prompt} in neon style", -4.0)`; () for none. Strength, sampler, style
    guidance, negative prompt and guidances that are not given are the style's own defaults, see `styles.defaults`; with
    a guidance of fixed rows (StyleAligned) those of plain diffusers. quantize: the base in fewer bits, as
    `TrainConfig.quantize` has it but for "auto". Everything that can be wrong is found before this returns (UserError);
    images are generated when they are asked for.
    """
    check_seed(seed)
    check_prompts(prompts)
    chosen = [split_strength(style) for style in styles]
    abouts = [read_about(path) for path, _ in chosen]  # a damaged file is found before the base is loaded
    family = loader.load(base, device=device, precision=precision, components=components)
    sampling = sampling or Sampling()
    fixed = any(getattr(one, "fixed_rows", False) for one in guidances or ())
    if fixed and (sampling.style_guidance or sampling.base_guidance):
        raise UserError("style-guidance and aligned-to do not go together: leave out one of them")
    styled, sampling, guidances = style_defaults.apply(chosen, abouts, sampling, guidances, family, plain=fixed)
    if fixed and style_defaults.replaces_weights(guidances):
        raise UserError("aligned-to and the guidance style-semantics do not go together: leave out one of them")
    sampling = sampling.on(family)
    check_size(sampling.size, family)  # before anything is loaded
    running.check_quantized(quantize, family.device)
    with running.in_main_memory(family):
        shared = quantize != "none" or any(getattr(one, "calls_denoiser", False) for one in guidances)
        parts = {family.part: family.denoiser} if shared else {}
        for denoiser in parts.values():
            running.quantize(denoiser, quantize, family.dtype)
        pipe = family.pipeline(**parts)
    for (path, strength), kind in zip(styled, map(quantized_base, abouts), strict=True):
        load_style(pipe, path, strength)
        if kind and kind != quantize:
            here = family.precision if quantize == "none" else quantize
            warnings.warn(
                f"style {str(path)!r} was trained on the base in {kind} and is drawn here on the base in {here}: "
                f"pictures may differ from its previews; --quantize {kind} draws on the same, and a strength below 1 "
                f"may help, --style {path}:0.8",
                stacklevel=2,
            )
    compared = any(getattr(one, "compares_with_base", False) for one in guidances)
    if sampling.style_guidance or sampling.base_guidance or compared:
        style_guidance.check_switchable(getattr(pipe, family.part))
    assert sampling.batch is not None and sampling.size is not None
    running.place_pipeline(pipe, family, sampling.batch * sampling.size**2)
    about = {
        "base": base,
        "base_hash": family.hash,
        **({} if quantize == "none" else {"quantize": quantize}),
        "styles": [{"path": str(p), "strength": s, "hash": style_hash(p)} for p, s in styled],
        **(sampling.weights(family).info if styled else {}),
    }
    jobs = [(prompt, seed + i) for i, prompt in enumerate(p for p in prompts for _ in range(count))]
    encode = encoder(family, pipe, sampling.batch)
    return sample(family, pipe, jobs, encode, sampling, about, bind_all(guidances, family, sampling, encode))


def generate_folder(config: GenerateConfig, progress: Callable[[int, int], None] | None = None) -> dict[str, Any]:
    """Write `0000.png` on to `config.out`, in the order of the prompts, numbered behind the images that are there; with
    `config.replace` those of an earlier command are removed instead (`clear_leftovers`). Returns what was written, and
    what was removed.

    progress: called with (pictures done, pictures in all). Raises UserError on bad input.
    """
    prompts = read_prompts(config)
    if config.count < 1:
        raise UserError(f"count must be at least 1, not {config.count}")
    total = len(prompts) * config.count
    if config.replace:
        check_targets(config.out, total, [one.image for one in config.guidances if getattr(one, "image", None)])
    check_prompts(prompts)
    writable_folder(config.out)
    sampling = Sampling(
        config.steps,
        config.guidance,
        config.negative,
        config.size,
        config.batch,
        config.style_guidance,
        config.base_guidance,
        config.sampler,
    )
    pictures = generate(
        config.base,
        prompts,
        styles=config.style,
        seed=config.seed,
        count=config.count,
        sampling=sampling,
        guidances=config.guidances or None,
        device=config.device,
        precision=config.precision,
        components=config.components,
        quantize=config.quantize,
    )
    files, told, gone = [], {}, []
    first = 0 if config.replace else next_number(config.out)
    for i, (image, info) in enumerate(pictures):
        if config.replace and not files:
            gone = clear_leftovers(config.out)  # an interrupted command leaves no mixture
        files.append(f"{first + i:04d}.png")
        save_png(image, info, config.out / files[-1])
        told = {key: info[key] for key in USED if key in info}
        told["styles"] = [f"{style['path']}:{style['strength']:g}" for style in info["styles"]]
        if progress:
            progress(i + 1, total)
    if gone := [name for name in gone if name not in files]:
        told["removed"] = gone
    return {"out": str(config.out), "images": files, "base": config.base, "styles": list(config.style)} | told


USED = (
    *("sampler", "guidance", "style_guidance", "base_guidance", "negative_prompt"),
    *("log_snr", "prompt_of_step", "switch_share", "style_semantics"),
)
"""Of an image's Info: what `generate_folder` reports, the same for all images of a command."""
