"""Generating: prompts and seeds -> pictures, by the base's ordinary diffusers pipeline, with or without styles.

Picture i starts from `torch.Generator("cpu").manual_seed(seed + i)`, so that plain diffusers repeats it, whatever the
batch; the number and every other setting are in the PNG.
"""

import json
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image, PngImagePlugin

import impasto
from impasto import families, running, style_defaults
from impasto.adapters.io import load_style, style_file, style_hash
from impasto.adapters.metadata import quantized_base, read_about
from impasto.config import GenerateConfig, check_seed
from impasto.errors import UserError
from impasto.families.base import Condition, Family, quiet
from impasto.guidance import style_guidance
from impasto.guidance.prompt_switch import PromptSwitch, grid, switching
from impasto.guidance.style_aligned import Reference, Sharing, StyleAligned
from impasto.guidance.style_guidance import Weights
from impasto.noise.schedule import VariancePreserving
from impasto.paths import atomic
from impasto.prompts import lettering, lines, multi_panel
from impasto.runfolder import writable_folder

Info = dict[str, Any]
"""What a picture tells: prompt, negative_prompt, seed, steps, guidance, width, height, base, base_hash, styles; where
the prompt was switched, `PromptSwitch.info`."""


@dataclass(frozen=True)
class Sampling:
    """How images are sampled. steps, guidance, size and batch as the base's card says where they are None.

    style_guidance, base_guidance: see `guidance.style_guidance.Weights`. negative: the negative prompt, STYLE_WORDS for
    the words of the style. None in these: `generate` takes the style's own defaults, see `style_defaults`; elsewhere
    they are 0 and "".
    """

    steps: int | None = None
    guidance: float | None = None
    negative: str | None = None
    size: int | None = None
    batch: int | None = None
    style_guidance: float | None = None
    base_guidance: float | None = None

    def on(self, family: Family) -> "Sampling":
        """With the card's values filled in. Raises UserError where one is out of range."""
        card = family.card["generate"]
        filled = Sampling(
            steps=card["steps"] if self.steps is None else self.steps,
            guidance=card["guidance"] if self.guidance is None else self.guidance,
            negative=self.negative or "",
            size=family.card["size"] if self.size is None else self.size,
            batch=card["batch"] if self.batch is None else self.batch,
            style_guidance=self.style_guidance or 0.0,
            base_guidance=self.base_guidance or 0.0,
        )
        for name in ("steps", "size", "batch"):
            if getattr(filled, name) < 1:
                raise UserError(f"{name} must be at least 1, not {getattr(filled, name)}")
        most = len(family.schedule.levels) - 1 if isinstance(family.schedule, VariancePreserving) else math.inf
        if (filled.steps or 0) > most:
            raise UserError(f"steps must be at most {most} for this base, not {filled.steps}: its schedule has no more")
        if not 0 <= (filled.guidance or 0.0) < math.inf:
            raise UserError(f"guidance must be a finite number from 0 on, not {filled.guidance}")
        style_guidance.check_weight(filled.style_guidance, "style-guidance")
        style_guidance.check_weight(filled.base_guidance, "base-guidance")
        if filled.base_guidance and family.guided_by != "negative":
            raise UserError("base-guidance needs a negative prompt, which this base does not take: leave it out")
        if self.negative and family.guided_by != "negative":
            warnings.warn("this base is not guided by a negative prompt: what it says is not used", stacklevel=2)
        elif self.negative and (filled.guidance or 0.0) <= 1 and not filled.base_guidance:
            warnings.warn("without guidance above 1 a negative prompt is not used", stacklevel=2)
        if self.guidance and family.guided_by == "nothing":
            warnings.warn("this base takes no guidance: the scale is not used", stacklevel=2)
        return filled

    def weights(self, family: Family) -> Weights:
        """How predictions combine; guidance of 1 or less, and of a base without negative prompts, is none."""
        guided = family.guided_by == "negative" and (self.guidance or 0.0) > 1
        return Weights((self.guidance or 1.0) if guided else 1.0, self.style_guidance or 0.0, self.base_guidance or 0.0)


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
    negative prompt that are not given are the style's own defaults, see `style_defaults`. switch: to another prompt at
    a log-SNR. aligned: a reference picture whose style is taken over without training, see `guidance.style_aligned`;
    with styles, it is inverted by the base that has them, and styles have the defaults of plain diffusers. quantize:
    the base in fewer bits, as `TrainConfig.quantize` has it but for "auto". Everything that can be wrong is found
    before this returns (UserError); the pictures are drawn as they are asked for.
    """
    check_seed(seed)
    check_prompts(prompts)
    chosen = [split_strength(style) for style in styles]
    abouts = [read_about(path) for path, _ in chosen]  # a damaged file is found before the base is loaded
    family = families.load(base, device=device, precision=precision, components=components)
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


def encoder(family: Family, pipe: Any, batch: int = 32) -> Callable[[str], Condition]:
    """Prompt -> condition by the pipeline's own encoders; each prompt by itself, so that no batch can touch it.

    batch: pictures drawn at once. The last 2 batch + 2 conditions are kept: a batch asks for a prompt and a second one
    per picture, the negative one and the reference's caption. One of FLUX takes 4 MB of the device.
    """

    @lru_cache(2 * batch + 2)
    def encode(prompt: str) -> Condition:
        return family.encode_prompt([prompt], pipe=pipe)

    return encode


def sample(
    family: Family,
    pipe: Any,
    jobs: Sequence[tuple[str, int]],
    encode: Callable[[str], Condition],
    sampling: Sampling,
    about: Info,
    extra: dict[str, Any] | None = None,
    switch: PromptSwitch | None = None,
    reference: Reference | None = None,
) -> Iterator[tuple[Image.Image, Info]]:
    """Draw jobs of (prompt, seed) in batches. about: what their Info says of base and styles. sampling, switch: filled
    in. reference: one more row before those of each batch, which they are aligned to.
    """
    asked = {"output_type": "pt"} | (extra or {})
    steps, guidance, size, batch = sampling.steps, sampling.guidance, sampling.size, sampling.batch
    assert steps is not None and guidance is not None and size is not None and batch is not None
    for start in range(0, len(jobs), batch):
        part = jobs[start : start + batch]
        rows = [(encode(prompt), seed) for prompt, seed in part]
        if reference:
            rows.insert(0, (reference.condition, 0))  # its noise is not used
        cond = join([row for row, _ in rows])
        weights = sampling.weights(family)
        compared = family.guided_by == "negative" and (weights.guidance > 1 or weights.base > 0)
        negative = join([encode(sampling.negative or "")] * len(rows)) if compared else None
        own = family.call_arguments(cond, negative)
        told: Any = nullcontext(own)
        if switch is not None:
            second = [encode(switch.second(prompt)) for prompt, _ in part]
            other = join([reference.condition, *second] if reference else second)
            told = switching(family, pipe, switch, (own, family.call_arguments(other, negative)))
        leading = reference.leading(2 if compared else 1) if reference else nullcontext()
        composed = weights.style > 0 or weights.base > 0
        guided = style_guidance.guiding(getattr(pipe, family.part), weights, compared) if composed else nullcontext()
        scale = max(guidance, 2.0) if composed and compared else guidance  # above 1 the pipeline asks for the negative
        with quiet(), leading, guided, told as call:
            images = pipe(
                **call,
                generator=[torch.Generator("cpu").manual_seed(seed) for _, seed in rows],
                num_inference_steps=steps,
                guidance_scale=scale,
                height=size,
                width=size,
                **asked,
            ).images
        if reference:
            images, about = images[1:], about | {"aligned": reference.info}
        for pixels, (prompt, seed) in zip(images, part, strict=True):
            if not pixels.isfinite().all():
                warnings.warn(
                    f"the picture of seed {seed} came out as numbers that are not finite, and is black: take a "
                    "strength nearer to 1, less guidance, or --precision fp32",
                    stacklevel=2,
                )
            image = as_image(pixels) if asked["output_type"] == "pt" else pixels
            info = {"prompt": prompt, "negative_prompt": sampling.negative, "seed": seed, "steps": steps}
            info |= {"guidance": guidance, "width": size, "height": size}
            info |= weights.info if about.get("styles") else {}
            info |= switch.info(prompt) if switch is not None else {}
            yield image, info | about | {"version": impasto.__version__}


def as_image(pixels: torch.Tensor) -> Image.Image:
    """(3, h, w) in [0, 1] as diffusers itself makes a picture of it, black where a number is not finite."""
    pixels = pixels if pixels.isfinite().all() else torch.zeros_like(pixels)
    return VaeImageProcessor.numpy_to_pil(VaeImageProcessor.pt_to_numpy(pixels[None]))[0]


def join(conds: Sequence[Condition]) -> Condition:
    return {name: torch.cat([cond[name] for cond in conds]) for name in conds[0]}


def split_strength(style: str) -> tuple[Path, float | None]:
    """(runs/neon, 0.8) for "runs/neon:0.8", strength None when none is given. UserError when there is no such style."""
    path, colon, strength = str(style).rpartition(":")
    if not colon or Path(style).exists():
        style_file(style)
        return Path(style), None
    try:
        value = float(strength)
    except ValueError:
        raise UserError(f"style {style!r}: after the colon comes a number, as in {path}:0.8") from None
    if not math.isfinite(value):
        raise UserError(f"style {style!r}: the strength must be a finite number, as in {path}:0.8")
    style_file(path)
    return Path(path), value


def check_multiple(size: int | None, unit: int, name: str = "size") -> None:
    """Raise UserError unless the size, of that name, is a whole number of a model's patches, of `unit` pixels."""
    if size is None or size < unit or size % unit:
        raise UserError(f"{name} must be a multiple of {unit} for this base, not {size}")


def check_size(size: int | None, family: Family, name: str = "size") -> None:
    """Raise UserError unless the size, of that name, is a whole number of the model's patches, and within its
    positions."""
    check_multiple(size, family.unit, name)
    if family.largest and size and size > family.largest:
        raise UserError(f"{name} must be at most {family.largest} for this base, not {size}: its positions end there")


def save_png(image: Image.Image, info: Info, path: Path) -> None:
    """Write a PNG that says how it was made: `impasto` (JSON) and `parameters` (as A1111 writes it)."""
    text = PngImagePlugin.PngInfo()
    text.add_text("impasto", json.dumps(info))
    text.add_text("parameters", parameters(info))
    with atomic(path) as file:
        image.save(file, "PNG", pnginfo=text)


def parameters(info: Info) -> str:
    """The settings as a person, and many a tool, reads them."""
    negative = f"\nNegative prompt: {info['negative_prompt']}" if info["negative_prompt"] else ""
    styles = "".join(f" <lora:{Path(s['path']).name}:{s['strength']:g}>" for s in info["styles"])
    settings = {
        "Steps": info["steps"],
        "CFG scale": f"{info['guidance']:g}",
        **({"Style guidance": f"{info['style_guidance']:g}"} if info.get("style_guidance") else {}),
        **({"Base guidance": f"{info['base_guidance']:g}"} if info.get("base_guidance") else {}),
        "Seed": info["seed"],
        "Size": f"{info['width']}x{info['height']}",
        "Model": info["base"],
        "Model hash": info["base_hash"][:10],
        **({"StyleAligned to": info["aligned"]["hash"][:10]} if "aligned" in info else {}),
        "Version": f"impasto {info['version']}",
    }
    if "switch_to" in info:
        first = info["prompt_of_step"].count(0)
        settings |= {"Switch to": json.dumps(info["switch_to"], ensure_ascii=False), "Switch after steps": first}
    return f"{info['prompt']}{styles}{negative}\n" + ", ".join(f"{key}: {value}" for key, value in settings.items())


def check_prompts(prompts: Sequence[str]) -> None:
    """Raise UserError where there is none, or an empty one."""
    if not prompts or not all(prompt.strip() for prompt in prompts):
        raise UserError("no prompt: give one with --prompt 'a cat in neon style', or a file of them with --prompts")


def read_prompts(config: GenerateConfig) -> list[str]:
    """The prompts given one by one, those of the file, one per line, empty lines left out, then panels and letters."""
    prompts = list(config.prompt)
    if config.panel_style != GenerateConfig.panel_style and not (config.panels or config.letters):
        raise UserError("panel-style is of --panels and --letters: give one of them, or leave it out")
    if config.prompts is not None:
        prompts += lines(config.prompts, "prompts")
    prompts += [multi_panel(subjects.split(";"), config.panel_style) for subjects in config.panels]
    return prompts + [lettering(words, config.panel_style) for words in config.letters]


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


def check_targets(folder: Path, total: int, reference: Path | None = None) -> None:
    """Raise UserError where one of `total` new pictures would be written over one that `generate` did not draw, or
    where the reference, an earlier picture in that folder, would be removed."""
    for file in targets(folder, total):
        if file.exists() and not drawn_here(file):
            raise UserError(
                f"{str(file)!r} is a picture that impasto did not draw: use another --out, it stays as it is"
            )
    doomed = {file.resolve() for file in (*targets(folder, total), *leftovers(folder))}
    if reference is not None and reference.resolve() in doomed:
        raise UserError(f"the reference {str(reference)!r} lies in --out, and would be removed: use another --out")


def targets(folder: Path, total: int) -> list[Path]:
    """The files of `total` new pictures."""
    return [folder / f"{i:04d}.png" for i in range(total)]


def leftovers(folder: Path) -> list[Path]:
    """An earlier command's pictures and the scores of them."""
    found = [file for file in folder.glob("*.png") if file.stem.isdecimal()]
    gone = [file for file in sorted(found) if file.name == f"{int(file.stem):04d}.png" and drawn_here(file)]
    return gone + ([folder / "scores.json"] if scored_here(folder / "scores.json") else [])


def clear_leftovers(folder: Path) -> list[str]:
    """Remove an earlier command's pictures and the scores of them; returns their names. What impasto did not write
    stays."""
    gone = leftovers(folder)
    for file in gone:
        file.unlink()
    return [file.name for file in gone]


def drawn_here(file: Path) -> bool:
    """Whether a PNG says that `generate` drew it."""
    from impasto.evaluate.samples import told

    return {"prompt", "seed", "base_hash"} <= told(file).keys()


def scored_here(file: Path) -> bool:
    """Whether a file is what `evaluate` writes."""
    return "images_scored" in json_of(file)


def json_of(file: Path) -> dict[str, Any]:
    """The JSON object in a file, {} where there is none."""
    try:
        return families.read_object(file)
    except (OSError, ValueError):
        return {}
