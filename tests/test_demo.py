"""The demo on a tiny random base: all files, scores of both recipes, reuse, and its bad input."""

import json
from io import StringIO

import pytest
from fakes import FakeEncoder, FakeJudges
from PIL import Image
from rich.console import Console

from impasto import demo as module
from impasto.demo import GUIDED, demo
from impasto.errors import UserError

RECIPES = (*module.RECIPES, "keep-content")
pytestmark = pytest.mark.filterwarnings("ignore:the prompt is too long")  # for the tiny base's tokenizer of letters


def run(out, base, **more):
    settings = {
        "style": "unifont",
        "steps": 2,
        "count": 2,
        "strengths": (0.5,),
        "judges": FakeJudges(),
        "encoder": FakeEncoder(),
        "also": ("keep-content",),
    }
    return demo(out, base=str(base), console=Console(file=StringIO(), width=100), **(settings | more))


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_sd3):
    out = tmp_path_factory.mktemp("demo") / "runs"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IMPASTO_CACHE", str(out.parent / "cache"))
        return out, run(out, tiny_sd3)


def test_everything_is_there(finished):
    out, result = finished
    for name in ("reference.png", "scores.json", "grid.png", "report.html", "strengths.json", "base/images/0001.png"):
        assert (out / name).stat().st_size > 0
    for recipe in RECIPES:
        assert (out / recipe / "pytorch_lora_weights.safetensors").is_file()
        assert (out / recipe / "strength-0.5" / "0001.png").is_file()
    written = json.loads((out / "scores.json").read_text())
    assert written.keys() == {*RECIPES, "base", "true", "about"} and written == json.loads(json.dumps(result))
    for name in (*RECIPES, "base"):
        assert written[name]["images_scored"] == 2 and written[name]["style_accuracy"] is not None
        assert "images" not in written[name]
    for of in ("base", "true"):
        whole = result[of]["concept_top5"]
        assert result["about"][f"concept_top5_of_{of}"] == {
            name: result[name]["concept_top5"] / whole if whole else None for name in RECIPES
        }
    assert Image.open(out / "reference.png").size == (128, 128)


def test_all_recipes_have_equal_steps_prompts_and_seeds(finished, tiny_sd3):
    out, result = finished
    assert len(set(result["about"]["steps"].values())) == 1
    metas = [
        [json.loads(Image.open(out / name / "images" / f"{i:04d}.png").info["impasto"]) for i in range(2)]
        for name in ("base", *RECIPES)
    ]
    seen = [[(meta["prompt"], meta["seed"], meta["guidance"], meta["steps"]) for meta in one] for one in metas]
    assert all(one == seen[0] for one in seen) and len(seen) == 4
    guided = [meta[0].get("style_guidance") for meta in metas]
    assert guided == [None, *(GUIDED.get(name) for name in RECIPES)] and any(guided)
    assert metas[0][0]["prompt"].endswith(", 16 by 16 black and white pixel art")
    assert metas[0][0]["styles"] == [] and metas[1][0]["styles"][0]["strength"] == 1.0
    assert result["about"]["base"] == str(tiny_sd3)
    assert result["about"]["caption"] == "rabbit face, 16 by 16 black and white pixel art"
    assert "rabbit face" not in result["about"]["concepts"]


def test_trade_off_has_every_strength(finished):
    out, _ = finished
    sweep = json.loads((out / "strengths.json").read_text())
    assert [row["strength"] for row in sweep["style-friendly"]] == [0.5, 1.0] and "base" in sweep and "true" in sweep


def test_second_run_reuses_what_is_there(finished, tiny_sd3, monkeypatch):
    out, first = finished
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.png") if path.parent != out}

    def never(*args, **kwargs):
        raise AssertionError("drawn again")

    monkeypatch.setattr(module, "generate_folder", never)
    second = run(out, tiny_sd3)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert {k: v for k, v in first.items() if k != "about"} == {k: v for k, v in second.items() if k != "about"}


def test_another_spelling_or_recipe_keeps_what_is_there(tmp_path, tiny_sd3, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run("runs", tiny_sd3, also=())
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").glob("*/*/*.png")}
    assert len(before) == 2 * (1 + 2 * 2)  # of the base, and of two recipes at two strengths
    run(tmp_path / "runs", tiny_sd3)
    run("runs", tiny_sd3, also=())
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert (tmp_path / "runs" / "keep-content" / "images" / "0001.png").is_file()
    run("runs", tiny_sd3, also=(), steps=3)
    after = {path for path in before if path.is_file() and path.stat().st_mtime_ns == before[path]}
    assert after == {path for path in before if "base" in path.parts}


def test_other_settings_start_afresh(tmp_path, tiny_sd3):
    run(tmp_path / "runs", tiny_sd3)
    result = run(tmp_path / "runs", tiny_sd3, style="streamline-emojis", count=3, seed=7, strengths=(), also=())
    assert result["base"]["images_scored"] == 3 and result["about"]["reference"] == "pig face"
    assert not (tmp_path / "runs" / "style-friendly" / "strength-0.5").exists()
    assert not (tmp_path / "runs" / "keep-content").exists()
    for recipe in module.RECIPES:
        assert "seed = 7" in (tmp_path / "runs" / recipe / "recipe.toml").read_text()


@pytest.mark.parametrize("changes", [{"steps": 0}, {"seed": -1}, {"seed": 10**20}])
def test_bad_input_costs_no_demo(finished, tiny_sd3, changes):
    out, _ = finished
    before = {file: file.read_bytes() for file in out.rglob("*") if file.is_file()}
    with pytest.raises(UserError):
        run(out, tiny_sd3, **changes)
    assert {file: file.read_bytes() for file in out.rglob("*") if file.is_file()} == before


def test_all_that_there_is_where_that_is_less(tmp_path):
    plans = {style: module.make_plan(tmp_path, style, None, "mini-sd3", 0, None) for style in ("unifont", "ph")}
    assert len(plans["unifont"].prompts_for) == module.COUNT
    assert 10 < len(plans["ph"].prompts_for) < module.COUNT


def test_results_of_other_settings_go_with_their_pictures(tmp_path, tiny_sd3):
    run(tmp_path / "demo", tiny_sd3, also=(), strengths=())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "train_once", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "demo", tiny_sd3, also=(), strengths=(), seed=3)
    left = {file.name for file in (tmp_path / "demo").iterdir()}
    assert left == {"demo.json", "reference.png"}


def test_bad_input(tmp_path, tiny_sd3):
    with pytest.raises(UserError, match="did you mean 'unifont'"):
        run(tmp_path / "a", tiny_sd3, style="unifond")
    with pytest.raises(UserError, match="the base knows the style 'noto'"):
        run(tmp_path / "a", tiny_sd3, style="noto")
    with pytest.raises(UserError, match="no reference picture of 'rocket'"):
        run(tmp_path / "a", tiny_sd3, concept="rocket")
    with pytest.raises(UserError, match="did you mean 'keep-content'"):
        run(tmp_path / "a", tiny_sd3, also=("keep-contents",))
    with pytest.raises(UserError, match="count must be 1 to"):
        run(tmp_path / "a", tiny_sd3, count=99)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("dear")
    with pytest.raises(UserError, match="not empty and holds no demo"):
        run(tmp_path / "full", tiny_sd3)
    with pytest.raises(UserError, match="is a file"):
        run(tmp_path / "full" / "thesis.txt", tiny_sd3)
    assert not (tmp_path / "a").exists()
