"""Strength, style guidance and negative prompt of an embedded base: curves of style against content, and the choice.

    python tools/choose_strength.py run --base mini-sd15      # cells into docs/results/sampling/; resumes
    python tools/choose_strength.py report                    # table, plot and choice from the cells

References: one picture of each *secondary* held-out style, and one of each of four procedural looks on coloured and
dark grounds, whose captions do not name the ground. Recipe style-friendly-128px, the base's own rate and steps. Each
cell samples 6 other things (neither evaluation nor reference concepts) per reference, from the same seeds. The primary
styles and the evaluation concepts are not looked at.

    style     how far an image has come from the base's image of the same prompt and seed (0) to the true image of the
              same thing in the style (1 is as near as two true images of different things are to each other): by
              cosines of the style judge's features, (to_true - base_to_true) / (true_to_true - base_to_true), ratio of
              means over all images
    content   concept top-5. The looks are such as the concept judge can read: .7 or more on their true images, which
              leaves out grounds as dark as a blackboard (.0 to .3 there)

The style judge's probability of the style is stored too. Shares of images that are judged to be in the style would say
little: most references have 0 or 1 of them at any setting (docs/log/2026-11.md, sixteenth session).

Rule: smoothed over neighbouring strengths (half weight each), the largest harmonic mean of style and of content as a
share of the base's (both within 0 and 1); ties (.02) by the smaller style guidance, then the larger strength.
"""

import argparse
import json
import random
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import product
from pathlib import Path
from statistics import harmonic_mean
from typing import Any

import numpy as np
import torch
from PIL import Image

from impasto.artworld import ArtWorld, free_concepts, load, load_meta
from impasto.artworld.captions import prompt
from impasto.artworld.procedural import Look, random_look
from impasto.bases import loader
from impasto.config import resolve
from impasto.files import atomic
from impasto.judges.model import Judges
from impasto.report import plots
from impasto.report.html import Html, el
from impasto.reproduce.small_world import spread, words
from impasto.sampling.sample import Sampling, encoder, sample
from impasto.styles.load import load_style
from impasto.training.train import train

OUT = Path("docs/results/sampling")
SEED, THINGS = 11, 6
LOOKS = {"palette": 5, "crackle": 1, "brush ink": 2, "paper cut": 3}
"""Family: seed of its parameters."""
REFERENCES = ("guitar", "bus", "tomato", "castle", "elephant", "microscope", "rabbit face", "television")
STRENGTHS, WEIGHTS, NEGATIVES = (1.0, 0.85, 0.7, 0.6, 0.5, 0.4), (0.0, 1.0, 2.0, 3.0), ("", "style words")
BASE_ALONE, TRUE = "base alone", "true images"
Setting = tuple[float, float, str]
"""strength, style guidance, negative prompt"""
CELLS = 2 + len(STRENGTHS) * len(WEIGHTS) * len(NEGATIVES)
"""Of a reference."""


@dataclass(frozen=True)
class Subject:
    """One reference: its name, its style's words, the reference image with its label, and the true images of the things
    to be sampled."""

    name: str
    words: str
    label: str
    image: Image.Image
    things: tuple[int, ...]
    truths: np.ndarray  # uint8 [things, 128, 128, 3]
    style: int | None = None  # id of a secondary style

    @property
    def prompts(self) -> list[str]:
        return [prompt(load_meta()["concepts"][c]["label"], self.words) for c in self.things]


def subjects() -> Iterator[Subject]:
    """Secondary styles and looks in turn, so that a part of the cells has both."""
    meta = load_meta()
    names = [meta["style_names"][i] for i in meta["split"]["secondary_styles"]]
    mixed = [name for pair in zip(names, LOOKS, strict=True) for name in pair]
    for i, name in enumerate(mixed):
        yield of_style(name, i) if name in names else of_look(name, i)


def things_of(drawn: Sequence[int], i: int) -> tuple[int, ...]:
    """THINGS of the free concepts that are drawn, others for each reference."""
    free = [c for c in free_concepts() if c in set(drawn)]
    return tuple(spread(free[i % 4 :], THINGS))


def of_style(name: str, i: int) -> Subject:
    meta, world = load_meta(), load(styles=[name])
    style, drawn = meta["style_names"].index(name), world.concept_id.tolist()
    labels = [meta["concepts"][c]["label"] for c in meta["split"]["reference_concepts"] if c in set(drawn)]
    label = REFERENCES[i] if REFERENCES[i] in labels else labels[i]
    rgb, things = world.rgb(), things_of(drawn, i)
    image = Image.fromarray(rgb[world.index(style, label)])
    truths = np.stack([rgb[world.index(style, c)] for c in things])
    return Subject(name, words(style), label, image, things, truths, style)


def of_look(family: str, i: int) -> Subject:
    meta, world = load_meta(), train_world()
    look = random_look(random.Random(LOOKS[family]), [family])
    things = things_of(world.concept_id.tolist(), i)
    label = REFERENCES[i]
    concept = next(c for c in meta["split"]["reference_concepts"] if meta["concepts"][c]["label"] == label)
    style_words = ", ".join(part[0] for part in look.parts[:-1] if part[0])  # all but the ground
    truths = np.stack([drawn_as(look, world, c) for c in things])
    return Subject(
        f"look: {family}", style_words, label, Image.fromarray(drawn_as(look, world, concept)), things, truths
    )


def drawn_as(look: Look, world: ArtWorld, concept: int) -> np.ndarray:
    """uint8 [128, 128, 3]: the concept in a look, from the first of its source styles that has it."""
    names, table = world.meta["style_names"], world.table()
    rows = [row for name in look.sources if (row := table[names.index(name), concept]) >= 0]
    return look(world.rgba[rows[0]], random.Random(concept))


@cache
def train_world() -> ArtWorld:
    return load(styles=load_meta()["split"]["train_styles"])


class Rulers:
    """The judges beside the true images and the base's."""

    def __init__(self) -> None:
        self.judges = Judges.load()

    def score(
        self, subject: Subject, images: Sequence[Image.Image], base: torch.Tensor, truths: torch.Tensor
    ) -> list[dict[str, Any]]:
        """A row per image, of which image i shows thing i. base, truths: style features of the base's images and of the
        true ones."""
        top5 = self.judges.concept(list(images)).argsort(descending=True)[:, :5].tolist()
        style, found = self.judges.style(list(images)), self.judges.style_features(list(images))
        rows = []
        for i, concept in enumerate(subject.things):
            others = [k for k in range(len(truths)) if k != i]
            row = {"content": concept in top5[i], "to_true": float(found[i] @ truths[i])}
            row |= {"to_base": float(found[i] @ base[i]), "base_to_true": float(base[i] @ truths[i])}
            row |= {"true_to_true": float((truths[others] @ truths[i]).mean())}
            row |= {} if subject.style is None else {"probability": float(style[i, subject.style])}
            rows.append({name: value if isinstance(value, bool) else round(value, 4) for name, value in row.items()})
        return rows


def cells_file(base: str) -> Path:
    return OUT / f"cells-{base}.jsonl"


def read_cells(file: Path) -> list[dict[str, Any]]:
    """The cells of a file, a line each; [] where there is none."""
    return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []


def add_cell(file: Path, cell: dict[str, Any]) -> None:
    with file.open("a") as stream:
        stream.write(json.dumps(cell) + "\n")


def key(cell: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(cell[name] for name in ("base_sha256", "subject", "what", "strength", "style_guidance", "negative"))


def run(base: str, subject: Subject, precision: str, rulers: Rulers) -> None:
    """Sample and score the cells of this subject that are missing."""
    family = loader.load(base, device="cpu", precision=precision)
    own = {"subject": subject.name, "base_sha256": family.hash}
    known = {key(cell) for cell in read_cells(cells_file(base)) if own.items() <= cell.items()}
    if len(known) == CELLS:
        return
    pipe = family.pipeline()
    encode = encoder(family, pipe)
    true_images = [Image.fromarray(one) for one in subject.truths]
    truths = rulers.judges.style_features(true_images)
    with tempfile.TemporaryDirectory() as scratch:
        reference, style = Path(scratch) / "reference.png", Path(scratch) / "style"

        def images(strength: float, sampling: Sampling) -> list[Image.Image]:
            if strength and not style.exists():
                subject.image.save(reference)
                given = {"image": [reference], "caption": [prompt(subject.label, subject.words)], "out": style}
                given |= {"precision": precision, "seed": SEED}
                train(resolve("style-friendly-128px", base, preview=False, tensorboard=False, **given))
                load_style(pipe, style)
            if strength:
                pipe.set_adapters("style0", strength)
            jobs = [(text, SEED + i) for i, text in enumerate(subject.prompts)]
            return [image for image, _ in sample(family, pipe, jobs, encode, sampling.on(family), {})]

        base_images = images(0.0, Sampling(batch=THINGS))
        base_features = rulers.judges.style_features(base_images)

        def add(what: str, setting: Setting, make: Callable[[], list[Image.Image]]) -> None:
            cell: dict[str, Any] = {"base_sha256": family.hash, "subject": subject.name, "what": what}
            cell |= dict(zip(("strength", "style_guidance", "negative"), setting, strict=True))
            if key(cell) not in known:
                rows = rulers.score(subject, make(), base_features, truths)
                add_cell(cells_file(base), cell | {"rows": rows})

        add(BASE_ALONE, (0.0, 0.0, ""), lambda: base_images)
        add(TRUE, (0.0, 0.0, ""), lambda: true_images)
        for strength, weight, negative in product(STRENGTHS, WEIGHTS, NEGATIVES):
            sampling = Sampling(style_guidance=weight, negative=subject.words if negative else "", batch=THINGS)
            add("style", (strength, weight, negative), partial(images, strength, sampling))
    print(base, subject.name, flush=True)


def whole(base: str) -> dict[str, list[dict[str, Any]]]:
    """The cells by subject, of the subjects that have all of them."""
    by_subject: dict[str, list[dict[str, Any]]] = {}
    for cell in read_cells(cells_file(base)):
        by_subject.setdefault(cell["subject"], []).append(cell)
    return {name: cells for name, cells in by_subject.items() if len(cells) == CELLS}


def average(cells: dict[str, list[dict[str, Any]]]) -> dict[Any, dict[str, float]]:
    """{setting, BASE_ALONE or TRUE: {style, content}}; style: the ratio of the means over all images."""
    rows: dict[Any, list[dict[str, Any]]] = {}
    for cell in (cell for rows_of in cells.values() for cell in rows_of):
        setting = (cell["strength"], cell["style_guidance"], cell["negative"])
        nearness = "true_to_true" if cell["what"] == TRUE else "to_true"
        rows.setdefault(setting if cell["what"] == "style" else cell["what"], []).extend(
            row | {"nearness": row[nearness]} for row in cell["rows"]
        )
    found = {}
    for key, of in rows.items():
        mean = {
            name: float(np.mean([row[name] for row in of]))
            for name in ("content", "nearness", "base_to_true", "true_to_true")
        }
        style = (mean["nearness"] - mean["base_to_true"]) / (mean["true_to_true"] - mean["base_to_true"])
        found[key] = {"style": style, "content": mean["content"]}
    return found


def smooth(means: dict[Any, dict[str, float]]) -> dict[Setting, dict[str, float]]:
    """Each setting with half the weight of the neighbouring strengths."""
    found = {}
    for i, strength in enumerate(STRENGTHS):
        for weight in WEIGHTS:
            for negative in NEGATIVES:
                near = {k: 1.0 if k == i else 0.5 for k in (i - 1, i, i + 1) if 0 <= k < len(STRENGTHS)}
                rows = [(share, means[STRENGTHS[k], weight, negative]) for k, share in near.items()]
                total = sum(near.values())
                found[strength, weight, negative] = {
                    name: sum(share * row[name] for share, row in rows) / total for name in ("style", "content")
                }
    return found


def choose(means: dict[Any, dict[str, float]], plain: bool = False) -> Setting:
    """By the rule; plain: of the settings without style guidance and negative prompt."""
    base = means[BASE_ALONE]["content"]
    smoothed = smooth(means)
    score = {
        key: harmonic_mean([min(max(one["style"], 0.0), 1.0), min(one["content"] / base, 1.0)])
        for key, one in smoothed.items()
        if not plain or key[1:] == (0.0, "")
    }
    near = [key for key, value in score.items() if value >= max(score.values()) - 0.02]
    return min(near, key=lambda key: (key[1], -key[0], key[2]))


COLOURS = ("#8a8a8a", "#2f6fb3", "#c8552d", "#4b8b3b")


def plot(base: str, means: dict[Any, dict[str, float]], chosen: Setting) -> str:
    """An SVG: style against content, a curve over the strengths per style guidance, dashed with the style words as the
    negative prompt."""
    ticks = tuple((share / 100, f"{share / 100:g}") for share in range(0, 101, 20))
    frame = plots.Frame(plots.Axis(0.0, 1.0, "content (concept top-5)", ticks), plots.Axis(0.0, 1.0, "style", ticks))
    marks: list[Html] = []
    for i, weight in enumerate(WEIGHTS):
        for negative in NEGATIVES:
            points = [(means[s, weight, negative]["content"], means[s, weight, negative]["style"]) for s in STRENGTHS]
            marks.append(plots.line(frame, points, i, "dashed" if negative else "curve"))
            marks += [plots.dot(frame, point, i) for point in points]
    taken: list[tuple[float, float, float]] = []
    for name, at in ((TRUE, TRUE), (BASE_ALONE, BASE_ALONE), ("strength 1", (1.0, 0.0, "")), ("chosen", chosen)):
        marks.append(plots.dot(frame, (means[at]["content"], means[at]["style"]), 9, name, name, taken))
    style = "".join(f".s{i}{{stroke:{c};color:{c}}} .dot.s{i} circle{{fill:{c}}}" for i, c in enumerate(COLOURS))
    style += (
        ".curve,.dashed{fill:none;stroke-width:2} .dashed{stroke-dasharray:6 4} .grid{stroke:#ddd} .axis{stroke:#333}"
    )
    style += " text{font:12px sans-serif;stroke:none} .s9 circle{fill:none;stroke:#000;stroke-width:2}"
    keys = [
        el("text", f"style guidance {weight:g}", x=76, y=262 - 16 * (len(WEIGHTS) - i), style=f"fill:{COLOURS[i]}")
        for i, weight in enumerate(WEIGHTS)
    ]
    keys.append(el("text", "dashed: style words as negative prompt", x=76, y=262))
    text = str(plots.svg(frame, f"{base}: style against content", el("style", Html(style)), *marks, *keys))
    size = f'xmlns="http://www.w3.org/2000/svg" width="{plots.WIDTH}" height="{plots.HEIGHT}" style="background:#fff"'
    return text.replace("<svg", f"<svg {size}", 1)


def report(bases: Sequence[str]) -> None:
    """README.md with the tables, choice.json, and an SVG per base."""
    lines, choices = [(__doc__ or "").strip().splitlines()[0], ""], {}
    lines += ["`python tools/choose_strength.py run`, then `report`. Cells: `cells-*.jsonl`, an image each row.", ""]
    for base in bases:
        cells = whole(base)
        means = average(cells)
        if not cells:
            continue
        chosen, plain = choose(means), choose(means, plain=True)
        with atomic(OUT / f"curves-{base}.svg") as path:
            path.write_text(plot(base, means, chosen) + "\n")
        choices[base] = {"strength": chosen[0], "style_guidance": chosen[1], "negative": chosen[2]}
        choices[base] |= {"plain_strength": plain[0], "subjects": list(cells)}
        n = sum(len(one[0]["rows"]) for one in cells.values())
        lines += [
            f"## {base}",
            "",
            f"References: {', '.join(cells)}; {n} images a setting (standard error of content about ",
        ]
        lines[-1] += f"{0.5 / n**0.5:.2f}). Style / content by strength; the choice is bold."
        head = [f"{weight:g}{', words' if negative else ''}" for weight in WEIGHTS for negative in NEGATIVES]
        lines += ["", f"| strength \\ style guidance | {' | '.join(head)} |", "|---|" + "---|" * len(head)]
        for strength in STRENGTHS:
            row = []
            for weight in WEIGHTS:
                for negative in NEGATIVES:
                    at = (strength, weight, negative)
                    text = f"{means[at]['style']:.2f} / {means[at]['content']:.2f}"
                    row.append(f"**{text}**" if at == chosen else text)
            lines.append(f"| {strength:g} | {' | '.join(row)} |")
        ends = [f"{name} {means[name]['style']:.2f} / {means[name]['content']:.2f}" for name in (BASE_ALONE, TRUE)]
        lines += [
            "",
            f"{'; '.join(ends)}. Chosen: strength {chosen[0]:g}, style guidance {chosen[1]:g}, negative prompt ",
        ]
        lines[-1] += f"{chosen[2] or 'empty'!r}; without style guidance strength {plain[0]:g}."
        lines += ["", "| | " + " | ".join(cells) + " |", "|---|" + "---|" * len(cells)]
        for name, at in (
            ("base alone", BASE_ALONE),
            ("strength 1", (1.0, 0.0, "")),
            ("chosen", chosen),
            ("true", TRUE),
        ):
            each = [average({key: one})[at] for key, one in cells.items()]
            lines.append(
                f"| {name} | " + " | ".join(f"{one['style']:.2f} / {one['content']:.2f}" for one in each) + " |"
            )
        lines += ["", f"![style against content](curves-{base}.svg)", ""]
    with atomic(OUT / "README.md") as path:
        path.write_text("\n".join(lines))
    with atomic(OUT / "choice.json") as path:
        path.write_text(json.dumps(choices, indent=1) + "\n")
    print(json.dumps(choices, indent=1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["run", "report"])
    parser.add_argument("--base", nargs="+", default=["mini-sd15", "mini-sd3"])
    parser.add_argument("--precision", default="bf16", help="bf16 is twice as fast as fp32 on CPUs that have AMX")
    args = parser.parse_args()
    torch.set_num_threads(1)
    OUT.mkdir(parents=True, exist_ok=True)
    if args.action == "run":
        rulers = Rulers()
        for subject in subjects():
            for base in args.base:
                run(base, subject, args.precision, rulers)
    report(args.base)


if __name__ == "__main__":
    main()
