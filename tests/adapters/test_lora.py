"""LoRA: where it goes, how it starts, that it is off when it is off."""

import pytest
import torch

from impasto.adapters.config import LoRA
from impasto.adapters.lora import add, disabled, endings
from impasto.bases.loader import load
from impasto.errors import UserError


def lora(folder, **changes):
    family = load(str(folder), device="cpu")
    seed = changes.pop("seed", 0)
    return family, add(family, LoRA(**{"rank": 4} | changes), seed)


def predict(family):
    z = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    cond = {"text": torch.ones(1, 3, 48), "pooled": torch.ones(1, 24)}
    with torch.no_grad():
        return family.predict(z, torch.tensor([-2.0]), cond)


def test_it_starts_as_the_base(tiny_sd3):
    family, parameters = lora(tiny_sd3)
    assert torch.equal(predict(family), predict(load(str(tiny_sd3), device="cpu")))
    assert all((p == 0).all() for name, p in parameters.items() if "lora_B" in name)


def test_a_is_normal_with_std_one_over_rank(tiny_sd3):
    _, parameters = lora(tiny_sd3, rank=16)
    a = torch.cat([p.flatten() for name, p in parameters.items() if "lora_A" in name])
    assert a.std().item() == pytest.approx(1 / 16, rel=0.05) and abs(a.mean().item()) < 0.004


def test_it_is_a_function_of_the_seed(tiny_sd3):
    one, same, other = (lora(tiny_sd3, seed=s)[1] for s in (1, 1, 2))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not any(torch.equal(one[name], other[name]) for name in one if "lora_A" in name)


def test_only_the_adapter_moves_and_in_float32(tiny_sd3):
    family = load(str(tiny_sd3), device="cpu", precision="bf16")
    parameters = add(family, LoRA(rank=2, alpha=None, targets=("attention",)), 0)
    assert {name for name, p in family.denoiser.named_parameters() if p.requires_grad} == parameters.keys()
    assert {p.dtype for p in parameters.values()} == {torch.float32}


def test_targets(tiny_sd3):
    """The paper's list; two blocks, the last of which has no to_add_out: 2 x 8 - 1 layers."""
    assert len(lora(tiny_sd3)[1]) == 2 * 15
    assert len(lora(tiny_sd3, targets=("image_stream",))[1]) == 2 * 8
    assert len(lora(tiny_sd3, targets=("to_q", "ff.net.2"))[1]) == 2 * 4
    assert endings(load(str(tiny_sd3), device="cpu"), ("text_stream", "to_q")) == [
        *("add_k_proj", "add_q_proj", "add_v_proj", "to_add_out", "to_q")
    ]
    with pytest.raises(UserError, match="did you mean 'attention'"):
        lora(tiny_sd3, targets=("atention",))
    with pytest.raises(UserError, match="matches no layer"):
        lora(tiny_sd3, targets=("norm_q",))
    with pytest.raises(UserError, match="no targets, so nothing would be trained: name layers, attention"):
        lora(tiny_sd3, targets=())
    with pytest.raises(UserError, match="rank must be above 0"):
        lora(tiny_sd3, rank=0)


def test_alpha_scales(tiny_sd3):
    family, parameters = lora(tiny_sd3, rank=4, alpha=8.0)
    base = predict(family)
    with torch.no_grad():
        for name, p in parameters.items():
            if "lora_B" in name:
                p.fill_(1e-4)
    doubled = predict(family) - base
    family, parameters = lora(tiny_sd3, rank=4)
    with torch.no_grad():
        for name, p in parameters.items():
            if "lora_B" in name:
                p.fill_(2e-4)
    assert torch.allclose(predict(family) - base, doubled, atol=1e-6) and doubled.abs().max() > 1e-5


def test_disabled_is_the_base(tiny_sd3):
    family, parameters = lora(tiny_sd3)
    base = predict(family)
    with torch.no_grad():
        for p in parameters.values():
            p.fill_(0.1)
    assert not torch.equal(predict(family), base)
    with disabled(family.denoiser):
        assert torch.equal(predict(family), base)
    assert not torch.equal(predict(family), base)
