"""The command line: help, JSON, exit codes."""

import json
import shlex
import subprocess
import sys
import warnings

import pytest

from impasto.bases.loader import load
from impasto.cli import main as cli


@pytest.fixture
def run(monkeypatch, capsys):
    """run("train", ...) -> (exit code, stdout lines, stderr)."""

    def call(*args):
        monkeypatch.setattr(sys, "argv", ["impasto", *map(str, args)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        out, err = capsys.readouterr()
        return stop.value.code, out.splitlines(), err

    return call


def train_args(base, picture, out, *more):
    flags = ("--base", base, "--image", picture, "--caption", "a rocket in ink style", "--out", out, "--rank", "2")
    return ("train", *flags, "--no-preview", "--no-tensorboard", *more)


def test_help_lists_the_commands(run):
    code, out, _ = run("--help")
    assert code == 0
    for command in ("train", "generate", "evaluate", "report", "sheet", "demo", "artworld", "pretrain"):
        assert any(line.strip().startswith(command) for line in out)
        code, text, _ = run(command, "--help")
        assert code == 0 and any("--" in line or "usage" in line for line in text)
    assert run("--version")[1] == ["impasto 0.1.0"]


@pytest.mark.parametrize(("command", "flag"), [("train", "--noise.mean"), ("noise calibrate", "--floor")])
def test_help_needs_no_torch(command, flag):
    """What makes it fast: the heavy libraries are not imported for it, nor for the package itself."""
    code = "import sys, impasto, impasto.cli.main; sys.argv = " + repr(["impasto", *command.split(), "--help"])
    code += "\ntry: impasto.cli.main.main()\n"
    code += "finally: print(sorted({'torch', 'diffusers', 'transformers', 'PIL', 'numpy'} & set(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout
    assert out.splitlines()[-1] == "[]" and flag in out


BAD_INPUT = {
    "train --base nosuch --image pig.png": "unknown base 'nosuch'",
    "train --base sdxl --image pig.png": "its hub id is stabilityai/stable-diffusion-xl-base-1.0",
    "train --recipe nosuch --image pig.png": "unknown recipe 'nosuch'",
    "train --adapter nosuch --image pig.png": "unknown adapter 'nosuch'",
    "train --image nosuch.png": "image 'nosuch.png' does not exist",
    "train": "no reference picture",
    "train --image pig.png --lr -1": "lr must be above 0",
    "generate --base nosuch --prompt x": "unknown base 'nosuch'",
    "generate --style nosuch@3:0.5 --prompt x": "style 'nosuch' cannot be loaded",
    "generate": "no prompt",
    "generate --prompt x --count 0": "count must be at least 1",
    "generate --prompt x --aligned-to nosuch.png": "image 'nosuch.png' does not exist",
    "evaluate nosuch": "'nosuch' does not exist",
    "report nosuch": "'nosuch' does not exist",
    "sheet nosuch": "'nosuch' does not exist",
    "export nosuch": "style 'nosuch' cannot be loaded",
    "import nosuch --out x": "style 'nosuch' cannot be loaded",
    "resize nosuch --rank 2 --out x": "style 'nosuch' cannot be loaded",
    "merge nosuch:0.5 nosuch --out x": "style 'nosuch' cannot be loaded",
    "invert --image nosuch.png --caption x": "image 'nosuch.png' does not exist",
    "noise calibrate --base nosuch": "unknown base 'nosuch'",
    "noise show --base nosuch": "unknown base 'nosuch'",
    "noise import kohya nosuch.toml": "'nosuch.toml' does not exist",
    "noise import nosuch a=1": "unknown tool 'nosuch'",
    "concepts find nosuch.png --caption x": "image 'nosuch.png' does not exist",
}


def test_errors_that_need_no_model_come_before_torch_is_imported(tmp_path):
    """So that they come in about a second."""
    (tmp_path / "pig.png").write_bytes(b"")
    code = """
import sys, impasto.cli.main
for command in sys.stdin.read().splitlines():
    sys.argv = ["impasto", *command.split()]
    try: impasto.cli.main.main()
    except SystemExit as stop: assert stop.code == 2, (command, stop.code)
    assert not {"torch", "diffusers", "transformers"} & set(sys.modules), command
"""
    called = subprocess.run(
        [sys.executable, "-c", code], input="\n".join(BAD_INPUT), capture_output=True, text=True, cwd=tmp_path
    )
    assert called.returncode == 0, called.stderr
    lines = [line for line in called.stderr.splitlines() if line.startswith("impasto: error")]
    for (command, message), line in zip(BAD_INPUT.items(), lines, strict=True):
        assert message in line, command


def test_train_and_generate_by_json(run, tiny_sd3, picture, tmp_path):
    code, out, err = run(*train_args(tiny_sd3, picture, tmp_path / "ink"), "--json")
    assert code == 0 and len(out) == 1 and "training" in err
    assert json.loads(out[0])["steps"] == 6
    flags = ("--base", tiny_sd3, "--style", f"{tmp_path}/ink:0.8", "--out", tmp_path / "pictures", "--seed", 3)
    code, out, err = run("--json", "generate", *flags, "--prompt", "a cat", "--prompt", "a star in ink style")
    assert code == 0 and len(out) == 1 and json.loads(out[0])["images"] == ["0000.png", "0001.png"]
    code, out, _ = run("generate", *flags, "--prompt", "a cat")
    assert code == 0 and f"out: {tmp_path}/pictures" in out


def test_every_key_is_a_flag_and_flags_win(run, tiny_sd3, picture, tmp_path):
    flags = ("--noise.mean", "-2.2", "--targets", "to_q", "to_k", "--schedule", "cosine", "--lr", "3e-4", "--dry-run")
    code, out, _ = run(*train_args(tiny_sd3, picture, tmp_path / "x", *flags), "--json")
    settings = json.loads(out[-1])["settings"]
    assert code == 0 and settings["noise_mean"] == -2.2 and settings["targets"] == ["to_q", "to_k"]
    assert settings["schedule"] == "cosine" and settings["lr"] == 3e-4 and settings["alpha"] == 2
    assert settings["steps"] == 6 and settings["size"] == 16  # the base's card
    assert not (tmp_path / "x").exists()  # a dry run writes nothing


def test_a_dry_run_shows_the_noise(run, tiny_sd3, picture, tmp_path):
    code, out, _ = run(*train_args(tiny_sd3, picture, tmp_path / "x"), "--dry-run")
    text = "\n".join(out)
    assert code == 0 and "6 steps of" in text and "1 image, 1 caption" in text and "a step" in text and len(out) < 30
    assert "rank 2 (32)" in text and "None" not in text and "['" not in text  # values a person reads
    assert any("log-SNR" in line for line in out) and any("sigma 0.940" in line and "█" in line for line in out)


def test_another_law_by_flag(run, tiny_sd3, picture, tmp_path):
    code, out, _ = run(*train_args(tiny_sd3, picture, tmp_path / "x"), "--noise", "uniform", "--dry-run", "--json")
    assert code == 0 and "noise_mean" not in json.loads(out[-1])["settings"]


def test_flags_replace_the_lists_of_a_recipe(run, tiny_sd3, picture, tmp_path):
    run(*train_args(tiny_sd3, picture, tmp_path / "ink"))
    again = ("train", "--recipe", tmp_path / "ink" / "recipe.toml", "--base", tiny_sd3, "--dry-run", "--json")
    settings = json.loads(run(*again)[1][-1])["settings"]
    assert settings["image"] == [str(picture)] and settings["caption"] == ["a rocket in ink style"]
    settings = json.loads(run(*again, "--caption", "in oil style", "--out", tmp_path / "other")[1][-1])["settings"]
    assert settings["image"] == [str(picture)] and settings["caption"] == ["in oil style"]


def test_both_spellings_of_a_flag_replace_a_recipe_s_list(run, tiny_sd3, picture, tmp_path):
    recipe = tmp_path / "mine.toml"
    recipe.write_text('noise = "uniform"\npreview_prompt = ["one", "two"]\n')
    for flag in ("--preview-prompt", "--preview_prompt", "--preview_prompt=three"):
        values = () if "=" in flag else ("three",)
        flags = ("train", "--base", tiny_sd3, "--image", picture, "--caption", "a rocket in ink style", "--dry-run")
        code, out, _ = run(*flags, "--recipe", recipe, "--json", flag, *values)
        assert code == 0 and json.loads(out[-1])["settings"]["preview_prompt"] == ["three"]


def test_a_changed_recipe_is_refused(run, tiny_sd3, picture, tmp_path):
    args = train_args(tiny_sd3, picture, tmp_path / "ink")
    assert run(*args)[0] == 0
    code, out, err = run(*args, "--seed", "1", "--json")
    assert code == 2 and "seed: 0 -> 1" in json.loads(out[-1])["error"]
    assert f"impasto: error: {tmp_path}/ink holds a run with other settings (seed: 0 -> 1): use another --out" in err


def test_ctrl_c_is_130(run, monkeypatch):
    def interrupted(args):
        raise KeyboardInterrupt("stopped after step 3")

    monkeypatch.setitem(cli.COMMANDS, "train", interrupted)
    code, out, err = run("train", "--json")
    assert code == 130 and json.loads(out[-1]) == {"error": "interrupted"}
    assert "impasto: interrupted: stopped after step 3" in err


def test_our_warnings_are_one_line(tiny_sd3, picture, tmp_path):
    args = train_args(tiny_sd3, picture, tmp_path / "x")
    args = [str(a).replace("in ink style", "") for a in args] + ["--dry-run"]
    done = subprocess.run(
        [sys.executable, "-c", "from impasto.cli.main import main; main()", *args], capture_output=True, text=True
    )
    (line,) = done.stderr.splitlines()
    assert done.returncode == 0 and line.startswith("impasto: warning: the caption 'a rocket' names no style")


def test_a_prompt_that_is_cut_is_said(run, tiny_sd3, tmp_path):
    """As our own warning, through torch's decorators: those of libraries are not shown."""
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        code, _, err = run("generate", "--base", tiny_sd3, "--prompt", "a rocket " * 40, "--out", tmp_path)
    lines = [line for line in err.splitlines() if "warning" in line.lower()]
    assert code == 0 and len(lines) == 1 and "too long for the text encoder" in lines[0]


def test_an_argument_that_is_no_utf8(run):
    code, out, err = run("generate", "--json", "--prompt", "caf\udce9")
    assert code == 2 and "is no UTF-8" in json.loads(out[0])["error"] and "is no UTF-8" in err


@pytest.mark.parametrize("arguments", ["generate --help", "noise show --help"])
def test_a_reader_that_leaves_is_no_traceback(arguments):
    main = f"{sys.executable} -c 'from impasto.cli.main import main; main()'"
    command = f"(sleep 1; {main} {arguments}) | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.stderr == "" and done.stdout.strip() in ("0", "1")


def test_components_of_a_base_that_has_its_own_are_said(tiny_sd3, tmp_path):
    with pytest.warns(UserWarning, match="this base has its own"):
        load(str(tiny_sd3), components=tmp_path)


def test_the_rate_of_pretraining(run, monkeypatch):
    asked = {}
    monkeypatch.setattr("impasto.pretrain.pretrain", lambda base, *args, **more: asked.update(more) or {"base": base})
    code, _, _ = run("pretrain", "mini-sd15", "--resume", "--lr", "5e-4", "--offset", ".15")
    assert code == 0 and asked["lr"] == 5e-4 and asked["offset"] == 0.15


def test_a_dry_run_is_a_flag_as_the_others(run, tiny_sd3, picture, tmp_path):
    _, out, _ = run("train", "--help")
    assert any("--dry-run" in line for line in out)
    code, out, _ = run(*train_args(tiny_sd3, picture, tmp_path / "x"), "--dry_run", "--json")
    assert code == 0 and "settings" in json.loads(out[-1]) and not (tmp_path / "x").exists()


def test_json_is_strict(run, tiny_sd3, picture, tmp_path):
    code, out, _ = run(*train_args(tiny_sd3, picture, tmp_path / "x"), "--clip", "inf", "--dry-run", "--json")
    told = json.loads(out[-1], parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert code == 0 and told["settings"]["clip"] == "inf"


def test_train_ends_with_the_command_that_generates_another_thing(run, tiny_sd15, picture, tmp_path):
    caption = "a rocket in ink style"
    flags = ["--base", str(tiny_sd15), "--image", str(picture), "--caption", caption, "--out", str(tmp_path / "ink")]
    code, out, _ = run("train", *flags, "--steps", "1", "--batch", "1", "--no-preview", "--no-tensorboard")
    command = next(line.removeprefix("next: ") for line in out if line.startswith("next: "))
    assert code == 0 and "--prompt 'a cat in ink style'" in command and command.endswith("ink/images")
    assert run(*shlex.split(command)[1:], "--steps", "1")[0] == 0
    assert (tmp_path / "ink" / "images" / "0000.png").is_file()
