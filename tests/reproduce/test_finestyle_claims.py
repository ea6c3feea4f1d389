"""Claims on scenes: units, training pairs, scores; a campaign with invented scores; the paper's protocol."""

import json
from dataclasses import replace

import numpy as np
import pytest
from fakes import FakeEncoder, FakeJudges, draw
from PIL import Image

from impasto.artworld import concept_index, load_meta
from impasto.data.concepts import Concept, ConceptFile, read_concepts
from impasto.errors import UserError
from impasto.files import cache_dir
from impasto.guidance.config import StyleSemantics
from impasto.regions import find_concepts
from impasto.reproduce import campaign as module
from impasto.reproduce import finestyle, finestyle_jobs, finestyle_paper, reproduce
from impasto.reproduce.cells import Cell
from impasto.reproduce.finestyle_world import SceneWorld, ground_accuracy, harmonic_mean
from impasto.reproduce.runner import run_cell
from impasto.reproduce.scenes import scene_of, triples

STYLE = "streamline-emojis"
FEW = {"method": "fit", "steps": 1, "batch": 2, "accumulate": 1}
THINGS = (Concept("bus", box=(0, 0, 100, 80)), Concept("cat", box=(150, 100, 250, 250)))
FOUND = ConceptFile(
    *("0" * 64, 256, 256, "base", "error", "a bus and a cat, ink, on a navy background", "ink", "{concept}, {style}"),
    (*THINGS, Concept("navy background", "attribute")),
)


@pytest.fixture
def world():
    return SceneWorld(judges=FakeJudges(), limit=3)


def test_references_have_different_kinds_of_things_none_twice():
    concepts = load_meta()["concepts"]
    for style in ("fluent-emoji-3d", STYLE, "unifont"):
        found = triples(style)
        assert len({label for own in found for label in own}) == 9
        assert all(len({concepts[concept_index(label)]["group"] for label in own}) == 3 for own in found)
    assert [scene_of(STYLE, k)["ground"] for k in range(3)] == ["white", "lime green", "maroon"]
    assert scene_of("unifont", 2)["ground"] not in ("navy", "maroon", "forest green", "charcoal"), "black ink"


def test_units_of_smoke_and_full_name_the_ground_and_what_is_asked(world):
    assert len(world.units("smoke", "scene")) == 1 and len(world.units("full", "scene")) == 27
    ground = next(iter(world.units("smoke", "ground").values()))
    assert ground["caption"].endswith(", on a lime green background") and ground["grounds"] == [
        "white",
        "lime green",
        "red",
    ]
    assert ground["prompts"][2].endswith(", on a red background")
    subset = next(iter(world.units("smoke", "subset").values()))
    assert len(subset["prompts"]) == 12 and subset["asked"][0] == subset["scene"]["things"][:1]
    assert subset["prompts"][-1].startswith("a bus and a cookie, ")
    with pytest.raises(UserError, match="unknown cells 'some'"):
        world.units("some", "scene")


def test_near_prompts_share_the_kind_of_a_thing_and_far_ones_no_group():
    concepts, world = load_meta()["concepts"], SceneWorld()
    units = {where: next(iter(world.units("full", where).values())) for where in ("near", "middle", "far")}
    things = [concepts[concept_index(label)] for label in units["near"]["scene"]["things"]]
    kinds, groups = ({thing[key] for thing in things} for key in ("subgroup", "group"))
    asked = {where: [concepts[concept_index(own[0])] for own in unit["asked"]] for where, unit in units.items()}
    assert all(one["subgroup"] in kinds for one in asked["near"]) and len(asked["near"]) == 16
    assert all(one["subgroup"] not in kinds and one["group"] in groups for one in asked["middle"])
    assert all(one["group"] not in groups for one in asked["far"])
    assert not {one["label"] for one in asked["near"]} & set(units["near"]["scene"]["things"])


def test_variant_of_concepts_moves_boxes_or_leaves_out_names():
    moved = finestyle_jobs.variant(FOUND, "random", 7)
    for before, after in zip(FOUND.concepts, moved.concepts, strict=True):
        if before.box is None:
            assert after.box is None
            continue
        a, b = before.box, after.box
        assert b is not None and a != b and (a[2] - a[0], a[3] - a[1]) == (b[2] - b[0], b[3] - b[1])
        assert min(b) >= 0 and max(b) <= 256
    assert moved == finestyle_jobs.variant(FOUND, "random", 7) != finestyle_jobs.variant(FOUND, "random", 8)
    assert finestyle_jobs.variant(FOUND, "nameless", 7).sub_prompt(FOUND.concepts[0]) == "ink"
    assert finestyle_jobs.variant(FOUND, "found", 7) == FOUND


def test_region_iou_counts_a_missing_thing_as_0():
    true = {"bus": (0, 0, 100, 80), "dog": (0, 0, 10, 10)}
    assert finestyle_jobs.region_iou(FOUND, true) == 0.5


def test_guidance_of_an_arm_by_numbers_preset_or_none():
    spec = {"sampling": {"guidance": 4.0}, "words": "ink"}
    assert finestyle_jobs.guidance_of({}, spec) is None
    assert finestyle_jobs.guidance_of({"weights": "styledrop"}, spec) == StyleSemantics(2.0, 0.0, 3.0, "", "")
    own = finestyle_jobs.guidance_of(finestyle.OWN, spec)
    assert own == StyleSemantics(3.0, 2.0, 3.0, "", "ink")


def test_ground_is_the_nearest_of_the_colours_that_were_asked():
    images = [Image.new("RGB", (32, 32), colour) for colour in ((250, 240, 240), (200, 40, 50), (90, 170, 230))]
    for image in images:
        image.paste((0, 0, 0), (8, 8, 24, 24))
    assert ground_accuracy(images, ["white", "red", "sky blue"]) == 1
    assert ground_accuracy(images, ["white", "white", "sky blue"]) == pytest.approx(2 / 3)


def test_harmonic_mean_of_zero_is_zero():
    assert harmonic_mean(0.0, 0.0) == 0 and harmonic_mean(0.5, 1.0) == pytest.approx(2 / 3)


def test_scores_measure_style_text_and_the_leak_of_unprompted_things(world, tmp_path, monkeypatch):
    spec = {**next(iter(world.units("smoke", "scene").values())), "base": "b", "sampling": {}}
    thing, style = concept_index(spec["scene"]["things"][0]), load_meta()["style_names"].index(STYLE)
    asked = [concept_index(own[0]) for own in spec["asked"]]
    monkeypatch.setattr(finestyle_jobs, "base_folder", lambda spec: tmp_path / "base")
    for i, concept in enumerate(asked):
        draw(tmp_path / "base" / "images" / f"{i:04d}.png", 0, concept)
        draw(tmp_path / "cell" / "images" / f"{i:04d}.png", style, thing if i == 0 else concept)
    scores = world.scores(tmp_path / "cell" / "images", spec, None)
    assert scores["style_accuracy"] == 1 and scores["concept_top5"] == pytest.approx(2 / 3)
    assert scores["harmonic_mean"] == pytest.approx(0.8)
    assert scores["leak"] > 0 and scores["leak_shown"] == pytest.approx(1 / 9)


@pytest.mark.filterwarnings("ignore:the prompt is too long")
def test_cell_of_a_scene_trains_once_for_all_weights(tiny_sd15, monkeypatch, world, tmp_path):
    """Two arms of the same training and other weights; the base's images are shared, the regions are found."""
    boxes = [(0, 0, 90, 90), (100, 0, 190, 90), (0, 100, 90, 190)]  # a tiny base's attention finds nothing
    monkeypatch.setattr(
        finestyle_jobs,
        "find_concepts",
        lambda image, caption, base, family, **options: find_concepts(
            image, caption, base, boxes=boxes, style_words=options["style_words"]
        ),
    )
    trainings, train = [], finestyle_jobs.trained.__globals__["train"]
    monkeypatch.setitem(finestyle_jobs.trained.__globals__, "train", lambda c: (trainings.append(c), train(c)))
    arms = {
        "own": finestyle.trained("own", pairs="found", settings=FEW, **finestyle.OWN),
        "drop": finestyle.trained("drop", pairs="found", settings=FEW, weights="styledrop"),
    }
    campaign = module.make_campaign("finestyle", str(tiny_sd15), tmp_path, world=world).with_arms(arms)
    cells: list[Cell] = [campaign.cells_of(arm, "smoke")[0] for arm in arms]
    scores = [run_cell(cell, world, campaign.place)["scores"] for cell in cells]
    assert len(trainings) == 1 and trainings[0].data.concept_file is not None
    assert all({"style_accuracy", "concept_top5", "leak", "region_iou"} <= own.keys() for own in scores)
    files = [cache_dir("reproduce", c.spec["base"][:12], c.name, "images", "0000.png") for c in cells]
    assert np.any(np.asarray(Image.open(files[0])) != np.asarray(Image.open(files[1])))
    assert json.loads(Image.open(files[1]).info["impasto"])["style_semantics"]["lambda1"] == 2.0
    found = read_concepts(trainings[0].data.concept_file)
    assert [concept.box for concept in found.concepts] == boxes


def test_claims_with_invented_scores_follow_the_rule(tiny_sd15, tmp_path, monkeypatch):
    def run(cell, world, place):
        good = cell.arm == "finestyle"
        own = {"style_accuracy": 0.6 if good else 0.4, "concept_top5": 0.7, "leak": 0.0 if good else 0.5}
        return {"scores": own | {"harmonic_mean": 0.65 if good else 0.5}, "seconds": 1.0}

    monkeypatch.setattr(module, "run_cell", run)
    world = SceneWorld(judges=FakeJudges())
    result = reproduce("finestyle", "full", ["F1", "F8"], str(tiny_sd15), tmp_path, world=world, log=lambda line: None)
    assert result["verdicts"] == {"F1": "reproduced", "F8": "reproduced"} and result["wanted"] == 6 * 27


def test_lambda_contrasts_of_f4_add_up_to_zero_over_the_grid():
    compares = [
        compare for claim in finestyle.CLAIMS if claim.id == "F4" for r in claim.readings for compare in r.compares
    ]
    for compare in compares:
        assert sum(compare.weights.values()) == pytest.approx(0) and len(compare.weights) == 6
    assert compares[0].weights["(3, 0)"] > 0 > compares[0].weights["(0, 5)"]
    assert compares[1].weights["(0, 5)"] > 0 > compares[1].weights["(3, 0)"]


def test_every_claim_names_known_arms():
    assert {arm for claim in finestyle.CLAIMS for arm in claim.arms} <= finestyle.ARMS.keys()
    paper = finestyle_paper.claims(finestyle.CLAIMS)
    assert {arm for claim in paper for arm in claim.arms} <= finestyle_paper.ARMS.keys()


# The paper's protocol


@pytest.fixture
def paper_folder(tmp_path, picture):
    (tmp_path / "prompts.txt").write_text("A cat, animals\n\nA boat, vehicles\n")
    Image.open(picture).save(tmp_path / "house.png")
    style = {"image": "house.png", "caption": "a house and a tree in ink drawing style", "words": "ink drawing"}
    (tmp_path / "styles.json").write_text(json.dumps({"ink": style}))
    return tmp_path


def test_paper_protocol_units_complete_the_prompts_with_the_style(paper_folder):
    world = finestyle_paper.make_world(paper_folder, None, None)
    units = world.units("full", "prompts")
    assert list(units) == [f"ink, {seed}" for seed in range(8)]
    assert units["ink, 0"]["prompts"] == [
        "A cat, animals, in ink drawing style",
        "A boat, vehicles, in ink drawing style",
    ]


def test_paper_protocol_scores_text_style_and_leak(paper_folder, tmp_path):
    world = replace(finestyle_paper.make_world(paper_folder, None, None), clip=FakeEncoder())
    spec = world.units("smoke", "prompts")["ink, 0"]
    for i in range(2):
        draw(tmp_path / "images" / f"{i:04d}.png", 3, 5)
    scores = world.scores(tmp_path / "images", spec, paper_folder / "house.png")
    assert set(scores) == {"clip_text", "clip_style", "harmonic_mean", "clip_leak"}
    assert min(scores["clip_text"], scores["clip_style"]) <= scores["harmonic_mean"] <= max(scores.values())


def test_paper_protocol_without_its_files_raises_one_line(paper_folder, tmp_path):
    with pytest.raises(UserError, match=r"needs --references DIR with prompts.txt and styles.json"):
        finestyle_paper.make_world(None, None, None)
    (paper_folder / "styles.json").write_text('{"ink": {"image": "house.png"}}')
    with pytest.raises(UserError, match="the style 'ink' lacks caption, words"):
        finestyle_paper.make_world(paper_folder, None, None)
    (paper_folder / "prompts.txt").write_text("\n")
    with pytest.raises(UserError, match="has no prompt"):
        finestyle_paper.make_world(paper_folder, None, None)


@pytest.mark.filterwarnings("ignore:the prompt is too long", "ignore:crops of concepts", "ignore:.*will be enlarged")
def test_paper_protocol_cell_trains_by_the_method_once_per_style(tiny_sd15, paper_folder, tmp_path, monkeypatch):
    trainings, train = [], finestyle_jobs.trained.__globals__["train"]
    monkeypatch.setitem(finestyle_jobs.trained.__globals__, "train", lambda c: (trainings.append(c), train(c)))
    world = replace(finestyle_paper.make_world(paper_folder, None, None), clip=FakeEncoder())
    settings = {"steps": 1, "batch": 1, "accumulate": 1, "method.boxes": "0,0,18,18; 20,20,38,38"}
    arms = {"own": finestyle_paper.recipe("own", "finestyle", settings, "finestyle")}
    campaign = module.make_campaign("finestyle", str(tiny_sd15), tmp_path / "out", world=world).with_arms(arms)
    monkeypatch.setattr(finestyle_paper, "SIZES", {"smoke": (1, 1, 2)})
    scores = [run_cell(cell, world, campaign.place)["scores"] for cell in campaign.cells_of("own", "smoke")]
    assert len(scores) == 2 and len(trainings) == 1 and trainings[0].method.style_words == "ink drawing"
    assert all({"clip_text", "clip_style", "clip_leak"} <= own.keys() for own in scores)
