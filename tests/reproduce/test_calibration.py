"""The claims about calibration, with a runner that invents scores: chosen on some styles, tested on others."""

import json
from dataclasses import replace

import pytest
from fakes import FakeEncoder, FakeJudges

from impasto.artworld import load_meta
from impasto.bases.loader import load
from impasto.demo import REFERENCES
from impasto.errors import UserError
from impasto.reproduce import calibration, reproduce
from impasto.reproduce import campaign as module
from impasto.reproduce.small_world import SmallWorld


@pytest.fixture
def world():
    return SmallWorld(judges=FakeJudges(), encoder=FakeEncoder(), concepts=2)


@pytest.fixture
def invented(monkeypatch):
    """run_cell without training: the nearer a mean is to -2, the more style. Lists its cells."""
    ran = []

    def run(cell, world, place):
        ran.append(cell)
        mean = cell.spec["arm"]["settings"]["noise_mean"]
        noise = 0.01 * (cell.spec["seed"] % 3 - 1) + 0.001 * len(cell.unit)
        return {"scores": {"style_accuracy": 0.6 - 0.05 * abs(mean + 2) + noise, "concept_top5": 0.5}, "seconds": 1.0}

    monkeypatch.setattr(module, "run_cell", run)
    return ran


def calibrated(base, folder, mean):
    file = folder / "calibration.json"
    result = {"base_hash": load(str(base)).hash, "proposal": {"noise_mean": mean, "noise_std": 2.0}}
    file.write_text(json.dumps(result))
    return file


def go(base, out, world, claim, **more):
    lines = []
    result = reproduce("calibration", "full", [claim], base=str(base), out=out, world=world, log=lines.append, **more)
    return result, lines


@pytest.mark.parametrize(("mean", "verdict"), [(-2.3, "reproduced"), (0.0, "not reproduced"), (-2.0, "reproduced")])
def test_calibration_claims_are_tested_on_primary_styles(tiny_sd3, tmp_path, world, invented, mean, verdict):
    file = calibrated(tiny_sd3, tmp_path, mean)
    result, lines = go(tiny_sd3, tmp_path, world, "C2", calibration=file)
    assert result["verdicts"] == {"C2": "undecided"} and result["wanted"] == 0 and not invented
    assert lines == [f"left out: {arm}: the sweep (C1) is not complete" for arm in ("calibrated", "best of the sweep")]
    result, _ = go(tiny_sd3, tmp_path, world, "C1")
    assert result["run"] == 13 * 4 * 2 and result["verdicts"] == {"C1": "reproduced"}
    result, lines = go(tiny_sd3, tmp_path, world, "C2", calibration=file)
    assert result["verdicts"] == {"C2": verdict} and not lines
    assert result["wanted"] == result["run"] == (54 if mean == -2.0 else 108)  # the same law is the same cells
    assert len({cell.key for cell in invented}) == len(invented)
    meta = load_meta()
    styles = {arm: {c.spec["style"] for c in invented if (c.arm in calibration.SWEEP) == arm} for arm in (True, False)}
    assert styles[True] == {meta["style_names"][s] for s in meta["split"]["secondary_styles"]}
    assert styles[False] == {meta["style_names"][s] for s in meta["split"]["primary_styles"]}
    entry = next(e for e in json.loads((tmp_path / "claims.json").read_text()) if e["id"] == "C2")
    assert [c["above"] for c in entry["readings"][0]["compares"]] == pytest.approx([-0.03, -0.05])
    assert entry["arms"]["best of the sweep"]["style_accuracy"][2] == 54
    result, _ = go(tiny_sd3, tmp_path, world, "C1")  # the calibration is kept beside the cells
    entry = next(e for e in json.loads((tmp_path / "claims.json").read_text()) if e["id"] == "C2")
    assert entry["verdict"] == verdict
    assert "The paper" not in (tmp_path / "README.md").read_text()


def test_reproduce_runs_dependent_arms(tiny_sd3, tmp_path, world, invented):
    file = calibrated(tiny_sd3, tmp_path, -2.3)
    result = reproduce(
        "calibration", "full", base=str(tiny_sd3), out=tmp_path, world=world, calibration=file, log=lambda line: None
    )
    assert result["wanted"] == result["run"] == 104 + 108
    assert result["verdicts"] == {"C1": "reproduced", "C2": "reproduced"}


def test_units_for_choosing_and_testing_are_disjoint(world):
    split, meta = load_meta()["split"], load_meta()
    known = {u["reference"]: u for u in world.units("full", "heldout").values()}
    fresh, chosen = world.units("full", "fresh"), world.units("full", "secondary")
    assert len(fresh) == 54 and len(chosen) == 8
    assert not {u["reference"] for u in fresh.values()} & set(known)
    assert not {u["reference"] for u in fresh.values()} & set(REFERENCES.values())  # nor what everybody has looked at
    assert not {u["seed"] for u in fresh.values()} & {u["seed"] for u in known.values()}
    labels = {meta["concepts"][c]["label"] for k in ("evaluation_concepts", "reference_concepts") for c in split[k]}
    prompts = {p.split(", ")[0] for u in SmallWorld().units("full", "secondary").values() for p in u["prompts"]}
    assert len(prompts) == 24 and not prompts & labels
    references = {u["reference"] for u in [*fresh.values(), *chosen.values()]}
    assert references <= {meta["concepts"][c]["label"] for c in split["reference_concepts"]}


def test_best_uses_harmonic_mean_of_complete_sweep(tiny_sd3, world):
    campaign = module.make_campaign("calibration", str(tiny_sd3), "x", world=world)
    extremes = {"mean -4": (0.9, 0.1), "mean +4": (0.1, 0.9), "mean -2": (0.5, 0.45)}

    def found(size="full", laws=calibration.SWEEP, base=campaign):
        cells = [cell for name in laws for cell in base.cells_of(name, size)]
        scores = {cell.key: extremes.get(cell.arm, (0.4, 0.4)) for cell in cells}
        return {key: {"scores": {"style_accuracy": s, "concept_top5": t}} for key, (s, t) in scores.items()}

    def best(known):
        return calibration.best(replace(campaign, known=known))

    whole = found()
    assert best(whole) == "mean -2" and len(whole) == 13 * 4 * 2
    assert best(dict(list(whole.items())[:-1])) is None and best({}) is None
    assert best(found(laws=calibration.MEANS)) is None  # the standard deviations are missing
    assert best(found("smoke", base=replace(campaign, world=replace(world, concepts=1)))) is None
    other = replace(
        campaign,
        specs={n: s | {"settings": s["settings"] | {"lr": 0.5}} for n, s in campaign.specs.items() if "settings" in s},
    )
    assert best(found(base=other)) is None  # of another learning rate than today's
    extremes["mean -4, std 3"] = (0.8, 0.8)
    assert best(found() | found(base=other)) == "mean -4, std 3"


def test_calibration_with_paper_protocol_raises(tiny_sd3, tmp_path):
    with pytest.raises(UserError, match="for the small world: leave out --protocol"):
        reproduce("calibration", base=str(tiny_sd3), out=tmp_path, protocol="paper", references=tmp_path)
