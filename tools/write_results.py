"""Write docs/results/{base,base-mini-sd15,demo}.md and docs/images/*.png from the base's card and a finished demo.

impasto pretrain mini-sd3 --resume --minutes 0 --export    # scores and exports what was trained
impasto demo                                               # runs/demo
python tools/write_results.py --demo runs/demo --beside runs/demo-*
python tools/write_results.py --grid ~/.cache/impasto/pretrain/mini-sd3/grid-*.png
"""

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

from PIL import Image

from impasto.bases import embedded as mini
from impasto.contact_sheet import sheet
from impasto.pretrain.score import GRID_STYLES, GRID_THINGS

ROOT = Path(__file__).parents[1]
PAGES = {"mini-sd3": "base.md", "mini-sd15": "base-mini-sd15.md"}
RESULTS, IMAGES = ROOT / "docs" / "results", ROOT / "docs" / "images"


def share(value: float | None) -> str:
    """ ".83", or a dash where nothing is known."""
    return "–" if value is None else f"{value:.2f}"


def base_page(card: dict[str, Any]) -> str:
    """The base's card as a page."""
    scores, training = card["scores"], card["training"]
    made, true = scores["generated"], scores["true"]
    unseen = scores.get("true_unseen") or dict.fromkeys(made)
    rows = "\n".join(
        f"| {name.replace('_', ' ')} | {share(made[name])} | {share(true[name])} | {share(unseen[name])} |"
        for name in made
    )
    new = unseen["style_accuracy"]
    fair = met(made["style_accuracy"] / new, 0.9) if new else "not stated"
    core = scores.get("core")
    gate = core["generated"] if core else made
    gates = core_things(core) + (
        f"First gate: concept top-5 >= .70 **{met(gate['concept_top5'], 0.7)}**, style >= .90 of the true pictures'\n"
        f"**{met(style_share(core or scores), 0.9)}**, of true pictures that are new to the judge **{fair}**.\n"
        f"Final gate: concept top-5 >= .90 **{met(made['concept_top5'], 0.9)}**, style >= .97 of the true pictures'\n"
        f"**{met(scores['style_share'], 0.97)}**{scenes(scores.get('scenes'))}."
    )
    base = card["name"]
    teachers = training.get("teachers")
    taught = f"Taught for a part of them (teacher and its share: {', '.join(teachers)}). " if teachers else ""
    return f"""# {base}

`impasto pretrain {base} --resume`, then `impasto pretrain {base} --resume --minutes 0 --export`; the numbers are
those of [its card](../../src/impasto/models/{base}/card.json), {card["date"]}. The sessions' own flags (`--text`,
`--plain`, `--teacher`, `--offset`) are in [the log](../log/).

{card["architecture"]}, {card["parameters"] / 1e6:.1f}M parameters, scheduler {card["scheduler"]["_class_name"]}. Seen:
{training["pictures"]:,} pictures in {training["seconds"] / 60:.0f} minutes and {training["sessions"]} sessions on
{"; ".join(training["devices"])}. {taught}It knows {len(card["concepts"])} concepts in
{len(card["train_styles"])} styles.
Weights: sha256 `{card["weights_sha256"]}`; as a folder, which is what campaigns and runs name:
`{card.get("folder_sha256", "not stated")}`.

{scores["prompts"]} random prompts "{{label}}, {{style description}}" of train style x known concept, {scores["steps"]}
steps, guidance {scores["guidance"]:g}, seed {scores["seed"]}, by the judges:

| | generated | true pictures | true pictures that the judges were not trained on |
|---|---|---|---|
{rows}

Style as a share of what the judge gives the true pictures: **{share(scores["style_share"])}**.
{beside_unseen(made, scores.get("true_unseen"))}{gates}
{by_style(scores.get("by_style", {}))}
![{len(GRID_STYLES)} styles x {len(GRID_THINGS)} things](../images/{base}.png)
"""


def style_share(scores: dict[str, Any]) -> float:
    """Style accuracy as a share of the true pictures'."""
    return scores["generated"]["style_accuracy"] / max(scores["true"]["style_accuracy"], 1e-9)


def core_things(core: dict[str, Any] | None) -> str:
    """What the things of the first gate get, where the base knows more."""
    if not core:
        return ""
    made, true = core["generated"], core["true"]
    return (
        f"The first gate is about the things that all train styles draw: of their {core['prompts']} prompts here "
        f"concept top-5 is **{share(made['concept_top5'])}** (true pictures {share(true['concept_top5'])}), style "
        f"{share(made['style_accuracy'])}, {share(style_share(core))} of the true pictures'.\n"
    )


def scenes(found: dict[str, Any] | None) -> str:
    """What the concept judge finds in scenes, against the final gate."""
    if not found:
        return ""
    two, three = found["2"], found["3"]
    verdict = "met" if two["generated"] >= 0.4 and three["generated"] >= 0.3 else "not met"
    return (
        f", of 2 / 3 prompted things >= .4 / .3 found **{verdict}** ({share(two['generated'])} / "
        f"{share(three['generated'])}; in true scenes {share(two['true'])} / {share(three['true'])})"
    )


def met(value: float, bound: float) -> str:
    """Whether a gate is."""
    return "met" if value >= bound else "not met"


def beside_unseen(made: dict[str, float], unseen: dict[str, float] | None) -> str:
    """The same share, of pictures that are as new to the judge as generated ones are."""
    if not unseen:
        return ""
    return (
        "Of the pictures behind these prompts the judges were trained on nine tenths, and remember them; a generated "
        f"picture is new to them. As a share of what they give {unseen['pictures']} true pictures of the same styles "
        f"and things that they were not trained on: **{share(made['style_accuracy'] / unseen['style_accuracy'])}** "
        f"(concept top-5 {share(made['concept_top5'] / unseen['concept_top5'])}).\n"
    )


def by_style(scores: dict[str, Any]) -> str:
    """A table of the styles, best first."""
    if not scores:
        return ""
    keys = ("prompts", "style_accuracy", "concept_top1", "concept_top5")
    best = sorted(scores, key=lambda name: -scores[name]["style_accuracy"])
    rows = [
        f"| {name} | {scores[name]['prompts']} | " + " | ".join(share(scores[name][k]) for k in keys[1:]) + " |"
        for name in best
    ]
    head = "| generated | " + " | ".join(key.replace("_", " ") for key in keys) + " |\n|" + "---|" * (len(keys) + 1)
    return "\n" + "\n".join([head, *rows]) + "\n"


def together(scores: dict[str, Any], *keys: str) -> str:
    """Several scores in one cell."""
    return " / ".join(share(scores[key]) for key in keys)


def trade_off(sweep: dict[str, Any]) -> str:
    """A line per method: its scores at every strength."""
    curves = {name: rows for name, rows in sweep.items() if isinstance(rows, list)}
    lines = []
    for name, rows in curves.items():
        at = [f"{row['strength']:g}: {together(row, 'style_accuracy', 'concept_top5')}" for row in rows]
        lines.append(f"- {name}: {', '.join(at)}")
    return "\n".join(lines)


def picture_of(about: dict[str, Any]) -> str:
    """The file of a demo's grid."""
    base = "" if about["base"] == "mini-sd3" else f"{about['base']}-"
    return f"demo-{base}{about['style']}.webp"


def all_styles(demos: list[dict[str, Any]]) -> str:
    """Style accuracy, concept top-5 and leakage of demos in several styles, a row each, with a link to its grid."""
    if not demos:
        return ""
    names = ("true", "base", *max((scores["about"]["methods"] for scores in demos), key=len))
    head = "| style | reference | " + " | ".join(names) + " | style at equal text |"
    lines = [head, "|---|---|" + "---|" * (len(names) + 1)]
    for scores in demos:
        about = scores["about"]
        keys = ("style_accuracy", "concept_top5", "leakage")
        cells = [together(scores[name], *keys) if name in scores else "–" for name in names]
        on = "" if about["base"] == "mini-sd3" else f" on {about['base']}"
        pictures = f"[{about['style']}](../images/{picture_of(about)}){on}"
        equal = ", ".join(f"{name} {share(style)}" for name, style in about["equal_text"]["style"].items())
        at = f"{equal} (at {share(about['equal_text']['concept_top5'])})"
        lines.append(f"| {pictures} | {about['reference']} | " + " | ".join(cells) + f" | {at} |")
    title = (
        "All primary styles (`impasto demo --style X`, or `--base`), style / concept top-5 / leakage. The demo's was "
        "chosen after looking at all of them, for what shows best:"
    )
    return "\n" + "\n".join([title, "", *lines]) + "\n"


def demo_page(scores: dict[str, Any], sweep: dict[str, Any], others: list[dict[str, Any]]) -> str:
    """The demo's scores as a page. sweep: its strengths.json. others: the scores of demos in several styles."""
    about = scores["about"]
    names = ("true", "base", *about["methods"])
    keys = ("style_accuracy", "kind_accuracy", "style_probability", "concept_top1", "concept_top5", "leakage", "ssim")
    rows = "\n".join(
        f"| {key.replace('_', ' ')} | " + " | ".join(share(scores[name].get(key)) for name in names) + " |"
        for key in keys
    )
    more = "".join(f" --also {name}" for name in about["methods"] if name in about["steps"] and name != "sd3-sampler")
    sampled = "\n".join(
        f"- {name}: recipe {one['recipe']}, strength {one['strength']:g}, style guidance {one['style_guidance']:g}, "
        f"negative prompt {one['negative'] or 'empty'!r}"
        for name, one in about["methods"].items()
    )
    return f"""# The demo

`impasto demo{more}`, {about["seconds"]:.0f} s. One reference,
{about["reference"]!r} in {about["style"]}, a style that neither base nor autoencoder
nor CLIP ever saw; caption "{about["caption"]}"; {next(iter(about["steps"].values()))} steps;
{len(about["concepts"])} evaluation concepts; seed {about["seed"]}. The methods:

{sampled}

{" ".join(about["sentences"])}

By the judges:

| | {" | ".join(names)} |
|---|{"---|" * len(names)}
{rows}

Along the strength curve, style accuracy / concept top-5 (a plot of it is in the report):

{trade_off(sweep)}
{all_styles(others)}
![reference, true images, base and the methods](../images/demo.png)
"""


def nowhere(value: Any) -> Any:
    """Without the folders of this machine: absolute paths by their last part."""
    if isinstance(value, dict):
        return {key: nowhere(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [nowhere(inner) for inner in value]
    return Path(value).name if isinstance(value, str) and value.startswith("/") else value


def main() -> None:
    """Write whichever page there is something for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", type=Path)
    parser.add_argument("--beside", type=Path, nargs="*", default=[], help="demos in several styles")
    parser.add_argument("--base", default="mini-sd3", choices=list(PAGES), help="whose grid it is")
    parser.add_argument("--grid", type=Path, nargs="*", default=[], help="grids of the base; the last one is shown")
    args = parser.parse_args()
    IMAGES.mkdir(parents=True, exist_ok=True)
    for base, page in PAGES.items():
        if base in mini.names():
            (RESULTS / page).write_text(base_page(mini.card(base)))
    if args.grid:
        whole, n = Image.open(sorted(args.grid)[-1]), len(GRID_THINGS)
        side = whole.width // n
        rows = {
            style: [whole.crop((x * side, y * side, (x + 1) * side, (y + 1) * side)) for x in range(n)]
            for y, style in enumerate(GRID_STYLES)
        }
        sheet(rows, GRID_THINGS).save(IMAGES / f"{args.base}.png")
    if args.demo:
        scores = json.loads((args.demo / "scores.json").read_text())
        sweep = json.loads((args.demo / "strengths.json").read_text())
        beside = {folder: json.loads((folder / "scores.json").read_text()) for folder in sorted(args.beside)}
        (RESULTS / "demo.md").write_text(demo_page(scores, sweep, list(beside.values())))
        (RESULTS / "demo.json").write_text(json.dumps(nowhere(scores), indent=1) + "\n")
        shutil.copy(args.demo / "grid.png", IMAGES / "demo.png")
        for folder, found in beside.items():
            Image.open(folder / "grid.png").save(IMAGES / picture_of(found["about"]), quality=85)


if __name__ == "__main__":
    main()
