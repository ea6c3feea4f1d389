"""Checkpoints as styles: the same weights as the style that a run of so many steps leaves, from unfinished runs too."""

from pathlib import Path

import pytest
from safetensors.torch import load_file

from impasto.config import change, resolve
from impasto.errors import UserError
from impasto.generation import generate
from impasto.report import report
from impasto.styles.convert import export_style, import_style, merge_styles, resize_style
from impasto.styles.parts import read_parts
from impasto.training.checkpoint_style import checkpoint_style, resolve_checkpoint
from impasto.training.sheet import checkpoint_sheet
from impasto.training.train import train

CAPTION = "a rocket in ink style"


def run(base, picture, out, **keys):
    given = {"image": [str(picture)], "caption": [CAPTION], "preview": False, "tensorboard": False}
    return resolve("style-friendly", str(base), out=out, batch=2, lr=1e-2, **given, **keys)


def stop(phase, step=0, total=None, note=""):
    if phase == "training" and step == 3:
        raise KeyboardInterrupt


@pytest.mark.parametrize("keys", [{}, {"adapter": "styleinject"}, {"text": "lora"}, {"ema": 0.9}], ids=str)
@pytest.mark.filterwarnings("ignore:--text lora trains the CLIP", "ignore:after")
def test_checkpoint_style_of_an_unfinished_run_is_the_style_of_a_shorter_one(tiny_sd15, picture, tmp_path, keys):
    if "adapter" in keys:
        keys = keys | {"adapter.targets": ["to_q"]}
    long, short = (run(tiny_sd15, picture, tmp_path / name, **keys) for name in ("long", "short"))
    long = change(long, steps=4, checkpoint_every=1, keep=0)
    with pytest.raises(KeyboardInterrupt):
        train(long, stop)
    train(change(short, steps=2, checkpoint_every=1))
    folder = checkpoint_style(long.out, 2)
    assert folder == long.out / "checkpoints" / "step-000002" and folder == checkpoint_style(long.out, 2)
    for part in read_parts(folder):
        ours, theirs = load_file(folder / part.file), load_file(short.out / part.file)
        assert ours.keys() == theirs.keys() and all((ours[name] == theirs[name]).all() for name in ours)
    assert resolve_checkpoint(f"{long.out}@2:0.5") == f"{folder}:0.5"
    assert next(generate(str(tiny_sd15), [CAPTION], styles=[str(folder)]))[1]["styles"][0]["path"] == str(folder)
    with pytest.raises(UserError, match="no checkpoint of step 9: it has those of 1, 2"):
        resolve_checkpoint(f"{long.out}@9")


def test_resolve_checkpoint_leaves_other_styles_as_they_are(tmp_path):
    odd = tmp_path / "me@3"
    odd.mkdir()
    for style in ("runs/x", "runs/x:0.8", str(odd)):
        assert resolve_checkpoint(style) == style


def test_exported_checkpoint_is_a_file_of_its_own(tiny_sd15, picture, tmp_path):
    config = run(tiny_sd15, picture, tmp_path / "run", steps=2, checkpoint_every=1, keep=0)
    train(config)
    one, two = (
        export_style(checkpoint_style(config.out, step), "kohya", tmp_path / f"{step}.safetensors") for step in (1, 2)
    )
    assert (
        one["out"] != two["out"]
        and (tmp_path / "1.safetensors").read_bytes() != (tmp_path / "2.safetensors").read_bytes()
    )


def test_report_and_sheet_take_what_resize_merge_and_import_write(tiny_sd15, picture, tmp_path):
    config = run(tiny_sd15, picture, tmp_path / "run", steps=2)
    train(config)
    resize_style(config.out, 1, tmp_path / "small")
    merge_styles([f"{config.out}:0.5", str(tmp_path / "small")], tmp_path / "both")
    export_style(config.out, "kohya", tmp_path / "ink.safetensors")
    import_style(tmp_path / "ink.safetensors", tmp_path / "imported", base=str(tiny_sd15))
    for name in ("small", "both", "imported"):
        style = tmp_path / name
        page = Path(report(style)["path"]).read_text()
        assert "<h2>Model card</h2>" in page and "No images yet: `impasto generate --base" in page
        assert str(tmp_path) not in page and "<h2>Recipe</h2>" not in page
        found = checkpoint_sheet(style, ["a cat"], (0.5, 1.0), steps=2)
        assert (style / "sheet.png").is_file() and found["strengths"] == [0.5, 1.0]
        assert found["commands"][name].startswith("impasto generate --base")
    generated = next(generate(str(tiny_sd15), ["a cat"], styles=[f"{tmp_path / 'small'}:1"]))[0]
    (tmp_path / "small" / "images").mkdir()
    generated.save(tmp_path / "small" / "images" / "0000.png")
    assert report(tmp_path / "small")["images"] == 1
    with pytest.raises(UserError, match="a strength must be a finite number"):
        checkpoint_sheet(tmp_path / "small", ["a cat"], (float("inf"),))
