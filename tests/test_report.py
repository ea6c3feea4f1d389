"""The report: self-contained, well-formed, escaped, the same every time; and its bad input."""

import base64
import io
import json
import re
import warnings
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from fakes import FakeEncoder, FakeJudges, draw
from PIL import Image

from impasto.artworld import load_meta
from impasto.bases import loader
from impasto.errors import UserError
from impasto.evaluation import evaluate, votes
from impasto.noise.laws import StyleFriendly, Truncated
from impasto.report import plots, report, sections
from impasto.report.html import Html, data_uri, el, text
from impasto.report.markdown import shorten_paths
from impasto.report.run import law_of, read_metrics, read_run

STYLES = load_meta()["style_names"]
LABELS = [concept["label"] for concept in load_meta()["concepts"]]
UNIFONT, PENGUIN = STYLES.index("unifont"), LABELS.index("penguin")
EVIL = '</pre><script>alert("1")</script>&'
ENCODER = {"source": "hub/dino", "version": "abc", "about": "", "base": None}
CARD = f"""# card {EVIL}

```python
pipe.load_lora_weights("runs/neon")  # {EVIL}
```
"""


@pytest.fixture
def run(tmp_path) -> Path:
    """A style folder as `impasto train` leaves it, with images that were evaluated, and hostile text everywhere."""
    folder = tmp_path / "run"
    draw(folder / "reference.png", UNIFONT, PENGUIN)
    recipe = {"base": "mini-sd3", "caption": [f"a {EVIL} in pixel style"], "recipe": "style-friendly"}
    recipe |= {"noise": "style-friendly", "noise_mean": -6.0, "noise_std": 2.0}
    lines = [f"{key} = {json.dumps(value)}" for key, value in recipe.items()]
    (folder / "recipe.toml").write_text("\n".join(lines) + f"\n[impasto]\ntorch = {json.dumps(EVIL)}\n")
    rows = [{"step": i + 1, "loss": 1 / (i + 1), "lam": [-6.0 + i / 10, -5.0]} for i in range(20)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 21, "lo')
    (folder / "README.md").write_text(CARD)
    for i, label in enumerate(("penguin", "rocket")):
        draw(folder / "images" / f"{i:04d}.png", UNIFONT, PENGUIN, prompt=f"{label}, pixel {EVIL}")
    evaluate(folder / "images", "unifont", judges=FakeJudges(), encoder=FakeEncoder())
    return folder


def page_of(path) -> str:
    return Path(path).read_text(encoding="utf-8")


def tree_of(page: str) -> ElementTree.Element:
    """The page as XML: raises when it is not well-formed."""
    return ElementTree.fromstring(page.removeprefix("<!DOCTYPE html>\n"))


def test_report_page_is_complete_escaped_and_self_contained(run):
    result = report(run)
    page = page_of(result["path"])
    tree = tree_of(page)
    assert result["images"] == 2 and result["bytes"] == len(page.encode())
    assert [e for e in tree.iter() if e.tag in ("script", "link", "iframe", "object")] == []
    for element in tree.iter():
        for name in ("src", "href", "srcset"):
            assert element.get(name, "data:").startswith("data:")
        assert not [name for name in element.attrib if name.startswith("on")]
    assert not re.search(r"url\(|@import|https?://", page), "nothing is fetched"
    words = " ".join(tree.itertext())
    assert words.count("alert") >= 6, "hostile text is shown as text, wherever it came from"
    assert tree.get("lang") == "en" and tree.find("head/meta[@name='viewport']") is not None


def test_report_page_has_all_sections(run):
    rows = [{"strength": s, "style_accuracy": s, "concept_top5": 1 - s / 2, "interval": {}} for s in (0.5, 1.0)]
    base = {
        "style_accuracy": 0.0,
        "concept_top5": 0.9,
        "interval": {"style_accuracy": [0, 0.1], "concept_top5": [0.8, 1]},
    }
    (run / "strengths.json").write_text(json.dumps({"run": rows, "base": base, "true": {"style_accuracy": None}}))
    page = page_of(report(run, beside={"base": run / "images"}, title="Neon")["path"])
    tree = tree_of(page)
    headings = [e.text for e in tree.iter("h2")]
    assert headings == [
        *("Pictures", "Scores", "Style against content", "Training"),
        *("Use it in plain diffusers", "Recipe", "Model card"),
    ]
    assert len(list(tree.iter("svg"))) == 3
    words = " ".join(tree.itertext())
    for expected in ("Neon", "log-SNR", "σ = share of noise", "concept top-5, %", "40 noise levels", "0.5", "penguin"):
        assert expected in words
    card = next(e for e in tree.iter("li") if e.find("h3") is not None)
    alts = [image.get("alt") for image in card.iter("img")]
    assert alts[0] == "penguin, true" and len(alts) == 3, "true picture, base, own"
    assert [th.text for th in tree.iter("th")][1:4] == ["base", "run", "true"]


def test_report_is_deterministic(run, tmp_path):
    one, two = (report(run, out=tmp_path / name)["path"] for name in ("1.html", "2.html"))
    assert Path(one).read_bytes() == Path(two).read_bytes()


def test_report_of_unevaluated_run(run):
    (run / "images" / "scores.json").unlink()
    (run / "metrics.jsonl").unlink()
    (run / "README.md").unlink()
    page = page_of(report(run)["path"])
    headings = [e.text for e in tree_of(page).iter("h2")]
    assert headings == ["Pictures", "Recipe"]


def test_report_with_bad_input_raises(run, tmp_path):
    with pytest.raises(UserError, match="no style folder"):
        report(tmp_path / "nothing")
    with pytest.raises(UserError, match="not a style folder"):
        report(tmp_path)
    with pytest.raises(UserError, match="does not exist"):
        report(run, generated=tmp_path / "nothing")
    (run / "images" / "scores.json").write_text("[1]")
    with pytest.raises(UserError, match="not a JSON object"):
        report(run)
    (run / "images" / "scores.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        report(run)
    for file in (run / "images").iterdir():
        file.unlink()
    with pytest.raises(UserError, match="no images yet"):
        report(run)
    (run / "recipe.toml").write_text('caption = ["a cat, [trigger]"]\ntrigger = "wibble style"\n')
    with pytest.raises(UserError, match="--prompt 'a cat, wibble style' --out"):
        report(run)
    (run / "recipe.toml").write_text("= 3")
    with pytest.raises(UserError, match="cannot be read"):
        report(run)


def on_base(run: Path, base: Path | str, noise: str = "style-friendly", **keys) -> Path:
    """The same run on another base, with another law."""
    lines = [f"{key} = {json.dumps(value)}" for key, value in ({"base": str(base), "noise": noise} | keys).items()]
    (run / "recipe.toml").write_text("\n".join(lines))
    return run


def curve_of(run: Path, title: str) -> list[tuple[float, float]] | None:
    """The last line of the plot of that title, in SVG coordinates; None where there is none."""
    plot = next(e for e in tree_of(page_of(report(run)["path"])).iter("svg") if title in (e.findtext("title") or ""))
    lines = [line.get("points", "").split() for line in plot.iter("polyline")]
    return [(float(x), float(y)) for x, y in (point.split(",") for point in lines[-1])] if lines else None


def rows_of(page: str, heading: str) -> dict[str, list[str]]:
    """{text of a row's heading: texts of its cells} of the table in the section with that heading."""
    section = next(e for e in tree_of(page).iter("section") if e.findtext("h2") == heading)
    return {
        " ".join(row[0].itertext()): [" ".join(cell.itertext()) for cell in row[1:]]
        for row in section.iter("tr")
        if row.find("td") is not None
    }


def test_report_shows_scores_of_encoders_with_source_and_version(run):
    """The same encoder of another version has rows of its own."""
    folder = run / "images"
    fakes = {"judges": FakeJudges(), "encoder": FakeEncoder(), "encoders": [FakeEncoder()]}
    evaluate(folder, "unifont", base_images=folder, **fakes)
    other = run / "other"
    for i in range(2):
        draw(other / f"{i:04d}.png", UNIFONT, PENGUIN, prompt="a cat")
    scores = evaluate(other, "unifont", **fakes)
    scores["encoders"]["fake"]["version"] = "v2"
    scores["encoders"]["fake"]["scores"]["text"]["mean"] = None
    (other / "scores.json").write_text(json.dumps(scores))
    page = page_of(report(run, beside={"other": other})["path"])
    rows = rows_of(page, "Scores by encoders")
    text = next(cells for head, cells in rows.items() if head.startswith("fake, text") and "version fake" in head)
    assert text[0] == text[1] and text[0].startswith(".") and " to " in text[0] and text[2] == "–"
    assert not [head for head in rows if "fake, text" in head and "version v2" in head], "unknown scores have no row"
    assert any("fake, diversity" in head and "version v2" in head for head in rows)
    assert "By CLIP fake fake." in page, "the scores above name what scored them too"


def test_report_shows_votes_of_its_folder_or_of_another(run):
    images = run / "images"
    methods = {"ours": images, "theirs <b>": images}
    votes.create_votes(run / "votes", methods)
    assert "Votes" not in [e.text for e in tree_of(page_of(report(run)["path"])).iter("h2")], "nobody has voted"
    for rater in ("a", "b"):
        pair = votes.next_pair(run / "votes", rater)
        assert pair is not None
        votes.record(run / "votes", pair.id, rater, "style", "tie")
    (run / "votes").rename(run.parent / "set")
    page = page_of(report(run, votes=run.parent / "set")["path"])
    assert "2 votes of 2 raters" in page
    ((head, cells),) = rows_of(page, "Votes").items()
    assert head.startswith("ours against theirs <b>") and "style; 2 votes on" in head
    assert [cell.split(" %")[0] for cell in cells] == ["0", "100", "0"]
    with pytest.raises(UserError, match="no vote set"):
        report(run, votes=run / "votes")


@pytest.mark.parametrize(
    ("noise", "keys"),
    [("style-friendly", {}), ("uniform", {}), ("truncated-normal", {"noise_low": -5.0, "noise_high": -3.1})],
)
def test_noise_plot_truncates_law_to_base_range(run, noise, keys):
    law = law_of(read_run(on_base(run, "mini-sd15", noise, **keys)))
    low = max(loader.schedule("mini-sd15").range[0], keys.get("noise_low", -99.0))
    assert law is not None and low > -5.37
    points = sections.density(law, -16.0, 8.0)
    assert sum((b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in pairwise(points)) == pytest.approx(1.0, abs=0.002)
    assert all(y == 0 for x, y in points if x < low) and (points[0][0], points[-1][0]) == (-16.0, 8.0)
    assert points[2][0] == low and points[2][1] == pytest.approx(law.pdf(points_at(low)).item())
    drawn = curve_of(run, "noise levels drawn, and the law's density") or []
    bottom, edge = plots.HEIGHT - plots.BOTTOM, plots.LEFT + (low + 16) / 24 * (plots.WIDTH - plots.LEFT - plots.RIGHT)
    assert {y for x, y in drawn if x < edge - 0.1} == {bottom} and min(y for _, y in drawn) < bottom - 20


def points_at(lam: float):
    return torch.tensor([lam], dtype=torch.float64)


def test_law_of_uses_schedule_of_base_folder(run, tiny_sdxl, tiny_sd15, monkeypatch):
    low, high = loader.load(str(tiny_sdxl), device="cpu").schedule.range
    assert law_of(read_run(on_base(run, tiny_sdxl))) == Truncated(StyleFriendly(), low, high)
    monkeypatch.setattr(
        "huggingface_hub.try_to_load_from_cache",
        lambda base, name: str(tiny_sd15 / name) if base == "some/one" else None,
    )
    low, high = loader.load(str(tiny_sd15), device="cpu").schedule.range
    assert law_of(read_run(on_base(run, "some/one"))) == Truncated(StyleFriendly(), low, high)
    assert law_of(read_run(on_base(run, "mini-sd3"))) == StyleFriendly(), "a rectified flow has all levels"


@pytest.mark.parametrize("base", ["models/gone", "../gone", "/gone/base.safetensors", "", "mini-sd15"])
def test_noise_plot_of_unknown_base_has_no_law(run, base, monkeypatch):
    """And nobody is asked for it. The last one is here, but has none of that law's levels."""
    monkeypatch.setattr("impasto.bases.hub.hub_file", lambda *asked: pytest.fail(f"the hub is asked for {asked}"))
    on_base(run, base, noise_mean=-30.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert curve_of(run, "40 noise levels drawn.") is None


@pytest.mark.parametrize(
    ("keys", "name"),
    [
        ({}, "mean squared error"),
        ({"objective": "denoise", "weighting": "none", "prior_weight": 0.0}, "mean squared error"),
        ({"objective": "dco"}, "DCO"),
        ({"objective": "denoise", "weighting": "min-snr"}, "weighted mean squared error"),
        ({"objective": "dco", "prior_weight": 0.5}, "DCO + 0.5 × prior"),
    ],
)
def test_loss_name_by_objective(run, keys, name):
    labels = {e.text for e in tree_of(page_of(report(on_base(run, "mini-sd3", **keys))["path"])).iter("text")}
    assert f"loss ({name})" in labels


@pytest.mark.parametrize("name", ["recipe.toml", "images/0000.png", "images", "page", "new.htm"])
def test_report_out_must_be_html(run, name):
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    with pytest.raises(UserError, match="is no name for a page"):
        report(run, out=run / name)
    assert {file: file.read_bytes() for file in run.rglob("*") if file.is_file()} == before


@pytest.mark.parametrize("content", [b"<html><head><title>mine</title></head></html>", b"", b"caf\xe9"])
def test_report_keeps_foreign_page(run, content):
    for file, out in ((run / "report.html", None), (run / "x" / "index.HTML", run / "x" / "index.HTML")):
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(content)
        with pytest.raises(UserError, match=f"{file.name}' was not written by `impasto report` and stays"):
            report(run, out=out)
        assert file.read_bytes() == content
        file.unlink()
        report(run, out=out, title=f"one {EVIL}</head>")
        report(run, out=out, title="two")
        assert "<title>two" in page_of(file), "its own is replaced"


def test_read_metrics_of_killed_run(tmp_path):
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"step": 2, "loss": 1.0}\n{"step": 1, "loss": NaN}\n{"step": 1, "loss": 2.0}\n{"step": 3,')
    assert [row["step"] for row in read_metrics(file)] == [1, 2]
    assert read_metrics(tmp_path / "none") == []


def test_read_metrics_skips_bad_rows(run):
    file, good = run / "metrics.jsonl", {"step": 1, "loss": 2.0, "lam": [-6.0, float("-inf"), float("inf")]}
    bad = [
        *({"step": 2, "loss": None}, {"loss": 1.0}, {"step": "2", "loss": 1.0}, {"step": 2, "loss": "x"}, [1], 5),
        *({"step": 2, "loss": 1.0, "lam": lam} for lam in (["x"], [float("nan")], 5, [None])),
        *({"step": 2, "loss": 10**400}, {"step": 10**400, "loss": 1.0}),
    ]
    lines = [json.dumps(row).encode() for row in (good, *bad, {"step": 3, "loss": 1})]
    file.write_bytes(b"\n".join([b"\xff\xfe", b"[" * 100_000, *lines, b'{"step": 5, "x": "\xc3']))
    assert [row["step"] for row in read_metrics(file)] == [1, 3]
    assert "3 noise levels drawn" in page_of(report(run)["path"]), "an infinite level is in the last bin"


@pytest.mark.parametrize(
    "damaged",
    [
        *({"style_of": "unifont"}, {"images": [{}]}, {"images": 5}, {"images": [5]}, {"images": [], "notes": [5]}),
        *({"images": [], "style_of": ["x"]}, {"images": [], "ssim": "x"}, {"images": [], "base": {"ssim": [1]}}),
        *({"images": [], "true": 5}, {"images": [], "interval": 5}, {"images": [], "interval": {"ssim": [1]}}),
        *({"images": [], "ssim": 1, "interval": {"ssim": [1, None]}}, {"images": [{"file": "a", "concept": ["x"]}]}),
        *({"images": [], "ssim": float("nan")}, {"images": [], "notes": "abc"}),
        *(
            {"images": [], "encoders": [1]},
            {"images": [], "encoders": {"a": {"scores": {}}}},
            {"images": [], "dino": 5},
        ),
        {
            "images": [],
            "encoders": {"a": {"source": "", "version": "", "about": "", "scores": {"text": {"mean": "x"}}}},
        },
    ],
)
def test_report_with_damaged_scores_raises(run, damaged):
    (run / "images" / "scores.json").write_text(json.dumps(damaged))
    with pytest.raises(UserError, match=r"scores\.json is damaged, .* `impasto evaluate`"):
        report(run)


@pytest.mark.parametrize(
    "damaged",
    [
        *({"a": [5]}, {"a": [{"style_accuracy": 1, "concept_top5": 1}]}, {"a": [{"strength": "x"}]}),
        *({"a": [{"strength": 1, "style_accuracy": "x"}]}, {"base": {"ssim": "x"}}),
    ],
)
def test_report_with_damaged_strengths_raises(run, damaged):
    (run / "strengths.json").write_text(json.dumps(damaged))
    with pytest.raises(UserError, match=r"strengths\.json is damaged: "):
        report(run)


@pytest.mark.parametrize("name", ["README.md", "recipe.toml", "images/scores.json", "strengths.json", "reference.png"])
def test_report_with_invalid_file_raises(run, name):
    (run / name).write_bytes(b"caf\xe9")
    with pytest.raises(UserError, match=name) as error:
        report(run)
    assert "\n" not in str(error.value)


def test_report_with_unknown_concept(run):
    scores = json.loads((run / "images" / "scores.json").read_text())
    scores["images"][0]["concept"] = "a thing of an older art world"
    (run / "images" / "scores.json").write_text(json.dumps(scores))
    assert "a thing of an older art world" in page_of(report(run)["path"])


@pytest.mark.parametrize("name", ["true", "base"])
def test_report_of_run_named_true_or_base(run, name):
    folder = run.rename(run.with_name(name))
    assert heads_of(report(folder)) == [f"{name} (run)", "true"]
    beside = {"base": folder / "images", "true": folder, f"{name} (run)": folder}
    heads = heads_of(report(folder, beside=beside))
    assert heads[0] == "base" and heads[-1] == "true" and len(set(heads)) == len(heads) == 5
    assert heads[1].startswith(f"{name} (run)") and {f"{name} (run)", "true (run)"} <= set(heads)


def heads_of(result) -> list[str]:
    """The headings of the columns of scores."""
    table = next(tree_of(page_of(result["path"])).iter("thead"))
    return [th.text for th in table.iter("th") if th.text]


def test_report_replaces_invalid_xml_characters(run):
    odd = "a\x01\x0b\ufffe\uffff\ud800 cat"
    for file in (run / "images").glob("*"):
        file.unlink()
    draw(run / "images" / "0000.png", UNIFONT, PENGUIN, prompt=odd.replace("\ud800", ""))
    tree = tree_of(page_of(report(run, title=odd)["path"]))
    assert "a" + "\ufffd" * 4 + " cat" in [e.text for e in tree.iter("h3")]
    assert el("p", odd, title=odd) == el("p", "a" + "\ufffd" * 5 + " cat", title="a" + "\ufffd" * 5 + " cat")


def test_el_escapes():
    assert el("p", "<b>", class_='"x"') == '<p class="&quot;x&quot;">&lt;b&gt;</p>'
    assert el("img", src="a", alt=None) == '<img src="a" />'
    assert el("p", Html("<b>1</b>"), None) == "<p><b>1</b></p>"
    assert text("a\x00b") == "a\ufffdb"


def test_picture_scales_down_large_images(tmp_path):
    path = tmp_path / "large.png"
    Image.effect_noise((900, 900), 50).convert("RGB").save(path)
    assert data_uri(path).startswith("data:image/webp") and len(data_uri(path)) < 600_000


def test_picture_of_transparent_image_is_on_white(tmp_path):
    path = tmp_path / "large.png"
    Image.new("RGBA", (600, 600), (0, 0, 0, 0)).save(path)
    shown = Image.open(io.BytesIO(base64.b64decode(data_uri(path).partition(",")[2])))
    assert shown.size == (512, 512) and shown.convert("RGB").getpixel((256, 256)) == (255, 255, 255)


def test_axis_has_round_ticks():
    axis = plots.Axis.over([0.03, 0.97], "x")
    assert (axis.low, axis.high) == (0.0, 1.0) and [label for _, label in axis.ticks][1] == "0.2"
    assert plots.Axis.over([5.0, 5.0], "x").low < 5 < plots.Axis.over([5.0, 5.0], "x").high
    frame = plots.Frame(axis, axis)
    assert frame.at(0.0, 0.0) == (plots.LEFT, plots.HEIGHT - plots.BOTTOM)
    assert frame.at(1.0, 1.0) == (plots.WIDTH - plots.RIGHT, plots.TOP)


def test_density_has_area_1_and_smooth_is_moving_mean():
    edges, heights = plots.density([-20.0, -6.1, -6.0, 3.0, 99.0], -16, 8, 24)
    assert sum(heights) == pytest.approx(1.0) and len(edges) == 25
    inside = [float("-inf"), -6.1, -6.0, 3.0, float("inf")]
    assert plots.density(inside, -16, 8, 24) == (edges, heights), "the end bins hold what is outside"
    assert plots.smooth([1.0, 3.0, 5.0, 7.0], 2) == [1.0, 2.0, 4.0, 6.0]


def test_dot_labels_cover_neither_each_other_nor_a_dot():
    axis = plots.Axis(0.0, 1.0, "", ())
    frame = plots.Frame(axis, axis)
    points = [(0.0, 0.3), (0.01, 0.3), (0.02, 0.31), (0.03, 0.98), (1.0, 1.0), (1.0, 0.99), (0.5, 0.0)]
    dots = [plots.dot_box(frame, point) for point in points]
    taken = list(dots)
    for point in points:
        plots.dot(frame, point, 0, "0.75", taken=taken)
    labels = taken[len(dots) :]
    assert len(labels) == len(points)
    for i, label in enumerate(labels):
        assert not any(plots.overlap(label, other) for other in [*dots, *labels[:i]])
        assert label[0] >= 0 and label[2] <= plots.WIDTH and label[1] >= -2 and label[3] <= plots.HEIGHT
        x, y = frame.at(*points[i])
        near = max(label[0] - x, x - label[2], 0) + max(label[1] - y, y - label[3], 0)
        assert near < 60, "beside its dot"


def test_images_enlarge_without_script_and_tables_name_their_cells(run):
    page = page_of(report(run)["path"])
    tree = tree_of(page)
    zooms = [e for e in tree.iter("label") if e.get("class") == "zoom"]
    assert len(zooms) == len(list(tree.iter("img"))) > 2
    for zoom in zooms:
        box, image = zoom
        assert box.get("type") == "checkbox" and box.get("aria-label") == f"enlarge: {image.get('alt')}"
    assert ".zoom input:checked + img { position: fixed" in page
    heads = heads_of(report(run))
    for row in tree.find(".//tbody"):
        assert [cell.get("data-label") for cell in row][1:] == heads
        assert row[0].find("small") is not None, "the meaning of a score"


def test_card_is_rendered_without_paths_of_this_machine(run):
    (run / "README.md").write_text(
        "---\nlicense: mit\n---\n# ink\n\nUse `/home/me/runs/ink` with *care*; see [recipe](recipe.toml), "
        "[the Hub](https://hf.co).\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n![a cat](images/0000.png)\n\n"
        '```python\npipe.load("/home/me/my runs/ink", C:\\Users\\me\\ink)  # 1 / 2\n```\n<b onclick="x">raw</b>\n'
    )
    recipe = (run / "recipe.toml").read_text()
    (run / "recipe.toml").write_text('image = ["/home/me/pics/ref.png"]\nout = "runs/ink"\n' + recipe)
    page = page_of(report(run)["path"])
    card = next(e for e in tree_of(page).iter("div") if e.get("class") == "card")
    assert "/home" not in page and "Users" not in page and "license: mit" not in page
    assert card.find("h3").text == "ink" and card.find("p/em").text == "care" and card.find("table") is not None
    assert [a.get("href") for a in card.iter("a")] == ["https://hf.co"] and card.find("p/span").text == "recipe"
    words = "".join(card.itertext())
    assert 'pipe.load("ink", ink)  # 1 / 2' in words and "a cat" in words and not list(card.iter("img"))
    assert '<b onclick="x">raw</b>' in words
    assert 'image = ["ref.png"]' in page and 'out = "runs/ink"' in page


@pytest.mark.parametrize(
    ("text", "short"),
    [
        ("load('/a/b c/d')", "load('d')"),
        ("--style ~/runs/x:0.8 --out /tmp/y", "--style x:0.8 --out y"),
        ("https://a.b/c and file.py/x, 1 / 2, and/or", "https://a.b/c and file.py/x, 1 / 2, and/or"),
        ("runs/a/b ../c", "runs/a/b ../c"),
        ('["D:\\\\pics\\\\a.png"]', '["a.png"]'),
    ],
)
def test_shorten_paths(text, short):
    assert shorten_paths(text) == short
