"""Methods of generating a cell's images from inversion noise: without training, refined, and mixed.

Inversions, candidates and refined styles lie in the cache by the hash of everything that they depend on, so that cells
which share one run it once.
"""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import Tensor

from impasto.artworld import concept_index, style_index
from impasto.config import resolve
from impasto.data import references
from impasto.errors import UserError
from impasto.evaluation.truth import true_pictures
from impasto.families.base import Family
from impasto.files import atomic, cache_dir
from impasto.generation import Mixing, open_session
from impasto.inversion import invert, log_snr_of, noise_file
from impasto.inversion.noise_file import InversionNoise, NoiseInfo
from impasto.methods.instastyle import (
    CANDIDATES,
    REFINEMENT,
    generate_candidates,
    grid,
    open_image,
    sampler_of,
)
from impasto.methods.stages import Stages
from impasto.methods.style_mix import mix_styles
from impasto.noise.random import generator
from impasto.reproduce.folder_jobs import content_hash, trained, use
from impasto.reproduce.instastyle_others import images_of_unit
from impasto.reproduce.instastyle_world import COUNTS, reference_image, references_hash
from impasto.reproduce.runner import BaseSpec, Job
from impasto.reproduce.small_world import packaged_encoder
from impasto.sampling.png import save_png
from impasto.sampling.sample import VERSION, Sampling
from impasto.training.train import train

SPECIFIC = "specific style"
"""Words that say nothing of the style (fig. 2)."""


def cached(spec: Mapping[str, Any], kind: str, content: Mapping[str, Any], make: Callable[[Path], None]) -> Path:
    """The folder `kind`/<hash of content, base and precision> of the cache, filled by `make` once."""
    content = {"base": spec["base"], "precision": spec["sampling"]["precision"], **content}
    folder = cache_dir("reproduce", spec["base"][:12], kind, content_hash(content)[:20])
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):
        if not (folder / "done").is_file():
            make(folder)
            (folder / "done").touch()
    return folder


@dataclass(frozen=True)
class Given:
    """A reference image: its file, the sha256 of its pixels, its concept, style words and caption. style: its name."""

    file: Path
    sha256: str
    thing: str
    words: str
    caption: str
    style: str


def given(spec: Mapping[str, Any], reference: Path | None) -> Given:
    """The reference of a cell with one."""
    assert reference is not None
    return Given(reference, spec["reference_sha256"], spec["thing"], spec["words"], spec["caption"], spec["style"])


def given_of(one: Mapping[str, Any], i: int, folder: Path) -> Given:
    """Reference i of a cell with several, written to its folder."""
    file = folder / f"reference-{i}.png"
    reference_image(one).save(file)
    return Given(file, references_hash([one]), one["reference"], one["words"], one["caption"], one["style"])


FORMS = {"comma": ("{}, {}", "{}"), "paper": ("A {} in the style of {}", "A {}")}
"""Prompts with and without style words, by `form` of a spec."""


def phrase(spec: Mapping[str, Any], thing: str, words: str) -> str:
    """The prompt of a concept in these words, or in none."""
    styled, plain = FORMS[spec.get("form", "comma")]
    return styled.format(thing, words) if words else plain.format(thing)


def inverted(one: Given, spec: Mapping[str, Any], place: BaseSpec, words: str) -> InversionNoise:
    """The noise of a reference under its concept in these words."""
    asked, until = spec["sampling"], spec["arm"].get("until")
    caption = phrase(spec, one.thing, words)
    content = {"reference": one.sha256, "caption": caption, "until": until}
    content |= {key: asked[key] for key in ("steps", "fixed_point", "size")}

    def make(folder: Path) -> None:
        family = place.family()
        x = latents(family, one, asked["size"])
        levels = grid(family, asked["steps"], (x.shape[-2], x.shape[-1]))
        last = None if until is None else log_snr_of(family, until)
        with torch.no_grad():
            condition = family.encode_prompt([caption])
            found = invert(family, x, condition, levels=levels, until=last, refine=asked["fixed_point"])
        info = NoiseInfo(family.hash, asked["size"], asked["steps"], caption, one.sha256)
        noise_file.write(folder / noise_file.NOISE, InversionNoise.of(found, info))

    return noise_file.read(cached(spec, "inverted", content, make) / noise_file.NOISE)


def latents(family: Family, one: Given, size: int) -> Tensor:
    """Latents (1, C, h, w) of a reference."""
    return family.encode_image(references.read(one.file, size).pixels(size))


def noise_job(spec: Mapping[str, Any], place: BaseSpec, folder: Path, reference: Path | None) -> None:
    """No training. The arm's options: start, see `starts`; words (the style's by default); until; guidance."""
    arm, family, one = spec["arm"], place.family(), given(spec, reference)
    words = arm.get("words", spec["words"])
    prompts = [phrase(spec, label, words) for label in spec["plain"]]
    noise = inverted(one, spec, place, words)
    noise = replace(noise, noise=starts(arm.get("start", "inversion"), noise, one, spec, family))
    write_images(spec, family, noise, prompts, folder, arm.get("random", 0.0))


def starts(start: str, noise: InversionNoise, one: Given, spec: Mapping[str, Any], family: Family) -> Tensor:
    """(1 or n, C, h, w): the inversion noise; "gaussian", one Gaussian noise; "gaussians", one per image; "forward",
    alpha x + sigma eps of the reference's latents x at the noise's level, one eps for all."""
    z, n, seed = noise.noise, len(spec["prompts"]), spec["seed"]
    if start == "inversion":
        return z
    if start == "gaussians":
        return torch.cat([torch.randn(z.shape, generator=generator(seed, i, "gaussian")) for i in range(n)])
    eps = torch.randn(z.shape, generator=generator(seed, 0, "gaussian"))
    if start == "gaussian":
        return eps
    x = latents(family, one, spec["sampling"]["size"]).float().cpu()
    alpha, sigma = family.schedule.alpha_sigma(torch.tensor(noise.level, dtype=torch.float64))
    return (alpha * x + sigma * eps).float()


def write_images(
    spec: Mapping[str, Any],
    family: Family,
    noise: InversionNoise,
    prompts: Sequence[str],
    folder: Path,
    random: float = 0.0,
) -> None:
    """All images of a cell at once, from one noise or one each, into `folder/images.part`."""
    asked = spec["sampling"]
    guidance = spec["arm"].get("guidance", asked["guidance"])
    seeds = [1000 * spec["seed"] + i for i in range(len(prompts))]
    images = generate_candidates(family, noise, prompts, guidance=guidance, random=random, seeds=seeds)
    about = {"negative_prompt": "", "steps": noise.info.steps, "guidance": guidance, "noise_random": random}
    about |= {"width": asked["size"], "height": asked["size"], "base_hash": family.hash, "styles": []}
    about |= {"base": spec["base"], "version": VERSION}
    for i, (prompt, seed, image) in enumerate(zip(prompts, seeds, images, strict=True)):
        save_png(image, {"prompt": prompt, "seed": seed, **about}, folder / "images.part" / f"{i:04d}.png")


def references_job(spec: Mapping[str, Any], place: BaseSpec, folder: Path, reference: Path | None) -> None:
    """Each prompt from the noise of each of several references. of: "same", the unit's; "other", references of the
    other primary styles, in place of all but the first; "gaussian", as many Gaussian noises."""
    family, of, rows = place.family(), spec["arm"]["of"], []
    for i, part in enumerate(spec["others" if of == "other" else "references"]):
        one = given_of(part, i, folder)
        noise = inverted(one, spec, place, one.words)
        if of == "gaussian":
            noise = replace(noise, noise=torch.randn(noise.noise.shape, generator=generator(0, i, "gaussian")))
        rows.append(noise.noise)
    n = len(spec["prompts"])
    prompts = [prompt for prompt in spec["prompts"] for _ in rows]
    write_images(spec, family, replace(noise, noise=torch.cat(rows * n)), prompts, folder)


def method_config(one: Given, spec: Mapping[str, Any], place: BaseSpec, out: Path, **changes: Any) -> Any:
    """The config of the method on a reference, which is written beside `out`."""
    asked, settings = spec["sampling"], spec["arm"]["settings"]
    own = {key: value for key, value in settings.items() if value is not None}
    own |= {"image": (copied(one, out.parent),), "caption": (one.caption,), "out": out, "seed": 0}
    own |= {"preview": False, "tensorboard": False, "quantize": "none", "device": place.device}
    own |= {f"method.{key}": asked[key] for key in ("steps", "guidance", "fixed_point")}
    return resolve("instastyle", place.base, **{**own, **changes})


def copied(one: Given, folder: Path) -> Path:
    """A copy of the reference that outlives the cell."""
    with atomic(folder / "reference.png") as file:
        shutil.copyfile(one.file, file)
    return folder / "reference.png"


def candidates_of(one: Given, spec: Mapping[str, Any], place: BaseSpec) -> Path:
    """A run of the method up to its candidates; shared by all selections and refinements of a reference."""
    sampling = {key: spec["sampling"][key] for key in ("steps", "guidance", "fixed_point", "size")}
    content = {"reference": one.sha256, "caption": one.caption, **sampling}

    def make(folder: Path) -> None:
        train(method_config(one, spec, place, folder / "run", **{"method.select": "human"}))

    return cached(spec, "candidates", content, make) / "run"


def refined(one: Given, spec: Mapping[str, Any], place: BaseSpec) -> Path:
    """The style of a reference by the arm's settings; its option oracle selects by the true images."""
    arm, made = spec["arm"], candidates_of(one, spec, place)
    oracle = bool(arm.get("oracle"))
    content = {"reference": one.sha256, "caption": one.caption, "settings": arm["settings"]}
    content |= {"sampling": {key: spec["sampling"][key] for key in ("steps", "guidance", "fixed_point", "size")}}
    content |= {"oracle": oracle}

    def make(folder: Path) -> None:
        run = folder / "style"
        if not (run / "state").is_dir():  # else an earlier attempt goes on
            shutil.copytree(made / CANDIDATES, run / CANDIDATES, dirs_exist_ok=True)
            shutil.copytree(made / "state", run / "state")
        changes = {}
        if oracle:
            chosen = nearest_to_truth(run, one, arm["settings"].get("method.n", 5))
            record = Stages(run).read("candidates") or {}
            Stages(run).write("selection", {"candidates": record["files"]}, [], selected=chosen)
            changes = {"method.select": "human"}
        train(method_config(one, spec, place, run, **changes))

    return cached(spec, "refined", content, make) / "style"


def nearest_to_truth(run: Path, one: Given, n: int) -> list[int]:
    """Numbers of the n candidates of highest cosine (packaged CLIP) with the true image of their object and style."""
    record = Stages(run).read("candidates")
    if record is None:
        raise UserError(f"{run} has no candidates")
    encoder, index = packaged_encoder(), style_index(one.style)
    ids = [concept_index(label) for label in record["objects"]]
    truths = true_pictures(index, ids)
    if absent := [label for label, c in zip(record["objects"], ids, strict=True) if c not in truths]:
        raise UserError(f"no true image of {absent[0]!r} in {one.style}: run impasto artworld build")
    made = encoder.images([open_image(run / CANDIDATES / f"{i:02d}.png") for i in range(1, len(ids) + 1)])
    cosines = (made * encoder.images([truths[c] for c in ids])).sum(1)
    return [i + 1 for i in cosines.argsort(descending=True).tolist()[:n]]


def instastyle_job(spec: Mapping[str, Any], place: BaseSpec, folder: Path, reference: Path | None) -> Job:
    """The refined style. start: "inversion" from its noise; "gaussians" from a Gaussian noise per image."""
    style = refined(given(spec, reference), spec, place)
    prompts, plain = use(style / REFINEMENT, spec, folder)
    if spec["arm"].get("start") == "gaussians":
        return prompts, plain
    return prompts, {"styles": (f"{style}:1",), "noise_random": 0.0}


def mixed(spec: Mapping[str, Any], place: BaseSpec, folder: Path) -> Path:
    """The joint refinement of the unit's references."""
    runs = [refined(given_of(one, i, folder), spec, place) for i, one in enumerate(spec["references"])]
    content = {"references": references_hash(spec["references"]), "settings": spec["arm"]["settings"]}
    content |= {"captions": [one["caption"] for one in spec["references"]], "sampling": spec["sampling"]}

    def make(folder: Path) -> None:
        mix_styles(runs, folder / "style")

    return cached(spec, "mixed", content, make) / "style"


def mix_job(spec: Mapping[str, Any], place: BaseSpec, folder: Path, reference: Path | None) -> None:
    """Each prompt with each pair of alpha and beta of `instastyle_world.COUNTS`, from one permutation of positions."""
    asked, style = spec["sampling"], mixed(spec, place, folder)
    use(style / REFINEMENT, spec, folder)
    n = spec["count"]
    sampling = Sampling(asked["steps"], asked["guidance"], "", asked["size"], style_guidance=0.0, base_guidance=0.0)
    sampling = replace(sampling, sampler=sampler_of(place.family()))
    session = open_session(
        place.base, styles=[f"{style}:1"], sampling=sampling, device=place.device, precision=asked["precision"]
    )
    jobs = [(prompt, 1000 * spec["seed"]) for prompt in spec["prompts"]]
    for k, weights in enumerate(COUNTS[spec["arm"]["of"]]):
        for i, (image, info) in enumerate(session.sample(jobs, mixing_of(weights))):
            save_png(image, info, folder / "images.part" / f"{i * n + k:04d}.png")


def mixing_of(weights: Any) -> Mixing:
    """alpha = beta = a number or the weights of three styles; (alpha, beta) of two."""
    if isinstance(weights, float):
        return Mixing(0.0, (weights,), (weights,))
    if len(weights) == 2:
        return Mixing(0.0, weights[:1], weights[1:])
    return Mixing(0.0, weights, weights)


def token_job(spec: Mapping[str, Any], place: BaseSpec, folder: Path, reference: Path | None) -> Job:
    """Train a token on the reference with the prompt "concept, <style1>"."""
    assert reference is not None
    token = "<style1>"
    own = {"settings": spec["arm"]["settings"], "reference": spec["reference_sha256"], "token": token}
    more = {"caption": (phrase(spec, spec["thing"], token),), "trigger": token}
    style = trained(spec, place, own, more, images=reference)
    _, arguments = use(style, spec, folder)
    return [phrase(spec, label, token) for label in spec["plain"]], arguments


def images_job(spec: Mapping[str, Any], place: BaseSpec, folder: Path, reference: Path | None) -> None:
    """Another method's images of the unit's prompts, from a folder with metadata.jsonl; see `instastyle_others`."""
    for i, image in enumerate(images_of_unit(Path(spec["arm"]["folder"]), spec)):
        about = {"prompt": spec["prompts"][i], "negative_prompt": "", "seed": 0, "steps": 0, "guidance": 0.0}
        about |= {"width": image.width, "height": image.height, "base": spec["arm"]["folder"], "base_hash": ""}
        save_png(image, about | {"styles": [], "version": VERSION}, folder / "images.part" / f"{i:04d}.png")


JOBS = {
    "noise": noise_job,
    "references": references_job,
    "instastyle": instastyle_job,
    "mix": mix_job,
    "token": token_job,
    "images": images_job,
}
