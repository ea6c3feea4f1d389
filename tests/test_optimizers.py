"""Optimisers: their steps, their whole state as tensors, and who refuses what."""

import builtins
import warnings

import pytest
import torch
from safetensors.torch import load, save

from impasto.config import resolve
from impasto.errors import UserError
from impasto.optim.config import OptimConfig
from impasto.optim.optimizers import OPTIMIZERS, choice
from impasto.training.trainable import TrainableParameters, group_name

SHAPES = {"a.lora_A.weight": (8, 80), "a.lora_B.weight": (96, 64), "te.lora_B.weight": (6, 4)}
"""One of more than 4,096 weights, from which on bitsandbytes keeps 8 bits."""


def parameters():
    own = torch.Generator().manual_seed(3)
    return {name: torch.nn.Parameter(torch.randn(shape, generator=own)) for name, shape in SHAPES.items()}


def gradients(named, step):
    own = torch.Generator().manual_seed(step)
    for p in named.values():
        p.grad = (torch.randn(p.shape, generator=own) + 1).to(p.dtype)


def runs(config):
    """What moved in all steps, and in the first half, a state on disk, the second half."""
    whole, torn = parameters(), parameters()
    one, two = TrainableParameters(config, whole, 0, {}), TrainableParameters(config, torn, 0, {})
    for step in range(1, config.steps + 1):
        if step == config.steps // 2 + 1:
            state = load(save({name: t.detach().clone() for name, t in two.tensors().items()}))
            torn = parameters()
            two = TrainableParameters(config, torn, step - 1, state)
        for moving, named in ((one, whole), (two, torn)):
            gradients(named, step)
            moving.step(step)
    return one, two


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_resumed_is_bit_equal(name, schedule):
    if name == "adamw8bit":
        pytest.importorskip("bitsandbytes")
    lr = 1.0 if name == "prodigy" else 1e-2
    config = OptimConfig(optimizer=name, lr=lr, steps=6, schedule=schedule, warmup=2, ema=0.9, weight_decay=0.01)
    one, two = (moving.tensors() for moving in runs(config))
    assert one.keys() == two.keys() and len(one) >= 3 * len(SHAPES)
    for key in one:
        assert one[key].dtype == two[key].dtype and torch.equal(one[key], two[key]), key
    begun = parameters()
    assert all(not torch.equal(one[f"adapter/{key}"], begun[key]) for key in SHAPES)


def test_a_state_that_lacks_one_tensor_is_another_run():
    """The test above can fail: without its moments Adam goes elsewhere."""
    config, named = OptimConfig(lr=1e-2, steps=3), parameters()
    moving = TrainableParameters(config, named, 0, {})
    gradients(named, 1)
    moving.step(1)
    state = {key: t.detach().clone() for key, t in moving.tensors().items()}
    ends = []
    for drop in ("", "exp_avg/"):
        again = parameters()
        moving = TrainableParameters(
            config, again, 1, {key: t for key, t in state.items() if not (drop and key.startswith(drop))}
        )
        if drop:
            for p in again.values():
                moving.optimizer.state[p]["exp_avg"] = torch.zeros_like(p)
        gradients(again, 2)
        moving.step(2)
        ends.append(again["a.lora_A.weight"].detach())
    assert not torch.equal(*ends)


def test_muon_steps_have_the_size_of_adam_s():
    """Root mean square of a step: about .2 lr, for A and for B (Moonlight's factor)."""
    config, named = OptimConfig(optimizer="muon", lr=1e-2, steps=1), parameters()
    before = {name: p.detach().clone() for name, p in named.items()}
    moving = TrainableParameters(config, named, 0, {})
    gradients(named, 1)
    moving.step(1)
    for name in ("a.lora_A.weight", "a.lora_B.weight"):
        assert (named[name] - before[name]).square().mean().sqrt().item() == pytest.approx(2e-3, rel=0.3)


def test_groups_have_their_own_rate():
    named = parameters()
    before = {name: p.detach().clone() for name, p in named.items()}
    moving = TrainableParameters(OptimConfig(lr=1e-2, steps=9, warmup=2), named, 0, {}, {"te.": 1e-3})
    gradients(named, 1)
    moving.step(1)
    steps = {name: (named[name] - before[name]).abs().mean().item() for name in named}
    assert steps["a.lora_A.weight"] == pytest.approx(5e-3, rel=1e-3)  # Adam's first step is the rate, half in warm-up
    assert steps["te.lora_B.weight"] == pytest.approx(5e-4, rel=1e-3)


def test_prodigy_finds_a_rate_and_takes_one_group():
    pytest.importorskip("prodigyopt")
    assert resolve(optimizer="prodigy").optim.lr == 1.0 and resolve(optimizer="prodigy", lr=0.5).optim.lr == 0.5
    assert resolve().optim.lr < 0.1 and resolve(optimizer="muon").optim.lr == resolve().optim.lr
    with pytest.raises(UserError, match="one rate for all"):
        TrainableParameters(OptimConfig(optimizer="prodigy", lr=1.0), parameters(), 0, {}, {"te.": 1e-3})
    one, two = (moving.tensors() for moving in runs(OptimConfig(optimizer="prodigy", lr=1.0, steps=100)))
    assert one["group#/0/d"] > 2e-6 and one["group#/0/d_hat"] > 0, "it has left 1e-6, where it begins"
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_refusals(monkeypatch):
    with pytest.raises(UserError, match="did you mean 'adamw8bit'"):
        choice("adamw8bits")
    with pytest.raises(UserError, match="muon steps matrices only"):
        TrainableParameters(OptimConfig(optimizer="muon"), {"c": torch.nn.Parameter(torch.zeros(4, 4, 3, 3))}, 0, {})
    real = builtins.__import__

    def absent(name, *args, **more):
        if name in ("bitsandbytes", "prodigyopt"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, *args, **more)

    monkeypatch.setattr("importlib.import_module", absent)
    with pytest.raises(UserError, match=r"adamw8bit needs bitsandbytes: pip install 'impasto\[quant\]'"):
        TrainableParameters(OptimConfig(optimizer="adamw8bit"), parameters(), 0, {})
    with pytest.raises(UserError, match=r"pip install 'impasto\[prodigy\]'"):
        TrainableParameters(OptimConfig(optimizer="prodigy"), parameters(), 0, {})
    meta = {"a": torch.nn.Parameter(torch.zeros(4, 4, device="meta"))}
    with pytest.raises(UserError, match="does not run on meta"):
        TrainableParameters(OptimConfig(optimizer="adamw8bit"), meta, 0, {})


def test_a_group_that_does_not_move_is_named():
    """One group frozen by a zero gradient; one in bfloat16, whose updates are rounded away (market 0.4)."""
    named = {
        "b.0.attn.to_q.lora_A.default.weight": torch.nn.Parameter(torch.ones(8, 8)),
        "b.1.attn.to_q.lora_A.default.weight": torch.nn.Parameter(torch.ones(8, 8)),
        "b.0.attn.to_out.0.lora_B.default.weight": torch.nn.Parameter(torch.ones(8, 8)),
        "b.0.attn.to_k.lora_A.default.weight": torch.nn.Parameter(torch.ones(8, 8, dtype=torch.bfloat16)),
    }
    config = OptimConfig(lr=1e-4, steps=40)
    moving = TrainableParameters(config, named, 0, {})
    seen = {}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for step in range(1, 41):
            gradients(named, step)
            named["b.0.attn.to_out.0.lora_B.default.weight"].grad = torch.zeros(8, 8)
            seen |= {step: row["unchanged"]} if "unchanged" in (row := moving.step(step)) else {}
    assert seen == {20: {"to_k.lora_A": 1.0, "to_out.0.lora_B": 1.0, "to_q.lora_A": 0.0}}
    (warning,) = [str(w.message) for w in caught if "has not moved" in str(w.message)]
    assert "to_k.lora_A (100%), to_out.0.lora_B (100%) has not moved at all: raise --lr" in warning


def test_group_names():
    assert group_name("down_blocks.0.attentions.1.to_v.lora_A.default.weight") == "to_v.lora_A"
    assert group_name("x.3.to_out.0.lora_B.default.weight") == "to_out.0.lora_B" and group_name("p") == "p"


@pytest.mark.parametrize("done", [19, 20, 25])
def test_what_has_moved_is_seen_after_a_resume_too(done):
    named = parameters()
    moving = TrainableParameters(OptimConfig(lr=1e-2, steps=40), named, 0, {})
    rows = {}
    for step in range(1, 31):
        gradients(named, step)
        rows[step] = moving.step(step)
        if step == done:
            state = {key: t.detach().clone() for key, t in moving.tensors().items()}
    again = parameters()
    moving = TrainableParameters(OptimConfig(lr=1e-2, steps=40), again, done, state)
    for step in range(done + 1, 31):
        gradients(again, step)
        assert moving.step(step) == rows[step]
