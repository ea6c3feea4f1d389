"""Two processes with a batch of 3 are one with a batch of 6, through accelerate's own launcher, on the CPU (gloo)."""

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

LAUNCH = Path(__file__).parent.parent / "docs" / "accelerate"
WEIGHTS = "pytorch_lora_weights.safetensors"
PROGRAM = """
import json, os, sys, time, warnings
warnings.simplefilter("ignore")
import torch
torch.set_num_threads(1)
from dataclasses import replace
from accelerate import debug_launcher
from impasto.config import change, resolve
from impasto.errors import UserError
from impasto.training.train import train
import diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3, peft, safetensors.torch  # before the fork

from accelerate import PartialState
from impasto.execution import memory
plan = memory.choose_execution
memory.choose_execution = lambda *args: replace(plan(*args), why=(f"by process {PartialState().process_index}",))

base, picture, out = sys.argv[1:]
from impasto.bases import loader
from impasto.data import prepare
encode, outline = prepare.encode, loader.load_config_only

def note(name):
    with open(f"{out}/{name}", "a") as file:
        file.write(f"{PartialState().process_index}\\n")

def encode_once(*args):
    note("encoded")
    return encode(*args)

def outline_in_turn(*args):
    if PartialState().process_index == 0:
        time.sleep(0.5)
    note("outlined")
    return outline(*args)

prepare.encode, loader.load_config_only = encode_once, outline_in_turn
keys = dict(image=[picture], caption=["a rocket in ink style"], rank=2, preview=False, tensorboard=False, device="cpu")
keys |= dict(prior_weight=0.0, steps=3, accumulate=2, checkpoint_every=2)
config = resolve("style-friendly", base, batch=3, **keys)

words = dict(text_encoder_lora=True, text_encoder_lr=1e-3)

def team(name, fsdp, more):
    os.environ["ACCELERATE_USE_FSDP"] = fsdp
    result = train(change(config, out=config.out.__class__(out) / name, **more))
    with open(f"{out}/{name}-{torch.distributed.get_rank()}.json", "w") as file:
        json.dump(result, file)

for name, fsdp, more in (("team", "false", {}), ("shards", "true", {}), ("words", "false", words)):
    debug_launcher(team, (name, fsdp, more), num_processes=2)
os.environ["ACCELERATE_USE_FSDP"] = "false"
train(change(config, batch=6, out=config.out.__class__(out) / "one"))
train(change(config, batch=6, out=config.out.__class__(out) / "one-words", **words))
try:
    train(change(config, steps=4, out=config.out.__class__(out) / "team"))
except UserError as error:
    print(error)
"""


@pytest.fixture(scope="module")
def runs(tiny_sd3, picture, tmp_path_factory):
    """(folder of the runs, what the program said)."""
    folder = tmp_path_factory.mktemp("runs")
    args = [sys.executable, "-c", PROGRAM, str(tiny_sd3), str(picture), str(folder)]
    environment = dict(os.environ) | {"IMPASTO_CACHE": str(folder / "cache")}
    done = subprocess.run(args, capture_output=True, text=True, env=environment, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder, done.stdout


def rows(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def check_same(one, other):
    """The same run to 1e-5: weights, levels, losses."""
    mine, theirs = load_file(one / WEIGHTS), load_file(other / WEIGHTS)
    assert mine.keys() == theirs.keys()
    assert all(torch.allclose(mine[k], theirs[k], rtol=0, atol=1e-5) for k in mine)
    assert len(rows(one)) == len(rows(other)) == 3, "only the first process writes"
    for a, b in zip(rows(one), rows(other), strict=True):
        assert a["lam"] == b["lam"] and abs(a["loss"] - b["loss"]) < 1e-5 * a["loss"]


def test_the_others_wait_for_hours(monkeypatch):
    """While the first one downloads a base, or draws the previews; NCCL's own patience is 10 minutes."""
    import accelerate

    from impasto.training.workers import Workers

    asked, real = [], accelerate.PartialState
    monkeypatch.setattr(accelerate, "PartialState", lambda **more: asked.append(more) or real(**more))
    assert Workers("cpu").size == 1
    assert asked[0]["cpu"] and asked[0]["timeout"].total_seconds() >= 3600


def test_two_processes_are_one_with_the_double_batch(runs):
    folder, said = runs
    one = load_file(folder / "one" / WEIGHTS)
    assert torch.cat([t.flatten() for t in one.values()]).norm() > 0
    for name in ("team", "shards"):
        check_same(folder / "one", folder / name)
        assert [(folder / f"{name}-{rank}.json").is_file() for rank in (0, 1)] == [True, True]
    assert "processes: 2 -> 1" in said
    told = [json.loads((folder / f"team-{rank}.json").read_text())["running"] for rank in (0, 1)]
    assert told == ["by process 0"] * 2


def test_the_first_process_assembles_and_prepares_for_all(runs):
    folder, _ = runs
    assert (folder / "encoded").read_text() == "0\n"  # the one picture, by the first run
    assert (folder / "outlined").read_text().startswith("0\n1\n0\n1\n0\n1\n")  # three runs of two processes


def test_text_encoders_are_trained_by_two_processes_as_by_one(runs):
    folder, _ = runs
    check_same(folder / "one-words", folder / "words")
    words = {name: t for name, t in load_file(folder / "words" / WEIGHTS).items() if name.startswith("text_encoder")}
    assert any(name.endswith("lora_B.weight") and t.any() for name, t in words.items())


def test_the_shipped_launch(runs, tiny_sd3, picture, tmp_path):
    """`accelerate launch` as docs/training.md has it, with the file for FSDP; only the first process writes output."""
    folder, _ = runs
    flags = {"--base": tiny_sd3, "--image": picture, "--caption": "a rocket in ink style", "--out": tmp_path / "run"}
    flags |= {"--rank": 2, "--batch": 3, "--steps": 3, "--accumulate": 2, "--prior.weight": 0, "--device": "cpu"}
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(LAUNCH / "fsdp.yaml")]
    launch += ["--main_process_port", "0", str(Path(sys.executable).with_name("impasto")), "train"]
    launch += [str(part) for pair in flags.items() for part in pair]
    environment = dict(os.environ) | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*launch, "--no-preview", "--no-tensorboard", "--json"],
        capture_output=True,
        text=True,
        env=environment,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(done.stdout.splitlines()) == 1 and json.loads(done.stdout)["steps"] == 3
    check_same(folder / "one", tmp_path / "run")
    assert tomllib.loads((tmp_path / "run" / "recipe.toml").read_text())["impasto"]["processes"] == 2


def test_the_other_launch_file_differs_in_its_kind_alone():
    import yaml

    two, shards = (yaml.safe_load((LAUNCH / name).read_text()) for name in ("two-gpus.yaml", "fsdp.yaml"))
    assert two.pop("distributed_type") == "MULTI_GPU" and shards.pop("distributed_type") == "FSDP"
    assert shards.pop("fsdp_config") == {"fsdp_version": 2} and two == shards
