"""InstaStyle's claims: units, starts, shared inversions and refinements, mixtures; a campaign with invented scores."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fakes import FakeEncoder, FakeJudges
from PIL import Image

from impasto.artworld import load_meta
from impasto.errors import UserError
from impasto.evaluation.votes import next_pair, record, summary
from impasto.files import cache_dir
from impasto.generation import GRID, LINE
from impasto.reproduce import campaign as module
from impasto.reproduce import instastyle, instastyle_jobs, instastyle_paper, reproduce
from impasto.reproduce.instastyle_others import write_pairs, write_prompts
from impasto.reproduce.instastyle_world import mixing_scores, names_of_primary, reference_image
from impasto.reproduce.runner import run_cell
from impasto.reproduce.sheets import images_of
from impasto.sampling.png import read_png_metadata

FEW = {"steps": 1, "rank": 2, "batch": 2, "method.n": 2, "method.objects": ("dog", "horse"), "lr": 1e-3}
FEW |= {"text.rows": "1"}  # the tiny tokeniser makes more sub-tokens of the style words than a prompt may have
pytestmark = [
    pytest.mark.filterwarnings("ignore:the reconstruction is"),
    pytest.mark.filterwarnings("ignore:.*will be enlarged"),
    pytest.mark.filterwarnings("ignore:.*captions"),
    pytest.mark.filterwarnings("ignore:the prompt is too long"),
]


@pytest.fixture
def world(monkeypatch):
    monkeypatch.setattr(instastyle.NoiseWorld, "sampling", lambda self, family: SAMPLING)
    return replace(instastyle.small_world(), judges=FakeJudges(), encoder=FakeEncoder(), limit=2)


SAMPLING = {"steps": 4, "guidance": 2.5, "fixed_point": 0, "sampler": "ddim"}


@pytest.fixture
def made(tiny_sd15, tmp_path, world):
    return module.make_campaign("instastyle", str(tiny_sd15), tmp_path, world=world)


@pytest.fixture
def few(monkeypatch):
    """Arms with one step of training."""
    for name, arm in instastyle.ARMS.items():
        if arm.how in ("instastyle", "mix"):
            rate = {key: arm.settings[key] for key in ("method.select",) if key in arm.settings}
            monkeypatch.setitem(instastyle.ARMS, name, replace(arm, settings={**arm.settings, **FEW, **rate}))


def first(made, arm):
    return made.cells_of(arm, "smoke")[0]


def test_units_share_cells_and_name_grounds_only_in_the_image(world):
    white, ground, single = (world.units("smoke", where) for where in ("white", "ground", "single"))
    assert len(white) == len(ground) == 3 and len(world.units("full", "white")) == 9
    (one,) = single.values()
    assert one in white.values() and one["style"] == "streamline-emojis"
    assert len(world.units("full", "single")) == 3
    for unit in ground.values():
        assert unit["ground"] not in unit["caption"] and unit["reference_sha256"] == world.reference_hash(unit)
        assert reference_image(unit).getpixel((0, 0)) != (255, 255, 255)
    assert "maroon" in [u["ground"] for u in ground.values()]  # dark, of a style with colours
    evaluation = {load_meta()["concepts"][c]["label"] for c in load_meta()["split"]["evaluation_concepts"]}
    assert all(set(unit["plain"]) <= evaluation for unit in white.values())
    secondary = world.units("smoke", "secondary")
    assert {u["style"] for u in secondary.values()} == {"icon-park", "symbola"}
    assert not any(set(unit["plain"]) & evaluation for unit in secondary.values())
    with pytest.raises(UserError, match="unknown cells 'some'"):
        world.units("some", "white")


def test_units_of_several_references_count_their_images(world):
    pair, line, trio = (next(iter(world.units("smoke", where).values())) for where in ("pair", "line", "trio"))
    assert (pair["count"], line["count"], trio["count"]) == (len(GRID) ** 2, len(LINE), 2)
    assert pair["style"].count(" + ") == 1 and len(trio["references"]) == 3
    assert len(world.units("full", "pair")) == 6
    references = next(iter(world.units("smoke", "references").values()))
    assert len({one["reference"] for one in references["references"]}) == 3
    assert {one["style"] for one in references["others"]} == set(names_of_primary())


def test_mixing_scores_of_a_smooth_and_a_shuffled_mixture():
    share = torch.tensor([(a, b) for a in GRID for b in GRID])
    by_noise = torch.stack([1 - share[:, 0], share[:, 0]], dim=1)
    found = mixing_scores(by_noise)
    assert found["tau_alpha"] == 1 and found["effect_alpha"] == pytest.approx(0.8)
    assert found["tau_beta"] == found["effect_beta"] == 0 and found["alpha_over_beta"] == pytest.approx(0.8)
    assert mixing_scores(by_noise.view(5, 5, 2).transpose(0, 1).reshape(25, 2))["tau_alpha"] == 0
    line = torch.tensor(LINE)
    assert mixing_scores(torch.stack([1 - line, line], dim=1))["tau_alpha"] == 1
    assert mixing_scores(torch.stack([line, 1 - line], dim=1))["tau_alpha"] == -1


def test_claims_with_invented_scores_are_reproduced(tiny_sd15, tmp_path, world, monkeypatch):
    cosine = {"inversion": 0.6, "no words": 0.5, "ground: inversion": 0.6, "forward": 0.4, "statistics": 0.3}

    def run(cell, world, place):
        own = cosine.get(cell.arm, 0.2)
        scores = {"style_cosine": own, "style_probability": own, "concept_top5": 1 - own}
        return {"scores": scores | {"ground": 100 * (1 - own) ** 2, "palette": 50 * (1 - own)}, "seconds": 1.0}

    monkeypatch.setattr(module, "run_cell", run)
    result = reproduce("instastyle", "full", ["N1"], str(tiny_sd15), tmp_path, world=world, log=lambda line: None)
    assert result["verdicts"] == {"N1": "reproduced"}
    entry = json.loads((tmp_path / "claims.json").read_text())[0]
    assert [reading["verdict"] for reading in entry["readings"]] == ["reproduced"] * 5
    cosine |= {"one gaussian": 0.55, "ground: one gaussian": 0.55}
    (tmp_path / "cells.jsonl.gz").unlink()
    result = reproduce("instastyle", "full", ["N1"], str(tiny_sd15), tmp_path, world=world, log=lambda line: None)
    readings = json.loads((tmp_path / "claims.json").read_text())[0]["readings"]
    assert [r["verdict"] for r in readings[:2]] == ["not reproduced"] * 2  # .05 of .1 more cosine, ground above half


def test_starts_of_noise_arms(made, world):
    results = {}
    for arm in ("inversion", "one gaussian", "gaussians", "statistics", "forward", "no words", "T 321", "w 6.5"):
        results[arm] = run_cell(first(made, arm), world, made.place)["scores"]
    assert {"palette", "ground", "layout", "apart", "style_cosine"} <= set(results["inversion"])
    assert len({round(own["layout"], 9) for own in results.values()}) == len(results)
    assert "apart" not in run_cell(first(made, "ground: inversion"), world, made.place)["scores"]
    prompt = read_png_metadata(images_of(first(made, "no words")) / "0000.png")["prompt"]
    assert prompt == first(made, "no words").spec["plain"][0]
    noises = list(cache_dir("reproduce", made.family.hash[:12], "inverted").glob("*/done"))
    assert len(noises) == 4  # style words, none, t = 321, coloured ground


def test_forward_start_is_noised_by_the_level(made, world, tmp_path):
    spec = first(made, "forward").spec
    reference_image(spec).save(tmp_path / "r.png")
    one = instastyle_jobs.given(spec, tmp_path / "r.png")
    noise = instastyle_jobs.inverted(one, spec, made.place, spec["words"])
    level = noise.log_snr[-1]
    start = instastyle_jobs.starts("forward", noise, one, spec, made.family)
    eps = instastyle_jobs.starts("gaussian", noise, one, spec, made.family)
    alpha, sigma = torch.sigmoid(level).sqrt(), torch.sigmoid(-level).sqrt()
    x = instastyle_jobs.latents(made.family, one, spec["sampling"]["size"])
    assert torch.allclose(start, (alpha * x + sigma * eps).float(), atol=1e-5)


def test_refined_arms_share_candidates(few, tiny_sd15, tmp_path, world):
    made = module.make_campaign("instastyle", str(tiny_sd15), tmp_path, world=world)
    cells = {arm: first(made, arm) for arm in ("single: score", "single: random", "no noise")}
    scores = {arm: run_cell(cell, world, made.place)["scores"] for arm, cell in cells.items()}
    assert all("style_probability" in own for own in scores.values())
    folder = cache_dir("reproduce", made.family.hash[:12])
    assert len(list(folder.glob("candidates/*/done"))) == 2  # of two references
    assert len(list(folder.glob("refined/*/style/noise.safetensors"))) == 3
    assert len(list(folder.glob("refined/*/style/state/selection.json"))) == 3  # a mix needs them
    single = next(cell for cell in made.cells_of("full", "smoke") if cell.unit == cells["single: score"].unit)
    assert single.key == cells["single: score"].key
    info = read_png_metadata(images_of(cells["no noise"]) / "0000.png")
    assert "noise_random" not in info and info["sampler"] == "ddim"


def test_oracle_selects_the_candidates_nearest_to_the_truth(few, tiny_sd15, tmp_path, world, monkeypatch):
    made = module.make_campaign("instastyle", str(tiny_sd15), tmp_path, world=world)
    spec = first(made, "single: oracle").spec
    reference_image(spec).save(tmp_path / "r.png")
    one = instastyle_jobs.given(spec, tmp_path / "r.png")
    run = instastyle_jobs.candidates_of(one, spec, made.place)
    colours = {"dog": "red", "horse": "blue"}
    monkeypatch.setattr(instastyle_jobs, "packaged_encoder", FakeEncoder)
    ids = [instastyle_jobs.concept_index(label) for label in colours]
    Image.new("RGB", (16, 16), "yellow").save(run / "candidates" / "01.png")
    Image.new("RGB", (16, 16), "blue").save(run / "candidates" / "02.png")
    truths = {c: Image.new("RGB", (16, 16), colour) for c, colour in zip(ids, colours.values(), strict=True)}
    monkeypatch.setattr(instastyle_jobs, "true_pictures", lambda style, concepts: truths)
    record = {"objects": list(colours)}
    monkeypatch.setattr(instastyle_jobs.Stages, "read", lambda self, stage, inputs=None: record)
    assert instastyle_jobs.nearest_to_truth(run, one, 1) == [2]


def test_mixtures_are_scored_and_shown(few, tiny_sd15, tmp_path, world, monkeypatch):
    monkeypatch.setitem(instastyle_jobs.COUNTS, "line", LINE[:2])
    monkeypatch.setattr("impasto.reproduce.instastyle_world.LINE", LINE[:2])
    monkeypatch.setattr("impasto.reproduce.instastyle_world.PROMPTS", {"line": 1, "pair": 1, "trio": 1})
    made = module.make_campaign("instastyle", str(tiny_sd15), tmp_path, world=world)
    line = run_cell(first(made, "line"), world, made.place)["scores"]
    assert set(line) == {"tau_alpha", "effect_alpha"}
    info = read_png_metadata(images_of(first(made, "line")) / "0001.png")
    assert info["noise_weights"] == [0.9, 0.1] and info["prompt_weights"] == [0.9, 0.1]
    assert set(run_cell(first(made, "several"), world, made.place)["scores"]) == {"present"}


def test_references_of_one_style_are_compared_by_prompt(made, world):
    found = {
        arm: run_cell(first(made, arm), world, made.place)["scores"]
        for arm in ("same style", "other styles", "three gaussians")
    }
    assert all(-1 <= own["consistency"] <= 1 for own in found.values())
    assert len({round(own["consistency"], 9) for own in found.values()}) == 3


def test_other_method_is_an_arm_of_the_comparison(few, tiny_sd15, tmp_path, world):
    folder = tmp_path / "others" / "mine"
    units = world.units("smoke", "single")
    write_prompts(tmp_path, units)
    row = json.loads((tmp_path / "others" / "prompts.jsonl").read_text().splitlines()[0])
    assert (tmp_path / "others" / row["reference"]).is_file()
    folder.mkdir()
    rows = [{"file_name": f"{i}.png", "text": text} for i, text in enumerate(row["prompts"])]
    for one in rows:
        Image.new("RGB", (32, 32), "red").save(folder / one["file_name"])
    (folder / "metadata.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows[:1]))
    made = module.make_campaign("instastyle", str(tiny_sd15), tmp_path, world=world)
    with pytest.raises(UserError, match="lacks 1 prompts of this cell"):
        run_cell(first(made, "other: mine"), world, made.place)
    (folder / "metadata.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    made = module.make_campaign("instastyle", str(tiny_sd15), tmp_path, world=world)
    claim = next(claim for claim in made.claims if claim.id == "N9")
    assert claim.readings[-1].name == "other: mine"
    assert run_cell(first(made, "other: mine"), world, made.place)["scores"]["palette"] > 0
    run_cell(first(made, "single: score"), world, made.place)
    assert write_pairs(made, "smoke", "single: score", ["other: mine"]) == {"other: mine": 2}
    pair = next_pair(tmp_path / "votes", "rater")
    assert pair is not None and pair.reference is not None and pair.reference.is_file()
    record(tmp_path / "votes", pair.id, "rater", "style", "left")
    (row,) = summary(tmp_path / "votes")["comparisons"]
    assert {row["method"], row["other"]} == {"other: mine", "single: score"}


def test_paper_protocol_lists_cells_and_runs_one(tiny_sd15, tmp_path, monkeypatch):
    monkeypatch.setattr(instastyle_paper.ReferenceWorld, "sampling", lambda self, family: SAMPLING)
    assert len(instastyle_paper.read_classes()) == 100
    for i in range(2):
        Image.new("RGB", (16, 16), ("red", "blue")[i]).save(tmp_path / f"{i:02d}.png")
    with pytest.raises(UserError, match="needs --references DIR"):
        instastyle.paper_world(None, None, None)
    world = replace(instastyle.paper_world(tmp_path, None, None), clip=FakeEncoder())
    assert instastyle_paper.read_references(tmp_path)[0].words == "watercolour painting"
    (tmp_path / "captions.txt").write_text("00.png: cat | oil painting\n01.png: tree\n")
    with pytest.raises(UserError, match="line 2: write FILE: object"):
        world.units("smoke", "white")
    (tmp_path / "captions.txt").write_text("00.png: cat | oil painting\n01.png: tree | ink\n")
    made = module.make_campaign("instastyle", str(tiny_sd15), tmp_path / "out", world=world)
    assert [claim.id for claim in made.claims] == ["N2"]
    cell = first(made, "inversion")
    assert cell.spec["caption"] == "A cat in the style of oil painting" and len(cell.spec["prompts"]) == 4
    found = run_cell(cell, world, made.place)["scores"]
    assert -1 <= found["clip_i_reference"] <= 1 and set(found) == {"clip_i_reference", "clip_t"}


def test_cells_name_their_references_by_content(made):
    assert str(Path.home()) not in json.dumps(first(made, "grid").spec)
    assert made.left_out == {}
