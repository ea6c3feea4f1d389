"""Whatever a user gives: one line that says what is wrong, exit code 2, nothing half written."""

import errno
import io
import json
import sys

import pytest
import torch
from PIL import Image

from impasto.bases.cards import check_name
from impasto.cli import main as cli
from impasto.errors import UserError
from impasto.files import cache_dir
from impasto.styles.weights import write_tensors

GOOD = {"--base": "BASE", "--image": "PICTURE", "--caption": "a rocket in ink style", "--out": "OUT"}

CASES = {
    "no image": ({"--image": None}, "no reference picture"),
    "missing image": ({"--image": "nowhere.png"}, "'nowhere.png' does not exist"),
    "image is an empty folder": ({"--image": "FOLDER"}, "holds no picture"),
    "text as image": ({"--image": "TEXT"}, "is not a picture"),
    "empty image": ({"--image": "EMPTY"}, "is empty (0 bytes)"),
    "one pixel": ({"--image": "PIXEL"}, "too small: 1 x 1"),
    "no caption": ({"--caption": None}, "no caption"),
    "empty caption": ({"--caption": "  "}, "is empty: say what it shows"),
    "unknown base": ({"--base": "mini-sd33"}, "did you mean 'mini-sd3'"),
    "base is an empty folder": ({"--base": "FOLDER"}, "no model_index.json"),
    "base is a pickle": ({"--base": "model.ckpt"}, "is a pickle, which can run code"),
    "base is no file": ({"--base": "models/nowhere.safetensors"}, "does not exist"),
    "base is no safetensors": ({"--base": "FAKE"}, "is damaged, or not a safetensors file"),
    "hub id without network": ({"--base": "owner/name", "--size": "16"}, "cannot be fetched from the hub"),
    "components are no folder": ({"--components": "nowhere"}, "is not a folder: name a diffusers folder"),
    "unknown recipe": ({"--recipe": "style-freindly"}, "did you mean 'style-friendly'"),
    "recipe with an unknown key": ({"--recipe": "RECIPE"}, "unknown key 'noise_men': did you mean 'noise_mean'"),
    "unknown noise law": ({"--noise": "logitnormal"}, "did you mean 'logit-normal'"),
    "std of zero": ({"--noise.std": "0"}, "noise.std must be above 0"),
    "unknown objective": ({"--objective": "denoize"}, "did you mean 'denoise'"),
    "unknown adapter": ({"--adapter": "lara"}, "did you mean 'lora'"),
    "unknown target": ({"--targets": "to_qq"}, "did you mean"),
    "unknown device": ({"--device": "gpu"}, "unknown device 'gpu'"),
    "rank of zero": ({"--rank": "0"}, "rank must be above 0"),
    "out is a file": ({"--out": "TEXT"}, "is a file"),
    "out lies in a file": ({"--out": "TEXT/deeper"}, "is a file, or lies in one"),
    "out cannot be written": ({"--out": "/proc/impasto/run"}, "cannot be written"),
    "the loss is no number": ({"--lr": "1e30"}, "is NaN or infinite at step 1"),
}


def refused(monkeypatch, capsys, arguments) -> str:
    """The one line that the command says before it ends with 2."""
    monkeypatch.setattr(sys, "argv", ["impasto", *arguments, "--json"])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    out, err = capsys.readouterr()
    assert stop.value.code == 2
    errors = [line for line in err.splitlines() if line.startswith("impasto: error: ")]
    assert len(errors) == 1 and "Traceback" not in err
    assert json.loads(out.splitlines()[-1])["error"] == errors[0].removeprefix("impasto: error: ")
    return errors[0]


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
    error = refused(monkeypatch, capsys, ["train", *flags, "--no-preview", "--no-tensorboard"])
    assert message in error
    assert not (made["OUT"] / "pytorch_lora_weights.safetensors").exists()


def test_a_file_that_cannot_be_used(tmp_path, monkeypatch, capsys):
    """As report --out FOLDER meets it; an OSError that names no file is a defect, and stays one."""
    monkeypatch.setitem(cli.COMMANDS, "report", lambda args: tmp_path.read_text())
    assert f"{str(tmp_path)!r} cannot be used: Is a directory" in refused(monkeypatch, capsys, ["report"])
    monkeypatch.setitem(cli.COMMANDS, "report", lambda args: io.BytesIO().fileno())
    with pytest.raises(OSError, match="fileno"):
        cli.main()


FOLDERS = {
    "corrupt picture": ("b.png", lambda data: data[: len(data) // 2], r"b.png' is damaged"),
    "empty caption file": ("b.txt", lambda data: b" \n", "b.txt' is empty: say what b.png shows"),
    "orphaned caption file": ("c.txt", lambda data: b"a cat", "c.txt' has no picture of that name beside it"),
    "no JSON": ("metadata.jsonl", lambda data: data + b'{"file_name": "b.png", \n', "line 2: no valid JSON"),
    "unknown picture": (
        "metadata.jsonl",
        lambda data: data + b'{"file_name": "z.png", "text": "z"}',
        "line 2: there is",
    ),
}


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("case", FOLDERS)
def test_train_on_a_folder(case, tiny_sd3, tmp_path, monkeypatch, capsys):
    """Named, with its line; left out when that is asked for, with a warning."""
    folder = tmp_path / "style"
    folder.mkdir()
    for name, colour in (("a", "red"), ("b", "blue")):
        Image.new("RGB", (40, 40), colour).save(folder / f"{name}.png")
    (folder / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "a rocket in ink style"}\n')
    (folder / "b.txt").write_text("two cats in ink style")
    file, change, message = FOLDERS[case]
    data = (folder / file).read_bytes() if (folder / file).is_file() else b""
    (folder / file).write_bytes(change(data))
    flags = ["--base", str(tiny_sd3), "--image", str(folder), "--out", str(tmp_path / "run")]
    error = refused(monkeypatch, capsys, ["train", *flags])
    assert message in error and "--skip-bad leaves" in error and not (tmp_path / "run").exists()
    monkeypatch.setattr(sys, "argv", ["impasto", "train", *flags, "--skip-bad", "--dry-run", "--json"])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    out, err = capsys.readouterr()
    left = 1 if case in ("corrupt picture", "empty caption file") else 2
    assert stop.value.code == 0 and json.loads(out)["data"]["pictures"] == left
    assert message in err and "left out" in err


LAYER = "transformer.transformer_blocks.0.attn.to_q"
STYLES = {
    "of another family": (lambda data: None, "was not trained for this base: 2 of 2 tensors do not fit"),
    "truncated": (lambda data: data[: len(data) // 2], "is damaged"),
    "header cut": (lambda data: data[:20], "is damaged"),
    "one bit flipped": (lambda data: data[:-9] + bytes([data[-9] ^ 4]) + data[-8:], "is damaged: its tensors are not"),
    "a pickle": (lambda data: pickled(), "is a pickle under another name"),
    "empty": (lambda data: b"", "is damaged"),
}


def pickled() -> bytes:
    buffer = io.BytesIO()
    torch.save({LAYER: torch.zeros(4, 16)}, buffer)
    return buffer.getvalue()


def write_style(file, part="transformer_blocks.0.attn.to_q", own="transformer"):
    halves = {"A": torch.ones(4, 16), "B": torch.ones(16, 4)}
    write_tensors(file, {f"{own}.{part}.lora_{half}.weight": t for half, t in halves.items()}, {})


@pytest.mark.parametrize("case", STYLES)
def test_generate(case, tiny_sd3, tmp_path, monkeypatch, capsys):
    change, message = STYLES[case]
    file = tmp_path / "style.safetensors"
    write_style(file)
    if case == "of another family":
        write_style(file, "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q", "unet")
    else:
        file.write_bytes(change(file.read_bytes()))
    flags = ["--base", str(tiny_sd3), "--style", str(file), "--prompt", "a cat", "--out", str(tmp_path / "images")]
    assert message in refused(monkeypatch, capsys, ["generate", *flags])
    assert not list((tmp_path / "images").iterdir())


def test_generate_without_network(monkeypatch, capsys, tmp_path):
    flags = ["--base", "owner/name", "--prompt", "a cat", "--out", str(tmp_path / "images")]
    assert "'owner/name' is not a local folder and cannot be fetched from the hub" in refused(
        monkeypatch, capsys, ["generate", *flags]
    )


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full: free space"),
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
            "out of memory: try a smaller --batch",
        ),
    ],
)
def test_generate_without_room(error, message, tiny_sd3, monkeypatch, capsys, tmp_path):
    """The second picture cannot be made: the first one stays, and nothing is half there."""
    real, calls = Image.Image.save, []

    def save(self, file, *args, **more):
        calls.append(file)
        if len(calls) == 2:
            file.write_bytes(b"half of it")
            raise error
        return real(self, file, *args, **more)

    monkeypatch.setattr(Image.Image, "save", save)
    flags = ["--base", str(tiny_sd3), "--prompt", "a cat", "--count", "3", "--steps", "1", "--out", str(tmp_path / "i")]
    assert message in refused(monkeypatch, capsys, ["generate", *flags])
    assert [file.name for file in (tmp_path / "i").iterdir()] == ["0000.png"]


def test_a_defect_stays_a_defect(monkeypatch, tmp_path):
    monkeypatch.setitem(cli.COMMANDS, "report", lambda args: {}["no such key"])
    monkeypatch.setattr(sys, "argv", ["impasto", "report", str(tmp_path)])
    with pytest.raises(KeyError):
        cli.main()


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


@pytest.mark.parametrize(("short", "full"), [("sdxl", "stabilityai/stable-diffusion-xl"), ("FLUX-dev", "FLUX.1-dev")])
def test_check_name_of_a_short_name_tells_the_hub_id(short, full):
    with pytest.raises(UserError, match=f"its hub id is .*{full}"):
        check_name(short)


def test_cache_dir_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("IMPASTO_CACHE", raising=False)
    assert cache_dir("bases") == tmp_path / "impasto" / "bases"
    monkeypatch.setenv("IMPASTO_CACHE", str(tmp_path / "own"))
    assert cache_dir("bases") == tmp_path / "own" / "bases"
