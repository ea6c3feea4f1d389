"""export, import, merge, resize from the command line, with styles that `impasto train` made."""

import json
import sys

import numpy as np
import pytest

from impasto.cli import main as cli
from impasto.config import resolve
from impasto.generation import generate
from impasto.training.train import train


@pytest.fixture
def run(monkeypatch, capsys):
    """run("export", ...) -> (exit code, the JSON of the last line, stderr)."""

    def call(*args):
        monkeypatch.setattr(sys, "argv", ["impasto", *map(str, args), "--json"])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        out, err = capsys.readouterr()
        return stop.value.code, json.loads(out.splitlines()[-1]), err

    return call


TARGETS = {"tiny_sd3": ("attention",), "tiny_sd15": ("attention", "convolution")}


@pytest.fixture(scope="module", params=TARGETS)
def trained(request, picture, tmp_path_factory):
    """(base, style folder): trained at once so hard that it is seen, alpha other than the rank."""
    base, out = request.getfixturevalue(request.param), tmp_path_factory.mktemp("runs") / "ink"
    settings = {"rank": 4, "alpha": 6.0, "lr": 0.2, "steps": 2, "targets": TARGETS[request.param]}
    settings |= {"preview": False, "tensorboard": False}
    config = resolve(
        "style-friendly", str(base), image=[str(picture)], caption=["in ink style"], out=str(out), **settings
    )
    train(config)
    return base, out


def drawn(base, *styles):
    image, _ = next(generate(str(base), ["a cat in ink style"], styles=list(map(str, styles)), seed=3))
    return np.asarray(image).astype(int)


def test_a_trained_style_comes_back_from_every_export(run, trained, tmp_path):
    base, style = trained
    card = (style / "README.md").read_text()
    assert 'weight_name="pytorch_lora_weights.safetensors"' in card and "## Trigger words" in card
    assert (
        '"sd3", "sd3-diffusers"]' if base.name == "sd3" else '"stable-diffusion", "stable-diffusion-diffusers"]'
    ) in card
    wanted = drawn(base, style)
    assert abs(wanted - drawn(base)).max() > 5
    for layout in ("diffusers", "kohya", "comfyui"):
        file = tmp_path / f"ink-{layout}.safetensors"
        code, result, _ = run("export", style, "--format", layout, "--out", file, "--private")
        assert code == 0 and result["format"] == layout and result["bytes"] == file.stat().st_size
        code, result, _ = run("import", file, "--out", tmp_path / layout, "--base", base)
        assert code == 0 and result["checked"] is True and result["ranks"] == [4]
        assert abs(drawn(base, tmp_path / layout) - wanted).max() <= 1
    code, result, _ = run("merge", f"{style}:0.25", f"{tmp_path / 'kohya'}:0.75", "--out", tmp_path / "sum")
    assert code == 0 and result["ranks"][-1] == 8 and "error" not in result  # a part that is zero has come back as none
    assert abs(drawn(base, tmp_path / "sum") - wanted).max() <= 1
    code, result, _ = run("resize", tmp_path / "sum", "--rank", 4, "--out", tmp_path / "small")
    assert code == 0 and result["before"][-1] == 8 and result["ranks"] == [4] and result["error"] < 1e-5
    assert abs(drawn(base, tmp_path / "small") - wanted).max() <= 1
    code, result, _ = run("merge", style, style, "--out", tmp_path / "one", "--rank", 1, "--overwrite")
    assert code == 0 and result["ranks"] == [1] and 0 < result["error"] <= result["error_max"] < 1
    code, result, err = run(
        "generate", "--base", base, "--style", tmp_path / "ink-kohya.safetensors", "--prompt", "a cat"
    )
    assert code == 2 and "is in another tool's layout: `impasto import " in result["error"] and "Traceback" not in err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("export", "nowhere"), "no such file or folder"),
        (("export", "."), "no pytorch_lora_weights.safetensors there"),
        (("import", "x.ckpt", "--out", "y"), "not a safetensors file"),
        (("import", "x.safetensors", "--out", "y"), "x.safetensors is damaged"),
        (("import", "x.safetensors", "--out", "y", "--base", "mini-sd33"), "did you mean 'mini-sd3'"),
        (("merge", "x.safetensors", "--out", "y"), "give two styles or more"),
        (("merge", "nowhere:0.5", "nowhere:1", "--out", "y"), "no such file or folder"),
        (("resize", "nowhere", "--rank", "4", "--out", "y"), "no such file or folder"),
        (("export", "nowhere", "--push-to-hub", "ink"), "it is owner/name"),
        (("export", "nowhere", "--out", "y", "--push-to-hub", "me/ink"), "exclude each other"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_bad_input(run, tmp_path, monkeypatch, args, message):
    monkeypatch.chdir(tmp_path)
    for name in ("x.ckpt", "x.safetensors"):
        (tmp_path / name).write_bytes(b"\0" * 20)
    code, result, err = run(*args)
    assert code == 2 and message in result["error"] and f"impasto: error: {result['error']}" in err
    assert not (tmp_path / "y").exists()
