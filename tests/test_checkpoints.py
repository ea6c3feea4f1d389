"""Checkpoint x strength: the right adapter at the right strength in each cell."""

import json

import pytest
from PIL import Image
from safetensors.torch import load_file

from impasto import checkpoints
from impasto.config import resolve
from impasto.errors import UserError
from impasto.generate import Sampling, generate
from impasto.train import train


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
    result = checkpoints.checkpoint_sheet(run.out, ["a cat"], (0.5, 1.0), seed=7, progress=lambda *at: seen.append(at))
    assert list(cells) == ["step 2", "step 4"] and seen[-1] == (4, 4)
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
    from impasto import cli

    args = ["sheet", str(run.out), "--strength", "1", "--out", str(tmp_path / "x.png"), "--steps", "2", "--json"]
    monkeypatch.setattr("sys.argv", ["impasto", *args, "--prompt", "a cat", "--prompt", "a star"])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert stop.value.code == 0 and said["prompts"] == ["a cat", "a star"]
    assert json.loads((tmp_path / "x.json").read_text())["rows"] == ["step 2, 1", "step 4, 1", "step 2, 2", "step 4, 2"]
    assert Image.open(tmp_path / "x.png").width > 112


def test_refusals(run, tmp_path):
    with pytest.raises(UserError, match="is no style folder"):
        checkpoints.checkpoint_sheet(tmp_path)
    (tmp_path / "recipe.toml").write_text((run.out / "recipe.toml").read_text())
    with pytest.raises(UserError, match="holds no saved state"):
        checkpoints.checkpoint_sheet(tmp_path)
    tensors = load_file(run.out / "state" / "step-000004.safetensors")
    named = {name.partition("/")[2]: t for name, t in tensors.items() if name.startswith("adapter/")}
    with pytest.raises(UserError, match="of another adapter"):
        checkpoints.put(named, {}, "x")  # type: ignore[arg-type]
