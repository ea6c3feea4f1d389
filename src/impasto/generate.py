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
from impasto.guidance import style_guidance
from impasto.guidance.prompt_switch import PromptSwitch, grid
from impasto.guidance.style_aligned import Reference, Sharing, StyleAligned
from impasto.sampling.config import GenerateConfig
from impasto.sampling.output import check_targets, clear_leftovers
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
    aligned: StyleAligned | None = None,
    device: str = "auto",
    precision: str = "auto",
    components: Path | None = None,
    switch: PromptSwitch | None = None,
    quantize: str = "none",
) -> Iterator[tuple[Image.Image, Info]]:
    """`count` pictures per prompt, in order, each with its Info; picture i has the seed `seed + i`.

    styles: style folders or files, each with an optional strength, "runs/neon:0.8". Strength, style guidance and
    negative prompt that are not given are the style's own defaults, see `styles.defaults`. switch: to another prompt at
    a log-SNR. aligned: a reference picture whose style is taken over without training, see `guidance.style_aligned`;
    with styles, it is inverted by the base that has them, and styles have the defaults of plain diffusers. quantize:
    the base in fewer bits, as `TrainConfig.quantize` has it but for "auto". Everything that can be wrong is found
    before this returns (UserError); the pictures are drawn as they are asked for.
    """
    check_seed(seed)
    check_prompts(prompts)
    chosen = [split_strength(style) for style in styles]
    abouts = [read_about(path) for path, _ in chosen]  # a damaged file is found before the base is loaded
    family = loader.load(base, device=device, precision=precision, components=components)
    sampling = sampling or Sampling()
    if aligned and (sampling.style_guidance or sampling.base_guidance):
        raise UserError("style-guidance and aligned-to do not go together: leave out one of them")
    styled, sampling = style_defaults.apply(chosen, abouts, sampling, family, plain=aligned is not None)
    sampling = sampling.on(family)
    check_size(sampling.size, family)  # before anything is loaded
    running.check_quantized(quantize, family.device)
    with running.in_main_memory(family):
        parts = {family.part: family.denoiser} if aligned or quantize != "none" else {}  # aligned: it inverts as well
        for denoiser in parts.values():
            running.quantize(denoiser, quantize, family.dtype)
        pipe = family.pipeline(**parts)
    extra: dict[str, Any] = {}
    for (path, strength), kind in zip(styled, map(quantized_base, abouts), strict=True):
        extra |= load_style(pipe, path, strength)
        if kind and kind != quantize:
            here = family.precision if quantize == "none" else quantize
            warnings.warn(
                f"style {str(path)!r} was trained on the base in {kind} and is drawn here on the base in {here}: "
                f"pictures may differ from its previews; --quantize {kind} draws on the same, and a strength below 1 "
                f"may help, --style {path}:0.8",
                stacklevel=2,
            )
    if sampling.style_guidance or sampling.base_guidance:
        style_guidance.check_switchable(getattr(pipe, family.part))
    assert sampling.batch is not None and sampling.size is not None
    running.settle(pipe, family, sampling.batch * sampling.size**2)
    about = {
        "base": base,
        "base_hash": family.hash,
        **({} if quantize == "none" else {"quantize": quantize}),
        "styles": [{"path": str(p), "strength": s, "hash": style_hash(p)} for p, s in styled],
    }
    jobs = [(prompt, seed + i) for i, prompt in enumerate(p for p in prompts for _ in range(count))]
    encode = encoder(family, pipe, sampling.batch)
    assert sampling.steps is not None
    if switch is not None:
        switch = switch.on(grid(family, sampling.steps, sampling.size))
    reference = Reference(aligned, family, encode, sampling.steps, sampling.size) if aligned else None
    return sample(family, pipe, jobs, encode, sampling, about, extra, switch, reference)


def read_switch(config: GenerateConfig) -> PromptSwitch | None:
    """What --switch-to and --switch-at say. Raises UserError where one of them is missing."""
    if config.switch_to is None and config.switch_at is None:
        return None
    if config.switch_to is None or config.switch_at is None:
        missing = "switch-to, the second prompt" if config.switch_to is None else "switch-at, a log-SNR such as -4"
        raise UserError(f"switch-to and switch-at go together: give --{missing}")
    return PromptSwitch(config.switch_to, config.switch_at)


def alignment(config: GenerateConfig) -> StyleAligned | None:
    """What --aligned-to and its companions ask for. Raises UserError where they have no effect."""
    sharing = Sharing(adain=config.aligned_adain, scale=config.aligned_scale, shift=config.aligned_shift)
    if config.aligned_to is not None:
        return StyleAligned(config.aligned_to, config.reference_caption, sharing)
    if config.reference_caption or sharing != Sharing():
        raise UserError("reference_caption and aligned_... go with aligned_to: name the reference picture")
    return None


def generate_folder(config: GenerateConfig, progress: Callable[[int, int], None] | None = None) -> dict[str, Any]:
    """Write `0000.png` on to `config.out`, in the order of the prompts; returns what was written, and what was removed
    of an earlier command's, see `clear_leftovers`.

    progress: called with (pictures done, pictures in all). Raises UserError on bad input.
    """
    prompts = read_prompts(config)
    if config.count < 1:
        raise UserError(f"count must be at least 1, not {config.count}")
    switch, total = read_switch(config), len(prompts) * config.count
    aligned = alignment(config)
    check_targets(config.out, total, config.aligned_to)
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
    )
    pictures = generate(
        config.base,
        prompts,
        styles=config.style,
        seed=config.seed,
        count=config.count,
        sampling=sampling,
        aligned=aligned,
        device=config.device,
        precision=config.precision,
        components=config.components,
        switch=switch,
        quantize=config.quantize,
    )
    files, told, gone = [], {}, []
    for i, (image, info) in enumerate(pictures):
        gone = gone if files else clear_leftovers(config.out)  # an interrupted command leaves no mixture
        files.append(f"{i:04d}.png")
        save_png(image, info, config.out / files[-1])
        told = {key: info[key] for key in USED if key in info}
        told["styles"] = [f"{style['path']}:{style['strength']:g}" for style in info["styles"]]
        if progress:
            progress(i + 1, total)
    if gone := [name for name in gone if name not in files]:
        told["removed"] = gone
    return {"out": str(config.out), "images": files, "base": config.base, "styles": list(config.style)} | told


USED = (
    *("guidance", "style_guidance", "base_guidance", "negative_prompt"),
    *("log_snr", "prompt_of_step", "switch_share"),
)
"""Of an image's Info: what `generate_folder` reports, the same for all images of a command."""
