"""Claims on folders: training sets, units, shared trainings, distillation; a campaign with invented scores."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from fakes import FakeEncoder, FakeJudges
from PIL import Image

from impasto.artworld import load_meta
from impasto.errors import UserError
from impasto.evaluation.distribution import kernel_distance
from impasto.files import cache_dir
from impasto.reproduce import campaign as module
from impasto.reproduce import folder_jobs, image_sets, reproduce, styleinject, styleinject_paper, subjects
from impasto.reproduce.cells import Cell
from impasto.reproduce.claims import Arm, Claim, Evidence, Measure, Reading, judge, more
from impasto.reproduce.runner import run_cell
from impasto.reproduce.sheets import save_sheet
from impasto.reproduce.styleinject_paper import read_prompts
from impasto.reproduce.styleinject_router import neighbour_accuracy
from impasto.reproduce.tsne import affinities, squared_distances, tsne
from impasto.sampling.png import read_png_metadata

STYLE = "streamline-emojis"
HELDOUT = ("symbola", "game-icons")
FEW = {"noise": "uniform", "steps": 1, "batch": 2, "accumulate": 1}


@pytest.fixture
def world():
    teacher = {**FEW, "adapter": "full", "lr": 1e-3}
    return replace(
        styleinject.small_world(),
        judges=FakeJudges(),
        encoder=FakeEncoder(),
        images=2,
        generic=1,
        generic_styles=HELDOUT,
        subject_styles=HELDOUT,
        bias=("bread", 0.5),
        limit=2,
        teacher=teacher,
    )


@pytest.fixture
def invented(monkeypatch):
    """run_cell without training: the arm decides, what arms share cancels. Lists its cells."""
    ran, style = [], {"n 16": 0.7, "DMA": 0.6, "n 1": 0.6, "lora 8": 0.4, "n 4": 0.65}

    def run(cell, world, place):
        ran.append(cell)
        own = style.get(cell.arm.removeprefix("one: "), 0.3) + 0.01 * cell.spec["seed"]
        return {"scores": {"style_accuracy": own, "concept_top5": 0.8, "clip_s": 0.7}, "seconds": 1.0}

    monkeypatch.setattr(module, "run_cell", run)
    return ran


def test_image_sets_exclude_evaluation_concepts_and_folders_are_disjoint():
    evaluation = set(load_meta()["split"]["evaluation_concepts"])
    folders = [image_sets.entries(image_sets.styled([STYLE], (k, 3), 5)) for k in range(3)]
    concepts = [{entry.concept for entry in found} for found in folders]
    assert all(len(found) == 5 and not found & evaluation for found in concepts)
    assert not concepts[0] & concepts[1] and not concepts[1] & concepts[2]
    assert folders[0][0].caption.endswith(", hand-drawn comic sticker with dark thin outlines and a ground shadow")


def test_image_set_written_has_captions_and_images(tmp_path):
    data = image_sets.styled([STYLE], (0, 1), 4, "label") | {"translations": {}}
    data["translations"] = {e.caption: e.caption.upper() for e in image_sets.entries({**data, "translations": None})}
    rows = [json.loads(line) for line in (image_sets.write(data, tmp_path) / "metadata.jsonl").open()]
    assert [row["text"] for row in rows] == [row["teacher_text"].upper() for row in rows] and len(rows) == 4
    images = image_sets.images(data)
    assert np.array_equal(np.asarray(Image.open(tmp_path / rows[2]["file_name"])), images[2])
    assert image_sets.digest(data) != image_sets.digest({**data, "captions": "styled"})


def test_image_set_intruder_replaces_share_of_images_not_captions():
    data = image_sets.styled([STYLE], (0, 1), 10, "label")
    plain, mixed = image_sets.entries(data), image_sets.entries({**data, "intruder": ["bread", 0.3]})
    assert [e.caption for e in plain] == [e.caption for e in mixed]
    assert sum(a.concept != b.concept for a, b in zip(plain, mixed, strict=True)) == 3


def test_rotate_hue_keeps_greys_and_lightness():
    image = np.array([[[200, 30, 30], [90, 90, 90]]], np.uint8)
    turned = image_sets.rotate_hue(image, 120)
    assert turned[0, 0].argmax() == 1 and turned[0, 0].max() == 200 and (turned[0, 1] == 90).all()


def test_folder_world_units_share_training_data_of_mixed_folder(world):
    smoke, full = (world.units(size, "mixed") for size in ("smoke", "full"))
    assert len(smoke) == 3 and len(full) == 27 and len(world.units("smoke", "single")) == 1
    assert len({json.dumps(unit["data"]) for unit in smoke.values()}) == 1
    assert len({json.dumps(unit["data"]) for unit in full.values()}) == 3
    taught = next(iter(world.units("smoke", "taught").values()))
    assert taught["teacher"]["data"]["captions"] == "label" and "," not in taught["prompts"][0]
    assert world.reference_hash(taught) == taught["reference_sha256"]
    with pytest.raises(UserError, match="unknown cells 'some'"):
        world.units("some", "mixed")


def test_claims_with_invented_scores_are_reproduced(tiny_sd15, tmp_path, world, invented):
    result = reproduce(
        "styleinject", "full", ["I2", "I5"], str(tiny_sd15), tmp_path, world=world, log=lambda line: None
    )
    assert result["verdicts"] == {"I2": "reproduced", "I5": "not testable here"}
    entries = {entry["id"]: entry for entry in json.loads((tmp_path / "claims.json").read_text())}
    assert "no base mini-sd15-zh" in entries["I5"]["why"][0]
    assert entries["I1"]["readings"][3]["verdict"] == "not testable here"
    page = (tmp_path / "README.md").read_text()
    assert "**not testable here** (style for preference)" in page and ".8149 / .491 / .306" in page
    bases = [cell for cell in invented if cell.arm == "base"]
    assert len(bases) == 9 and all("settings" not in cell.spec["arm"] for cell in bases)  # not per folder


@pytest.mark.filterwarnings("ignore")
def test_run_cell_trains_a_folder_once_for_all_its_styles(tiny_sd15, tmp_path, world, monkeypatch):
    trained = []
    train = folder_jobs.train
    monkeypatch.setattr(folder_jobs, "train", lambda config: trained.append(config) or train(config))
    monkeypatch.setitem(styleinject.ARMS, "n 4", styleinject.on_folder("", styleinject.styleinject(2, 2), "mixed", 1))
    made = module.make_campaign("styleinject", str(tiny_sd15), tmp_path, world=world)
    results = [run_cell(cell, world, made.place) for cell in made.cells_of("n 4", "smoke")]
    assert len(results) == 3 and len(trained) == 1 and trained[0].adapter.n == 2 and trained[0].optim.batch == 8
    assert all({"clip_s", "kid"} <= set(one["scores"]) and "ssim_teacher" not in one["scores"] for one in results)
    assert results[0]["running"]
    claim = Claim("X", "", {}, (), sheet=("n 4", "n 4"))
    assert not save_sheet(made, replace(claim, sheet=("n 4", "base")), "smoke", tmp_path / "x.png")
    run_cell(made.cells_of("base", "smoke")[0], world, made.place)
    assert save_sheet(made, replace(claim, sheet=("n 4", "base")), "smoke", tmp_path / "x.png")
    assert Image.open(tmp_path / "x.png").width > 2 * 96


@pytest.mark.filterwarnings("ignore")
def test_run_cell_distils_and_compares_with_teacher(tiny_sd15, tmp_path, world, monkeypatch):
    settings = {**FEW, "adapter": "lora", "rank": 2, "targets": ("to_q",), "lr": 1e-3}
    monkeypatch.setitem(
        styleinject.ARMS, "student", styleinject.on_folder("", settings, "taught", 1, "distill", distill={})
    )
    made = module.make_campaign("styleinject", str(tiny_sd15), tmp_path, world=world)
    scores = {
        arm: run_cell(made.cells_of(arm, "smoke")[0], world, made.place)["scores"]
        for arm in ("teacher", "student", "untaught")
    }
    assert scores["teacher"]["ssim_teacher"] == pytest.approx(1, abs=1e-6)
    assert scores["student"]["ssim_teacher"] < 1 and scores["student"]["out_error"] > 0
    assert len(list(cache_dir("reproduce", made.family.hash[:12], "trained").glob("*/done"))) >= 2


@pytest.mark.filterwarnings("ignore")
def test_run_cell_distils_into_student_of_another_language(tiny_sd15, tmp_path, world, monkeypatch):
    folder = cache_dir("bases", styleinject.STUDENT_BASE)
    shutil.copytree(tiny_sd15, folder)
    labels = {concept["label"]: f"xx {concept['label']}" for concept in load_meta()["concepts"]}
    (folder / styleinject.LABELS).write_text(json.dumps(labels))
    try:
        monkeypatch.setattr(styleinject, "UNSHARED_STEPS", (1, 2, 1))
        monkeypatch.setitem(styleinject.STUDENTS, "student", ("", {**FEW, "adapter": "lora", "rank": 2, "lr": 1e-3}))
        world = replace(world, translations=styleinject.translations())
        made = module.make_campaign("styleinject", str(tiny_sd15), tmp_path, world=world)
        cells = {arm: made.cells_of(arm, "smoke")[0] for arm in ("unshared", "unshared: untaught")}
        scores = {arm: run_cell(cell, world, made.place)["scores"] for arm, cell in cells.items()}
    finally:
        shutil.rmtree(folder)
    assert scores["unshared"]["out_error"] > 0 and "feature_error" not in scores["unshared"]
    assert -1 <= scores["unshared: untaught"]["ssim_teacher"] < 1
    image = next((cache_dir("reproduce", made.family.hash[:12], cells["unshared"].name, "images")).glob("*.png"))
    assert read_png_metadata(image)["prompt"].startswith("xx ") and read_png_metadata(image)["base"] == str(folder)


@pytest.mark.filterwarnings("ignore")
def test_run_cell_binds_a_subject_with_prior_preservation(tiny_sd15, tmp_path, world, monkeypatch):
    settings = {**FEW, **styleinject.PRIOR, "prior.per_prompt": 1, "prior.batch": 1, "lr": 1e-3}
    arm = styleinject.on_folder("", {**settings, "adapter": "lora", "rank": 2}, "subject", 1)
    monkeypatch.setitem(styleinject.ARMS, "subject: n 4", arm)
    monkeypatch.setattr(subjects, "PLACED_IN", subjects.PLACED_IN[:1])
    made = module.make_campaign("styleinject", str(tiny_sd15), tmp_path, world=world)
    cell = made.cells_of("subject: n 4", "smoke")[0]
    found = run_cell(cell, world, made.place)["scores"]
    assert len(cell.spec["prompts"]) == 2 and cell.spec["prompts"][0].startswith("zwx guitar, ")
    assert cell.spec["data"]["captions"] == "zwx {label}, {style}" and len(cell.spec["data"]["prior"]) == 6
    assert found["clip_i_reference"] <= 1 and abs(found["subject"]) <= 2 and 0 <= found["concept_top5"] <= 1


def test_judge_reading_that_cannot_be_tested_says_so():
    claim = Claim(
        "T",
        "",
        {},
        (Reading("a", (more("x", "y"),)), Reading("b", untestable="no weights"), Reading("c", (more("x", "z"),))),
    )
    values = {"x": {"u": 1.0}, "y": {"u": 0.5}, "z": {}}
    seen = {name: Evidence({"style": values}, {"u": "u"}) for name in ("a", "c")}
    found = judge(claim, seen, {"style": Measure("s", 0.1)}, {"z": "no base"}, ["z"])
    assert [one["verdict"] for one in found] == ["undecided", "not testable here", "not testable here"]
    assert found[1]["why"] == ["no weights"] and found[2]["why"] == ["z is left out: no base"]


def test_neighbour_accuracy_separates_clusters_and_not_shuffled_labels():
    rng = np.random.default_rng(0)
    labels = [name for name in "abc" for _ in range(20)]
    x = np.repeat(np.eye(3) * 5, 20, axis=0) + rng.normal(size=(60, 3))
    assert neighbour_accuracy(x, labels) > 0.95
    assert neighbour_accuracy(x, [labels[i] for i in rng.permutation(60)]) < 0.6


def test_tsne_separates_clusters_that_mix_in_no_direction_of_the_plane():
    rng = np.random.default_rng(0)
    labels = [name for name in "abcdef" for _ in range(10)]
    x = np.repeat(np.eye(6) * 6, 10, axis=0) + rng.normal(size=(60, 6))
    y = tsne(x)
    assert y.shape == (60, 2) and neighbour_accuracy(y, labels) > 0.95 and np.array_equal(y, tsne(x))
    p = affinities(squared_distances(x), 5.0)
    assert p.sum() == pytest.approx(1) and np.allclose(p, p.T) and (np.diag(p) == 0).all()


def test_kernel_distance_is_zero_on_average_for_one_distribution():
    def draw(seed, shift=0.0):
        x = torch.randn(40, 8, generator=torch.Generator().manual_seed(seed))
        return torch.nn.functional.normalize(x + shift, dim=-1)

    same = np.mean([kernel_distance(draw(2 * i), draw(2 * i + 1)) for i in range(20)])
    assert abs(same) < 0.02 < kernel_distance(draw(0), draw(1, shift=1.0))


def test_paper_protocol_lists_cells_and_prompts(tiny_sd15, tmp_path):
    prompts = read_prompts()
    assert len(prompts) == 9 and len({p for own in prompts.values() for p in own}) == 200
    Image.new("RGB", (16, 16), "red").save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("a red square")
    settings = {"base": str(tiny_sd15), "out": tmp_path / "out", "protocol": "paper", "dry_run": True}
    with pytest.raises(UserError, match="needs --references DIR"):
        reproduce("styleinject", "full", **settings)
    world = replace(styleinject.paper_world(tmp_path, None, None), clip=FakeEncoder())
    del settings["protocol"]
    found = reproduce("styleinject", "full", world=world, log=print, **settings)
    assert found["arms"]["n 16"] == 36 and found["arms"]["lora 512"] == 36 and found["claims"] == ["I1", "I2", "I3"]
    spec = (
        module.make_campaign("styleinject", str(tiny_sd15), tmp_path / "out", world=world)
        .cells_of("n 16", "full")[0]
        .spec
    )
    assert spec["sampling"]["sampler"] == "euler-ancestral" and spec["sampling"]["guidance"] == 7.5
    assert spec["arm"]["settings"]["rank"] == 32 and spec["arm"]["settings"]["accumulate"] == 2


@pytest.mark.filterwarnings("ignore")
def test_paper_protocol_cell_runs(tiny_sd15, tmp_path, monkeypatch):
    monkeypatch.setattr(styleinject_paper, "SAMPLING", styleinject_paper.SAMPLING | {"steps": 2, "size": 16})
    arm = styleinject_paper.recipe("", steps=1, rank=2, batch=2, min_side=0, **{"adapter.n": 2})
    monkeypatch.setitem(styleinject_paper.ARMS, "n 4", arm)
    Image.new("RGB", (16, 16), "red").save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("a red square")
    world = replace(styleinject.paper_world(tmp_path, None, None), clip=FakeEncoder())
    made = module.make_campaign("styleinject", str(tiny_sd15), tmp_path / "out", world=world)
    result = run_cell(made.cells_of("n 4", "smoke")[0], world, made.place)
    assert 0 < result["scores"]["clip_s"] <= 2.5


def test_rates_are_those_of_the_table():
    arms = styleinject.ARMS
    assert arms["n 16"].settings["lr"] == styleinject.RATES["styleinject"]
    assert arms["lora 96"].settings["lr"] == styleinject.RATES["lora, large"]
    assert isinstance(arms["full"], Arm) and arms["full"].settings["adapter"] == "full"


def test_cells_name_their_data_by_content(world, tiny_sd15, tmp_path):
    made = module.make_campaign("styleinject", str(tiny_sd15), tmp_path, world=world)
    cell = made.cells_of("n 16", "smoke")[0]
    assert isinstance(cell, Cell) and str(Path.home()) not in json.dumps(cell.spec)
