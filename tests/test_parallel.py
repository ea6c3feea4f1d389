"""Two processes with a batch of 3 are one with a batch of 6, through accelerate's own launcher, on the CPU (gloo)."""

import json
import os
import subprocess
import sys

import torch
from safetensors.torch import load_file

WEIGHTS = "pytorch_lora_weights.safetensors"
PROGRAM = """
import json, os, sys, warnings
warnings.simplefilter("ignore")
import torch
torch.set_num_threads(1)
from dataclasses import replace
from accelerate import debug_launcher
from impasto.config import resolve
from impasto.errors import UserError
from impasto.train import train
import diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3, peft, safetensors.torch  # before the fork

base, picture, out = sys.argv[1:]
keys = dict(image=[picture], caption=["a rocket in ink style"], rank=2, preview=False, tensorboard=False, device="cpu")
keys |= dict(prior_weight=0.0, steps=3, accumulate=2, checkpoint_every=2)
config = resolve("style-friendly", base, batch=3, **keys)

def team(name, fsdp):
    os.environ["ACCELERATE_USE_FSDP"] = fsdp
    result = train(replace(config, out=config.out.__class__(out) / name))
    with open(f"{out}/{name}-{torch.distributed.get_rank()}.json", "w") as file:
        json.dump(result, file)

for name, fsdp in (("team", "false"), ("shards", "true")):
    debug_launcher(team, (name, fsdp), num_processes=2)
os.environ["ACCELERATE_USE_FSDP"] = "false"
train(replace(config, batch=6, out=config.out.__class__(out) / "one"))
try:
    train(replace(config, steps=4, out=config.out.__class__(out) / "team"))
except UserError as error:
    print(error)
"""


def test_two_processes_are_one_with_the_double_batch(tiny_sd3, picture, tmp_path):
    args = [sys.executable, "-c", PROGRAM, str(tiny_sd3), str(picture), str(tmp_path)]
    done = subprocess.run(args, capture_output=True, text=True, env=dict(os.environ), timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = {
        name: [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("one", "team", "shards")
    }
    one = load_file(tmp_path / "one" / WEIGHTS)
    begun = torch.cat([t.flatten() for t in one.values()]).norm()
    assert begun > 0
    for name in ("team", "shards"):
        other = load_file(tmp_path / name / WEIGHTS)
        assert other.keys() == one.keys() and all(torch.allclose(one[k], other[k], rtol=0, atol=1e-5) for k in one)
        for mine, theirs in zip(rows["one"], rows[name], strict=True):
            assert mine["lam"] == theirs["lam"] and abs(mine["loss"] - theirs["loss"]) < 1e-5 * mine["loss"]
        assert [(tmp_path / f"{name}-{rank}.json").is_file() for rank in (0, 1)] == [True, True]
        assert len(rows[name]) == 3, "only the first process writes"
    assert "processes: 2 -> 1" in done.stdout
