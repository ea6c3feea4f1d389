"""The key/value bottleneck: identity at the start, counts, several at once, saved and loaded, never merged."""

import json
from typing import Any

import pytest
import torch
from peft import LoraConfig
from torch import nn

from impasto.adapters import lora
from impasto.adapters.config import KVBottleneck
from impasto.adapters.kv_bottleneck import (
    DOWN,
    METADATA,
    UP,
    KVBottleneckLayer,
    attach,
    count,
    load,
    peft_config,
    state,
    targets,
)
from impasto.bases import loader
from impasto.errors import UserError

SETTINGS = [KVBottleneck(), KVBottleneck(dim=3, shared=True), KVBottleneck(location="all", shared=True)]


def base(folder, precision="fp32"):
    return loader.load(str(folder), device="cpu", precision=precision)


def predict(family):
    z = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        cond = family.encode_prompt(["a rocket in pixel art style", "a cat"])
        return family.predict(z, torch.tensor([-2.0, 1.0]), cond)


def trained(family, config=SETTINGS[0], seed=0):
    """Parameters as after some steps: none is zero."""
    parameters = attach(family, config, seed)
    with torch.no_grad():
        for i, p in enumerate(parameters.values()):
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(i)) * 0.3)
    return parameters


@pytest.mark.parametrize("config", SETTINGS, ids=str)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_attach_starts_as_the_base(tiny_base, config, precision):
    family = base(tiny_base, precision)
    before = predict(family)
    parameters = attach(family, config, 0)
    assert torch.equal(predict(family), before)
    assert {p.dtype for p in parameters.values()} == {torch.float32}
    assert {name for name, p in family.denoiser.named_parameters() if p.requires_grad} == parameters.keys()
    assert sum(p.numel() for p in parameters.values()) == count(family.denoiser, config, targets(family, config))


@pytest.mark.parametrize("config", SETTINGS, ids=str)
def test_every_parameter_gets_a_gradient(tiny_base, config):
    family = base(tiny_base)
    parameters = trained(family, config)
    z = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    cond = {name: t.clone() for name, t in family.encode_prompt(["a rocket in pixel art style"]).items()}
    family.predict(z, torch.tensor([0.0]), cond).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in parameters.values())


def test_attach_is_a_function_of_seed_and_layer(tiny_sd15):
    one, same, other = (attach(base(tiny_sd15), KVBottleneck(dim=64), seed) for seed in (1, 1, 2))
    downs = [name for name in one if DOWN in name]
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert downs and not any(torch.equal(one[name], other[name]) for name in downs)
    drawn = torch.cat([one[name].flatten() for name in downs])
    assert drawn.abs().max() <= 0.04 and drawn.std().item() == pytest.approx(0.0176, rel=0.05)  # truncated at 2 std
    wider = attach(base(tiny_sd15), KVBottleneck(dim=64, location="all"), 1)
    assert all(torch.equal(one[name], wider[name]) for name in one)
    assert all((p == 0).all() for name, p in one.items() if UP in name)


def test_layers_are_those_of_the_location(tiny_base):
    joint = base(tiny_base).part == "transformer"
    wanted = {
        "kv": {"add_k_proj", "add_v_proj"} if joint else {"to_k", "to_v"},
        "q": {"to_q"},
        "out": {"to_out"},
    }
    wanted["all"] = set().union(*wanted.values())
    for location, names in wanted.items():
        family = base(tiny_base)
        attach(family, KVBottleneck(location=location), 0)
        layers = [name for name, m in family.denoiser.named_modules() if isinstance(m, KVBottleneckLayer)]
        assert {name.removesuffix(".0").split(".")[-1] for name in layers} == names
        assert joint or all(".attn2." in name for name in layers)


class Layers(nn.Module):
    """L transformer layers of width D on the meta device, by their keys and values alone."""

    def __init__(self, layers: int, width: int, text: int = 8) -> None:
        super().__init__()
        with torch.device("meta"):
            self.blocks = nn.ModuleList(
                nn.ModuleDict({name: nn.Linear(text, width) for name in ("to_k", "to_v")}) for _ in range(layers)
            )


@pytest.mark.parametrize(
    ("layers", "width", "config", "parameters"),
    [  # methods.md E17 and 2.5
        (48, 2048, KVBottleneck(dim=4, shared=True), 229_760),
        (48, 2048, KVBottleneck(dim=32), 12_582_912),
        (48, 2048, KVBottleneck(dim=4), 1_572_864),
        (48, 1024, KVBottleneck(dim=32), 6_291_456),
        (22, 1024, KVBottleneck(dim=4), 360_448),
        (22, 1024, KVBottleneck(dim=4, shared=True), 61_616),
    ],
)
def test_counts_are_the_papers(layers, width, config, parameters):
    assert count(Layers(layers, width), config, ("to_k", "to_v")) == parameters


def test_formula(tiny_sd15):
    """z + s gelu(z (Wd + bd)) (Wu + bu), of one shared layer that owns no matrices, with two adapters."""
    family = base(tiny_sd15)
    trained(family, KVBottleneck(dim=3, shared=True))
    family.denoiser.add_adapter(peft_config(family, KVBottleneck(dim=2)), adapter_name="other")
    family.denoiser.set_adapters(["default", "other"], [0.5, 2.0])
    layers = [layer for layer in family.denoiser.modules() if isinstance(layer, KVBottleneckLayer)]
    layer: Any = next(layer for layer in layers if "default" in layer.owner)
    owner = layer.owner["default"]
    with torch.no_grad():
        layer.kv_bottleneck_up["other"].normal_()
        e = torch.randn(5, layer.get_base_layer().in_features, generator=torch.Generator().manual_seed(3))
        z = layer.get_base_layer()(e)
        down = owner.kv_bottleneck_down["default"] + layer.kv_bottleneck_down_bias["default"]
        up = owner.kv_bottleneck_up["default"] + layer.kv_bottleneck_up_bias["default"]
        expected = z + 0.5 * nn.functional.gelu(z @ down) @ up
        expected += 2 * nn.functional.gelu(z @ layer.kv_bottleneck_down["other"]) @ layer.kv_bottleneck_up["other"]
        torch.testing.assert_close(layer(e), expected)


@pytest.mark.parametrize("config", SETTINGS, ids=str)
def test_saved_is_loaded_with_the_same_predictions(tiny_base, config):
    family = base(tiny_base)
    parameters = trained(family, config)
    tensors, metadata = state(family)
    assert len(tensors) == len(parameters) and all(name.startswith(f"{family.part}.") for name in tensors)
    other = base(tiny_base)
    before = predict(other)
    load(other.denoiser, tensors, metadata, "style", 1.0)
    assert torch.equal(predict(other), predict(family)) and not torch.equal(predict(other), before)
    assert not any(p.requires_grad for p in other.denoiser.parameters())


@pytest.mark.parametrize("config", SETTINGS[:2], ids=str)
def test_switched_off_or_removed_it_is_the_base_exactly(tiny_base, config):
    family = base(tiny_base)
    before = predict(family)
    trained(family, config)
    after, denoiser = predict(family), family.denoiser
    assert not torch.equal(after, before)
    with lora.disabled(denoiser):
        assert torch.equal(predict(family), before)
    assert torch.equal(predict(family), after)
    denoiser.set_adapters(["default"], [0.0])
    assert torch.equal(predict(family), before)
    denoiser.set_adapters(["default"], [0.5])
    half = predict(family)
    assert not torch.equal(half, before) and not torch.equal(half, after)
    tensors, metadata = state(family)
    load(denoiser, tensors, metadata, "second", 0.5)
    both = predict(family)
    denoiser.delete_adapters("second")
    denoiser.set_adapters(["default"], [1.0])
    assert torch.equal(predict(family), after)
    torch.testing.assert_close(both, after, rtol=1e-4, atol=1e-5)  # .5 + .5 of the same adapter
    denoiser.unload_lora()
    assert torch.equal(predict(family), before)
    assert not any(isinstance(layer, KVBottleneckLayer) for layer in denoiser.modules())


def test_beside_a_lora_both_keep_their_names(tiny_sd15):
    family = base(tiny_sd15)
    before = predict(family)
    family.denoiser.add_adapter(LoraConfig(r=2, target_modules=["to_k", "to_q"]), adapter_name="lora")
    trained(family)
    tensors, metadata = state(family)
    assert not any("base_layer" in name for name in tensors)
    other = base(tiny_sd15)
    load(other.denoiser, tensors, metadata, "style", 1.0)
    family.denoiser.set_adapters(["default"], [1.0])
    assert torch.equal(predict(other), predict(family)) and not torch.equal(predict(other), before)


def test_gradient_checkpointing_changes_no_gradient(tiny_sd15):
    gradients = []
    for checkpointing in (False, True):
        family = base(tiny_sd15)
        parameters = trained(family)
        family.denoiser.train()
        if checkpointing:
            family.denoiser.enable_gradient_checkpointing()
        cond = {name: t.clone() for name, t in family.encode_prompt(["a cat"]).items()}
        z = torch.ones(1, 4, 4, 4)
        family.predict(z, torch.tensor([0.0]), cond).square().sum().backward()
        gradients.append([p.grad for p in parameters.values()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_merging_is_refused(tiny_sd15):
    family = base(tiny_sd15)
    attach(family, KVBottleneck(), 0)
    with pytest.raises(UserError, match=r"cannot be merged into the base: .* is not linear"):
        family.denoiser.fuse_lora()


def test_load_refuses_another_base_and_another_file(tiny_sd15, tiny_sd3):
    family = base(tiny_sd15)
    attach(family, KVBottleneck(), 0)
    tensors, metadata = state(family)
    with pytest.raises(UserError, match=r"was not trained for this base: .* tensors differ"):
        load(base(tiny_sd3).denoiser, tensors, metadata, "style", 1.0)
    with pytest.raises(UserError, match="tensors differ"):
        load(base(tiny_sd15).denoiser, dict(list(tensors.items())[1:]), metadata, "style", 1.0)
    with pytest.raises(UserError, match="holds no key/value bottleneck"):
        load(base(tiny_sd15).denoiser, tensors, {}, "style", 1.0)
    damaged = json.dumps(json.loads(metadata[METADATA]) | {"width": 3})
    with pytest.raises(UserError, match=r"settings .* are damaged"):
        load(base(tiny_sd15).denoiser, tensors, {METADATA: damaged}, "style", 1.0)


def test_settings_are_checked():
    with pytest.raises(UserError, match=r"adapter\.dim must be above 0, not 0"):
        KVBottleneck(dim=0)
    with pytest.raises(UserError, match=r"unknown adapter\.location 'vk': did you mean 'kv'"):
        KVBottleneck(location="vk")
