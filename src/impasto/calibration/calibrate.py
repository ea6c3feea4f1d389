"""`impasto noise calibrate`: where along the noise levels *this* base decides style, and a noise law, with no training.

Prompt switching (guidance/prompt_switch.py) over several styles, subjects and seeds, both ways at each level: the
style's words only in the noisier steps, and only in the others. The pictures are those of `impasto generate
--switch-at` with the same seeds; the style in them is scored by the art world's style judge, where the base knows its
styles, else by an encoder. What the scores mean, and the rule that makes a law of them, is noise/emergence.py.

Train styles and concepts that are neither evaluation nor reference concepts alone are looked at.
"""

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image

from impasto.artworld import free_concepts, load_meta
from impasto.artworld.captions import prompt as styled_prompt
from impasto.bases import loader
from impasto.calibration.emergence import Rule, Scores, emergence, published
from impasto.calibration.plot import plot
from impasto.calibration.show import default_file
from impasto.coerce import check_seed
from impasto.errors import UserError, nearest
from impasto.evaluate.encoders import Encoder, load_encoder
from impasto.families.base import Family, check_size
from impasto.files import atomic, cache_dir, writable_folder
from impasto.guidance.prompt_switch import PromptSwitch, grid
from impasto.judges.model import Judges
from impasto.objectives.weighting import predicts_noise
from impasto.sampling import prompts
from impasto.sampling.sample import Sampling, sample
from impasto.sampling.sample import encoder as prompt_encoder
from impasto.training.plan import positions

SIZES = {"quick": (6, 12), "standard": (10, 36), "thorough": (14, 192)}
"""Levels and prompts; a level costs two pictures per prompt. `standard`: 792 pictures, at .7 core-seconds each of
mini-sd3 (measured on a busy machine) some five minutes on two cores."""
FEWEST_PROMPTS, FEWEST_LEVELS = 4, 3
HIGHEST = 4.0  # log-SNR of the last level by default: later, in every picture we know, style is long decided
STYLES = ("pencil sketch", "pixel art", "stained glass", "origami", "impressionist painting", "woodblock print",
          "charcoal drawing", "comic book")  # fmt: skip
SUBJECTS = ("a fox", "a teapot", "a lighthouse", "a bicycle", "an owl", "a windmill", "a guitar", "a sailing ship",
            "a castle", "a mushroom", "a telephone", "a rabbit")  # fmt: skip
Rows = dict[str, list[list[float]]]
"""Per variant ("everywhere", "nowhere", "until-3", "since-3") the features of its pictures, one row per prompt."""


@dataclass(frozen=True)
class Ask:
    """One prompt: a subject without and with the style's words. style: its index among the styles. seed: its own."""

    plain: str
    styled: str
    style: int
    words: str
    seed: int


class Measure(Protocol):
    """features: of pictures, one row each, what is kept of them. scores [n]: how much of their style the pictures of a
    variant have, given the features of all variants."""

    @property
    def name(self) -> str: ...

    def features(self, images: Sequence[Image.Image], asks: Sequence[Ask]) -> list[list[float]]: ...

    def scores(self, variant: str, rows: Rows, asks: Sequence[Ask]) -> np.ndarray: ...


@dataclass(frozen=True)
class ByJudges:
    """The probability that the style judge gives to the style that is asked for."""

    judges: Judges
    name: str = "judges"

    def features(self, images: Sequence[Image.Image], asks: Sequence[Ask]) -> list[list[float]]:
        probabilities = self.judges.style(list(images))
        return [[float(row[ask.style])] for row, ask in zip(probabilities, asks, strict=True)]

    def scores(self, variant: str, rows: Rows, asks: Sequence[Ask]) -> np.ndarray:
        return np.array(rows[variant])[:, 0]


@dataclass(frozen=True)
class ByEncoder:
    """name "text": cosine with the style's words alone. name "pictures": mean cosine with the pictures that were drawn
    with the style's words everywhere, of the same style but other subjects: style without the object."""

    encoder: Encoder
    name: str

    def features(self, images: Sequence[Image.Image], asks: Sequence[Ask]) -> list[list[float]]:
        return [[round(x, 6) for x in row] for row in self.encoder.images(list(images)).tolist()]

    def scores(self, variant: str, rows: Rows, asks: Sequence[Ask]) -> np.ndarray:
        own = np.array(rows[variant])
        if self.name == "text":
            texts = self.encoder.texts([ask.words for ask in asks])
            assert texts is not None
            return (own * texts.numpy()).sum(1)
        like = np.array([[a.style == b.style and a.plain != b.plain for b in asks] for a in asks], dtype=float)
        if not like.sum(1).all():
            raise UserError("scored by pictures, every style needs two subjects: give more --prompts, or fewer styles")
        return (own @ np.array(rows["everywhere"]).T * like).sum(1) / like.sum(1)


def calibrate(
    base: str = "mini-sd3",
    out: Path | None = None,
    *,
    components: Path | None = None,
    size: str = "standard",
    levels: int | None = None,
    prompts: int | None = None,
    low: float | None = None,
    high: float | None = None,
    minutes: float | None = None,
    by: str | None = None,
    clip: str | None = None,
    styles: Path | None = None,
    subjects: Path | None = None,
    seed: int = 0,
    sampling: Sampling | None = None,
    rule: Rule | None = None,
    device: str = "auto",
    precision: str = "auto",
    progress: Callable[[int, int], None] | None = None,
    judges: Judges | None = None,
    encoder: Encoder | None = None,
) -> dict[str, Any]:
    """Measure, write calibration.json and calibration.svg into `out`, and return what the JSON holds.

    size: a preset of `levels` and `prompts` (SIZES). low, high: the log-SNRs between which the levels lie. minutes:
    stop after so long, with as many prompts as were complete by then. by: "judges", "text" or "pictures" (ByJudges,
    ByEncoder). clip: the encoder of the last two, a transformers folder or hub id; `encoder`, `judges`: loaded ones.
    styles, subjects: files with one per line, for bases that are not embedded. progress: (pictures done, in all).

    Every batch of pictures leaves its features in the cache, under base hash and settings: the same command goes on
    where it stopped, and another number of levels or prompts takes over what it shares. Raises UserError.
    """
    n_levels, n_prompts = sizes(size, levels, prompts)
    check_seed(seed)
    if minutes is not None and not 0 <= minutes < math.inf:
        raise UserError(f"minutes must be a number from 0 on, not {minutes:g}")
    out = out if out is not None else default_file(base).parent
    writable_folder(out)
    started = time.perf_counter()
    family = loader.load(base, device=device, precision=precision, components=components)
    measure, instrument = measure_of(base, family, by, clip, judges, encoder)
    judged = isinstance(measure, ByJudges)
    fewest = FEWEST_PROMPTS if measure.name != "pictures" else 2 * len(lines(styles, "styles", STYLES))
    if prompts is not None and prompts < fewest:
        raise UserError(
            f"scored by pictures, every style needs two subjects: at least {fewest} --prompts, or fewer styles"
        )
    n_prompts = max(n_prompts, fewest)
    asks = list(art_world_asks(n_prompts, seed) if judged else text_asks(n_prompts, seed, styles, subjects))
    if judged and (styles or subjects):
        raise UserError(
            "the judges know the art world's styles alone: leave out --styles and --subjects, or give --clip"
        )
    filled = (sampling or Sampling()).on(family)
    assert filled.steps is not None and filled.size is not None and filled.batch is not None
    check_size(filled.size, family, "resolution")
    draw = Drawing(family, filled, measure)
    chosen = choose_levels(draw.log_snr, n_levels, low, high)
    settings = {
        "steps": filled.steps,
        "guidance": filled.guidance,
        "size": filled.size,
        "batch": filled.batch,
        "precision": family.precision,
        "seed": seed,
        "by": measure.name,
        "instrument": instrument,
    }
    folder = cache_dir("calibration", key(family.hash, settings, asks[0], styles, subjects))
    try:
        rows = draw.all(asks, chosen, folder, minutes, fewest, progress)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("what is drawn is kept: the same command goes on") from None
    asks = asks[: len(rows["nowhere"])]
    reach = family.schedule.range
    lowest = reach[0] if predicts_noise(family) else None
    found = emergence(scores_of(rows, asks, chosen, draw.log_snr, measure), rule, lowest)
    latents = positions(filled.size, family)
    result = {"base": base, "base_hash": family.hash, "settings": settings, "prompts": len(asks)}
    result |= {"styles": sorted({ask.words for ask in asks}), **found.as_dict()}
    for row, step in zip(result["levels"], chosen, strict=True):
        row["share_of_steps"] = round(step / len(draw.log_snr), 4)
    result |= {"range": [round(end, 4) for end in reach]} if math.isfinite(reach[0]) else {}
    result |= {"latent_positions": latents, "published": published(latents)}
    result |= {"pictures": len(asks) * (2 + 2 * len(chosen)), "out": str(out)}
    result["seconds"] = round(time.perf_counter() - started, 1)
    write(result, out)
    return result


def sizes(size: str, levels: int | None, prompts: int | None) -> tuple[int, int]:
    """(levels, prompts). Raises UserError for an unknown preset or too few of one."""
    if size not in SIZES:
        raise UserError(f"unknown size {size!r}: {nearest(size, list(SIZES))}")
    n_levels, n_prompts = SIZES[size]
    n_levels, n_prompts = n_levels if levels is None else levels, n_prompts if prompts is None else prompts
    if n_levels < FEWEST_LEVELS:
        raise UserError(f"{n_levels} levels make no curve: at least {FEWEST_LEVELS}")
    if n_prompts < FEWEST_PROMPTS:
        raise UserError(f"{n_prompts} prompts say nothing of their spread: at least {FEWEST_PROMPTS}")
    return n_levels, n_prompts


def measure_of(
    base: str, family: Family, by: str | None, clip: str | None, judges: Judges | None, encoder: Encoder | None
) -> tuple[Measure, dict[str, str]]:
    """What scores the style, and its hash. Raises UserError where there is nothing."""
    if by not in (None, "judges", "text", "pictures"):
        raise UserError(f"unknown measure {by!r}: {nearest(by, ['judges', 'text', 'pictures'])}")
    known = bool(family.card.get("embedded"))
    if by == "judges" and (clip or encoder):
        raise UserError("the judges score without an encoder: leave out --clip, or say --by text or pictures")
    wants_encoder = by in ("text", "pictures") or (by is None and (clip or encoder))
    if not wants_encoder and known:
        found = judges or Judges.load()
        return ByJudges(found), {"style_judge": found.card.get("style", {}).get("sha256", "given")}
    if not wants_encoder or not (clip or encoder):
        why = "the judges know the styles of the embedded bases alone" if not known else "no encoder is given"
        raise UserError(
            f"nothing can score the styles of {base!r}: {why}; give --clip openai/clip-vit-base-patch32, or the folder "
            "of another encoder"
        )
    found = encoder if encoder is not None else load_encoder(str(clip))
    texts = found.texts(["a style"]) is not None
    if by == "text" and not texts:
        raise UserError(f"the encoder {found.name!r} reads no text: leave out --by text, or give a CLIP")
    return ByEncoder(found, by or ("text" if texts else "pictures")), {"encoder": found.hash}


def art_world_asks(n: int, seed: int) -> Iterator[Ask]:
    """Prompts of the bases' own kind, "{label}, {style}": ask i has train style i modulo 12, and the concepts go
    through those that every train style has and that are neither evaluation nor reference concepts. Ask i does not
    depend on n."""
    meta = load_meta()
    split, free = meta["split"], free_concepts()
    stride = next(k for k in range(round(len(free) * 0.382), len(free)) if math.gcd(k, len(free)) == 1)
    for i in range(n):
        style = split["train_styles"][i % len(split["train_styles"])]
        label = meta["concepts"][free[i * stride % len(free)]]["label"]
        words = meta["styles"][style]["descriptions"][0]
        yield Ask(label, styled_prompt(label, words), style, words, seed + i)


def text_asks(n: int, seed: int, styles: Path | None, subjects: Path | None) -> Iterator[Ask]:
    """ "{subject}" and "{subject} in {style} style", the paper's form; every style meets every subject in time."""
    named, things = lines(styles, "styles", STYLES), lines(subjects, "subjects", SUBJECTS)
    for i in range(n):
        style = i % len(named)
        subject = things[(i + i // math.lcm(len(named), len(things))) % len(things)]
        yield Ask(subject, f"{subject} in {named[style]} style", style, f"{named[style]} style", seed + i)


def lines(file: Path | None, what: str, default: Sequence[str]) -> list[str]:
    """The lines of a file without empty ones; two at least."""
    if file is None:
        return list(default)
    found = prompts.lines(file, what)
    if len(set(found)) < 2:
        raise UserError(f"{what} file {str(file)!r} has fewer than two {what}: write one per line")
    return list(dict.fromkeys(found))


def choose_levels(
    log_snr: Sequence[float], count: int, low: float | None = None, high: float | None = None
) -> list[int]:
    """Steps of the grid, at most `count`, nearest to evenly spaced log-SNRs from low to high.

    A step k stands for the level log_snr[k]: steps before it are noisier. The first step is never one, as no step is
    noisier; of steps at one level (PNDM's repeated one) the first counts. Raises UserError where too few are left.
    """
    steps = [k for k in range(1, len(log_snr)) if log_snr[k] > max(log_snr[:k])]
    if not steps:
        raise UserError("one step of sampling has no level to switch at: give more --steps")
    first, last = log_snr[steps[0]], log_snr[steps[-1]]
    reach = f"the levels of this base with {len(log_snr)} steps go from {first:.2f} to {last:.2f}"
    low = first if low is None else low
    high = max(min(last, HIGHEST), low) if high is None else high
    inside = [k for k in steps if low - 1e-6 <= log_snr[k] <= high + 1e-6]
    if not low < high or not first - 1e-6 <= low < last or high > last + 1e-6:
        raise UserError(f"levels from {low:g} to {high:g} cannot be: {reach}")
    picked = (
        {min(inside, key=lambda k: abs(log_snr[k] - at)) for at in np.linspace(low, high, count)} if inside else set()
    )
    if len(picked) < FEWEST_LEVELS:
        raise UserError(
            f"only {len(picked)} levels lie between {low:g} and {high:g}: {reach}; widen it, or more --steps"
        )
    return sorted(picked)


class Drawing:
    """Draws variants of prompts on one base, and keeps the features."""

    def __init__(self, family: Family, sampling: Sampling, measure: Measure) -> None:
        self.family, self.sampling, self.measure = family, sampling, measure
        self.pipe = family.pipeline()
        self.encode = prompt_encoder(family, self.pipe)
        assert sampling.steps is not None and sampling.size is not None
        self.log_snr = grid(family, sampling.steps, sampling.size)

    def all(
        self,
        asks: Sequence[Ask],
        steps: Sequence[int],
        folder: Path,
        minutes: float | None,
        fewest: int,
        progress: Callable[[int, int], None] | None,
    ) -> Rows:
        """The features of all variants, batch by batch of prompts, so that it can stop at any prompt from `fewest`."""
        variants = ["everywhere", "nowhere", *(f"{way}-{k}" for k in steps for way in ("until", "since"))]
        rows: Rows = {variant: [] for variant in variants}
        batch, started = self.sampling.batch, time.perf_counter()
        assert batch is not None
        for start in range(0, len(asks), batch):
            some = asks[start : start + batch]
            for i, variant in enumerate(variants):
                rows[variant] += self.one(variant, some, folder / f"{start:05d}-{len(some)}-{variant}.json")
                if progress:
                    progress(start * len(variants) + (i + 1) * len(some), len(asks) * len(variants))
            done, spent = start // batch + 1, (time.perf_counter() - started) / 60
            if minutes is not None and spent * (done + 1) / done > minutes and start + batch >= fewest:
                break
        return rows

    def one(self, variant: str, asks: Sequence[Ask], file: Path) -> list[list[float]]:
        """The features of one variant of some prompts, from the cache where they are there."""
        told = [asdict(ask) for ask in asks]
        count = len(parts(variant, asks))
        try:
            known = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            known = {}
        if known.get("asks") == told and known.get("parts", 1) == count:
            return known["features"]
        images = [image for image, _ in self.pictures(variant, asks)]
        features = self.measure.features(images, asks)
        with atomic(file) as temporary:
            temporary.write_text(json.dumps({"asks": told, "parts": count, "features": features}), encoding="utf-8")
        return features

    def pictures(self, variant: str, asks: Sequence[Ask]) -> Iterator[tuple[Image.Image, dict[str, Any]]]:
        """As `impasto generate` draws them, each with its own seed."""
        step = variant.partition("-")[2]
        prompts = pairs(variant, asks)
        drawn: dict[int, tuple[Image.Image, dict[str, Any]]] = {}
        for part in parts(variant, asks):
            switch = None
            if step:
                to = dict(prompts[i] for i in part)
                switch = PromptSwitch(to, self.log_snr[int(step)]).on(self.log_snr)
            jobs = [(prompts[i][0], asks[i].seed) for i in part]
            pictures = sample(self.family, self.pipe, jobs, self.encode, self.sampling, {}, switch=switch)
            drawn |= zip(part, pictures, strict=True)
        return (drawn[i] for i in range(len(asks)))


def pairs(variant: str, asks: Sequence[Ask]) -> list[tuple[str, str]]:
    """Per ask the prompt that a variant begins with, and the one that it switches to."""
    styled_first = variant.partition("-")[0] in ("everywhere", "until")
    return [(ask.styled, ask.plain) if styled_first else (ask.plain, ask.styled) for ask in asks]


def parts(variant: str, asks: Sequence[Ask]) -> list[list[int]]:
    """Positions of the asks, each once, in parts that are drawn one after the other: a switch knows a picture by its
    first prompt alone, so in a part none may have two second ones. All in one where none has, or nothing switches."""
    places: list[list[int]] = []
    seconds: list[dict[str, str]] = []
    for i, (first, second) in enumerate(pairs(variant, asks)):
        fits = ("-" not in variant or to.get(first, second) == second for to in seconds)
        k = next((k for k, fit in enumerate(fits) if fit), len(places))
        if k == len(places):
            places.append([])
            seconds.append({})
        places[k].append(i)
        seconds[k][first] = second
    return places


def scores_of(
    rows: Rows, asks: Sequence[Ask], steps: Sequence[int], log_snr: Sequence[float], measure: Measure
) -> Scores:
    """The features as scores, prompts x levels."""
    by = {variant: measure.scores(variant, rows, asks) for variant in rows}
    until, since = (np.stack([by[f"{way}-{k}"] for k in steps], axis=1) for way in ("until", "since"))
    return Scores(np.array([log_snr[k] for k in steps]), by["everywhere"], by["nowhere"], until, since)


def key(base_hash: str, settings: dict[str, Any], first: Ask, *files: Path | None) -> str:
    """The name of the cache folder: everything that a picture's features depend on but the prompt itself."""
    texts = [file.read_text(encoding="utf-8") if file else "" for file in files]
    told = json.dumps([base_hash, settings, asdict(first), texts, torch.__version__], sort_keys=True)
    return hashlib.sha256(told.encode()).hexdigest()[:20]


def write(result: dict[str, Any], out: Path) -> None:
    """calibration.svg, then calibration.json, each whole or not at all."""
    with atomic(out / "calibration.svg") as file:
        file.write_text(plot(result), encoding="utf-8")
    with atomic(out / "calibration.json") as file:
        file.write_text(json.dumps(result, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
