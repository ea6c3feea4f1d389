"""Checkpoint x strength: the right adapter at the right strength in each cell."""

import json
import warnings

import pytest
from PIL import Image
from safetensors.torch import load_file

from impasto.bases import loader
from impasto.config import change, resolve
from impasto.errors import UserError
from impasto.generation import generate
from impasto.sampling.output import drawn_here
from impasto.sampling.png import save_png
from impasto.sampling.sample import Sampling
from impasto.training import sheet as checkpoints
from impasto.training.checkpoints import read_adapter
from impasto.training.train import train

ABOUT = {"steps": 1, "guidance": 1.0, "width": 40, "height": 40, "base": "x", "base_hash": "x", "styles": []}
ABOUT |= {"version": "0"}


@pytest.fixture(scope="module")
def run(tiny_sd3, picture, tmp_path_factory):
    out = tmp_path_factory.mktemp("sheet") / "run"
    keys = {"image": [str(picture)], "caption": ["a rocket in ink style"], "rank": 2, "lr": 0.05, "batch": 1}
    keys |= {"steps": 4, "checkpoint_every": 2, "keep": 0, "preview": False, "tensorboard": False, "ema": 0.5}
    config = resolve("style-friendly", str(tiny_sd3), out=str(out), **keys)
    train(config)
    return config


def test_every_cell_is_what_generate_draws(run, monkeypatch):
    cells = {}
    monkeypatch.setattr(
        checkpoints, "sheet", lambda rows, *args, **more: cells.update(rows) or Image.new("RGB", (9, 9))
    )
    seen = []

    def note(phase, *at):
        seen.append(at)

    result = checkpoints.checkpoint_sheet(
        run.out, ["a cat"], (0.5, 1.0), seed=7, progress=lambda phase, *at: seen.append(at)
    )
    assert list(cells) == ["step 2", "step 4"] and seen[-1][0] == seen[-1][1] == 4 * result["sampling_steps"]
    for column, strength in enumerate((0.5, 1.0)):
        ((true, _),) = generate(
            run.base, ["a cat"], styles=[f"{run.out}:{strength}"], seed=7, sampling=Sampling(size=16)
        )
        difference = [abs(a - b) for a, b in zip(cells["step 4"][column].tobytes(), true.tobytes(), strict=True)]
        assert max(difference) <= 1  # grey levels
    drawn = [picture.tobytes() for row in cells.values() for picture in row]
    assert len(set(drawn)) == 4
    about = json.loads((run.out / "sheet.json").read_text())
    assert about["steps"] == [2, 4] and about["strengths"] == [0.5, 1.0] and about["seed"] == 7
    assert result["out"] == str(run.out / "sheet.png") and Image.open(result["out"]).size == (9, 9)


def test_the_sheet_itself_by_command(run, tmp_path, monkeypatch, capsys):
    from impasto.cli import main as cli

    args = ["sheet", str(run.out), "--strength", "1", "--out", str(tmp_path / "x.png"), "--steps", "2", "--json"]
    monkeypatch.setattr("sys.argv", ["impasto", *args, "--prompt", "a cat", "--prompt", "a star"])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert stop.value.code == 0 and said["prompts"] == ["a cat", "a star"]
    assert json.loads((tmp_path / "x.json").read_text())["rows"] == ["step 2, 1", "step 4, 1", "step 2, 2", "step 4, 2"]
    assert Image.open(tmp_path / "x.png").width > 112


@pytest.fixture(scope="module")
def folder_run(tiny_sd3, picture, tmp_path_factory):
    """Of a folder whose captions lie beside its pictures, the CLIPs trained as well."""
    home = tmp_path_factory.mktemp("folder")
    (home / "pictures").mkdir()
    for name in ("a", "b"):
        (home / "pictures" / f"{name}.png").write_bytes(picture.read_bytes())
        (home / "pictures" / f"{name}.txt").write_text(f"a {name} in [trigger]")
    keys = {"image": [str(home / "pictures")], "trigger": "ink style", "caption_prefix": "one,", "rank": 2, "lr": 0.2}
    keys |= {"steps": 2, "checkpoint_every": 1, "keep": 0, "preview": False, "tensorboard": False, "batch": 1}
    keys |= {"text_encoder_lora": True, "components": str(tiny_sd3)}
    config = resolve("style-friendly", str(tiny_sd3), out=str(home / "run"), **keys)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # T5 stays, the pictures are alike
        train(config)
    return config


def test_text_encoders_and_captions_are_the_run_s_own(folder_run, monkeypatch):
    cells, asked, load = {}, {}, loader.load
    monkeypatch.setattr(
        checkpoints, "sheet", lambda rows, *args, **more: cells.update(rows) or Image.new("RGB", (9, 9))
    )
    monkeypatch.setattr("impasto.bases.loader.load", lambda base, **more: asked.update(more) or load(base, **more))
    with pytest.warns(UserWarning, match="this base has its own, which are used"):
        result = checkpoints.checkpoint_sheet(folder_run.out, (), (0.5,), seed=7)
    assert asked["components"] == folder_run.components
    assert result["prompts"] == ["one, a a in ink style", "one, a b in ink style"]
    style = f"{folder_run.out}:0.5"
    ((true, _),) = generate(folder_run.base, result["prompts"][:1], styles=[style], seed=7, sampling=Sampling(size=16))
    (picture,) = cells["step 2, 1"]
    assert max(abs(a - b) for a, b in zip(picture.tobytes(), true.tobytes(), strict=True)) <= 1
    (earlier,) = cells["step 1, 1"]
    assert earlier.tobytes() != picture.tobytes()


def test_prompts_of_a_run(folder_run, tmp_path):
    given = change(folder_run, caption=("a cat in [trigger]",))
    assert checkpoints.own_prompts(tmp_path, given, {}) == ["one, a cat in ink style"]
    kept = {"captions": [f"one, {name} in ink style" for name in "abcdef"]}
    for config in (folder_run, given):  # one that was given is that of pictures without
        assert checkpoints.own_prompts(tmp_path, config, kept) == kept["captions"][:4]
    given = change(given, preview_prompt=("a star in [trigger]",))
    assert checkpoints.own_prompts(tmp_path, given, kept) == ["a star in ink style"]
    with pytest.raises(UserError, match="not there any more: give a --prompt"):
        checkpoints.own_prompts(tmp_path, change(folder_run, image=(tmp_path / "gone",)), {})


def test_what_is_no_sheet_stays_and_a_sheet_is_replaced(run, picture, tmp_path, monkeypatch):
    drawn, scores = tmp_path / "0000.png", tmp_path / "scores.json"
    save_png(Image.open(picture), {"prompt": "a cat", "negative_prompt": "", "seed": 1} | ABOUT, drawn)
    scores.write_text('{"images_scored": 1, "images": []}')
    (tmp_path / "ref.png").write_bytes(picture.read_bytes())
    (tmp_path / "bent.png").write_bytes(b"x")
    named = (("0000.png", "0000.png"), ("ref.png", "ref.png"), ("bent.png", "bent.png"), ("scores.png", "scores.json"))
    before = {file: file.read_bytes() for file in tmp_path.iterdir()}
    for name, kept in named:
        with pytest.raises(UserError, match=f"{kept}' was not written by `impasto sheet` and stays"):
            checkpoints.checkpoint_sheet(run.out, out=tmp_path / name)
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == before
    monkeypatch.setattr(checkpoints, "sheet", lambda *args, **more: Image.new("RGB", (9, 9)))
    for seed in (1, 2):
        checkpoints.checkpoint_sheet(run.out, ["a cat"], (1.0,), seed=seed, steps=1, out=tmp_path / "x.PNG")
    told = json.loads(Image.open(tmp_path / "x.PNG").info["impasto"])
    assert told | {"rows": ["step 2", "step 4"]} == json.loads((tmp_path / "x.json").read_text()) and told["seed"] == 2
    assert not drawn_here(tmp_path / "x.PNG"), "`generate` does not take it for one of its pictures"


def test_refusals(run, tmp_path):
    with pytest.raises(UserError, match="is no style folder"):
        checkpoints.checkpoint_sheet(tmp_path)
    (tmp_path / "recipe.toml").write_text((run.out / "recipe.toml").read_text())
    with pytest.raises(UserError, match="holds no saved state"):
        checkpoints.checkpoint_sheet(tmp_path)
    with pytest.raises(UserError, match="no prompt"):
        checkpoints.checkpoint_sheet(run.out, prompts=["a cat", ""])
    for out in (tmp_path, tmp_path / "x.json", run.out / "recipe.toml", tmp_path / "x.jpg", tmp_path / "x"):
        with pytest.raises(UserError, match="is no name for a PNG"):
            checkpoints.checkpoint_sheet(run.out, out=out)
    file = run.out / "state" / "step-000004.safetensors"
    named, average = read_adapter(file), {k: t for k, t in load_file(file).items() if k.startswith("average/")}
    assert average and all((named[name.removeprefix("average/")] == t).all() for name, t in average.items())
    for wrong, why in (({}, "is missing"), (named | {"text_encoder.x": named[min(named)]}, "text_encoder.x has no")):
        with pytest.raises(UserError, match=f"of another adapter: .*{why}"):
            checkpoints.put(named, wrong, "x")  # type: ignore[arg-type]
