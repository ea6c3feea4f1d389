"""Whatever a user gives: one line that says what is wrong, exit code 2, nothing half written."""

import json
import sys

import pytest
from PIL import Image

from impasto import cli

GOOD = {"--base": "BASE", "--image": "PICTURE", "--caption": "a rocket in ink style", "--out": "OUT"}

CASES = {
    "no image": ({"--image": None}, "no reference picture"),
    "missing image": ({"--image": "nowhere.png"}, "'nowhere.png' does not exist"),
    "image is a folder": ({"--image": "."}, "is a folder"),
    "text as image": ({"--image": "TEXT"}, "is not a picture"),
    "empty image": ({"--image": "EMPTY"}, "is empty (0 bytes)"),
    "one pixel": ({"--image": "PIXEL"}, "too small: 1 x 1"),
    "no caption": ({"--caption": None}, "no caption"),
    "empty caption": ({"--caption": "  "}, "is empty: say what it shows"),
    "unknown base": ({"--base": "mini-sd33"}, "did you mean 'mini-sd3'"),
    "base is an empty folder": ({"--base": "FOLDER"}, "no model_index.json"),
    "base is a pickle": ({"--base": "model.ckpt"}, "is a pickle, which can run code"),
    "base is no file": ({"--base": "models/nowhere.safetensors"}, "does not exist"),
    "base is no safetensors": ({"--base": "FAKE"}, "is damaged, or no safetensors file"),
    "hub id without network": ({"--base": "owner/name"}, "cannot be fetched from the hub"),
    "components are no folder": ({"--components": "nowhere"}, "is no folder: name a diffusers folder"),
    "unknown recipe": ({"--recipe": "style-freindly"}, "did you mean 'style-friendly'"),
    "recipe with an unknown key": ({"--recipe": "RECIPE"}, "unknown key 'noise_men': did you mean 'noise_mean'"),
    "unknown noise law": ({"--noise": "logitnormal"}, "did you mean 'logit-normal'"),
    "a shift that the law has not": ({"--noise-shift": "3"}, "has no noise_shift"),
    "std of zero": ({"--noise-std": "0"}, "noise_std must be above 0"),
    "unknown objective": ({"--objective": "denoize"}, "did you mean 'denoise'"),
    "unknown adapter": ({"--adapter": "lara"}, "did you mean 'lora'"),
    "unknown target": ({"--targets": "to_qq"}, "did you mean"),
    "unknown device": ({"--device": "gpu"}, "unknown device 'gpu'"),
    "rank of zero": ({"--rank": "0"}, "rank must be above 0"),
    "out is a file": ({"--out": "TEXT"}, "is a file"),
    "out lies in a file": ({"--out": "TEXT/deeper"}, "is a file, or lies in one"),
    "out cannot be written": ({"--out": "/proc/impasto/run"}, "cannot be written"),
    "the loss is no number": ({"--lr": "1e30"}, "not a number any more"),
}


@pytest.mark.parametrize("case", CASES)
def test_train(case, tiny_sd3, picture, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    made = {name: tmp_path / name.lower() for name in ("OUT", "TEXT", "EMPTY", "FOLDER")}
    made |= {"PIXEL": tmp_path / "pixel.png", "RECIPE": tmp_path / "recipe.toml", "BASE": tiny_sd3, "PICTURE": picture}
    made["FAKE"] = tmp_path / "fake.safetensors"
    made["FAKE"].write_text("hello")
    made["TEXT"].write_text("hello")
    made["EMPTY"].touch()
    made["FOLDER"].mkdir()
    Image.new("RGB", (1, 1)).save(made["PIXEL"])
    made["RECIPE"].write_text("noise_men = -6")
    change, message = CASES[case]
    flags = [x for key, value in (GOOD | change).items() if value is not None for x in (key, value)]
    for name, path in made.items():
        flags = [str(path) + flag.removeprefix(name) if flag.startswith(name) else flag for flag in flags]
    monkeypatch.setattr(sys, "argv", ["impasto", "train", *flags, "--no-preview", "--no-tensorboard", "--json"])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    out, err = capsys.readouterr()
    assert stop.value.code == 2
    errors = [line for line in err.splitlines() if line.startswith("impasto: error: ")]
    assert len(errors) == 1 and message in errors[0] and "Traceback" not in err
    assert json.loads(out.splitlines()[-1])["error"] == errors[0].removeprefix("impasto: error: ")
    assert not (made["OUT"] / "pytorch_lora_weights.safetensors").exists()


def test_unknown_flags_and_commands(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["impasto", "train", "--imege", "a.png", "--json"])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    out, err = capsys.readouterr()
    assert stop.value.code == 2 and "--image" in err and "error" in json.loads(out.splitlines()[-1])
    monkeypatch.setattr(sys, "argv", ["impasto", "trian"])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 2 and "did you mean 'train'" in capsys.readouterr().err
