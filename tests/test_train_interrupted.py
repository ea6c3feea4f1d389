"""The machine dies, the user presses Ctrl-C: the same command ends as if nothing had been."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from safetensors.torch import load_file

from impasto.cli.main import main

COMMAND = "import torch; torch.set_num_threads(1); from impasto.cli.main import main; main()"
STEPS = 150


def arguments(base, picture, out):
    settings = {"--image": picture, "--caption": "a rocket in ink style", "--base": base, "--out": out}
    settings |= {"--steps": STEPS, "--batch": 1, "--accumulate": 1, "--rank": 2, "--checkpoint-every": 7}
    return ["train", *(str(x) for pair in settings.items() for x in pair), "--no-preview", "--no-tensorboard", "--json"]


def start(args):
    """The command in a process of its own, that can be killed."""
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=dict(os.environ)
    )


@pytest.fixture(scope="module")
def whole(tiny_sd3, picture, tmp_path_factory):
    """The folder of the same run, not interrupted."""
    out = tmp_path_factory.mktemp("whole") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IMPASTO_CACHE", str(out.parent / "cache"))
        patch.setattr(sys, "argv", ["impasto", *arguments(tiny_sd3, picture, out)])
        with pytest.raises(SystemExit) as stop:
            main()
    assert stop.value.code == 0
    return out


def finish(args, capsys, monkeypatch):
    """The same command, here."""
    monkeypatch.setattr(sys, "argv", ["impasto", *args])
    with pytest.raises(SystemExit) as stop:
        main()
    out, err = capsys.readouterr()
    assert stop.value.code == 0, err
    return json.loads(out.splitlines()[-1])


def wait_for_rows(process, out, count):
    metrics, end = out / "metrics.jsonl", time.monotonic() + 300
    while time.monotonic() < end:
        assert process.poll() is None, process.communicate()[1].decode()
        if metrics.exists() and metrics.read_bytes().count(b"\n") >= count:
            return
        time.sleep(0.005)
    raise AssertionError("no step was made")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -9), (signal.SIGINT, 130)])
def test_the_same_command_goes_on_and_ends_the_same(
    whole, tiny_sd3, picture, tmp_path, capsys, monkeypatch, number, code
):
    assert (whole / "metrics.jsonl").read_bytes().count(b"\n") == STEPS
    args = arguments(tiny_sd3, picture, tmp_path / "run")
    process = start(args)
    wait_for_rows(process, tmp_path / "run", 22)  # not 21: its state is written after its row, a kill may come between
    process.send_signal(number)
    out, err = process.communicate(timeout=300)
    assert process.returncode == code
    done = (tmp_path / "run" / "metrics.jsonl").read_bytes().count(b"\n")
    assert 22 <= done < STEPS and not (tmp_path / "run" / "pytorch_lora_weights.safetensors").exists()
    if code == 130:
        assert json.loads(out.splitlines()[-1]) == {"error": "interrupted"}
        assert f"stopped after step {done}" in err.decode()
    resumed = finish(args, capsys, monkeypatch)["resumed_from"]
    assert resumed == (done if code == 130 else done - done % 7)
    one, two = (load_file(folder / "pytorch_lora_weights.safetensors") for folder in (whole, tmp_path / "run"))
    assert one.keys() == two.keys() and all((one[name] == two[name]).all() for name in one)
    assert (whole / "metrics.jsonl").read_bytes() == (tmp_path / "run" / "metrics.jsonl").read_bytes()
    assert not [
        file for file in (tmp_path / "run").rglob("*") if file.suffix in {".pt", ".pth", ".bin", ".pkl", ".ckpt"}
    ]
