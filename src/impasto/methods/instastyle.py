"""InstaStyle (Cui et al. 2023, arXiv 2311.15040): the inversion noise of one image carries its style.

    z_T = invert(I, C(o_I, s))                                                  I the reference of object o_I
    I_k = sample(z_T, C(o_k, s), w = 2.5),    k = 1 .. 15                        the style words s the same in all
    D = the n = 5 of least max(rank of style, rank of content)                  Algorithm 1, lines 1 to 4
    500 times: (x, o) ~ D, t ~ U, L = |eps - eps_theta(z_t, t, C(o, <style1>))|^2    on <style1> and the K, V of theta
    z_T = invert(I, C(o_I, <style1>)) by the tuned model                        kept: where the style's images start

C(o, s) is the reference's caption with its object replaced. Style is CLIP(I_k, I), content CLIP(I_k, C(o_k, s)), each
ranked from 1, the highest first. A rectified flow takes Euler steps in place of DDIM's.

The style folder holds the LoRA, the token and the noise. `candidates/` has the I_k, `refinement/` the run that trained
on D, an ordinary style folder. Several references are refined together by `methods.style_mix`.
"""

import gc
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from impasto.adapters.base import PLAIN_SAMPLING
from impasto.bases import loader
from impasto.config import Fit, TrainConfig, change
from impasto.data import references
from impasto.errors import UserError
from impasto.evaluation.encoders import Encoder, load_encoder
from impasto.families.base import Condition, Family
from impasto.files import MODELS, atomic
from impasto.inversion import invert, kind_of, log_snr_of, noise_file, sample
from impasto.inversion.mix import randomise
from impasto.inversion.noise_file import InversionNoise, NoiseInfo
from impasto.invert import measure_reconstruction, reconstruct, save_image
from impasto.methods.config import InstaStyle
from impasto.methods.selection import (
    CANDIDATES,
    Candidate,
    ask_for_selection,
    encode_pairs,
    keep_selection,
    list_candidates,
    missing_candidates,
    open_image,
    write_sheet,
)
from impasto.methods.stages import Stages, digest
from impasto.methods.style_caption import StyleCaption
from impasto.methods.style_caption import read_caption as read_caption
from impasto.methods.style_folder import copy_parts, write_previews
from impasto.noise.random import generator
from impasto.noise.schedule import VariancePreserving
from impasto.progress import Progress, ignore
from impasto.sampling.png import save_png
from impasto.sampling.sample import VERSION, Sampling, as_image, encoder
from impasto.styles.card import CARD, write_card
from impasto.styles.load import load_weights
from impasto.styles.parts import NOISE, Part, write_parts
from impasto.styles.start import reference_file
from impasto.styles.weights import style_hash
from impasto.training.fit import fit
from impasto.training.plan import describe, make_plan
from impasto.training.run_folder import RunFolder

GUIDANCE, SELECTED = InstaStyle.guidance, InstaStyle.n
REFINEMENT, PREVIEWS = InstaStyle.TRAINED_IN, 4
RECONSTRUCTION = f"{CANDIDATES}/reconstruction.png"
PAPER_OBJECTS = (
    *("cat", "lighthouse", "volcano", "goldfish", "table lamp", "tram", "palace", "tower", "cup", "desk", "chair"),
    *("pot", "laptop", "door", "car"),
)
EMBEDDED_OBJECTS = (
    *("dog", "horse", "tropical fish", "snail", "rose", "mushroom", "strawberry", "birthday cake", "umbrella"),
    *("violin", "automobile", "ship", "red paper lantern", "telephone", "door"),
)
"""Core concepts of the art world that all primary styles have, neither evaluation nor reference concepts."""


@dataclass(frozen=True)
class Source:
    """One reference of a style. words: what `token` stands for. size: pixels. items: selected (image, caption), the
    captions with the token."""

    image: Path
    caption: StyleCaption
    token: str
    words: str
    items: tuple[tuple[Path, str], ...] = ()

    @property
    def prompt(self) -> str:
        """The reference's caption with the token."""
        return self.caption.prompt(self.caption.thing, self.token)


def run(config: TrainConfig, progress: Progress = ignore, dry_run: bool = False) -> dict[str, Any]:
    """InstaStyle into `config.out`; goes on where an earlier command stopped. See `training.train.train`.

    With `method.select` "human" it returns after the candidates, until `select` was called. Raises UserError.
    """
    started, method = time.perf_counter(), config.method
    caption = method.caption(config)
    plan = make_plan(method.training(config))
    if plan.outline is not None:
        kind_of(plan.outline)
    if dry_run:
        return describe(plan)
    config = change(config, quantize=plan.config.execution.quantize)
    progress(f"loading {config.base}")
    family = load_family(config)
    config = replace(change(config, precision=family.precision), method=fill(config.method, family))
    reference = references.read(config.data.image[0], config.data.size)
    token = plan.config.text.tokens[0]
    source = Source(config.data.image[0], caption, token, caption.text[caption.words])
    stages = Stages(config.out)
    folder = RunFolder(config, provenance(family, [source], [reference.sha256]))
    try:
        progress("inverting the reference")
        noise = invert_reference(stages, family, config, caption.text, reference)
        made = make_candidates(stages, family, config, source, noise, progress)
        del family, noise
        gc.collect()
        chosen = select_of_run(stages, config, made, reference.image)
        if chosen is None:
            return ask_for_selection(config.out, len(made), config.method.n)
        source = replace(source, items=selected_items(config, source, made, chosen))
        trained = refine(config, [source], progress)
        progress("inverting with the learned token")
        kept = keep_style(stages, config, [source])
    finally:
        folder.close()
    seconds = round(time.perf_counter() - started, 2)
    return trained | {"out": str(config.out), "selected": chosen, "seconds": seconds} | kept


def load_family(config: TrainConfig) -> Family:
    return loader.load(config.base, device=config.device, precision=config.precision, components=config.components)


def fill(method: InstaStyle, family: Family) -> InstaStyle:
    """The settings with those that follow from the base. Raises UserError for steps or a terminal timestep that it
    lacks."""
    Sampling(steps=method.steps).on(family)
    if method.until is not None:
        log_snr_of(family, method.until)
    return replace(method, fixed_point=kind_of(family).REFINE if method.fixed_point is None else method.fixed_point)


def provenance(family: Family, sources: Sequence[Source], hashes: Sequence[str]) -> dict[str, Any]:
    """What recipe.toml states under [impasto]. hashes: sha256 of the references."""
    found = {"base_sha256": family.hash, "base_local": family.folder.exists() and not family.card.get("embedded")}
    found |= {"references_sha256": list(hashes), "captions": [source.prompt for source in sources]}
    return found | {name: version(name) for name in ("impasto", "torch", "diffusers", "transformers", "peft")}


def grid(family: Family, steps: int, size: tuple[int, int]) -> torch.Tensor:
    """log-SNRs of the sampler that candidates and style are sampled with, at latents of `size`."""
    return family.sampling_levels(steps, size, Sampling(sampler=sampler_of(family)).scheduler(family))


def sampler_of(family: Family) -> str | None:
    """DDIM on a diffusion base; a rectified flow's own Euler sampler is deterministic."""
    return "ddim" if isinstance(family.schedule, VariancePreserving) else None


def invert_with(
    family: Family, config: TrainConfig, text: str, reference: references.Reference, cond: Condition
) -> tuple[InversionNoise, torch.Tensor, float]:
    """(noise, reconstruction (1, 3, H, W), dB) of the reference by the model as it is, conditioned on `cond` of `text`.

    Warns when the reconstruction is below 25 dB.
    """
    method, size = config.method, config.data.size
    x = family.encode_image(reference.pixels(size))
    height, width = x.shape[-2:]
    with torch.no_grad():
        levels = grid(family, method.steps, (height, width))
        until = None if method.until is None else log_snr_of(family, method.until)
        found = invert(family, x, cond, levels=levels, until=until, refine=method.fixed_point)
        back = reconstruct(family, found, cond)
    decibels = measure_reconstruction(family, x, back, method.fixed_point, method.steps, "--method.fixed-point")
    info = NoiseInfo(family.hash, size, method.steps, text, reference.sha256)
    return InversionNoise.of(found, info), back, decibels


def inversion_inputs(config: TrainConfig, family_hash: str, text: str, reference: str) -> dict[str, Any]:
    method = config.method
    known = {"base": family_hash, "reference": reference, "caption": text, "size": config.data.size}
    known |= {"steps": method.steps, "fixed_point": method.fixed_point, "precision": config.precision}
    return known | ({} if method.until is None else {"until": method.until})


def invert_reference(
    stages: Stages, family: Family, config: TrainConfig, text: str, reference: references.Reference
) -> InversionNoise:
    """Line 1: the noise of the reference by the base, with its style words; kept beside the candidates."""
    file, inputs = f"{CANDIDATES}/{noise_file.NOISE}", inversion_inputs(config, family.hash, text, reference.sha256)
    if not stages.read("inversion", inputs):
        cond = family.encode_prompt([text])
        family.free("encoders")
        noise, back, decibels = invert_with(family, config, text, reference, cond)
        noise_file.write(stages.folder / file, noise)
        info = {"prompt": text, "base": config.base, "base_hash": family.hash, "steps": config.method.steps}
        save_image(back, stages.folder / RECONSTRUCTION, info)
        stages.write("inversion", inputs, [file, RECONSTRUCTION], decibels=round(decibels, 2))
    return noise_file.read(stages.folder / file)


def make_candidates(
    stages: Stages,
    family: Family,
    config: TrainConfig,
    source: Source,
    noise: InversionNoise,
    progress: Progress = ignore,
) -> list[Candidate]:
    """Lines 2 and 3: an image of each object from the same noise; those that are there already are kept."""
    method = config.method
    objects = method.objects or default_objects(family)
    if len(objects) < method.n:
        raise UserError(f"{method.n} of {len(objects)} objects cannot be selected: lower --method.n")
    found = list_candidates([(thing, source.caption.prompt(thing)) for thing in objects])
    inputs = {"inversion": digest(stages.folder / CANDIDATES / noise_file.NOISE), "guidance": method.guidance}
    inputs |= {"prompts": [one.prompt for one in found], "random": method.random, "seed": config.seed}
    if stages.read("candidates", inputs):
        return found
    batch = Sampling(size=config.data.size).on(family).batch or 1
    missing = missing_candidates(stages, found)
    size = {"width": config.data.size, "height": config.data.size}
    about = {
        "negative_prompt": "",
        "steps": noise.info.steps,
        "guidance": method.guidance,
        "noise_random": method.random,
    }
    about |= size | {"base": config.base, "base_hash": family.hash, "styles": [], "version": VERSION}
    about |= {"sampler": sampler} if (sampler := sampler_of(family)) else {}
    about |= {} if method.until is None else {"until": method.until}
    for first in range(0, len(missing), batch):
        part = missing[first : first + batch]
        prompts, seeds = [one.prompt for one in part], [config.seed + found.index(one) for one in part]
        images = generate_candidates(
            family, noise, prompts, guidance=method.guidance, random=method.random, seeds=seeds
        )
        for one, seed, image in zip(part, seeds, images, strict=True):
            save_png(image, {"prompt": one.prompt, "seed": seed, **about}, stages.folder / one.file)
        progress("generating candidates", len(found) - len(missing) + first + len(part), len(found))
    stages.write("candidates", inputs, [one.file for one in found], objects=list(objects))
    return found


def select_of_run(
    stages: Stages, config: TrainConfig, candidates: Sequence[Candidate], reference: Image.Image
) -> list[int] | None:
    """Line 4: numbers of the selected candidates, from 1; None where a person has to select them first."""
    method, prompts = config.method, [one.prompt for one in candidates]
    images = [open_image(stages.folder / one.file) for one in candidates]
    write_sheet(stages, candidates, images, config.data.caption[0], reference, wrap=5)

    def choose() -> tuple[list[int], dict[str, Any]]:
        if method.select == "random":
            order = torch.randperm(len(candidates), generator=generator(config.seed, 0, "selection")).tolist()
            return [i + 1 for i in order[: method.n]], {}
        style, content = score_candidates(images, prompts, reference, load_encoder(method.encoder or MODELS / "clip"))
        scores = {"style": [round(one, 4) for one in style], "content": [round(one, 4) for one in content]}
        return [i + 1 for i in select_candidates(style, content, method.n)], scores

    return keep_selection(
        stages, method.select, {"select": method.select, "n": method.n, "encoder": method.encoder}, choose
    )


def selected_items(
    config: TrainConfig, source: Source, candidates: Sequence[Candidate], chosen: Sequence[int]
) -> tuple[tuple[Path, str], ...]:
    """(image, caption with the token) of the selected candidates, and of the reference where it is asked for."""
    picked = [candidates[i - 1] for i in chosen]
    items = [(config.out / one.file, source.caption.prompt(one.thing, source.token)) for one in picked]
    return (*items, *([(source.image, source.prompt)] if config.method.include_reference else []))


def refinement(config: TrainConfig, sources: Sequence[Source]) -> TrainConfig:
    """The config of the training on the selected images of all sources."""
    items = [item for source in sources for item in source.items]
    data = replace(
        config.data, image=tuple(file for file, _ in items), caption=tuple(text for _, text in items), trigger=""
    )
    tokens, words = (tuple(getattr(source, name) for source in sources) for name in ("token", "words"))
    return replace(
        config,
        out=config.out / REFINEMENT,
        method=Fit(),
        data=data,
        text=replace(config.text, tokens=tokens, words=words),
        log=replace(config.log, preview=False, push_to_hub=None, hub_private=False),
    )


def refine(config: TrainConfig, sources: Sequence[Source], progress: Progress = ignore) -> dict[str, Any]:
    """Lines 5 to 8: train token and adapter on the selected images; resumes by itself."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "all .* captions say")  # the token, which is meant to be in all of them
        warnings.filterwarnings("ignore", ".* looks? nearly the same")  # they begin in one noise
        return fit(refinement(config, sources), progress)


def keep_style(stages: Stages, config: TrainConfig, sources: Sequence[Source]) -> dict[str, Any]:
    """The style folder: the refined weights, the references, their noise by the tuned model, previews and card."""
    out, trained = config.out, config.out / REFINEMENT
    family = load_family(config)
    opened = [references.load(source.image) for source in sources]
    inputs: dict[str, Any] = {"weights": style_hash(trained), "guidance": config.method.guidance}
    inputs["inversions"] = [
        inversion_inputs(config, family.hash, source.prompt, reference.sha256)
        for source, reference in zip(sources, opened, strict=True)
    ]
    if (record := stages.read("style", inputs)) and (out / CARD).is_file():
        return {"decibels": record["decibels"]}
    parts = copy_parts(trained, out)
    pipe = family.pipeline(**{family.part: family.denoiser})
    encode = encoder(family, pipe, tokens=load_weights(pipe, trained))
    decibels, files = [], [part.file for part in parts]
    for i, (source, reference) in enumerate(zip(sources, opened, strict=True)):
        noise, _, quality = invert_with(family, config, source.prompt, reference, encode(source.prompt))
        parts.append(Part(NOISE, noise_file.NOISE if i == 0 else f"noise_{i + 1}.safetensors"))
        noise_file.write(out / parts[-1].file, noise)
        with atomic(reference_file(out, i)) as file:
            reference.image.save(file, "PNG")
        files += [parts[-1].file, reference_file(out, i).name]
        decibels.append(round(quality, 2))
    sampling = {**PLAIN_SAMPLING, "guidance": config.method.guidance, "steps": config.method.steps}
    sampling |= {"sampler": sampler} if (sampler := sampler_of(family)) else {}
    sampling |= {} if config.method.until is None else {"until": config.method.until}
    write_parts(out, parts, sampling | config.sampling.given)
    del pipe, encode
    prompts = preview_prompts(config, family, sources)
    shown = write_previews(config, prompts)
    known = refinement(config, sources)
    data = replace(known.data, image=tuple(s.image for s in sources), caption=tuple(s.prompt for s in sources))
    log = replace(known.log, preview_prompt=tuple(prompts))
    write_card(
        replace(known, out=out, data=data, log=log),
        family,
        list(zip(prompts, shown, strict=bool(shown))),
        version("impasto"),
    )
    stages.write("style", inputs, files, decibels=decibels)
    return {"decibels": decibels}


def preview_prompts(config: TrainConfig, family: Family, sources: Sequence[Source]) -> list[str]:
    """The config's, or the first objects with the first token."""
    objects = (config.method.objects or default_objects(family))[:PREVIEWS]
    return list(config.log.preview_prompt) or [sources[0].caption.prompt(one, sources[0].token) for one in objects]


def default_objects(family: Family) -> tuple[str, ...]:
    """The 15 objects of stage 1: the paper's, or those that an embedded base knows."""
    return EMBEDDED_OBJECTS if family.card.get("embedded") else PAPER_OBJECTS


@torch.no_grad()
def generate_candidates(
    family: Family,
    noise: InversionNoise,
    prompts: Sequence[str],
    *,
    guidance: float = GUIDANCE,
    negative: str = "",
    batch: int | None = None,
    random: float = 0.0,
    seeds: Sequence[int] = (),
) -> list[Image.Image]:
    """One image per prompt, all from the same inversion noise, `batch` at once (all by default).

    random: share of the noise's positions that is drawn anew for each, by its seed in `seeds`, see
    `inversion.mix.randomise`. Raises UserError for noise of another base.
    """
    noise.check(family.hash, noise.info.size)
    cond, empty = family.encode_prompt(prompts), family.encode_prompt([negative])
    z = noise.noise
    if random:
        z = torch.cat([randomise(z, random, generator(seed, 0, "noise-random")) for seed in seeds])
    z = sample(family, z, noise.log_snr, cond, negative=empty, guidance=guidance, batch=batch)
    pixels = torch.cat([family.decode(part) for part in z.split(batch or len(z))])
    return [as_image(image) for image in (pixels.float().cpu().clamp(-1, 1) + 1) / 2]


def score_candidates(
    images: Sequence[Image.Image], prompts: Sequence[str], reference: Image.Image, encoder: Encoder
) -> tuple[list[float], list[float]]:
    """(style, content) of each image: cosines with the reference and with its own prompt, in [-1, 1].

    Raises UserError for an encoder without a text tower.
    """
    found, texts = encode_pairs(images, prompts, encoder)
    return (found @ encoder.images([reference])[0]).tolist(), (found * texts).sum(1).tolist()


def select_candidates(style: Sequence[float], content: Sequence[float], n: int = SELECTED) -> list[int]:
    """Indices of the n candidates of least max(rank_style, rank_content), the best first.

    Equal ones by the sum of the ranks, then by the rank of style. Raises UserError unless 1 <= n <= candidates.
    """
    if not 1 <= n <= len(style):
        raise UserError(f"{n} of {len(style)} candidates cannot be selected")
    pairs = list(zip(ranks(style), ranks(content), strict=True))
    return sorted(range(len(pairs)), key=lambda i: (max(pairs[i]), sum(pairs[i]), pairs[i][0]))[:n]


def ranks(scores: Sequence[float]) -> list[int]:
    """Ranks from 1, the highest score first; of equal scores the earlier one."""
    order = sorted(range(len(scores)), key=lambda i: -scores[i])
    return [rank for _, rank in sorted(zip(order, range(1, len(order) + 1), strict=True))]
