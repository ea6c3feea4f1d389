"""StyleDrop (Sohn et al. 2023, arXiv 2306.00983): an adapter on one image, and a second round on its own best images.

    round 1: theta_1 = train(adapter, {(I, t)})                            t = "{object} in {style} style"
    candidates: 64 images of each of 30 prompts "{object k} in {style} style", by theta_1
    selection: one per prompt by its CLIP score, or at random; or about ten by a person        (section 3.3, table 2)
    round 2: theta_2 = train(fresh adapter, selected images and their prompts)
    v = S(t) + lambda_A [S(t) - B(t)] + lambda_B [B(t) - B(n)]             (equation 4; `guidance.style_semantics`)

On Muse the adapter is `adapters.styledrop`: in round 1 of width 4 and shared by all layers, in round 2 of width 32 and
not shared. On diffusion bases it is the LoRA of the run's settings, as the baselines of other papers have it. The
super-resolution transformer of the paper is not built.

The style folder holds the last round's weights and, in style.json, the guidance. `round-1` and `round-2` are ordinary
style folders, `candidates` the images between them, which are kept.
"""

import gc
import shutil
import time
import warnings
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from impasto.adapters import config as adapters
from impasto.adapters.base import PLAIN_SAMPLING, check_keeps_base
from impasto.bases import loader
from impasto.config import Fit, TrainConfig, change
from impasto.data import items
from impasto.evaluation.encoders import Encoder, load_encoder
from impasto.families.base import Family
from impasto.files import MODELS, atomic
from impasto.generation import open_session
from impasto.methods.config import StyleDrop
from impasto.methods.instastyle import EMBEDDED_OBJECTS, PAPER_OBJECTS
from impasto.methods.selection import (
    SHEET,
    Candidate,
    ask_for_selection,
    encode_pairs,
    keep_selection,
    list_candidates,
    missing_candidates,
    open_image,
    write_sheet,
)
from impasto.methods.stages import Stages
from impasto.methods.style_caption import StyleCaption, read_caption
from impasto.methods.style_folder import copy_parts, write_previews
from impasto.noise.random import generator
from impasto.progress import Progress, ignore
from impasto.sampling.png import save_png
from impasto.sampling.sample import Sampling
from impasto.styles import hub
from impasto.styles.card import CARD, write_card
from impasto.styles.defaults import prompts_of_others
from impasto.styles.parts import write_defaults, write_parts
from impasto.styles.start import reference_file
from impasto.styles.weights import style_hash
from impasto.training.fit import REFERENCES, fit
from impasto.training.plan import Plan, describe, make_plan
from impasto.training.run_folder import RunFolder, previous_recipe

FIRST, SECOND = "round-1", StyleDrop.TRAINED_IN
OBJECTS = (
    *PAPER_OBJECTS,
    *("dog", "horse", "owl", "butterfly", "sunflower", "pine tree", "mountain", "castle", "bicycle", "sailing boat"),
    *("guitar", "apple", "birthday cake", "robot", "umbrella"),
)
"""Objects of the candidates where the base is not an embedded one: 30 as in the paper, which does not list its own."""
BY_HAND = 10
"""Candidates that the paper's persons selected, about."""


def run(config: TrainConfig, progress: Progress = ignore, dry_run: bool = False) -> dict[str, Any]:
    """StyleDrop into `config.out`; goes on where an earlier command stopped. See `training.train.train`.

    With `method.select` "human" it returns after the candidates, until `methods.selection.select` was called. Raises
    UserError.
    """
    started, method = time.perf_counter(), config.method
    if method.lambda_a or method.lambda_b != 0:
        check_keeps_base(config.adapter, "--method.lambda-a 0 --method.lambda-b 0")
    plan = make_plan(config)
    caption = read_caption(plan.expanded.data.caption[0], method.style_words) if method.rounds > 1 else None
    if dry_run:
        return describe_rounds(plan)
    progress(f"loading {config.base}")
    family = loader.load(config.base, device=config.device, precision=config.precision, components=config.components)
    config = change(config, quantize=plan.config.execution.quantize, precision=family.precision)
    config = replace(config, method=fill(method, family))
    stages, folder = Stages(config.out), RunFolder(config, provenance(plan, family))
    try:
        last, result = FIRST, train_round(first_round(config), config.method, part(progress, FIRST))
        if caption is not None:
            made = make_candidates(stages, config, caption, plan, progress)
            chosen = select_candidates(stages, config, made)
            if chosen is None:
                return ask_for_selection(config.out, len(made), min(BY_HAND, len(made)))
            second = second_round(config, [made[i - 1] for i in chosen])
            last, result = SECOND, train_round(second, config.method, part(progress, SECOND))
            result["selected"] = chosen
        keep_style(stages, config, plan, family, last)
    finally:
        folder.close()
    if config.log.push_to_hub:
        result["hub"] = hub.publish(config.out, config.log.push_to_hub, private=config.log.hub_private)["url"]
    return (
        result
        | {"out": str(config.out), "rounds": method.rounds, "recipe": config.recipe}
        | {"seconds": round(time.perf_counter() - started, 2)}
    )


def describe_rounds(plan: Plan) -> dict[str, Any]:
    """`describe`, with what comes after the first round."""
    result, method = describe(plan), plan.config.method
    if method.rounds > 1:
        objects = len(method.objects) or len(
            EMBEDDED_OBJECTS if plan.outline and is_embedded(plan.outline) else OBJECTS
        )
        result["data"]["advice"].append(
            f"round 2: {method.images} candidates of each of {objects} objects, selected by {method.select}, then as "
            "many steps again; --rounds 1 stops before"
        )
    return result


def is_embedded(family: Family) -> bool:
    """Whether the base comes with the package."""
    return bool(family.card.get("embedded"))


def fill(method: StyleDrop, family: Family) -> StyleDrop:
    """The settings with those that follow from the base."""
    scale = family.card["generate"]["guidance"] if family.guided_by == "negative" else 1.0
    return replace(
        method,
        objects=method.objects or (EMBEDDED_OBJECTS if is_embedded(family) else OBJECTS),
        lambda_b=max(scale - 1, 0.0) if method.lambda_b is None else method.lambda_b,
    )


def provenance(plan: Plan, family: Family) -> dict[str, Any]:
    """What recipe.toml states under [impasto]."""
    found = {"base_sha256": family.hash, "base_local": Path(plan.config.base).exists()}
    found |= plan.hashes() | items.caption_stats(plan.items)
    return found | {name: version(name) for name in ("impasto", "torch", "diffusers", "transformers", "peft")}


def part(progress: Progress, name: str) -> Progress:
    """A progress callback whose phases name the round."""

    def report(phase: str, done: int = 0, total: int | None = None, note: str = "") -> None:
        progress(f"{name}: {phase}", done, total, note)

    return report


def first_round(config: TrainConfig) -> TrainConfig:
    """The config of the training on the references."""
    log = replace(config.log, preview=False, push_to_hub=None, hub_private=False)
    return replace(config, out=config.out / FIRST, method=Fit(), log=log)


def second_round(config: TrainConfig, selected: Sequence[Candidate]) -> TrainConfig:
    """The config of the training on the selected candidates, with a wider adapter where it is StyleDrop's."""
    files, prompts = tuple(config.out / one.file for one in selected), tuple(one.prompt for one in selected)
    data = replace(config.data, image=files, caption=prompts, trigger="", caption_prefix="", repeats=(), mask="off")
    adapter = config.adapter
    if isinstance(adapter, adapters.StyleDrop):
        adapter = replace(adapter, dim=config.method.dim, shared=False)
    return replace(first_round(config), out=config.out / SECOND, data=data, adapter=adapter)


def guidance(method: StyleDrop) -> dict[str, Any]:
    """The table "guidance" of style.json. method: filled in."""
    return {"style-semantics": {"lambda1": method.lambda_a, "lambda2": 0.0, "lambda_base": method.lambda_b, "n1": ""}}


def train_round(config: TrainConfig, method: StyleDrop, progress: Progress) -> dict[str, Any]:
    """One round into its style folder; resumes by itself."""
    if previous_recipe(config.out) is None:  # later it may have been edited
        config.out.mkdir(parents=True, exist_ok=True)
        write_defaults(config.out, guidance(method), PLAIN_SAMPLING)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "all .* captions say")  # the style words, which are meant to be in all
        warnings.filterwarnings("ignore", ".* looks? nearly the same")
        return fit(config, progress)


def make_candidates(
    stages: Stages, config: TrainConfig, caption: StyleCaption, plan: Plan, progress: Progress
) -> list[Candidate]:
    """Images of each object's prompt by the first round, candidate i from the seed `config.seed` + i; those that are
    there already are kept."""
    method = config.method
    found = list_candidates([(one, caption.prompt(one)) for one in method.objects for _ in range(method.images)])
    weights = style_hash(config.out / FIRST)
    inputs = {"style": weights, "guidance": guidance(method), "prompts": [one.prompt for one in found]}
    inputs |= {"seed": config.seed, "size": config.data.size}
    if stages.read("candidates", inputs):
        return found
    missing = missing_candidates(stages, found)
    if missing:
        session = open_session(
            config.base,
            styles=[f"{config.out / FIRST}:1"],
            sampling=Sampling(size=config.data.size),
            device=config.device,
            precision=config.precision,
            components=config.components,
            quantize=config.execution.quantize,
            progress=progress,
        )
        jobs = [(one.prompt, config.seed + found.index(one)) for one in missing]
        for one, (image, info) in zip(missing, session.sample(jobs, progress=progress), strict=True):
            styles = [{**style, "path": FIRST} for style in info["styles"]]  # a moved folder makes the same file
            save_png(image, info | {"styles": styles}, stages.folder / one.file)
        del session
        gc.collect()
    images = [open_image(stages.folder / one.file, 128) for one in found]
    reference = items.pictures(plan.items)[0].picture.load().image
    write_sheet(stages, found, images, caption.text, reference, wrap=min(method.images, 16))
    files = [*(one.file for one in found), SHEET]
    stages.write("candidates", inputs, files, objects=[one.thing for one in found])
    return found


def select_candidates(stages: Stages, config: TrainConfig, candidates: Sequence[Candidate]) -> list[int] | None:
    """Numbers of the selected candidates, from 1: one per object; None where a person has to select them first."""
    method = config.method

    def choose() -> tuple[list[int], dict[str, Any]]:
        if method.select == "random":
            return select_at_random(candidates, config.seed), {}
        scores = clip_scores(stages.folder, candidates, load_encoder(method.encoder or MODELS / "clip"))
        return select_best(candidates, scores), {"clip": [round(one, 4) for one in scores]}

    return keep_selection(stages, method.select, {"select": method.select, "encoder": method.encoder}, choose)


def by_object(candidates: Sequence[Candidate]) -> list[list[int]]:
    """Indices of the candidates of each object."""
    groups: dict[str, list[int]] = {}
    for i, one in enumerate(candidates):
        groups.setdefault(one.thing, []).append(i)
    return list(groups.values())


def select_at_random(candidates: Sequence[Candidate], seed: int) -> list[int]:
    """The number of one candidate per object, from 1."""
    g = generator(seed, 0, "selection")
    return [own[int(torch.randint(len(own), (1,), generator=g))] + 1 for own in by_object(candidates)]


def select_best(candidates: Sequence[Candidate], scores: Sequence[float]) -> list[int]:
    """The number of the best candidate per object, from 1."""
    return [max(own, key=scores.__getitem__) + 1 for own in by_object(candidates)]


def clip_scores(folder: Path, candidates: Sequence[Candidate], encoder: Encoder) -> list[float]:
    """Cosine of each candidate's image with its prompt. folder: the style folder."""
    scores: list[float] = []
    for own in by_object(candidates):
        images = [open_image(folder / candidates[i].file) for i in own]
        found, texts = encode_pairs(images, [candidates[i].prompt for i in own], encoder)
        scores += (found * texts).sum(1).tolist()
    return scores


def keep_style(stages: Stages, config: TrainConfig, plan: Plan, family: Family, last: str) -> None:
    """The style folder: the last round's weights, the guidance, copies of the references, previews and card."""
    out, trained = config.out, config.out / last
    inputs = {"weights": style_hash(trained), "guidance": guidance(config.method)}
    if stages.read("style", inputs) and (out / CARD).is_file():
        return
    write_defaults(out, guidance(config.method), PLAIN_SAMPLING | config.sampling.given)
    parts = copy_parts(trained, out)
    write_parts(out, parts, {})
    with atomic(out / "metrics.jsonl") as file:
        shutil.copyfile(trained / "metrics.jsonl", file)
    files = [part.file for part in parts]
    for i, item in enumerate(items.pictures(plan.items)[:REFERENCES]):
        with atomic(reference_file(out, i)) as file:
            item.picture.load().image.save(file, "PNG")
    given = plan.expanded
    prompts = list(given.log.preview_prompt) or prompts_of_others(given.data.caption) or list(given.data.caption)
    shown = write_previews(config, prompts)
    known = replace(config, data=given.data, log=replace(config.log, preview_prompt=tuple(prompts)))
    write_card(known, family, list(zip(prompts, shown, strict=bool(shown))), version("impasto"))
    stages.write("style", inputs, files, round=last)
