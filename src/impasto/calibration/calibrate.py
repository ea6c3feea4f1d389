"""`impasto noise calibrate`: measure at which noise levels a base decides style, and propose a noise law; no training.

Prompt switching (guidance/prompt_switch.py) over several styles, subjects and seeds, in both directions at each level:
the style's words only in the noisier steps, and only in the others. The images equal those of `impasto generate
--switch-at` with the same seeds; their style is scored by the art world's style judge on embedded bases, else by an
encoder. emergence.py defines the curve and the rule for the law.

Only train styles and concepts outside the evaluation and reference concepts are used.
"""

import hashlib
import json
import math
import time
import warnings
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
from impasto.calibration.emergence import Rule, Scores, measure_emergence, published
from impasto.calibration.plot import plot
from impasto.calibration.show import default_file
from impasto.coerce import check_seed
from impasto.errors import UserError, nearest
from impasto.evaluation.encoders import Encoder, load_encoder
from impasto.families.base import Family, check_size
from impasto.files import atomic, cache_dir, writable_folder
from impasto.guidance.prompt_switch import grid, switch_prompts
from impasto.judges.model import Judges
from impasto.objectives.weighting import predicts_noise
from impasto.progress import Progress, ignore
from impasto.sampling import prompts
from impasto.sampling.sample import Sampling, sample
from impasto.sampling.sample import encoder as prompt_encoder
from impasto.training.plan import latent_positions

SIZES = {"quick": (6, 12), "standard": (10, 36), "thorough": (14, 192)}
"""(levels, prompts); a level costs two images per prompt. `standard`: 792 images, about five minutes on two cores at .7
core-seconds each for mini-sd3 (measured on a busy machine)."""
MIN_PROMPTS, MIN_LEVELS = 4, 3
DEFAULT_HIGH = 4.0  # log-SNR of the last level by default; style is decided well before it in all measurements
STYLES = ("pencil sketch", "pixel art", "stained glass", "origami", "impressionist painting", "woodblock print",
          "charcoal drawing", "comic book")  # fmt: skip
SUBJECTS = ("a fox", "a teapot", "a lighthouse", "a bicycle", "an owl", "a windmill", "a guitar", "a sailing ship",
            "a castle", "a mushroom", "a telephone", "a rabbit")  # fmt: skip
Rows = dict[str, list[list[float]]]
"""Per variant ("everywhere", "nowhere", "until-3", "since-3") the features of its images, one row per prompt."""


@dataclass(frozen=True)
class StyledPrompt:
    """A subject without (plain) and with (styled) the style's words. style: index among the styles. seed: of the
    image."""

    plain: str
    styled: str
    style: int
    words: str
    seed: int


class Measure(Protocol):
    """features: one row per image, cached. scores [n]: the style score of each image of a variant, from the features of
    all variants."""

    @property
    def name(self) -> str: ...

    def features(self, images: Sequence[Image.Image], items: Sequence[StyledPrompt]) -> list[list[float]]: ...

    def scores(self, variant: str, rows: Rows, items: Sequence[StyledPrompt]) -> np.ndarray: ...


@dataclass(frozen=True)
class JudgeMeasure:
    """The style judge's probability of the prompt's style."""

    judges: Judges
    name: str = "judges"

    def features(self, images: Sequence[Image.Image], items: Sequence[StyledPrompt]) -> list[list[float]]:
        probabilities = self.judges.style(list(images))
        return [[float(row[item.style])] for row, item in zip(probabilities, items, strict=True)]

    def scores(self, variant: str, rows: Rows, items: Sequence[StyledPrompt]) -> np.ndarray:
        return np.array(rows[variant])[:, 0]


@dataclass(frozen=True)
class EncoderMeasure:
    """name "text": cosine with the style's words alone. name "pictures": mean cosine with the "everywhere" images of
    the same style and other subjects, which measures style without the object."""

    encoder: Encoder
    name: str

    def features(self, images: Sequence[Image.Image], items: Sequence[StyledPrompt]) -> list[list[float]]:
        return [[round(x, 6) for x in row] for row in self.encoder.images(list(images)).tolist()]

    def scores(self, variant: str, rows: Rows, items: Sequence[StyledPrompt]) -> np.ndarray:
        own = np.array(rows[variant])
        if self.name == "text":
            texts = self.encoder.texts([item.words for item in items])
            assert texts is not None
            return (own * texts.numpy()).sum(1)
        like = np.array([[a.style == b.style and a.plain != b.plain for b in items] for a in items], dtype=float)
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
    progress: Progress = ignore,
    judges: Judges | None = None,
    encoder: Encoder | None = None,
    dry_run: bool = False,
) -> dict[str, Any]:
    """Measure, write calibration.json and calibration.svg into `out`, and return the content of the JSON.

    size: a preset of `levels` and `prompts` (SIZES). low, high: range of the levels in log-SNR. minutes: time limit,
    loading included, to which prompts, then levels, are reduced (`VariantSampler.fit`). dry_run: return the plan only,
    {"levels", "prompts", "pictures", ...}; no weights are read and nothing is written. by: "judges", "text" or
    "pictures" (JudgeMeasure, EncoderMeasure). clip: the encoder of the last two, a transformers folder or hub id;
    `encoder`, `judges`: loaded ones. styles, subjects: files with one per line, for bases that are not embedded.
    progress: see `impasto.progress`.

    The features of each batch are cached under base hash and settings: the same command resumes, and other numbers of
    levels or prompts reuse common batches. Raises UserError.
    """
    started = time.perf_counter()
    n_levels, n_prompts = check_sizes(size, levels, prompts)
    check_seed(seed)
    if minutes is not None and not 0 < minutes < math.inf:
        raise UserError(f"minutes must be a number above 0, not {minutes:g}")
    out = out if out is not None else default_file(base).parent
    if dry_run:
        family = loader.load_config(base, components, "leave out --dry-run")
        measure, kind = None, choose_kind(base, family, by, clip, judges, encoder) or "text"
    else:
        writable_folder(out)
        family = loader.load(base, device=device, precision=precision, components=components)
        measure, instrument = choose_measure(base, family, by, clip, judges, encoder)
        kind = measure.name
    judged = kind == "judges"
    minimum = MIN_PROMPTS if kind != "pictures" else 2 * len(lines(styles, "styles", STYLES))
    if prompts is not None and prompts < minimum:
        raise UserError(
            f"scored by pictures, every style needs two subjects: at least {minimum} --prompts, or fewer styles"
        )
    n_prompts = max(n_prompts, minimum)
    items = list(art_world_prompts(n_prompts, seed) if judged else text_prompts(n_prompts, seed, styles, subjects))
    if judged and (styles or subjects):
        raise UserError(
            "the judges know the art world's styles alone: leave out --styles and --subjects, or give --clip"
        )
    filled = (sampling or Sampling()).on(family)
    assert filled.steps is not None and filled.size is not None and filled.batch is not None
    check_size(filled.size, family, "resolution")
    log_snr = grid(family, filled.steps, filled.size, filled.scheduler(family))
    chosen = choose_levels(log_snr, n_levels, low, high)
    settings: dict[str, Any] = {"steps": filled.steps, "guidance": filled.guidance, "size": filled.size}
    settings |= {"batch": filled.batch, "precision": family.precision, "seed": seed, "by": kind}
    if measure is None:
        plan = {"base": base, "levels": [round(log_snr[k], 4) for k in chosen], "prompts": len(items)}
        plan |= {"pictures": len(items) * (2 + 2 * len(chosen)), "minutes": minutes, "out": str(out)}
        return plan | {"styles": sorted({item.words for item in items}), "settings": settings, "dry_run": True}
    settings |= {"instrument": instrument}
    sampler = VariantSampler(family, filled, measure, log_snr)
    folder = cache_dir("calibration", cache_key(family.hash, settings, items[0], styles, subjects))
    try:
        deadline = math.inf if minutes is None else started + 60 * minutes
        if minutes is not None:
            items, chosen = sampler.fit(
                items, lambda count: choose_levels(log_snr, count, low, high), len(chosen), folder, deadline, minimum
            )
        rows = sampler.sample_all(items, chosen, folder, deadline, minimum, progress)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("generated images are cached: the same command resumes") from None
    items = items[: len(rows["nowhere"])]
    reach = family.schedule.range
    lowest = reach[0] if predicts_noise(family) else None
    found = measure_emergence(compute_scores(rows, items, chosen, log_snr, measure), rule, lowest)
    latents = latent_positions(filled.size, family)
    result = {"base": base, "base_hash": family.hash, "settings": settings, "prompts": len(items)}
    result |= {"styles": sorted({item.words for item in items}), **found.as_dict()}
    for row, step in zip(result["levels"], chosen, strict=True):
        row["share_of_steps"] = round(step / len(log_snr), 4)
    result |= {"range": [round(end, 4) for end in reach]} if math.isfinite(reach[0]) else {}
    result |= {"latent_positions": latents, "published": published(latents)}
    result |= {"pictures": len(items) * (2 + 2 * len(chosen)), "out": str(out)}
    result["seconds"] = round(time.perf_counter() - started, 1)
    write_files(result, out)
    return result


def check_sizes(size: str, levels: int | None, prompts: int | None) -> tuple[int, int]:
    """(levels, prompts). Raises UserError for an unknown preset or too small numbers."""
    if size not in SIZES:
        raise UserError(f"unknown size {size!r}: {nearest(size, list(SIZES))}")
    n_levels, n_prompts = SIZES[size]
    n_levels, n_prompts = n_levels if levels is None else levels, n_prompts if prompts is None else prompts
    if n_levels < MIN_LEVELS:
        raise UserError(f"levels must be at least {MIN_LEVELS}, not {n_levels}")
    if n_prompts < MIN_PROMPTS:
        raise UserError(f"prompts must be at least {MIN_PROMPTS}, not {n_prompts}")
    return n_levels, n_prompts


def choose_kind(
    base: str, family: Family, by: str | None, clip: str | None, judges: Judges | None, encoder: Encoder | None
) -> str | None:
    """ "judges", "text" or "pictures"; None for "text" where the encoder has texts, else "pictures". Raises UserError
    when nothing can score this base."""
    if by not in (None, "judges", "text", "pictures"):
        raise UserError(f"unknown measure {by!r}: {nearest(by, ['judges', 'text', 'pictures'])}")
    known = bool(family.card.get("embedded"))
    if by == "judges" and (clip or encoder):
        raise UserError("the judges score without an encoder: leave out --clip, or give --by text or pictures")
    wants_encoder = by in ("text", "pictures") or (by is None and (clip or encoder))
    if not wants_encoder and known:
        return "judges"
    if not wants_encoder or not (clip or encoder):
        why = "the judges score the styles of embedded bases only" if not known else "no encoder is given"
        raise UserError(
            f"nothing can score the styles of {base!r}: {why}; give --clip openai/clip-vit-base-patch32, or the folder "
            "of another encoder"
        )
    return by


def choose_measure(
    base: str, family: Family, by: str | None, clip: str | None, judges: Judges | None, encoder: Encoder | None
) -> tuple[Measure, dict[str, str]]:
    """(measure of style, its identity {kind: hash}). Raises UserError when there is none for this base."""
    if choose_kind(base, family, by, clip, judges, encoder) == "judges":
        found = judges or Judges.load()
        return JudgeMeasure(found), {"style_judge": found.card.get("style", {}).get("sha256", "given")}
    found = encoder if encoder is not None else load_encoder(str(clip))
    texts = found.texts(["a style"]) is not None
    if by == "text" and not texts:
        raise UserError(f"the encoder {found.name!r} has no text tower: leave out --by text, or give a CLIP")
    return EncoderMeasure(found, by or ("text" if texts else "pictures")), {"encoder": found.hash}


def art_world_prompts(n: int, seed: int) -> Iterator[StyledPrompt]:
    """Prompts "{label}, {style}" for embedded bases: item i has train style i modulo 12 and a concept that every train
    style has and that is neither an evaluation nor a reference concept. Item i does not depend on n."""
    meta = load_meta()
    split, free = meta["split"], free_concepts()
    stride = next(k for k in range(round(len(free) * 0.382), len(free)) if math.gcd(k, len(free)) == 1)
    for i in range(n):
        style = split["train_styles"][i % len(split["train_styles"])]
        label = meta["concepts"][free[i * stride % len(free)]]["label"]
        words = meta["styles"][style]["descriptions"][0]
        yield StyledPrompt(label, styled_prompt(label, words), style, words, seed + i)


def text_prompts(n: int, seed: int, styles: Path | None, subjects: Path | None) -> Iterator[StyledPrompt]:
    """ "{subject}" and "{subject} in {style} style", the paper's form; cycles through all pairs."""
    named, things = lines(styles, "styles", STYLES), lines(subjects, "subjects", SUBJECTS)
    for i in range(n):
        style = i % len(named)
        subject = things[(i + i // math.lcm(len(named), len(things))) % len(things)]
        yield StyledPrompt(subject, f"{subject} in {named[style]} style", style, f"{named[style]} style", seed + i)


def lines(file: Path | None, what: str, default: Sequence[str]) -> list[str]:
    """The distinct non-empty lines of a file, at least two; `default` without a file. Raises UserError."""
    if file is None:
        return list(default)
    found = prompts.lines(file, what)
    if len(set(found)) < 2:
        raise UserError(f"{what} file {str(file)!r} has fewer than two {what}: write one per line")
    return list(dict.fromkeys(found))


def choose_levels(
    log_snr: Sequence[float], count: int, low: float | None = None, high: float | None = None
) -> list[int]:
    """Indices of at most `count` steps, nearest to evenly spaced log-SNRs from low to high.

    Step k has the level log_snr[k]; the steps before it are noisier. The first step is excluded, as no step is noisier;
    of steps at one level (PNDM repeats one) the first is used. Raises UserError when too few remain.
    """
    steps = [k for k in range(1, len(log_snr)) if log_snr[k] > max(log_snr[:k])]
    if not steps:
        raise UserError("one step of sampling has no level to switch at: give more --steps")
    first, last = log_snr[steps[0]], log_snr[steps[-1]]
    reach = f"the levels of this base with {len(log_snr)} steps go from {first:.2f} to {last:.2f}"
    low = first if low is None else low
    high = max(min(last, DEFAULT_HIGH), low) if high is None else high
    inside = [k for k in steps if low - 1e-6 <= log_snr[k] <= high + 1e-6]
    if not low < high or not first - 1e-6 <= low < last or high > last + 1e-6:
        raise UserError(f"levels from {low:g} to {high:g} are not possible: {reach}")
    picked = (
        {min(inside, key=lambda k: abs(log_snr[k] - at)) for at in np.linspace(low, high, count)} if inside else set()
    )
    if len(picked) < MIN_LEVELS:
        raise UserError(
            f"only {len(picked)} levels lie between {low:g} and {high:g}: {reach}; widen it, or give more --steps"
        )
    return sorted(picked)


class VariantSampler:
    """Generates the variants of prompts on one base and caches their features."""

    def __init__(self, family: Family, sampling: Sampling, measure: Measure, log_snr: Sequence[float]) -> None:
        self.family, self.sampling, self.measure, self.log_snr = family, sampling, measure, log_snr
        self.pipe = family.pipeline()
        self.encode = prompt_encoder(family, self.pipe)

    def fit(
        self,
        items: list[StyledPrompt],
        levels_of: Callable[[int], list[int]],
        levels: int,
        folder: Path,
        deadline: float,
        minimum: int,
    ) -> tuple[list[StyledPrompt], list[int]]:
        """(prompts, steps) that can be sampled until `deadline` (`time.perf_counter`), by the time that the first
        `minimum` images take: fewer prompts, at `minimum` of them fewer levels. levels_of: the steps of so many levels.

        Raises UserError where even MIN_LEVELS take longer.
        """
        steps = levels_of(levels)
        started, some = time.perf_counter(), items[:minimum]
        self.load_or_sample("everywhere", some, folder / f"{0:05d}-{len(some)}-everywhere.json", fresh=True)
        now = time.perf_counter()
        each = (now - started) / len(some)
        images = int((deadline - now) / each)
        prompts = min(len(items), images // (2 + 2 * levels))
        if prompts < minimum:
            levels, prompts = min(levels, (images // minimum - 2) // 2), minimum
            if levels < MIN_LEVELS:
                least = minimum * (2 + 2 * MIN_LEVELS) * each + now - deadline
                raise UserError(
                    f"the time limit is too short: an image takes {each:.2g} s here, and {minimum} prompts at "
                    f"{MIN_LEVELS} levels would take {least:.0f} s more: give more --minutes, or fewer --steps"
                )
            steps = levels_of(levels)
        if prompts < len(items):
            warnings.warn(f"for the time limit: {prompts} of {len(items)} prompts, {len(steps)} levels", stacklevel=3)
        return items[:prompts], steps

    def sample_all(
        self,
        items: Sequence[StyledPrompt],
        steps: Sequence[int],
        folder: Path,
        deadline: float,
        minimum: int,
        progress: Progress,
    ) -> Rows:
        """The features of all variants, batch by batch; after `minimum` prompts it stops where another batch would end
        after `deadline` (`time.perf_counter`)."""
        variants = ["everywhere", "nowhere", *(f"{way}-{k}" for k in steps for way in ("until", "since"))]
        rows: Rows = {variant: [] for variant in variants}
        batch, started = self.sampling.batch, time.perf_counter()
        assert batch is not None
        for start in range(0, len(items), batch):
            some = items[start : start + batch]
            for i, variant in enumerate(variants):
                rows[variant] += self.load_or_sample(variant, some, folder / f"{start:05d}-{len(some)}-{variant}.json")
                progress("generating", start * len(variants) + (i + 1) * len(some), len(items) * len(variants))
            now, rest = time.perf_counter(), len(items[start + batch : start + 2 * batch])
            if now + (now - started) * rest / (start + len(some)) > deadline and start + batch >= minimum:
                break
        return rows

    def load_or_sample(
        self, variant: str, items: Sequence[StyledPrompt], file: Path, fresh: bool = False
    ) -> list[list[float]]:
        """The features of one variant of a batch of prompts, from the cache if possible and not `fresh`."""
        entries = [asdict(item) for item in items]
        count = len(split_variant(variant, items))
        try:
            known = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            known = {}
        if not fresh and known.get("asks") == entries and known.get("parts", 1) == count:
            return known["features"]
        images = [image for image, _ in self.generate(variant, items)]
        features = self.measure.features(images, items)
        with atomic(file) as temporary:
            temporary.write_text(json.dumps({"asks": entries, "parts": count, "features": features}), encoding="utf-8")
        return features

    def generate(self, variant: str, items: Sequence[StyledPrompt]) -> Iterator[tuple[Image.Image, dict[str, Any]]]:
        """The images of a variant, generated as by `impasto generate`, each with its own seed."""
        step = variant.partition("-")[2]
        prompts = prompt_pairs(variant, items)
        drawn: dict[int, tuple[Image.Image, dict[str, Any]]] = {}
        for part in split_variant(variant, items):
            guidances = []
            if step:
                second, at = dict(prompts[i] for i in part), self.log_snr[int(step)]
                guidances.append(switch_prompts(self.family, second.__getitem__, at, self.log_snr))
            jobs = [(prompts[i][0], items[i].seed) for i in part]
            pictures = sample(self.family, self.pipe, jobs, self.encode, self.sampling, {}, guidances)
            drawn |= zip(part, pictures, strict=True)
        return (drawn[i] for i in range(len(items)))


def prompt_pairs(variant: str, items: Sequence[StyledPrompt]) -> list[tuple[str, str]]:
    """Per item the first and the second prompt of a variant."""
    styled_first = variant.partition("-")[0] in ("everywhere", "until")
    return [(item.styled, item.plain) if styled_first else (item.plain, item.styled) for item in items]


def split_variant(variant: str, items: Sequence[StyledPrompt]) -> list[list[int]]:
    """Partition of the items' positions into groups for separate calls: a switch identifies an image by its first
    prompt, so no first prompt may have two second prompts in a group. One group if there are none."""
    places: list[list[int]] = []
    seconds: list[dict[str, str]] = []
    for i, (first, second) in enumerate(prompt_pairs(variant, items)):
        fits = ("-" not in variant or to.get(first, second) == second for to in seconds)
        k = next((k for k, fit in enumerate(fits) if fit), len(places))
        if k == len(places):
            places.append([])
            seconds.append({})
        places[k].append(i)
        seconds[k][first] = second
    return places


def compute_scores(
    rows: Rows, items: Sequence[StyledPrompt], steps: Sequence[int], log_snr: Sequence[float], measure: Measure
) -> Scores:
    """The scores, [prompts, levels], from the features."""
    by = {variant: measure.scores(variant, rows, items) for variant in rows}
    until, since = (np.stack([by[f"{way}-{k}"] for k in steps], axis=1) for way in ("until", "since"))
    return Scores(np.array([log_snr[k] for k in steps]), by["everywhere"], by["nowhere"], until, since)


def cache_key(base_hash: str, settings: dict[str, Any], first: StyledPrompt, *files: Path | None) -> str:
    """The name of the cache folder: a hash of all that an image's features depend on except its prompt."""
    texts = [file.read_text(encoding="utf-8") if file else "" for file in files]
    content = json.dumps([base_hash, settings, asdict(first), texts, torch.__version__], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:20]


def write_files(result: dict[str, Any], out: Path) -> None:
    """Write calibration.svg, then calibration.json, each atomically."""
    with atomic(out / "calibration.svg") as file:
        file.write_text(plot(result), encoding="utf-8")
    with atomic(out / "calibration.json") as file:
        file.write_text(json.dumps(result, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
