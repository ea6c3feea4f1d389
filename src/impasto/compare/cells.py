"""A cell: one method on one reference with one seed, in its own folder.

    <out>/cells/<name>/style/      the training, resumed by its checkpoints
    <out>/cells/<name>/1.25/       its images at 1.25 times its own strength, with scores.json of `evaluate`
    <out>/cells/<name>/cell.json   seconds, memory, bytes, scores at every strength: written last

The name ends in a hash of all that the images depend on, so the same cell is found again, and another one has another
folder. A lock lets several processes share a comparison: one that finds a cell taken runs another one first.
"""

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from PIL import Image

from impasto.bases import loader
from impasto.compare.memory import peak_memory, reset_peak_memory
from impasto.compare.methods import Method, config_of, guidances_of, own_strength
from impasto.compare.references import ReferenceImage
from impasto.devices import resolve_device
from impasto.evaluation import Encoder, evaluate, load_encoder
from impasto.evaluation.clip import clip_leak
from impasto.evaluation.diversity import pairwise_diversity
from impasto.evaluation.samples import read_folder
from impasto.families.base import Family, quiet
from impasto.files import atomic, read_json_or_empty
from impasto.generation import StrengthSessions
from impasto.judges.model import Judges
from impasto.sampling.png import save_png
from impasto.sampling.sample import Sampling
from impasto.styles.parts import has_weights, read_parts
from impasto.training.train import train

VERSION = 1
"""Of this procedure: incremented when images change, so that all cells are run again."""
RESULT, TRAINING = "cell.json", "training.json"
SCORES = ("style", "text", "leakage", "diversity")


@dataclass(frozen=True)
class Instruments:
    """What scores: `judged`, the packaged judges (of a style of the art world on an embedded base), else an encoder.
    clip: "clip" (the small one), a folder or hub id. dino: of one more cosine with the reference, if any."""

    judged: bool
    clip: str = "clip"
    dino: str | None = None

    @property
    def names(self) -> dict[str, str]:
        """{score: the measure of `evaluate` behind it}."""
        if self.judged:
            found = {"style": "style_probability", "text": "concept_top5", "leakage": "leakage"}
        else:
            found = {"style": "clip_i_reference", "text": "clip_t", "leakage": "clip_leak"}
        return found | {"diversity": "diversity"} | ({"dino": "dino_i_reference"} if self.dino else {})

    def describe(self) -> dict[str, str]:
        """{score: what it is, and by which instrument}."""
        clip = "the small CLIP" if self.clip == "clip" else self.clip
        if self.judged:
            found = {
                "style": "mean probability of the reference's style, of 19 (style judge)",
                "text": "share of images whose concept is among the first five of 1,194 (concept judge)",
                "leakage": "share of images that show the reference's object (concept judge)",
            }
        else:
            found = {
                "style": f"mean cosine of image and reference ({clip})",
                "text": f"mean cosine of image and prompt ({clip})",
                "leakage": f"share of images nearer to the reference's caption than to their own prompt ({clip})",
            }
        found["diversity"] = f"mean of 1 - cosine over pairs of images ({clip})"
        return found | ({"dino": f"mean cosine of image and reference ({self.dino})"} if self.dino else {})

    def hashes(self) -> dict[str, str]:
        """{instrument: sha256 of its weights}: scores of a cell by other ones are made anew."""
        own = {"clip": encoder(self.clip).hash}
        if self.judged:
            own |= {which: judges().card[which]["sha256"] for which in ("style", "concept")}
        return own | ({"dino": encoder(self.dino).hash} if self.dino else {})


@dataclass(frozen=True)
class Setting:
    """What all cells of a comparison share. steps: {method: training steps}, None for a recipe's own. sampling: steps,
    guidance, size of `generate`, where not the base's."""

    out: Path
    base: str
    base_hash: str
    steps: Mapping[str, int | None]
    sampling: Mapping[str, Any]
    instruments: Instruments
    device: str = "auto"
    precision: str = "auto"

    @property
    def hardware(self) -> dict[str, Any]:
        return {"device": self.device, "precision": self.precision}


@dataclass(frozen=True)
class Cell:
    """spec: all that its images depend on, JSON values."""

    method: Method
    reference: ReferenceImage
    seed: int
    spec: Mapping[str, Any]

    @property
    def unit(self) -> str:
        """The reference and seed that cells of several methods share."""
        return f"{self.reference.name}, {self.seed}"

    @property
    def name(self) -> str:
        key = hashlib.sha256(json.dumps(self.spec, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
        text = f"{self.method.name}--{self.reference.name}--{self.seed}"
        plain = "".join(c if c.isalnum() or c in ".+-" else "-" for c in text)
        return f"{plain}--{key[:12]}"

    def folder(self, out: Path) -> Path:
        return out / "cells" / self.name

    def images(self, out: Path, factor: float) -> Path:
        """The folder of its images at a multiple of its own strength."""
        return self.folder(out) / f"{factor:g}"


def run_cell(cell: Cell, setting: Setting, wait: bool = True) -> dict[str, Any]:
    """The content of the cell's cell.json, which is run as far as it is not there. Without `wait`, {"busy": True} where
    another process runs it. Raises UserError."""
    folder = cell.folder(setting.out)
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock", timeout=-1 if wait else 0)
    try:
        with lock, quiet():
            return run_locked(cell, setting, folder)
    except Timeout:
        return {"busy": True}


def run_locked(cell: Cell, setting: Setting, folder: Path) -> dict[str, Any]:
    """`run_cell` while holding the cell's lock."""
    there = read_cell(cell, setting)
    if there is not None:
        return there
    method = cell.method
    style: Path | None = None
    cost: dict[str, Any] = {"train_seconds": None, "peak_memory_gb": None, "bytes": None}
    if method.trained:
        style, trained = folder / "style", train_style(cell, setting, folder)
        cost |= {"train_seconds": trained["seconds"], "peak_memory_gb": trained["peak_memory_gb"]}
    elif method.kind == "style":
        style = Path(method.path)
    if style is not None:
        cost["bytes"] = style_bytes(style)
    own = own_strength(method, style, setting.base)
    guidances, sampling = guidances_of(method, cell.reference, setting.base, 1.0), Sampling(**setting.sampling)
    sessions = StrengthSessions(setting.base, style, sampling=sampling, guidances=guidances, **setting.hardware)
    made = {factor: generate_images(cell, setting, sessions, own, factor) for factor in method.factors}
    del sessions
    peaks = [x for x in (cost["peak_memory_gb"], *(one["peak_memory_gb"] for one in made.values())) if x is not None]
    cost |= {"seconds_per_image": made[1.0]["seconds_per_image"], "peak_memory_gb": max(peaks, default=None)}
    clip = encoder(setting.instruments.clip)
    model = RememberingEncoder(clip.name, clip.model, clip.processor, clip.tokenizer, clip)
    curve = [
        {"factor": f, "strength": round(own * f, 6), **score_images(cell, setting, f, model)} for f in method.factors
    ]
    content = {"spec": cell.spec, "instruments": setting.instruments.hashes(), **cost, "curve": curve}
    with atomic(folder / RESULT) as file:
        file.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    shutil.rmtree(folder / "style" / "state", ignore_errors=True)  # the style is kept
    return content


def read_cell(cell: Cell, setting: Setting) -> dict[str, Any] | None:
    """The cell's results by the same instruments at all strengths, None where they are not there."""
    there = read_json_or_empty(cell.folder(setting.out) / RESULT)
    complete = [row["factor"] for row in there.get("curve", ())] == list(cell.method.factors)
    return there if complete and there.get("instruments") == setting.instruments.hashes() else None


def train_style(cell: Cell, setting: Setting, folder: Path) -> dict[str, Any]:
    """Train into `folder/style`; returns seconds by `clock`, of all attempts, and peak memory."""
    file = folder / TRAINING
    before = read_json_or_empty(file)
    if before.get("complete") and has_weights(folder / "style"):
        return before
    steps = setting.steps.get(cell.method.name)
    config = config_of(
        cell.method, cell.reference, setting.base, cell.seed, folder / "style", steps, **setting.hardware
    )
    reset_peak_memory()
    now = clock(setting)
    started, complete = now(), False
    try:
        train(config)
        complete = True
    finally:
        seconds = round(before.get("seconds", 0.0) + now() - started, 2)
        peak = max(before.get("peak_memory_gb") or 0.0, peak_memory())
        content = {"complete": complete, "seconds": seconds, "peak_memory_gb": round(peak, 3)}
        with atomic(file) as temporary:
            temporary.write_text(json.dumps(content) + "\n", encoding="utf-8")
    return content


def clock(setting: Setting) -> Callable[[], float]:
    """Seconds on the clock; on a CPU seconds of all threads of this process, which do not depend on what else runs."""
    cpu = resolve_device(setting.device, setting.precision)[0] == "cpu"
    return time.process_time if cpu else time.perf_counter


def style_bytes(style: Path) -> int:
    """Size of the style's weights."""
    files = [style / part.file for part in read_parts(style)] if style.is_dir() else [style]
    return sum(file.stat().st_size for file in files)


def generate_images(
    cell: Cell, setting: Setting, sessions: StrengthSessions, own: float, factor: float
) -> dict[str, Any]:
    """Generate the cell's images at a multiple of its strength `own`, unless they are there; returns their cost. Image
    i has the seed 1000 * seed + i, whatever the method."""
    folder = cell.images(setting.out, factor)
    note = folder / "cost.json"
    there = read_json_or_empty(note)
    if there and len(list(folder.glob("*.png"))) == len(cell.reference.prompts):
        return there
    part = folder.with_name(f"{folder.name}.part")
    for old in (folder, part):
        shutil.rmtree(old, ignore_errors=True)
    part.mkdir(parents=True)
    reset_peak_memory()
    session = sessions.at(float(f"{own * factor:g}"))
    guidances = guidances_of(cell.method, cell.reference, setting.base, factor)
    if guidances is not None:
        session = session.with_guidances(guidances)
    session.check_prompts(cell.reference.prompts)
    now = clock(setting)
    started, jobs = now(), [(p, 1000 * cell.seed + i) for i, p in enumerate(cell.reference.prompts)]
    for i, (image, info) in enumerate(session.sample(jobs)):
        save_png(image, info, part / f"{i:04d}.png")
    seconds = (now() - started) / len(jobs)
    cost = {"seconds_per_image": round(seconds, 3), "peak_memory_gb": round(peak_memory(), 3)}
    (part / "cost.json").write_text(json.dumps(cost) + "\n", encoding="utf-8")
    part.rename(folder)
    return cost


def score_images(cell: Cell, setting: Setting, factor: float, model: Encoder) -> dict[str, Any]:
    """SCORES of the images at a multiple of the cell's strength (and "dino"), None where one is not known. model: the
    encoder `Instruments.clip`."""
    folder, by = cell.images(setting.out, factor), setting.instruments
    found = evaluate(
        folder,
        cell.reference.style if by.judged else None,
        reference=cell.reference.image,
        reference_concept=cell.reference.concept,
        judges=judges() if by.judged else None,
        encoder=model,
        dino=encoder(by.dino) if by.dino else None,
    )
    images = [sample.image for sample in read_folder(folder)]
    embedded = model.images(images)
    found["diversity"] = pairwise_diversity(embedded)
    if not by.judged:
        found["clip_leak"] = leak(model, embedded, cell.reference)
    return {name: as_number(found.get(key)) for name, key in by.names.items()}


@dataclass(frozen=True)
class RememberingEncoder(Encoder):
    """An encoder that embeds images of the same pixels once. known: {sha256 of size and pixels: embedding}."""

    encoder: Encoder
    known: dict[bytes, torch.Tensor] = field(default_factory=dict, compare=False)

    @cached_property
    def hash(self) -> str:
        return self.encoder.hash

    def images(self, images: Sequence[Image.Image]) -> torch.Tensor:
        keys = [hashlib.sha256(repr(one.size).encode() + one.convert("RGB").tobytes()).digest() for one in images]
        new = {key: image for key, image in zip(keys, images, strict=True) if key not in self.known}
        if new:
            self.known.update(zip(new, self.encoder.images(list(new.values())), strict=True))
        return torch.stack([self.known[key] for key in keys])

    def texts(self, texts: Sequence[str]) -> torch.Tensor | None:
        return self.encoder.texts(texts)


def leak(model: Encoder, embedded: torch.Tensor, reference: ReferenceImage) -> float | None:
    """The share of images that leak by `clip_leak`, None without a text tower."""
    texts = model.texts([*reference.prompts, reference.caption])
    return None if texts is None else clip_leak(embedded, texts[:-1], texts[-1:]).float().mean().item()


def as_number(value: Any) -> float | None:
    return None if value is None else round(float(value), 6)


def style_text(content: Mapping[str, Any]) -> list[tuple[float, float]] | None:
    """The curve of a cell as (text, style) per strength; None where a score is not known."""
    points = [(row["text"], row["style"]) for row in content["curve"]]
    return None if any(value is None for point in points for value in point) else points


def own_row(content: Mapping[str, Any]) -> Mapping[str, Any]:
    """A cell's scores at its method's own strength."""
    return content["curve"][own_place(content)]


def own_place(content: Mapping[str, Any]) -> int:
    """The place of a method's own strength on a cell's curve."""
    return next(i for i, row in enumerate(content["curve"]) if row["factor"] == 1)


def open_images(cell: Cell, setting: Setting, count: int, factor: float = 1.0) -> list[Image.Image]:
    """The first `count` images of a cell."""
    return [sample.image for sample in read_folder(cell.images(setting.out, factor))[:count]]


@lru_cache(maxsize=2)
def family_of(base: str, device: str, precision: str) -> Family:
    return loader.load(base, device=device, precision=precision)


@lru_cache(maxsize=1)
def judges() -> Judges:
    return Judges.load()


@lru_cache(maxsize=3)
def encoder(name: str) -> Encoder:
    with quiet():
        return load_encoder() if name == "clip" else load_encoder(name)
