"""The demo on a tiny random base: all files, scores of both recipes, reuse, and its bad input."""

import json
import shutil
from io import StringIO

import pytest
from fakes import FakeEncoder, FakeJudges
from PIL import Image
from rich.console import Console

from impasto import demo as module
from impasto.demo import demo, style_at
from impasto.errors import UserError

ALSO = "prior-preservation"
METHODS = ("default", "plain", "sd3-sampler", ALSO)
pytestmark = pytest.mark.filterwarnings("ignore:the prompt is too long")  # for the tiny base's tokenizer of letters
CARD = {"strength": 0.7, "style_guidance": 2.0, "negative": "style words"}


@pytest.fixture(scope="module")
def base(tmp_path_factory, tiny_sd3):
    """The tiny base with the card of an embedded one: a recipe and sampling defaults of its own."""
    folder = shutil.copytree(tiny_sd3, tmp_path_factory.mktemp("base") / "sd3")
    (folder / "impasto.json").write_text(json.dumps({"recipe": "style-friendly-128px", "style": CARD, "size": 16}))
    return folder


def run(out, base, **more):
    settings = {
        "style": "unifont",
        "steps": 2,
        "count": 2,
        "strengths": (0.5,),
        "judges": FakeJudges(),
        "encoder": FakeEncoder(),
        "also": (ALSO,),
    }
    return demo(out, base=str(base), console=Console(file=StringIO(), width=100), **(settings | more))


@pytest.fixture(scope="module")
def finished(tmp_path_factory, base):
    out = tmp_path_factory.mktemp("demo") / "runs"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IMPASTO_CACHE", str(out.parent / "cache"))
        return out, run(out, base)


def test_demo_writes_all_results(finished):
    out, result = finished
    for name in ("reference.png", "scores.json", "grid.png", "report.html", "strengths.json", "base/images/0001.png"):
        assert (out / name).stat().st_size > 0
    for recipe in ("style-friendly-128px", "sd3-sampler", ALSO):
        assert (out / recipe / "pytorch_lora_weights.safetensors").is_file()
    for folder in ("style-friendly-128px/images", "style-friendly-128px/guided-0.5", "style-friendly-128px/plain-1",
                   "sd3-sampler/plain-0.5", f"{ALSO}/images"):  # fmt: skip
        assert (out / folder / "0001.png").is_file()
    written = json.loads((out / "scores.json").read_text())
    assert written.keys() == {*METHODS, "base", "true", "about"} and written == json.loads(json.dumps(result))
    for name in (*METHODS, "base"):
        assert written[name]["images_scored"] == 2 and written[name]["style_accuracy"] is not None
        assert "images" not in written[name]
    assert Image.open(out / "reference.png").size == (128, 128)
    page = (out / "report.html").read_text()
    assert (
        len(result["about"]["sentences"]) == 2 and "At equal text" in page and "as plain diffusers samples it" in page
    )
    assert "on your own image: impasto compare" in page


def test_demo_methods_differ_only_in_sampling(finished, base):
    out, result = finished
    assert len(set(result["about"]["steps"].values())) == 1
    folders = ("base/images", "style-friendly-128px/images", "style-friendly-128px/plain-1", "sd3-sampler/plain-1")
    metas = [
        [json.loads(Image.open(out / name / f"{i:04d}.png").info["impasto"]) for i in range(2)] for name in folders
    ]
    seen = [[(meta["prompt"], meta["seed"], meta["guidance"], meta["steps"]) for meta in one] for one in metas]
    assert all(one == seen[0] for one in seen)
    words = "16 by 16 black and white pixel art"
    used = [(one[0].get("style_guidance"), one[0]["negative_prompt"]) for one in metas]
    assert used == [(None, ""), (2.0, words), (0.0, ""), (0.0, "")]
    assert [one[0]["styles"][0]["strength"] for one in metas[1:]] == [0.7, 1.0, 1.0]
    assert metas[0][0]["prompt"].endswith(f", {words}") and metas[0][0]["styles"] == []
    about = result["about"]
    assert about["methods"]["default"] == {"recipe": "style-friendly-128px", "base_guidance": 0.0, **CARD}
    assert about["methods"]["plain"]["style_guidance"] == 0.0 and about["base"] == str(base)
    assert about["caption"] == f"rabbit face, {words}" and "rabbit face" not in about["concepts"]


def test_demo_curves_have_all_strengths(finished):
    out, result = finished
    sweep = json.loads((out / "strengths.json").read_text())
    assert [row["strength"] for row in sweep["plain"]] == [0.5, 1.0] and "base" in sweep and "true" in sweep
    assert [row["strength"] for row in sweep["default"]] == [0.5, 0.7]
    assert result["about"]["equal_text"]["style"].keys() == set(METHODS)


@pytest.mark.parametrize(("level", "style"), [(0.5, 0.4), (0.6, 0.3), (0.9, 0.0), (0.95, None), (0.2, 0.8), (0.3, 0.7)])
def test_style_at_interpolates_curve(level, style):
    """The base, then two strengths; more text than any has no style, less than all the most."""
    found = style_at([(0.9, 0.0), (0.5, 0.4), (0.2, 0.8)], level)
    assert found == style if style is None else found == pytest.approx(style, abs=1e-9 if level != 0.3 else 0.04)


def test_demo_repeated_reuses_results(finished, base, monkeypatch):
    out, first = finished
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.png") if path.parent != out}

    def never(*args, **kwargs):
        raise AssertionError("drawn again")

    monkeypatch.setattr(module, "generate_folder", never)
    second = run(out, base)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert {k: v for k, v in first.items() if k != "about"} == {k: v for k, v in second.items() if k != "about"}


def test_demo_with_other_sampling_keeps_training(tmp_path, base):
    other = shutil.copytree(base, tmp_path / "base")
    run(tmp_path / "runs", other, also=())
    out = tmp_path / "runs/style-friendly-128px"
    kept = {f: f.stat().st_mtime_ns for f in (out / "pytorch_lora_weights.safetensors", out / "plain-1/0001.png")}
    (other / "impasto.json").write_text((base / "impasto.json").read_text().replace("0.7", "0.6"))
    result = run(tmp_path / "runs", other, also=())
    assert {file: file.stat().st_mtime_ns for file in kept} == kept
    assert result["about"]["methods"]["default"]["strength"] == 0.6
    assert json.loads(Image.open(out / "images/0000.png").info["impasto"])["styles"][0]["strength"] == 0.6


def test_demo_with_further_recipe_keeps_results(tmp_path, base, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run("runs", base, also=())
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").glob("*/*/*.png")}
    assert len(before) == 2 * (1 + 3 * 2)  # of the base, and of three methods at two strengths
    run(tmp_path / "runs", base)
    run("runs", base, also=())
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert (tmp_path / "runs" / ALSO / "images" / "0001.png").is_file()
    run("runs", base, also=(), steps=3)
    after = {path for path in before if path.is_file() and path.stat().st_mtime_ns == before[path]}
    assert after == {path for path in before if "base" in path.parts}


def test_demo_with_other_settings_starts_again(tmp_path, base):
    run(tmp_path / "runs", base)
    result = run(tmp_path / "runs", base, style="streamline-emojis", count=3, seed=7, strengths=(), also=())
    assert result["base"]["images_scored"] == 3 and result["about"]["reference"] == "pig face"
    assert not (tmp_path / "runs" / "sd3-sampler" / "plain-0.5").exists()
    assert not (tmp_path / "runs" / ALSO).exists()
    for recipe in ("style-friendly-128px", "sd3-sampler"):
        assert "seed = 7" in (tmp_path / "runs" / recipe / "recipe.toml").read_text()


@pytest.mark.parametrize("changes", [{"steps": 0}, {"seed": -1}, {"seed": 10**20}])
def test_demo_with_bad_input_keeps_results(finished, base, changes):
    out, _ = finished
    before = {file: file.read_bytes() for file in out.rglob("*") if file.is_file()}
    with pytest.raises(UserError):
        run(out, base, **changes)
    assert {file: file.read_bytes() for file in out.rglob("*") if file.is_file()} == before


def test_make_plan_default_count_is_limited_by_concepts(tmp_path):
    plans = {style: module.make_plan(tmp_path, style, None, "mini-sd3", 0, None) for style in ("unifont", "ph")}
    assert len(plans["unifont"].prompts_for) == module.COUNT
    assert 10 < len(plans["ph"].prompts_for) < module.COUNT


def test_demo_with_other_settings_removes_results(tmp_path, base):
    run(tmp_path / "demo", base, also=(), strengths=())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "train_once", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "demo", base, also=(), strengths=(), seed=3)
    left = {file.name for file in (tmp_path / "demo").iterdir()}
    assert left == {"demo.json", "reference.png"}


def test_demo_with_bad_input_raises(tmp_path, base):
    with pytest.raises(UserError, match="did you mean 'unifont'"):
        run(tmp_path / "a", base, style="unifond")
    with pytest.raises(UserError, match="the base was trained on the style 'noto'"):
        run(tmp_path / "a", base, style="noto")
    with pytest.raises(UserError, match="no reference image of 'rocket'"):
        run(tmp_path / "a", base, concept="rocket")
    with pytest.raises(UserError, match="did you mean 'prior-preservation'"):
        run(tmp_path / "a", base, also=("prior-preservations",))
    with pytest.raises(UserError, match="count must be 1 to"):
        run(tmp_path / "a", base, count=99)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("dear")
    with pytest.raises(UserError, match="not empty and not a demo"):
        run(tmp_path / "full", base)
    with pytest.raises(UserError, match="is a file"):
        run(tmp_path / "full" / "thesis.txt", base)
    assert not (tmp_path / "a").exists()
