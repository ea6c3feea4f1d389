"""Memory runs out, the disk is full: one line, and a state from which the same command goes on."""

import errno
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from impasto.config import change, resolve
from impasto.errors import UserError
from impasto.failures import disk_full, explain_failure, out_of_memory
from impasto.objectives import denoise as objective
from impasto.training.checkpoints import explain_failures
from impasto.training.train import train

WEIGHTS = "pytorch_lora_weights.safetensors"


@pytest.fixture(scope="module")
def config(tiny_sd3, picture, tmp_path_factory):
    out = tmp_path_factory.mktemp("trouble")
    keys = {"image": [str(picture)], "caption": ["a rocket in ink style"], "rank": 2, "targets": ["to_q", "add_k_proj"]}
    keys |= {"checkpoint_every": 2, "preview": False, "tensorboard": False, "quantize": "none"}
    whole = resolve("style-friendly", str(tiny_sd3), out=str(out / "whole"), **keys)
    train(whole)
    return whole


def test_memory_that_runs_out_while_preparing(config, tmp_path, monkeypatch):
    """What helps in training does not help there."""

    def embed(*args):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setenv("IMPASTO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("impasto.families.sd3.SD3.embed", embed)
    told = r"out of memory: there is no checkpoint yet; that was while encoding pictures and captions, not training: "
    with pytest.raises(UserError, match=told) as caught:
        train(change(config, out=tmp_path / "x"))
    assert "--checkpointing" not in str(caught.value)


def same(one, two):
    one, two = load_file(one.out / WEIGHTS), load_file(two.out / WEIGHTS)
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def states(config):
    return sorted(file.name for file in (config.out / "state").glob("step-*"))


def test_out_of_memory_keeps_the_step_before(config, tmp_path, monkeypatch):
    """In the second forward pass of step 4, whose first has left gradients behind."""
    real, calls = objective.denoise, []

    def denoise(*args, **more):
        calls.append(1)
        if len(calls) == 8:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return real(*args, **more)

    torn = change(config, out=tmp_path / "run")
    monkeypatch.setattr(objective, "denoise", denoise)
    told = r"out of memory: the checkpoint of step 3 is kept; the same command with --checkpointing 1 goes on; "
    with pytest.raises(
        UserError, match=told + r"with another --out try --batch 1 .*--optimizer adamw8bit, or --quantize nf4"
    ):
        train(torn)
    monkeypatch.undo()
    assert states(torn)[-1] == "step-000003.safetensors"
    for changes in ({"batch": 1}, {"optimizer": "muon"}):  # as said: another run
        with pytest.raises(UserError, match="holds a run with other settings"):
            train(change(torn, **changes))
    assert train(change(torn, checkpointing=1.0))["resumed_from"] == 3  # as advised: not another run
    assert [json.loads(x)["step"] for x in (torn.out / "metrics.jsonl").read_text().splitlines()] == [1, 2, 3, 4, 5, 6]
    assert same(config, torn)


def test_a_full_disk_keeps_the_last_good_state(config, tmp_path, monkeypatch):
    """Half of the state of step 4 is written when there is no room left."""
    real = Path.write_bytes

    def write_bytes(self, data):
        if "step-000004" in self.name:
            real(self, data[: len(data) // 2])
            raise OSError(errno.ENOSPC, "No space left on device", str(self))
        return real(self, data)

    torn = change(config, out=tmp_path / "run")
    monkeypatch.setattr(Path, "write_bytes", write_bytes)
    with pytest.raises(
        UserError, match=r"disk of .*run' is full: the checkpoint of step 2 is kept; make room and give the"
    ):
        train(torn)
    monkeypatch.undo()
    assert states(torn) == ["step-000002.json", "step-000002.safetensors"]
    assert train(torn)["resumed_from"] == 2
    assert same(config, torn)


def test_what_is_known_as_trouble(tmp_path):
    assert out_of_memory(torch.OutOfMemoryError("x")) and out_of_memory(MemoryError())
    assert out_of_memory(RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"))
    assert out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"))
    assert not out_of_memory(RuntimeError("shapes differ")) and not out_of_memory(ValueError("out of memory"))
    assert disk_full(OSError(errno.EDQUOT, "quota")) and not disk_full(OSError(errno.EACCES, "no"))
    with pytest.raises(KeyError), explain_failures(tmp_path, ""):
        raise KeyError("a defect stays a defect")
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "step-mine.json").touch()  # none of ours
    with pytest.raises(UserError, match="there is no checkpoint yet; try this"), explain_failures(tmp_path, "try this"):
        raise torch.OutOfMemoryError("x")


def test_a_file_that_cannot_be_used_is_named(tmp_path):
    (tmp_path / "a").touch(), (tmp_path / "folder").mkdir()
    for act, name in ((lambda: (tmp_path / "a").replace(tmp_path / "folder"), "folder"), (tmp_path.read_text, "")):
        with pytest.raises(IsADirectoryError) as error:
            act()
        assert explain_failure(error.value) == f"{str(tmp_path / name)!r} cannot be used: Is a directory"
    assert explain_failure(OSError("no file in it")) is None and explain_failure(KeyError("a defect")) is None


def test_all_states_are_kept_when_asked(config, tmp_path):
    kept = change(config, out=tmp_path / "run", keep=0, steps=4, checkpoint_every=1)
    train(kept)
    assert [name for name in states(kept) if name.endswith("json")] == [f"step-00000{i}.json" for i in (1, 2, 3, 4)]


def test_checkpointing_and_offload_flags_reach_the_run(config, tmp_path):
    """The same adapter by a run whose blocks are computed again: the flag is free, and it is used."""
    other = change(config, out=tmp_path / "run", checkpointing=0.5)
    train(other)
    one, two = load_file(config.out / WEIGHTS), load_file(other.out / WEIGHTS)
    assert all(torch.allclose(one[name], two[name], atol=1e-6) for name in one)
    with pytest.raises(UserError, match="lies in main memory already"):
        train(change(config, out=tmp_path / "other", offload="on"))
