"""StyleInject: the layer against a literal reading of the paper, its parameter counts, and its life inside PEFT."""

import json
from dataclasses import replace
from types import SimpleNamespace

import diffusers
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils import get_peft_model_state_dict
from torch import nn

from impasto.adapters import styleinject
from impasto.adapters.config import StyleInject
from impasto.adapters.styleinject.layers import (
    TENSORS,
    Settings,
    StyleInjectConv2d,
    StyleInjectLayer,
    StyleInjectLinear,
    tensor_shapes,
)
from impasto.adapters.styleinject.tuner import StyleInjectConfig
from impasto.bases.loader import load
from impasto.bases.single_file import CONFIGS
from impasto.errors import UserError
from impasto.families.unet import KINDS
from impasto.styles.weights import read_file, write_tensors

SMALL = StyleInject(rank=2, n=3)
ALL = replace(SMALL, targets=("attention", "convolution"))


def inputs(family, batch=2):
    """Latents, log-SNRs and a condition of random numbers that fit the base."""
    config, draws = family.config(family.part), torch.Generator().manual_seed(0)
    text, side = config.get("cross_attention_dim") or config["joint_attention_dim"], 8
    shape = (batch, family.config("vae")["latent_channels"], side, side)
    cond = {"text": torch.randn(batch, 7, text, generator=draws)}
    if "pooled_projection_dim" in config:
        cond["pooled"] = torch.randn(batch, config["pooled_projection_dim"], generator=draws)
    return torch.randn(shape, generator=draws), torch.linspace(-3.0, 2.0, batch), cond


def predict(family):
    with torch.no_grad():
        return family.predict(*inputs(family))


def fill(module, name="default", seed=0, std=0.3):
    """Random values in all tensors of an adapter."""
    draws = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in module.modules():
            for tensor in TENSORS if isinstance(layer, StyleInjectLayer) else ():
                if name in getattr(layer, tensor):
                    p = getattr(layer, tensor)[name]
                    p.copy_(std * torch.randn(p.shape, generator=draws))


def trained(folder, config=SMALL, seed=0, **changes):
    """A base that carries a StyleInject of random values, and what `state` saves of it."""
    family = load(str(folder), device="cpu", **changes)
    styleinject.attach(family, config, seed=0)
    fill(family.denoiser, seed=seed)
    return family, styleinject.state(family)


# the layer


def literal(layer, x, h, of, w):
    """The paper's equations 2-4, image by image and A by A, in float64."""
    p = {tensor: getattr(layer, tensor)["default"].double() for tensor in TENSORS}
    base, conv = layer.base_layer, isinstance(layer.base_layer, nn.Conv2d)
    placed = {"stride": base.stride, "padding": base.padding} if conv else {}
    images = []
    for one, out in zip(x.double(), h.double(), strict=True):
        tokens = one.flatten(1).T if conv else one  # (L, in)
        flat = out.flatten(1).T if conv else out  # (L, out)
        pooled = {"mean": tokens.mean(0, keepdim=True), "sum": tokens.sum(0, keepdim=True), "token": tokens}[of.pool]
        s = (pooled @ p["styleinject_router"].T).softmax(-1)  # (1 or L, n)
        every = [nn.functional.conv2d(one[None], a, **placed)[0] if conv else one @ a.T for a in p["styleinject_down"]]
        every = [low.flatten(1).T if conv else low for low in every]  # (L, r) each
        dh = of.alpha / of.r * sum(s[:, i : i + 1] * low for i, low in enumerate(every)) @ p["styleinject_up"].T
        mu, sigma = flat.mean(0), (flat.var(0, correction=0) + 1e-5).sqrt()
        g = s @ p["styleinject_gamma"].T + p["styleinject_shift"]
        scaled = sigma * (1 + g) if of.hyper == "multiplicative" else sigma + g
        star = (flat - mu) / sigma * scaled + mu + dh
        images.append((flat + w * (star - flat)).T.view_as(out) if conv else flat + w * (star - flat))
    return torch.stack(images).float()


@pytest.mark.parametrize("pool", ["mean", "sum", "token"])
@pytest.mark.parametrize("hyper", ["multiplicative", "additive"])
@pytest.mark.parametrize("kind", ["linear", "convolution"])
def test_layer_equals_the_papers_equations_image_by_image(kind, hyper, pool):
    draws = torch.Generator().manual_seed(1)
    of = Settings(r=4, n=3, alpha=6.0, full=True, sta=True, pool=pool, hyper=hyper)
    if kind == "linear":
        layer, x = StyleInjectLinear(nn.Linear(6, 5)), torch.randn(3, 7, 6, generator=draws)
    else:
        layer, x = StyleInjectConv2d(nn.Conv2d(4, 5, 3, padding=1)), torch.randn(3, 4, 6, 6, generator=draws)
    layer.update_layer("default", of, init=False, inference_mode=False)
    fill(layer)
    layer.set_scale("default", 0.7)
    with torch.no_grad():
        h = layer.base_layer(x)
        assert torch.allclose(layer(x), truth := literal(layer, x, h, of, 0.7), atol=1e-5)
        assert not torch.allclose(truth, h, atol=0.1)


def test_layer_of_a_strided_convolution_routes_each_token():
    layer, of = StyleInjectConv2d(nn.Conv2d(4, 5, 3, 2, 1)), Settings(2, 3, 2.0, True, True, "token", "multiplicative")
    layer.update_layer("default", of, init=False, inference_mode=False)
    x = torch.ones(1, 4, 6, 6)
    x[..., 3:] = 2.0  # the left half and the right half are routed differently
    s = layer.route("default", x, layer.base_layer(x))
    assert s.shape == (1, 3, 3, 3) and layer(x).shape == (1, 5, 3, 3)
    assert torch.equal(s[0, :, 0], s[0, [0], 0].expand(3, 3)) and not torch.allclose(s[0, 0, 0], s[0, 0, 2])


def test_layer_starts_as_the_frozen_one_to_the_bit_where_the_literal_form_does_not():
    """E21."""
    layer, x = StyleInjectLinear(nn.Linear(32, 64)), torch.randn(4, 16, 32)
    of = Settings(4, 3, 4.0, True, True, "mean", "multiplicative")
    layer.update_layer("default", of, init=True, inference_mode=False)
    h = layer.base_layer(x)
    mu, sigma = h.mean(1, keepdim=True), (h.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
    assert torch.equal(layer(x), h)
    assert 0 < ((h - mu) / sigma * sigma + mu - h).abs().max() < 2e-6


@pytest.mark.parametrize("hyper", ["multiplicative", "additive"])
def test_layer_is_finite_where_there_is_one_token(hyper):
    """sigma is 0 there, and the AdaIN term with it."""
    for layer, x in (
        (StyleInjectLinear(nn.Linear(6, 5)), torch.randn(3, 6)),
        (StyleInjectConv2d(nn.Conv2d(4, 5, 1)), torch.randn(3, 4, 1, 1)),
    ):
        layer.update_layer("default", Settings(2, 3, 2.0, True, True, "mean", hyper), False, False)
        plain = layer(x)
        layer(x).sum().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.parameters())
        with torch.no_grad():
            layer.styleinject_gamma["default"].zero_(), layer.styleinject_shift["default"].zero_()
        assert torch.equal(layer(x), plain)


def test_layer_compiles_without_a_graph_break():
    for layer, x in (
        (StyleInjectLinear(nn.Linear(6, 5)), torch.randn(3, 7, 6)),
        (StyleInjectConv2d(nn.Conv2d(4, 5, 3)), torch.randn(3, 4, 6, 6)),
    ):
        layer.update_layer("default", Settings(2, 3, 2.0, True, True, "mean", "multiplicative"), False, False)
        compiled = torch.compile(layer, fullgraph=True, backend="eager")
        for context in (torch.autocast("cpu", torch.bfloat16, enabled=False), torch.autocast("cpu", torch.bfloat16)):
            with context:
                assert torch.allclose(compiled(x), layer(x), atol=1e-6)


def test_layer_is_refused_on_grouped_convolutions_and_other_layers():
    of = Settings(2, 3, 2.0, True, True, "mean", "multiplicative")
    with pytest.raises(UserError, match="has 2 groups"):
        tensor_shapes(nn.Conv2d(4, 4, 3, groups=2), of)
    with pytest.raises(UserError, match="not on Conv1d"):
        tensor_shapes(nn.Conv1d(4, 4, 3), of)


# on a base


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("base", ["mini-sd15", "mini-sd3", "tiny_flux"])
def test_attach_leaves_the_base_as_it_is_to_the_bit(base, precision, request):
    folder = str(request.getfixturevalue(base)) if base.startswith("tiny") else base
    family = load(folder, device="cpu", precision=precision)
    family.denoiser.train()
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        before = predict(family)
        config = ALL if base == "mini-sd15" else SMALL
        parameters = styleinject.attach(family, config, seed=0)
        assert torch.equal(predict(family), before)
        fill(family.denoiser)
        assert not torch.equal(predict(family), before)
    assert {p.dtype for p in parameters.values()} == {torch.float32}
    layers = sum(isinstance(layer, StyleInjectLayer) for layer in family.denoiser.modules())
    assert layers == {"mini-sd15": 82, "mini-sd3": 12, "tiny_flux": 8}[base]


def test_attach_in_bf16_without_autocast_leaves_the_base_as_it_is(tiny_sd15):
    family = load(str(tiny_sd15), device="cpu", precision="bf16")
    before = predict(family)
    styleinject.attach(family, ALL, seed=0)
    assert torch.equal(predict(family), before) and before.dtype == torch.bfloat16


def test_attach_returns_what_a_gradient_reaches(tiny_sd15):
    for config in (ALL, replace(ALL, n=1), replace(ALL, sta=False), replace(ALL, dma=False, sta=False)):
        family = load(str(tiny_sd15), device="cpu")
        parameters = styleinject.attach(family, config, seed=0)
        fill(family.denoiser)
        family.predict(*inputs(family)).square().sum().backward()
        assert {name for name, p in family.denoiser.named_parameters() if p.requires_grad} == parameters.keys()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in parameters.values())
        routed = any("router" in name for name in parameters)
        assert routed == (config.n > 1 and (config.dma or config.sta))


def test_attach_draws_from_seed_and_layer_alone(tiny_sd15):
    def draw(seed, **changes):
        return styleinject.attach(load(str(tiny_sd15), device="cpu"), replace(SMALL, **changes), seed)

    one, more, other = draw(1), draw(1, targets=("attention",)), draw(2)
    assert all(torch.equal(p, more[name]) for name, p in one.items()) and len(more) > len(one)
    for name, p in one.items():
        drawn = name.endswith(("styleinject_down.default", "styleinject_router.default"))
        assert torch.equal(p, other[name]) == (not drawn) and bool(p.any()) == drawn
        assert p.abs().max() <= p.shape[-1] ** -0.5
    down = next(p for name, p in one.items() if "styleinject_down" in name)
    assert not torch.equal(down[0], down[1])  # else the router would have no gradient


def test_attach_with_targets_that_match_no_layer_names_the_nearest(tiny_sd15):
    with pytest.raises(UserError, match="did you mean 'convolution'"):
        styleinject.attach(load(str(tiny_sd15), device="cpu"), replace(SMALL, targets=("convolutions",)), 0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rank": 0}, "adapter.rank must be above 0, not 0"),
        ({"n": 0}, "adapter.n must be above 0, not 0"),
        ({"alpha": float("nan")}, "alpha must be above 0"),
        ({"router_pool": "men"}, "did you mean 'mean'"),
        ({"hyper": "add"}, "known: multiplicative, additive"),
        ({"variant": "paper"}, "did you mean 'paper-text'"),
    ],
)
def test_settings_out_of_range_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        StyleInject(**changes)


@pytest.mark.parametrize(
    ("changes", "parameters"),
    [
        ({"n": 1}, 3_338_304),
        ({"n": 4}, 8_411_136),
        ({"n": 16}, 28_702_464),
        ({"n": 1, "variant": "paper-text"}, 3_263_616),
        ({"n": 4, "variant": "paper-text"}, 5_809_536),
        ({"n": 16, "variant": "paper-text"}, 15_993_216),
        ({"n": 16, "dma": False}, 3_338_304),
        ({"dma": False, "sta": False}, 3_188_736),
        ({"dma": False, "sta": False, "rank": 128}, 12_754_944),
        ({"dma": False, "sta": False, "rank": 512}, 51_019_776),
    ],
)
def test_count_of_sd15_is_the_papers(changes, parameters, sd15_unet):
    """E15 and the paper's Table IV; LoRA of the same layers (E14) is StyleInject without mixing and AdaIN."""
    assert styleinject.count(sd15_unet, StyleInject(**changes)) == parameters


def test_count_of_sd15_with_convolutions(sd15_unet):
    """E13: what it is counted on; then [t] 286.9M parameters at rank 32 and n = 16."""
    assert sum(p.numel() for p in sd15_unet.parameters()) == 859_520_964
    family = SimpleNamespace(denoiser=sd15_unet, kinds=tuple(KINDS), modules=KINDS.__getitem__)
    config = styleinject.resolve(family, StyleInject(targets=("to_q", "to_v", "convolution")))
    assert round(styleinject.count(sd15_unet, config) / 1e6, 1) == 286.9


@pytest.fixture(scope="module")
def sd15_unet():
    with torch.device("meta"):
        config = json.loads((CONFIGS / "sd15" / "unet" / "config.json").read_text())
        return diffusers.UNet2DConditionModel.from_config(config)


@pytest.mark.parametrize("changes", [{}, {"n": 1}, {"sta": False}, {"variant": "paper-text"}, {"dma": False}])
def test_count_is_what_attach_adds(changes, tiny_sd15):
    family, config = load(str(tiny_sd15), device="cpu"), replace(ALL, **changes)
    before = sum(p.numel() for p in family.denoiser.parameters())
    counted = styleinject.count(family.denoiser, styleinject.resolve(family, config))
    styleinject.attach(family, config, 0)
    assert sum(p.numel() for p in family.denoiser.parameters()) - before == counted
    assert styleinject.count(family.denoiser, styleinject.resolve(family, config)) == counted  # through the adapter


def test_gradient_checkpointing_changes_no_gradient(tiny_sd15):
    gradients = []
    for checkpointing in (False, True):
        family, _ = trained(tiny_sd15, ALL)
        family.denoiser.train()
        if checkpointing:
            family.denoiser.enable_gradient_checkpointing()
        family.predict(*inputs(family)).square().sum().backward()
        gradients.append([p.grad for p in family.denoiser.parameters() if p.requires_grad])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True)) and gradients[0]


# several adapters, saved and loaded


@pytest.fixture
def two(tiny_sd15):
    """A U-Net with the styles "a" and "b", the outputs of the base, of each alone, and of both."""
    base = load(str(tiny_sd15), device="cpu")
    outputs = {(): predict(base)}
    for name, seed, config in (("a", 1, SMALL), ("b", 2, replace(ALL, rank=3, n=2))):
        saved = trained(tiny_sd15, config, seed)[1]
        styleinject.load(base.denoiser, *saved, name, 1.0)
    for names in (["a"], ["b"], ["a", "b"]):
        base.denoiser.set_adapters(names)
        outputs[tuple(names)] = predict(base)
    return base, outputs


def test_load_gives_the_output_that_was_trained(tiny_sd15, two):
    outputs = two[1]
    assert torch.equal(outputs["a",], predict(trained(tiny_sd15, SMALL, 1)[0]))
    assert not torch.equal(outputs["a",], outputs["b",]) and not torch.equal(outputs["a",], outputs[()])


def test_order_and_zero_weights_of_several_adapters(two):
    family, outputs = two
    family.denoiser.set_adapters(["b", "a"])
    assert torch.equal(predict(family), outputs["a", "b"])
    family.denoiser.set_adapters(["b", "a"], [0.0, 1.0])
    assert torch.equal(predict(family), outputs["a",])
    family.denoiser.set_adapters(["b", "a"], [0.0, 0.0])
    assert torch.equal(predict(family), outputs[()])


def test_disabled_deleted_and_unloaded_adapters_leave_the_base(two):
    family, outputs = two
    unet = family.denoiser
    unet.disable_adapters()
    assert torch.equal(predict(family), outputs[()])
    unet.enable_adapters()
    assert torch.equal(predict(family), outputs["a", "b"])
    unet.delete_adapters("b")
    assert torch.equal(predict(family), outputs["a",])
    unet.delete_adapters("a")
    assert torch.equal(predict(family), outputs[()])
    unet.unload_lora()
    assert torch.equal(predict(family), outputs[()])
    assert not any(isinstance(layer, StyleInjectLayer) for layer in unet.modules())


def test_each_adapter_reads_the_frozen_layer(two):
    layer = two[0].denoiser.down_blocks[0].attentions[0].transformer_blocks[0].attn1.to_q
    x, found = torch.randn(2, 5, 8), {}
    for names in ([], ["a"], ["b"], ["a", "b"]):
        layer.set_adapter(names)
        found[tuple(names)] = layer(x)
    assert torch.allclose(found["a", "b"], found["a",] + found["b",] - found[()], atol=1e-5)


def test_scale_of_a_call_is_a_weight(two):
    family, outputs = two
    unet, (z, lam, cond) = family.denoiser, inputs(family)
    unet.set_adapters("a", 0.5)
    half = predict(family)
    unet.set_adapters("a", 1.0)
    with torch.no_grad():
        call = unet(z, family.schedule.timestep(lam), cond["text"], cross_attention_kwargs={"scale": 0.5}).sample
    assert torch.equal(call, half) and not torch.equal(half, outputs["a",])
    assert torch.equal(predict(family), outputs["a",])


def test_state_in_a_file_and_back_through_a_pipeline(tiny_sd15, tmp_path):
    family, saved = trained(tiny_sd15, replace(ALL, variant="paper-text", hyper="additive", alpha=3.0))
    write_tensors(tmp_path / "style.safetensors", *saved)
    tensors, metadata = read_file(tmp_path / "style.safetensors")
    assert "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.styleinject_down" in tensors
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(tiny_sd15)
    styleinject.load(pipe, tensors, metadata, "style0", 1.0)
    assert pipe.get_list_adapters() == {"unet": ["style0"]}
    family.denoiser, trained_unet = pipe.unet, family.denoiser
    again = predict(family)
    family.denoiser = trained_unet
    assert torch.equal(again, predict(family))
    pipe.set_adapters(["style0"], [0.0])
    assert all(layer.scaling == {"style0": 0.0} for layer in styles(pipe.unet))


def test_load_into_bf16_weights_takes_their_dtype_and_comes_close(tiny_sd15):
    family, saved = trained(tiny_sd15, ALL)
    half = load(str(tiny_sd15), device="cpu", precision="bf16")
    base = predict(half)
    styleinject.load(half.denoiser, *saved, "style", 1.0)
    assert {p.dtype for p in half.denoiser.parameters()} == {torch.bfloat16}
    error = (predict(half).float() - predict(family)).norm() / (predict(family) - base.float()).norm()
    assert predict(half).dtype == torch.bfloat16 and error < 0.1


def styles(module):
    return [layer for layer in module.modules() if isinstance(layer, StyleInjectLayer)]


def test_load_of_another_base_or_a_damaged_file_is_refused(tiny_sd15, tiny_sdxl, tiny_sd3):
    tensors, metadata = trained(tiny_sd15)[1]
    for folder in (tiny_sdxl, tiny_sd3):
        pipe = diffusers.DiffusionPipeline.from_pretrained(folder)
        with pytest.raises(UserError, match=r"not trained for this base: \d+ tensors do not fit, unet\..+ first: \("):
            styleinject.load(pipe, tensors, metadata, "style", 1.0)
    unet = load(str(tiny_sd15), device="cpu").denoiser
    with pytest.raises(UserError, match=r"1 tensors do not fit, unet.down_.+ first: None for"):
        styleinject.load(unet, dict(list(tensors.items())[1:]), metadata, "style", 1.0)
    with pytest.raises(UserError, match="metadata lacks 'styleinject'"):
        styleinject.load(unet, tensors, {}, "style", 1.0)
    for broken in ("{", "[]", '{"targets": ["to_q"], "rank": 0}', '{"targets": ["to_q"], "ranks": 4}'):
        with pytest.raises(UserError, match="settings in the file's metadata are damaged"):
            styleinject.load(unet, tensors, {"styleinject": broken}, "style", 1.0)
    assert not styles(unet)


def lora_weights(unet):
    return {name: t.clone() for name, t in get_peft_model_state_dict(unet, adapter_name="lora").items()}


def test_lora_on_the_same_layers_keeps_its_names_and_changes_nothing_here(tiny_sd15):
    """Whichever came first: each reads the frozen layer, and is saved as if it were alone."""
    config = LoraConfig(r=2, target_modules=["to_q", "to_v", "conv1"], init_lora_weights=False)
    saved, outputs, names = trained(tiny_sd15, ALL)[1], [], []
    for first in ("lora", "style", "lora alone"):
        family = load(str(tiny_sd15), device="cpu")
        unet = family.denoiser
        if first == "style":
            styleinject.load(unet, *saved, "style", 0.5)
        unet.add_adapter(config, "lora")
        with torch.no_grad():
            for name, p in unet.named_parameters():
                if "lora_" in name:
                    p.copy_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(len(name))))
        if first == "lora":
            styleinject.load(unet, *saved, "style", 0.5)
        names.append(lora_weights(unet).keys())
        if first != "lora alone":
            unet.set_adapters(["lora", "style"], [1.0, 0.5])
            outputs.append(predict(family))
            tensors = get_peft_model_state_dict(unet, adapter_name="style")
            assert {f"unet.{name}" for name in tensors} == saved[0].keys()
    assert torch.equal(*outputs) and names[0] == names[1] == names[2]
    assert any(".to_q.lora_A.weight" in name for name in names[0])


def test_load_keeps_what_is_active(tiny_sd15):
    family = load(str(tiny_sd15), device="cpu")
    family.denoiser.add_adapter(LoraConfig(r=2, target_modules=["to_k"]), "lora")
    family.denoiser.set_adapters("lora", 0.3)
    styleinject.load(family.denoiser, *trained(tiny_sd15)[1], "style", 0.6)
    assert {name.split(".")[-3] for name, p in family.denoiser.named_parameters() if p.requires_grad} == {
        "lora_A",
        "lora_B",
    }
    layers = {type(m).__name__: m for m in family.denoiser.modules() if hasattr(m, "active_adapters")}
    assert family.denoiser.active_adapters() == ["lora", "style"]
    assert layers["Linear"].scaling["lora"] == 0.3 * 8 / 2 and layers["StyleInjectLinear"].scaling == {"style": 0.6}


def test_merging_is_refused_and_says_what_to_do(two, tiny_sd15):
    family, outputs = two
    with pytest.raises(UserError, match=r"cannot be merged: what it adds depends on each image.+load_style.+distil"):
        family.denoiser.fuse_lora()
    assert torch.equal(predict(family), outputs["a", "b"])
    model = get_peft_model(nn.Sequential(nn.Linear(3, 3)), StyleInjectConfig(target_modules=["0"]))
    for merge in (model.merge_and_unload, model.merge_adapter):
        with pytest.raises(UserError, match="cannot be merged"):
            merge()
    assert isinstance(model.unload()[0], nn.Linear)


def test_peft_saves_and_reloads_it_as_its_own_kinds(tmp_path):
    base = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4))
    config = StyleInjectConfig(r=2, n=3, target_modules=["0", "1"], exclude_modules=["1"], init_weights=False)
    model, x = get_peft_model(base, config), torch.randn(3, 7, 6)
    output = model(x)
    model.save_pretrained(tmp_path)
    assert isinstance(model.unload()[0], nn.Linear)
    again = PeftModel.from_pretrained(base, tmp_path)
    assert again.peft_config["default"].peft_type == "STYLEINJECT" and torch.equal(again(x), output)
    assert len(styles(again)) == 1
