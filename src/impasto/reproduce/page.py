"""claims.json, the page and its pictures: all made from the cells (and the calibration that lies beside them) alone.

A reading is told by its full cells where they are all there, else by its smoke cells, which decide nothing; the arms of
a claim by cells of the same size as its first reading. Arms that lack some of theirs stand in italics and in no curve.
"""

import json
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from impasto.evaluation.equal_text import STRENGTHS
from impasto.evaluation.scores import SCORES
from impasto.evaluation.table import decimal
from impasto.files import atomic
from impasto.report import plots
from impasto.report.html import Html, el
from impasto.reproduce.cells import slug
from impasto.reproduce.claims import RULE, Claim, Evidence, arms_of, judge
from impasto.reproduce.runner import PLAIN, UNSCALED
from impasto.reproduce.sheets import save_sheet
from impasto.reproduce.statistics import FEWEST

if TYPE_CHECKING:
    from impasto.reproduce.campaign import Campaign

Entry = dict[str, Any]
GATE = {"concept_top5": 0.7, "style_share": 0.9}
"""What a base has to reach in its card before its verdicts say much (issue 3)."""
GREY = ".smoke .dot, .smoke .whisker { --c: var(--faint); } .smoke { opacity: .6; }"


def write_page(campaign: "Campaign") -> list[Entry]:
    """Write claims.json, README.md and the pictures into `campaign.out`; returns the entries of claims.json."""
    entries = [assess(campaign, claim) for claim in campaign.claims]
    out = campaign.out
    save(out / "claims.json", json.dumps(entries, indent=1, ensure_ascii=False) + "\n")
    pictures: dict[str, list[str]] = {}
    for claim, entry in zip(campaign.claims, entries, strict=True):
        for i, (x, arms) in enumerate(claim.curves.items()):
            if drawing := curve(campaign, entry, x, arms):
                name = f"{claim.id}{f'-{i + 1}' if i else ''}.svg"
                save(out / "pictures" / name, drawing)
                pictures.setdefault(claim.id, []).append(name)
        sheet = f"{claim.id}-images.png"
        if claim.sheet and save_sheet(campaign, claim, entry["arms_cells"], out / "pictures" / sheet):
            pictures.setdefault(claim.id, []).append(sheet)
        for name, drawing in drawings(campaign, claim, entry["arms_cells"]).items():
            (out / "pictures").mkdir(exist_ok=True)
            with atomic(out / "pictures" / name) as file:
                file.write_bytes(drawing if isinstance(drawing, bytes) else drawing.encode())
            pictures.setdefault(claim.id, []).append(name)
    for reading in dict.fromkeys(r["reading"] for e in entries for r in e["readings"]):
        if drawing := forest(entries, campaign, reading):
            name = f"effects-{slug(reading)}.svg"
            save(out / "pictures" / name, drawing)
            pictures.setdefault("", []).append(name)
    save(out / "README.md", page(campaign, entries, pictures))
    return entries


def drawings(campaign: "Campaign", claim: Claim, size: str) -> dict[str, str | bytes]:
    """{file: SVG or PNG} of a claim by the hook `drawings` of its group's module, if it has one."""
    hook = getattr(import_module(campaign.module), "drawings", None)
    return hook(campaign, claim, size) if hook else {}


def save(path: Path, text: str) -> None:
    """Atomically."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def assess(campaign: "Campaign", claim: Claim) -> Entry:
    """The claim's entry in claims.json, by its full cells where they are all there."""
    known, sizes = campaign.known, [size for size in campaign.world.sizes if campaign.world.ready(size)]
    left_out = {arm: why for arm, why in campaign.left_out.items() if arm in claim.arms}
    untestable = [arm for arm in left_out if campaign.arms[arm].untestable]
    tested = [reading for reading in claim.readings if not reading.untestable]
    told = {reading.name: size_of(campaign, arms_of(reading), sizes) for reading in tested}
    seen = {reading.name: look(campaign, arms_of(reading), told[reading.name]) for reading in tested}
    readings = [
        reading | {"cells": told.get(reading["reading"])}
        for reading in judge(claim, seen, campaign.world.measures, left_out, untestable)
    ]
    for reading in readings:
        testable, name = reading["verdict"] != "not testable here", str(reading["reading"])
        if testable and not any(any(values.values()) for values in seen[name].scores.values()):
            reading |= {"verdict": "undecided", "why": ["not run"], "cells": None}
    size = told[tested[0].name]
    arms = {arm: own for arm in claim.arms if arm in campaign.specs and (own := found(campaign, arm, size))}
    wanted = {size: campaign.cells([claim], size) for size in sizes}
    return {
        "id": claim.id,
        "claim": claim.claim,
        "paper": dict(claim.paper),
        "arms": {arm: summary(own, hidden(campaign, arm)) for arm, own in arms.items()},
        "arms_cells": size,
        "n": {arm: [len(own), len(campaign.cells_of(arm, size))] for arm, own in arms.items()},
        "verdict": readings[0]["verdict"],
        "why": readings[0]["why"],
        "readings": readings,
        "left_out": left_out,
        "cells": readings[0]["cells"],
        "progress": {size: [sum(c.key in known for c in cells), len(cells)] for size, cells in wanted.items()},
        "rule": RULE,
        "base": {
            "name": campaign.place.base,
            "sha256": campaign.family.hash,
            "precision": campaign.family.precision,
        },
    }


def size_of(campaign: "Campaign", arms: Sequence[str], sizes: Sequence[str]) -> str:
    """The largest size of which these arms have all cells, else that of which there are most."""
    run = [arm for arm in arms if arm in campaign.specs]
    wanted = {size: [cell.key for arm in run for cell in campaign.cells_of(arm, size)] for size in sizes}
    there = {size: sum(key in campaign.known for key in keys) for size, keys in wanted.items()}
    complete = [size for size in sizes if wanted[size] and there[size] == len(wanted[size])]
    return complete[-1] if complete else max(sizes, key=lambda size: there[size])


def found(campaign: "Campaign", arm: str, size: str) -> list[Mapping[str, Any]]:
    """The cells of an arm that are there. By key: arms of the same settings share their cells."""
    return [campaign.known[cell.key] for cell in campaign.cells_of(arm, size) if cell.key in campaign.known]


def look(campaign: "Campaign", arms: Sequence[str], size: str) -> Evidence:
    """The scores of these arms in the cells of a size."""
    run = [arm for arm in arms if arm in campaign.specs]
    cells = {arm: {c["unit"]: c["scores"] for c in found(campaign, arm, size)} for arm in run}
    shared = {arm: campaign.shared(arm, size) for arm in run}
    units = campaign.world.units(size, campaign.arms[arms[0]].where)
    return Evidence(
        {
            role: {
                arm: {u: own[at][m.name] for u, at in shared[arm].items() if m.name in own.get(at, {})}
                for arm, own in cells.items()
            }
            for role, m in campaign.world.measures.items()
        },
        {unit: f"{spec['style']}, {spec['reference']}" for unit, spec in units.items()},
        decides=size not in campaign.world.undecided,
        curves={arm: curves_of(campaign, arm, size) for arm in run},
    )


def curves_of(campaign: "Campaign", arm: str, size: str) -> dict[str, list[tuple[float, float]]]:
    """{unit: (text, style) per strength} of the arm's cells that have a curve; of the base alone one point."""
    names, found_cells = [campaign.world.measures[role].name for role in ("text", "style")], {}
    for content in found(campaign, arm, size):
        if campaign.arms[arm].how in UNSCALED:
            rows = [content["scores"]]
        elif "curve" in content:
            rows = [{**content["curve"], "1": content["scores"]}[f"{strength:g}"] for strength in STRENGTHS]
        else:
            continue
        if all(name in row for row in rows for name in names):
            found_cells[content["unit"]] = [tuple(row[name] for name in names) for row in rows]
    return {u: found_cells[at] for u, at in campaign.shared(arm, size).items() if at in found_cells}


def hidden(campaign: "Campaign", arm: str) -> tuple[str, ...]:
    """Metrics of an arm that cannot be compared with the other arms', see `runner.PLAIN`."""
    return ("clip_t",) if campaign.arms[arm].how in PLAIN else ()


def summary(cells: Sequence[Mapping[str, Any]], without: Sequence[str] = ()) -> dict[str, list[Any]]:
    """{metric: [mean, standard deviation, n]} over cells; the deviation of one is None."""
    metrics = dict.fromkeys(name for cell in cells for name in cell["scores"] if name not in without)
    told = {}
    for name in metrics:
        values = [cell["scores"][name] for cell in cells if name in cell["scores"]]
        sd = round(float(np.std(values, ddof=1)), 4) if len(values) > 1 else None
        told[name] = [round(float(np.mean(values)), 4), sd, len(values)]
    return told


def page(campaign: "Campaign", entries: Sequence[Entry], pictures: Mapping[str, list[str]]) -> str:
    """README.md."""
    world = campaign.world
    versions = sorted({f"{n} {v}" for c in campaign.known.values() for n, v in c.get("versions", {}).items()})
    parts = [
        f"# {campaign.group}: the claims, put to the test",
        f"`impasto reproduce {campaign.group} --base {campaign.place.base}`: written by that command from the cells in "
        "[cells.jsonl.gz](cells.jsonl.gz); do not edit. [claims.json](claims.json) has every number.",
        base_line(campaign),
        world.describe(),
        table(
            ["", "claim", "verdict", "cells"],
            [[e["id"], e["claim"], verdicts(e), progress(e)] for e in entries],
        ),
        *(f"![effects](pictures/{name})" for name in pictures.get("", [])),
        f"**The rule.** {RULE} Margins: "
        + ", ".join(f"{m.margin:g} in {title(m.name)}" for m in world.measures.values())
        + ".",
        "Tables: mean ± standard deviation over n cells (style x reference x seed). In italics, with how many of the "
        "cells are there: arms that cannot be compared with the others yet, since their means are over other styles, "
        "references or seeds; curves leave them out. Effects with 95 % intervals of their mean by Student's t over "
        f"style x reference, none below {FEWEST} effects, which say too little of their spread; p by sign flips, of a "
        "reading after Holm. The column cells says by which cells, and how many of the pairs are there: smoke and full "
        "ones are of other prompts and seeds, and are not compared.",
        *(section(campaign, e, pictures.get(e["id"], [])) for e in entries if e["arms"]),
        f"Made with {', '.join(versions)}." if versions else "",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def base_line(campaign: "Campaign") -> str:
    """The base, and what its card says of it."""
    name, sha = campaign.place.base, campaign.family.hash
    card = campaign.family.folder / "card.json"
    told = json.loads(card.read_text(encoding="utf-8")).get("scores") if card.is_file() else None
    if not told or "generated" not in told:
        return f"Base: {name} in {campaign.family.precision}, sha256 `{sha}`.{ranks(campaign)}"
    made, share = told["generated"], told.get("style_share")
    top5 = made.get("concept_top5")
    line = f"Base: {name} in {campaign.family.precision}, sha256 `{sha}`. Its card: concept top-5 {number(top5)}, "
    line += f"style as a share of the true pictures' {number(share)}"
    if told.get("true_unseen"):  # the judges remember the others
        share = made["style_accuracy"] / told["true_unseen"]["style_accuracy"]
        line += f", of true pictures that the judge was not trained on {number(share)}"
    line += f".{ranks(campaign)}"
    if (top5 or 0) < GATE["concept_top5"] or (share or 0) < GATE["style_share"]:
        line += " **It is below its first gate (.70 and .90): the verdicts are those of a weak base.**"
    return line


def ranks(campaign: "Campaign") -> str:
    """What a rank is of this base's width, as far as the denoiser's configuration states one width."""
    file = campaign.family.folder / campaign.family.part / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    heads, size = config.get("num_attention_heads"), config.get("attention_head_dim")
    if not isinstance(heads, int) or not isinstance(size, int):
        return ""
    return f" Its width is {heads * size}: rank 32 is {32 / (heads * size):.3f} of it (FLUX: {32 / 3072:.3f})."


def verdicts(entry: Entry) -> str:
    """The verdict, and those of the other readings."""
    first, *others = entry["readings"]
    also = "; ".join(f"{r['reading']}: {r['verdict']}" for r in others)
    return f"**{first['verdict']}** ({first['reading']})" + (f"; {also}" if also else "")


def progress(entry: Entry) -> str:
    """`smoke 9 of 9, full 3 of 81`."""
    return ", ".join(f"{size} {done} of {wanted}" for size, (done, wanted) in entry["progress"].items())


def section(campaign: "Campaign", entry: Entry, pictures: Sequence[str]) -> str:
    """One claim: verdict and why, our arms, the paper's numbers, the comparisons, the curve."""
    metrics = [m for m in campaign.world.shown if any(m in arm for arm in entry["arms"].values())]
    rows = []
    for name, arm in entry["arms"].items():
        there, wanted = entry["n"][name]
        values = [name, str(wanted), *(cell(arm.get(m)) for m in metrics)]
        if there < wanted:
            values = [f"*{value}*" for value in (name, f"{there} of {wanted}", *values[2:])]
        rows.append([values[0], campaign.arms[name].what, *values[1:]])
    compares = []
    for r in entry["readings"]:
        why, ps = "; ".join(r["why"]), ("p_holds", "p_refuted")
        for row in r["compares"]:
            cells = f"{r['cells']}, {row['pairs']} of {row['wanted']}" if r["cells"] else "–"
            told = [r["reading"], row["what"], title(row["measure"]), cells, effect(row)]
            compares.append([*told, *(p(row[key]) for key in ps)])
        verdict = f"**{r['verdict']}**" + (f": {why}" if why else "")
        compares.append([r["reading"], verdict, "", "", "", *(p(r[key]) for key in ps)])
    plain = [arm for arm in entry["arms"] if "clip_t" in metrics and hidden(campaign, arm)]
    parts = [
        f"## {entry['id']}. {entry['claim']}",
        f"{verdicts(entry)}. From its {entry['arms_cells']} cells; there are {progress(entry)}.",
        table(["arm", "", "n", *map(title, metrics)], rows),
        f"No {title('clip_t')} of {'; '.join(plain)}: their pictures were compared with prompts without the style's "
        "words, those of the other arms with the whole ones."
        if plain
        else "",
        "\n".join(f"Left out: {arm}: {why}.  " for arm, why in entry["left_out"].items()),
        table(["reading", "comparison", "score", "cells", "effect [95 %]", "p holds", "p refuted"], compares),
        paper_table(entry["paper"]),
        *(f"![{entry['id']}](pictures/{name})" for name in pictures),
    ]
    return "\n\n".join(part for part in parts if part)


def paper_table(paper: Mapping[str, Any]) -> str:
    """The paper's own numbers, DINO / CLIP-I / CLIP-T where nothing else is said; "" for a claim of our own."""
    if not paper:
        return ""
    if any(isinstance(row, str) for row in paper.values()):
        return "\n".join(f"The paper, {name}: {row}.  " for name, row in paper.items())
    columns = list(dict.fromkeys(column for row in paper.values() for column in row))
    rows = [[name, *(row.get(column, "–") for column in columns)] for name, row in paper.items()]
    return "The paper (DINO / CLIP-I / CLIP-T):\n\n" + table(["", *columns], rows)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(value).replace("|", "/") for value in line) + " |" for line in lines)


TITLES = {
    "harmonic_mean": "harmonic mean",
    "leak": "leak (log-odds)",
    "leak_shown": "shows other things",
    "region_iou": "region IoU",
    "asked_ground": "shows the asked ground",
    "asked": "asked things",
    "layout": "SSIM with the reference",
    "apart": "cosine with the style less the nearest other's",
    "consistency": "cosine between references",
    "tau_alpha": "tau with alpha",
    "tau_beta": "tau with beta",
    "effect_alpha": "effect of alpha",
    "effect_beta": "effect of beta",
    "present": "cosine with the two styles less the third's",
    "ssim_teacher": "SSIM with the teacher's image",
    "knn_style": "5-NN accuracy, style",
    "knn_concept": "5-NN accuracy, concept",
}
"""Of scores in words."""


def title(metric: str) -> str:
    return SCORES[metric].title if metric in SCORES else TITLES.get(metric, metric.replace("_", "-").upper())


def number(value: float | None) -> str:
    """`.712`, a dash for what is unknown."""
    return "–" if value is None else decimal(value)


def effect(row: Mapping[str, Any]) -> str:
    """`+.100 [+.051, +.149]`, without an interval where there is none."""
    if row["effect"] is None:
        return "–"
    return signed(row["effect"]) + (f" [{', '.join(map(signed, row['interval']))}]" if row["interval"] else "")


def signed(value: float) -> str:
    return ("+" if value >= 0 else "-") + number(abs(value))


def p(value: float) -> str:
    return "< .001" if value < 0.001 else number(value)


def cell(told: Sequence[Any] | None) -> str:
    """Mean ± standard deviation."""
    if told is None:
        return "–"
    return number(told[0]) + ("" if told[1] is None else f" ± {number(told[1])}")


def curve(campaign: "Campaign", entry: Entry, x: str, arms: Mapping[str, float]) -> str:
    """Both deciding scores over x of the arms that have all of their cells, with their standard deviations; "" with
    fewer than two arms."""
    names = [campaign.world.measures[role].name for role in ("style", "text")]
    whole = {arm: entry["arms"][arm] for arm, (n, wanted) in entry["n"].items() if n == wanted}
    there = [(at, whole[arm]) for arm, at in arms.items() if all(n in whole.get(arm, {}) for n in names)]
    if len(there) < 2:
        return ""
    spans = [arm[n][0] + s * (arm[n][1] or 0.0) for _, arm in there for n in names for s in (-1, 1)]
    frame = plots.Frame(
        plots.Axis.over([at for at, _ in there], x),
        plots.Axis.over([0.0, *spans], f"score, {entry['arms_cells']} cells"),
    )
    marks: list[Html] = []
    for series, name in enumerate(names):
        points = [(at, arm[name][0]) for at, arm in there]
        marks.append(plots.line(frame, points, series))
        for (at, mean), (_, arm) in zip(points, there, strict=True):
            sd = arm[name][1] or 0.0
            marks.append(plots.whiskers(frame, (at, mean), (at, at), (mean - sd, mean + sd), series))
            marks.append(plots.dot(frame, (at, mean), series))
        at, arm = there[series - 1]  # labelled at one end each
        marks.append(plots.dot(frame, (at, arm[name][0]), series, title(name)))
    return plots.standalone(plots.svg(frame, f"{entry['id']}: {entry['claim']}", *marks))


def forest(entries: Sequence[Entry], campaign: "Campaign", reading: str) -> str:
    """The effects of a reading's comparisons in the style score, a row per comparison, grey where its cells decide
    nothing; "" with fewer than two."""
    style = campaign.world.measures["style"].name
    rows = [
        (e["id"], r["cells"], c, i)
        for i, e in enumerate(entries)
        for r in e["readings"]
        for c in r["compares"]
        if r["reading"] == reading and c["measure"] == style and c["effect"] is not None
    ]
    if len(rows) < 2:
        return ""
    limit = max(0.1, *(abs(end) for *_, c, _ in rows for end in (c["effect"], *(c["interval"] or ()))))
    x = plots.Axis.over([-1.1 * limit, 1.1 * limit], f"effect in {title(style)}, {reading}")
    frame = plots.Frame(x, plots.Axis(0.0, float(len(rows)), "", ()))
    low, high = frame.at(0.0, 0.0), frame.at(0.0, float(len(rows)))
    marks = [el("line", x1=low[0], y1=low[1], x2=high[0], y2=high[1], class_="axis")]
    for k, (name, size, c, i) in enumerate(rows):
        at = (c["effect"], len(rows) - k - 0.5)
        there = "" if c["pairs"] == c["wanted"] else f", {c['pairs']} of {c['wanted']}"
        undecided = size in campaign.world.undecided
        label = name + (f" ({size}{there})" if undecided or there else "")
        hint = f"{name}: {c['what']}; {size} cells, {c['pairs']} of {c['wanted']} pairs"
        own = [plots.whiskers(frame, at, c["interval"], (at[1], at[1]), i % 5)] if c["interval"] else []
        own.append(plots.dot(frame, at, i % 5, label, hint))
        marks.append(el("g", *own, class_="smoke" if undecided or there else "full"))
    told = f"effects, {reading}, 95 % intervals; grey: smoke cells, or pairs that are missing, decide nothing"
    return plots.standalone(plots.svg(frame, told, *marks), GREY)
