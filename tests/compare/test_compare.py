"""A comparison on a tiny base that really trains, generates and scores; and its parts on known numbers."""

import json
from dataclasses import replace

import pytest
from fakes import FakeEncoder
from PIL import Image

from impasto import generation
from impasto.compare import cells as cells_module
from impasto.compare import compare, comparison
from impasto.compare.cells import Instruments
from impasto.compare.methods import find_method, find_methods
from impasto.compare.references import collect, read_file
from impasto.compare.table import make_rows, reference_row
from impasto.errors import UserError

PROMPTS = ("a cat in {style}", "a star in {style}")


@pytest.fixture
def go(tiny_sd3, picture, tmp_path, monkeypatch):
    """`compare` with two prompts and an encoder of mean colours. Lists what was trained."""
    monkeypatch.setattr(cells_module, "encoder", lambda name: FakeEncoder())
    trained = []
    real = cells_module.train

    def train(config):
        trained.append(config.recipe)
        return real(replace(config, adapter=replace(config.adapter, rank=2)))

    monkeypatch.setattr(cells_module, "train", train)

    def run(*names, **more):
        own = {"base": str(tiny_sd3), "image": (picture,), "caption": ("a rocket in neon style",), "prompt": PROMPTS}
        own |= {"clip": "fake", "steps": 1, "sampling_steps": 2, "log": lambda line: None}
        return compare(names, tmp_path / "cmp", **{**own, **more})

    run.trained, run.out = trained, tmp_path / "cmp"
    return run


def test_compare_runs_once_and_shows_all_methods(go, monkeypatch):
    """Each cell loads its base once for all strengths, and embeds each image once."""
    opened, embedded, real = [], [], generation.open_session
    monkeypatch.setattr(generation, "open_session", lambda *args, **more: opened.append(more) or real(*args, **more))
    plain = FakeEncoder.images
    monkeypatch.setattr(FakeEncoder, "images", lambda self, images: embedded.extend(images) or plain(self, images))
    result = go("style-friendly", "style-aligned", "prompt")
    assert result["failed"] == [] and result["run"] == 3 and go.trained == ["style-friendly"]
    assert len(opened) == 3
    pixels = [image.tobytes() for image in embedded]
    images = [Image.open(file).tobytes() for file in go.out.glob("cells/style-friendly--*/*/0*.png")]
    assert len(set(images)) == 10 and all(pixels.count(one) == 1 for one in images)
    table = json.loads((go.out / "table.json").read_text())
    rows = {row["recipe"]: row for row in table["rows"]}
    assert rows.keys() == {"style-friendly", "style-aligned", "prompt"}
    own = rows["style-friendly"]
    assert [point["strength"] for point in own["curve"]] == [0.5, 0.75, 1.0, 1.25, 1.5]
    assert own["train_seconds"] > 0 and own["bytes"] > 1000 and own["peak_memory_gb"] > 0.1
    assert rows["prompt"]["train_seconds"] is None and rows["prompt"]["seconds_per_image"] > 0
    assert len(rows["prompt"]["curve"]) == 1 and table["instruments"]["style"].endswith("(fake)")
    page = (go.out / "index.html").read_text()
    assert "style against text" in page and "a rocket in neon style" in page and (go.out / "grid.png").is_file()
    files = {file: file.stat().st_mtime_ns for file in go.out.glob("cells/*/*/0000.png")}
    again = go("style-friendly", "style-aligned", "prompt", "sd3-sampler")
    assert again["done_before"] == 3 and again["run"] == 1 and go.trained == ["style-friendly", "sd3-sampler"]
    assert all(file.stat().st_mtime_ns == time for file, time in files.items())


def test_compare_dry_run_lists_cells_and_writes_nothing(go):
    result = go("style-friendly", "prompt", dry_run=True, seeds=2)
    assert len(result["to_run"]) == 4 and result["minutes"] is not None and not go.out.exists()


def test_compare_equal_seconds_gives_steps_by_measured_time(go, monkeypatch):
    measured = []

    def step_seconds(method, reference, setting):
        measured.append(method.name)
        return {"style-friendly": 0.5, "dco": 1.0}[method.name]

    monkeypatch.setattr(comparison, "step_seconds", step_seconds)
    own = {"equal": "seconds", "steps": None}
    assert go("style-friendly", "dco", "prompt", dry_run=True, seconds=2.0, **own)["steps"] == {
        "style-friendly": 4,
        "dco": 2,
    }
    assert go("style-friendly", "dco", steps=2, dry_run=True, equal="seconds")["steps"] == {
        "style-friendly": 2,
        "dco": 1,
    }
    measured.clear()
    monkeypatch.setattr(comparison, "run_cell", lambda *args: {})
    for _ in range(2):
        assert go("style-friendly", "dco", seconds=2.0, **own)["steps"]["dco"] == 2
    assert measured == ["style-friendly", "dco"]  # kept in steps.json


def test_compare_recipe_that_cannot_run_is_named_before_anything_starts(go):
    """The tiny base is no U-Net with a learned token's text tower for inversion: instastyle's caption fails."""
    flawed = {"caption": ("rocket",), "prompt": ("a cat in neon style", "a star in neon style")}
    with pytest.raises(UserError, match=r"instastyle: .*style words.*--skip"):
        go("prompt", "instastyle", **flawed)
    assert not go.out.exists()
    result = go("prompt", "instastyle", skip=True, **flawed)
    assert list(result["skipped"]) == ["instastyle"] and result["run"] == 1


def test_compare_interrupted_cell_resumes(go, monkeypatch):
    real = cells_module.score_images

    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(cells_module, "score_images", interrupted)
    with pytest.raises(KeyboardInterrupt, match="0 of 1 cells"):
        go("style-friendly")
    monkeypatch.setattr(cells_module, "score_images", real)
    assert go("style-friendly")["run"] == 1 and go.trained == ["style-friendly"]  # the training is there


def test_compare_cell_of_another_process_is_run_last(go, monkeypatch):
    calls = []

    def run_cell(cell, setting, wait):
        calls.append((cell.method.name, wait))
        return {"busy": True} if cell.method.name == "prompt" and not wait else {}

    monkeypatch.setattr(comparison, "run_cell", run_cell)
    go("prompt", "style-friendly")
    assert calls == [("prompt", False), ("style-friendly", False), ("prompt", True)]


def test_find_methods_unknown_name_offers_nearest(tmp_path):
    with pytest.raises(UserError, match="style-friendly"):
        find_method("style-frendly")
    with pytest.raises(UserError, match="given twice"):
        find_methods(["prompt", "prompt"])
    assert reference_row(find_methods(["prompt", "dco"]), None) == "dco"
    with pytest.raises(UserError, match="among the methods"):
        reference_row(find_methods(["prompt"]), "dco")


def collect_one(image, caption, prompts=(), **more):
    own = {"images": [image], "captions": [caption], "file": None, "art": (), "per_style": 1, "style_of": None}
    return collect(**{**own, "prompts": prompts, "count": 24, **more})


def test_collect_references_of_any_size_and_own_prompts(tmp_path):
    wide = tmp_path / "wide.png"
    Image.new("RGB", (300, 90), "red").save(wide)
    (found,) = collect_one(wide, "a rocket in neon style")
    assert len(found.prompts) == 8 and found.prompts[0] == "a cat in neon style" and found.concept == "rocket"
    assert collect_one(wide, "a rocket in neon style", PROMPTS)[0].prompts[0] == "a cat in neon style"
    with pytest.raises(UserError, match="--prompt"):
        collect_one(wide, "rocket")
    with pytest.raises(UserError, match="one caption for each image"):
        collect_one(wide, "x", captions=[])


def test_collect_art_style_has_true_prompts_of_evaluation_concepts():
    found = collect_one(None, None, images=[], captions=[], art=("unifont",), per_style=3)
    assert len(found) == 3 and all(len(one.prompts) == 24 for one in found)
    assert found[0].name == f"unifont, {found[0].concept}" and len({one.concept for one in found}) == 3


def test_read_file_unknown_key_is_named(tmp_path):
    file = tmp_path / "references.toml"
    file.write_text('[[references]]\nimage = "a.png"\ncaptoin = "x"\n')
    with pytest.raises(UserError, match="caption"):
        read_file(file)


def test_instruments_foreign_base_needs_an_encoder(tiny_sd3, picture):
    found = collect_one(picture, "a rocket in neon style")
    with pytest.raises(UserError, match="--clip openai"):
        comparison.instruments(str(tiny_sd3), found, "clip", None)
    assert not comparison.instruments("mini-sd15", found, "clip", None).judged
    art = collect_one(None, None, images=[], captions=[], art=("unifont",))
    assert comparison.instruments("mini-sd15", art, "clip", None).judged
    assert "style judge" in Instruments(True).describe()["style"]


def test_make_rows_ranks_at_text_of_reference_row():
    methods = find_methods(["style-friendly", "dco", "prompt"])

    def content(points):
        factors = [0.75, 1.0] if len(points) > 1 else [1.0]
        rows = [{"factor": f, "strength": f, "style": s, "text": t} for f, (t, s) in zip(factors, points, strict=True)]
        rows = [row | {"leakage": None, "diversity": 0.5} for row in rows]
        return {"curve": rows, "train_seconds": 2.0, "seconds_per_image": 0.1, "peak_memory_gb": 1.0, "bytes": 10}

    done = {
        "style-friendly": {"x": (None, content([(0.8, 0.3), (0.6, 0.5)]))},
        "dco": {"x": (None, content([(0.7, 0.5), (0.5, 0.9)]))},
        "prompt": {"x": (None, content([(0.5, 0.0)]))},
    }
    table = make_rows(methods, done, "style-friendly")
    assert [row["recipe"] for row in table["rows"]] == ["dco", "style-friendly", "prompt"]
    assert table["text"] == 0.6 and table["rows"][0]["equal_text"]["style"] == pytest.approx(0.7)
    assert table["rows"][2]["equal_text"]["reaches"] is False and table["rows"][2]["equal_text"]["rank"] is None
    assert table["rows"][0]["scores"]["leakage"] is None and table["rows"][0]["scores"]["style"]["mean"] == 0.9
