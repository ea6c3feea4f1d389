"""Readings at equal text: on curves whose answer is known, and in a campaign whose runner invents scores."""

from dataclasses import replace

import pytest
from fakes import FakeEncoder, FakeJudges

from impasto import files
from impasto.reproduce import campaign as module
from impasto.reproduce import reproduce, runner, style_friendly
from impasto.reproduce.cells import FILE, read_all
from impasto.reproduce.claims import (
    Claim,
    Evidence,
    Measure,
    Reading,
    at_equal_text,
    judge,
    more,
    no_less,
    with_equal_text,
)
from impasto.reproduce.small_world import SmallWorld
from impasto.sampling.png import read_png_metadata

CLAIM = with_equal_text(Claim("T", "a beats b at equal text", {}, (Reading("r", (more("a", "b"), no_less("a", "b"))),)))
MEASURES = {"style": Measure("style_accuracy", 0.05), "text": Measure("concept_top5", 0.05)}
UNITS = {f"u{i}": f"style {i}" for i in range(8)}


def curve(style, text):
    """A curve through (text, style) at strength 1, a tenth more style and less text per strength."""
    return [(text - 0.1 * k, style + 0.1 * k) for k in (-2, -1, 0, 1, 2)]


def evidence(**curves):
    scores = {
        role: {arm: {u: own[u][2][k] for u in own} for arm, own in curves.items()}
        for role, k in (("text", 0), ("style", 1))
    }
    return Evidence(scores, UNITS, curves=curves)


def test_judge_at_equal_text_reads_all_arms_at_the_second_ones_text():
    """a has the style of b at strength 1 with .2 more text, that is .2 more style at b's text."""
    a = {u: curve(0.5 + 0.01 * i, 0.8) for i, u in enumerate(UNITS)}
    b = {u: curve(0.5 + 0.01 * i, 0.6) for i, u in enumerate(UNITS)}
    seen = evidence(a=a, b=b)
    plain, equal = judge(CLAIM, {reading.name: seen for reading in CLAIM.readings}, MEASURES)
    assert plain["verdict"] == "not reproduced" and plain["compares"][0]["effect"] == pytest.approx(0)
    assert equal["reading"] == "r, at equal text" and equal["verdict"] == "reproduced"
    (row,) = equal["compares"]
    assert row["effect"] == pytest.approx(0.2) and row["pairs"] == 8


def test_judge_at_equal_text_without_curves_leaves_old_reading_alone():
    seen = evidence(a={u: curve(0.8, 0.8) for u in UNITS}, b={u: curve(0.5, 0.8) for u in UNITS})
    old = judge(replace(CLAIM, readings=CLAIM.readings[:1]), {"r": seen}, MEASURES)[0]
    bare = replace(seen, curves={"a": {}, "b": seen.curves["b"]})
    plain, equal = judge(CLAIM, {reading.name: bare for reading in CLAIM.readings}, MEASURES)
    assert plain == old and plain["verdict"] == "reproduced"
    assert equal["verdict"] == "undecided" and equal["why"][0].startswith("no curve")
    some = replace(seen, curves={"a": dict(list(seen.curves["a"].items())[1:]), "b": seen.curves["b"]})
    equal = judge(CLAIM, {reading.name: some for reading in CLAIM.readings}, MEASURES)[1]
    assert equal["why"] == ["1 of 8 pairs have no curve"] and equal["p_holds"] == 1


def test_judge_at_equal_text_curve_that_does_not_reach_is_named():
    seen = evidence(a={u: curve(0.9, 0.3) for u in UNITS}, b={u: curve(0.2, 0.9) for u in UNITS})
    equal = judge(CLAIM, {reading.name: seen for reading in CLAIM.readings}, MEASURES)[1]
    assert equal["verdict"] == "undecided" and equal["why"] == [
        "a does not reach the text of b (0.900) at any strength"
    ]


def test_claims_at_equal_text_have_both_readings():
    own = {claim.id: [reading.equal_text for reading in claim.readings] for claim in style_friendly.CLAIMS}
    assert {name for name, equal in own.items() if any(equal)} == {"S1", "S6", "S7", "S9", "S10"}
    assert own["S1"] == [False] * 5 + [True] * 5
    assert at_equal_text(Reading("text only", (no_less("a", "b"),))) is None


def test_reproduce_curves_are_added_to_cells_without_running_them_again(tiny_sd3, tmp_path, monkeypatch):
    arms = {name: replace(style_friendly.ARMS[name], settings={**style_friendly.ARMS[name].settings, "steps": 1})
            for name in ("style-friendly", "sd3")}  # fmt: skip
    (claim,) = (claim for claim in style_friendly.CLAIMS if claim.id == "S1")
    claim = replace(claim, readings=(claim.readings[0], claim.readings[5]), shown=())
    monkeypatch.setattr(style_friendly, "arms", lambda *_: arms)
    monkeypatch.setattr(style_friendly, "CLAIMS", (claim,))
    ran = []

    def run_cell(cell, world, place):
        ran.append("cell")
        return {"scores": {"style_accuracy": 0.5, "concept_top5": 0.5}, "seconds": 1.0}

    def run_curve(cell, world, place):
        ran.append("curve")
        gain = 0.2 if cell.arm == "style-friendly" else 0.0
        scores = {
            s: {"style_accuracy": 0.5 * float(s) + gain, "concept_top5": 1 - 0.5 * float(s)}
            for s in ("0.5", "0.75", "1.25", "1.5")
        }
        return {"curve": scores, "curve_seconds": 2.0}

    monkeypatch.setattr(module, "run_cell", run_cell)
    monkeypatch.setattr(module, "run_curve", run_curve)
    world = SmallWorld(judges=FakeJudges(), encoder=FakeEncoder(), concepts=2)
    own = {"base": str(tiny_sd3), "out": tmp_path, "world": world, "log": lambda line: None}
    reproduce("style-friendly", **own)
    before = read_all(tmp_path / FILE)
    assert ran == ["cell"] * 6 and "no curve" in (tmp_path / "README.md").read_text()
    assert reproduce("style-friendly", curves=True, dry_run=True, **own)["curves_to_run"] == 6
    reproduce("style-friendly", curves=True, **own)
    after = read_all(tmp_path / FILE)
    assert ran == ["cell"] * 6 + ["curve"] * 6 and before.keys() == after.keys()
    assert all({k: v for k, v in after[key].items() if "curve" not in k} == before[key] for key in before)
    reproduce("style-friendly", curves=True, **own)
    assert len(ran) == 12


@pytest.mark.filterwarnings("ignore:the prompt is too long")
def test_run_curve_samples_cached_style_at_other_strengths(tiny_sd3, tmp_path):
    world = SmallWorld(judges=FakeJudges(), encoder=FakeEncoder(), concepts=2)
    campaign = module.make_campaign("style-friendly", str(tiny_sd3), tmp_path, world=world, log=lambda line: None)
    settings = {**style_friendly.ARMS["style-friendly"].settings, "steps": 1, "rank": 2}
    campaign = campaign.with_arms({"few": replace(style_friendly.ARMS["style-friendly"], settings=settings)})
    for arm in ("few", "style-aligned"):
        cell = campaign.cells_of(arm, "smoke")[0]
        runner.run_cell(cell, world, campaign.place)
        folder = files.cache_dir("reproduce", cell.spec["base"][:12], cell.name)
        before = [file.stat().st_mtime_ns for file in folder.glob("style/*.safetensors")]
        found = runner.run_curve(cell, world, campaign.place)
        assert found["curve"].keys() == {"0.5", "0.75", "1.25", "1.5"} and "style_accuracy" in found["curve"]["0.75"]
        assert before == [file.stat().st_mtime_ns for file in folder.glob("style/*.safetensors")]
        images = [(folder / name / "0000.png").read_bytes() for name in ("images", "images-0.75", "images-1.5")]
        assert len(set(images)) == 3
        if arm == "few":
            assert read_png_metadata(folder / "images-1.5/0000.png")["styles"][0]["strength"] == 1.5
