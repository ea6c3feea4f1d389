"""`impasto report`: one self-contained HTML page about a style folder."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from impasto.artworld import load_meta, style_index
from impasto.errors import UserError
from impasto.evaluation.table import range_columns
from impasto.evaluation.truth import true_pictures
from impasto.evaluation.votes import FILE as VOTES
from impasto.evaluation.votes import summary as votes_summary
from impasto.files import atomic
from impasto.report import sections
from impasto.report.html import Html, el
from impasto.report.markdown import shorten_paths
from impasto.report.run import (
    Gallery,
    first_command,
    generated_folder,
    last_previews,
    law_of,
    read_gallery,
    read_run,
    read_strengths,
)

STYLE = Path(__file__).with_name("style.css")
NAME = " · impasto"  # how the title of every page ends


def report(
    run: Path | str,
    generated: Path | str | None = None,
    beside: Mapping[str, Path | str] | None = None,
    strengths: Path | str | None = None,
    title: str | None = None,
    out: Path | str | None = None,
    notes: Sequence[str] = (),
    name: str | None = None,
    votes: Path | str | None = None,
) -> dict[str, Any]:
    """Write the page of the style folder `run` and return {"path", "images", "bytes"}.

    run: of a training, or written by `resize`, `merge` or `import`; of those there is less to show.
    generated: folder of images, evaluated or not; default `run/images`, else `run/previews`.
    beside: further folders of the same prompts by name, shown in the same cards ("base" for the base without adapter);
    a style folder counts by its `images/`, and its loss and noise levels are drawn too.
    strengths: JSON {run name: [scores with "strength"], "base": scores, "true": scores}; default `run/strengths.json`.
    title: the heading; default the name of the folder. out: the HTML file; default `run/report.html`. What lies there
    stays unless `report` wrote it. notes: sentences below the heading.
    name: of the run's images among the others; default that of its folder. votes: a vote set of `impasto votes` whose
    summary is shown; default `run/votes`.
    The page needs no other file and no network. UserError on bad input.
    """
    main = read_run(run)
    target = _target(Path(out) if out is not None else main.folder / "report.html")
    others: dict[str, Path] = {}
    for other, folder in (beside or {}).items():
        others[apart(other, ["true", *others])] = Path(folder)
    own = apart(name or main.title, ["base", "true", *others])
    images = generated if generated is not None else generated_folder(main)
    first = read_gallery(own, images) if images is not None else Gallery(own, main.folder, [], {})
    if images is None:
        notes = [*notes, f"No images yet: `{shorten_paths(first_command(main))}` generates some."]
    if generated is None and first.folder == main.folder / "previews":
        first = last_previews(first)
        if "base" not in others and (first.folder / "base").is_dir():
            others["base"] = first.folder / "base"
    galleries = [first, *(read_gallery(other, _images(folder)) for other, folder in others.items())]
    runs = [main, *(read_run(folder) for folder in others.values() if (folder / "recipe.toml").is_file())]
    sweep = read_strengths(Path(strengths) if strengths is not None else main.folder / "strengths.json")
    ballots = read_votes(Path(votes) if votes is not None else main.folder / "votes", votes is not None)
    body = (
        sections.hero(main, first.scores, title or main.title, [*notes, *leak_lines(first.scores)]),
        sections.gallery(galleries, truths_of(first)),
        sections.score_table(columns(galleries) | range_columns(first.scores), scored_by(first.scores)),
        sections.encoder_table(encoder_columns(galleries)),
        sections.votes_table(ballots),
        sections.notes([note for one in galleries for note in one.scores.get("notes", [])]),
        sections.trade_off(sweep),
        sections.training([(one, law_of(one)) for one in runs]),
        sections.usage(main),
        sections.papers(main),
    )
    page = document(f"{title or main.title}{NAME}", *body)
    with atomic(target) as path:
        path.write_text(page, encoding="utf-8")
    return {"path": str(target), "images": sum(len(one.samples) for one in galleries), "bytes": len(page.encode())}


def _target(file: Path) -> Path:
    """Where the page goes. UserError when that is no name for one, or another's file would be replaced."""
    if file.is_dir() or file.suffix.lower() != ".html":
        raise UserError(f"--out {str(file)!r} is no name for a page: give one such as report.html")
    if file.exists() and not written_here(file):
        raise UserError(f"{str(file)!r} was not written by `impasto report` and stays: give another --out")
    return file


def written_here(file: Path) -> bool:
    """Whether a file is a page that `report` wrote, by its title."""
    try:
        head = file.read_text(encoding="utf-8").partition("</head>")[0]
    except (OSError, ValueError):
        return False
    return f"{NAME}</title>" in head


def document(title: str, *body: Html | None) -> str:
    """The whole page around the sections; well-formed as XML too."""
    head = el(
        "head",
        el("meta", charset="utf-8"),
        el("meta", name="viewport", content="width=device-width, initial-scale=1"),
        el("title", title),
        el("style", Html(STYLE.read_text(encoding="utf-8"))),
    )
    return "<!DOCTYPE html>\n" + el("html", head, el("body", el("main", *body)), lang="en") + "\n"


def leak_lines(scores: Mapping[str, Any]) -> list[str]:
    """The line of `evaluate` on the things of a scene, where it has one."""
    leak = scores.get("scene_leak")
    return [leak["text"]] if isinstance(leak, dict) and isinstance(leak.get("text"), str) else []


def apart(name: str, taken: Collection[str]) -> str:
    """The name of pictures; "true (run)" where it has another meaning on the page, or is another's."""
    return apart(f"{name} (run)", taken) if name in taken else name


def columns(galleries: list[Gallery]) -> dict[str, Any]:
    """Score columns: the base without adapter, the galleries, the true pictures; None where there are no scores."""
    first, named = galleries[0].scores, {one.name: one.scores for one in galleries}
    base = named.pop("base", None) or first.get("base")
    return {"base": base, **named, "true": first.get("true")}


def scored_by(scores: Mapping[str, Any]) -> str:
    """The judges and encoders behind the scores, with their versions; "" where scores.json does not state them."""
    found = [f"{which} judge {digest[:12]}" for which, digest in (scores.get("judges") or {}).items()]
    for title, key in (("CLIP", "encoder"), ("DINO", "dino")):
        if scores.get(key):
            version = scores.get(f"{key}_version")
            found.append(f"{title} {shorten_paths(scores[key])}" + (f" {version}" if version else ""))
    return f"By {', '.join(found)}." if found else ""


def encoder_columns(galleries: Sequence[Gallery]) -> dict[str, sections.Encoders]:
    """{heading: scores by further encoders}: the base without adapter, then the galleries, as in `columns`."""
    first, named = galleries[0].scores, {one.name: one.scores.get("encoders") or {} for one in galleries}
    base = named.pop("base", {}) or {
        name: {**own, "scores": own["base"]} for name, own in (first.get("encoders") or {}).items() if own.get("base")
    }
    return {"base": base, **named}


def read_votes(folder: Path, required: bool) -> dict[str, Any] | None:
    """The summary of a vote set; None without one, or UserError where it is required."""
    return votes_summary(folder) if required or (folder / VOTES).is_file() else None


def truths_of(gallery: Gallery) -> dict[str, Image.Image]:
    """label -> true picture for the asked concepts of an evaluated gallery, {} where its style is not known."""
    style = gallery.scores.get("style_of")
    if style is None:
        return {}
    labels = [concept["label"] for concept in load_meta()["concepts"]]
    ids = {labels.index(row["concept"]) for row in gallery.scores["images"] if row.get("concept") in labels}
    return {labels[i]: picture for i, picture in true_pictures(style_index(style), ids).items()}


def _images(folder: Path) -> Path:
    return folder / "images" if (folder / "images").is_dir() else folder
