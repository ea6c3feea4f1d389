"""FineStyle's and StyleDrop's claims on a base of masked tokens: the job list, a cell of each kind."""

import json
from dataclasses import replace

import numpy as np
import pytest
from fakes import FakeEncoder, FakeJudges
from PIL import Image

from impasto.files import cache_dir
from impasto.methods.stages import Stages
from impasto.reproduce import campaign as module
from impasto.reproduce import finestyle, finestyle_muse, styledrop_jobs
from impasto.reproduce.finestyle_world import SceneWorld
from impasto.reproduce.runner import run_cell

FEW = {"steps": 1, "batch": 2, "accumulate": 1, "method.images": 2}


@pytest.fixture
def campaign(tiny_muse, tmp_path):
    world = SceneWorld(judges=FakeJudges(), limit=3)
    return module.make_campaign("finestyle", str(tiny_muse), tmp_path / "out", world=world)


def test_job_list_is_whole_on_masked_tokens(campaign):
    assert [claim.id for claim in campaign.claims] == ["F1", "F2", "F3", "F4", "F5", "F6", "F8", "D1", "M1"]
    assert not campaign.left_out and campaign.specs.keys() == finestyle_muse.ARMS.keys()
    assert {arm for claim in campaign.claims for arm in claim.arms} == finestyle_muse.ARMS.keys()
    cells = campaign.cells(campaign.claims, "smoke")
    assert len({cell.key for cell in cells}) == len(cells) == len(finestyle_muse.ARMS)
    settings = {name: spec["settings"] for name, spec in campaign.specs.items() if "settings" in spec}
    laws = {name: own["noise"] for name, own in settings.items()}
    assert {laws.pop(name) for name in finestyle_muse.LAWS} == {"style-friendly"} and {*laws.values()} == {
        "cosine-mask"
    }
    assert {own["objective"] for own in settings.values()} == {"masked-tokens"}
    assert settings["R1"]["adapter"] == "styledrop" and settings["finestyle"]["adapter"] == "kv-bottleneck"
    assert settings["R1"]["method"] == "styledrop" and settings["CF"] == settings["HF"] == settings["R1"]


def test_job_list_of_a_diffusion_base_stays(tiny_sd15, tmp_path):
    world = SceneWorld(judges=FakeJudges(), limit=3)
    own = module.make_campaign("finestyle", str(tiny_sd15), tmp_path, world=world)
    assert own.arms.keys() == finestyle.ARMS.keys()


@pytest.mark.filterwarnings("ignore:the prompt is too long", "ignore:after", "ignore:.*looks? nearly the same")
def test_cells_of_all_selections_share_the_first_round(campaign, monkeypatch):
    monkeypatch.setattr(styledrop_jobs, "packaged_encoder", FakeEncoder)
    monkeypatch.setattr(styledrop_jobs, "OBJECTS", 3)
    trainings, train = [], styledrop_jobs.train
    monkeypatch.setattr(styledrop_jobs, "train", lambda config: (trainings.append(config.method.rounds), train(config)))
    few = {name: replace(finestyle_muse.ARMS[name], settings={**finestyle_muse.ARMS[name].settings, **FEW})
           for name in ("R1", "CF", "HF", "random")}  # fmt: skip
    own = campaign.with_arms(few)
    cells = [own.cells_of(name, "smoke")[0] for name in few]
    scores = {cell.arm: run_cell(cell, own.world, own.place)["scores"] for cell in cells}
    assert all({"style_accuracy", "concept_top5", "leak"} <= found.keys() for found in scores.values())
    assert trainings == [1, 2, 2, 2]  # the second and later ones find the first round
    runs = [*cache_dir("reproduce", cells[0].spec["base"][:12], "styledrop").glob("*/style")]
    selected = {len(record["selected"]) for run in runs if (record := Stages(run).read("selection"))}
    assert len(runs) == 4 and selected == {3}
    weights = {(run / "round-1/styledrop.safetensors").read_bytes() for run in runs}
    assert len(weights) == 1
    files = [cache_dir("reproduce", c.spec["base"][:12], c.name, "images", "0000.png") for c in cells]
    infos = [json.loads(Image.open(file).info["impasto"]) for file in files]
    assert {info["style_semantics"]["lambda2"] for info in infos} == {0} and len(
        {i["styles"][0]["path"] for i in infos}
    ) == 4
    assert np.asarray(Image.open(files[0])).shape == (16, 16, 3)


def test_oracle_prefers_the_true_image(tmp_path):
    from impasto.artworld import concept_index, style_index
    from impasto.evaluation.truth import true_pictures
    from impasto.methods.selection import CANDIDATES, list_candidates
    from impasto.methods.styledrop import select_best
    from impasto.reproduce.small_world import packaged_encoder

    style, scene = style_index("streamline-emojis"), {"things": ["bus", "cookie", "cat"]}
    objects = styledrop_jobs.objects_of({"style": "streamline-emojis", "scene": scene})
    assert len(set(objects)) == 15 and not {*objects} & {*scene["things"]}
    first, other = objects[:2]
    true = true_pictures(style, [concept_index(first), concept_index(other)])
    candidates = list_candidates([(first, first), (first, first), (other, other), (other, other)])
    (tmp_path / CANDIDATES).mkdir()
    for one, image in zip(candidates, [*true.values(), *true.values()], strict=True):
        image.save(tmp_path / one.file)
    scores = styledrop_jobs.oracle_scores(tmp_path, candidates, style, packaged_encoder())
    assert select_best(candidates, scores) == [1, 4] and scores[0] == pytest.approx(1, abs=1e-4)


def test_page_has_the_papers_numbers_beside_ours(tiny_muse, tmp_path, monkeypatch):
    style = {"base": 0.2, "R1": 0.7, "HF": 0.7, "CF": 0.6, "random": 0.6}
    text = {"base": 0.8, "R1": 0.5, "HF": 0.6, "CF": 0.7, "random": 0.5}

    def run(cell, world, place):
        own = {"style_accuracy": style[cell.arm], "concept_top5": text[cell.arm], "leak": 0.0}
        return {"scores": own | {"harmonic_mean": 0.5}, "seconds": 1.0}

    monkeypatch.setattr(module, "run_cell", run)
    world = SceneWorld(judges=FakeJudges())
    found = module.reproduce("finestyle", "full", ["D1"], str(tiny_muse), tmp_path, world=world, log=lambda line: None)
    assert found["verdicts"] == {"D1": "reproduced"} and found["wanted"] == 5 * 27
    page = (tmp_path / "README.md").read_text()
    assert "R1 .313 / .705" in page and "oracle that has the true images" in page
