"""Parameters and LoRA counts at real sizes, on the meta device (methods.md E13, E14, E16).

The sizes are those of `bases/configs`, so that a wrong number there is seen here.
"""

import json
from functools import cache
from types import SimpleNamespace

import pytest
import torch

from impasto.adapters.config import LoRA
from impasto.adapters.lora import add
from impasto.bases.single_file import CONFIGS
from impasto.families import flux, sd3, unet

KINDS = {"UNet2DConditionModel": unet.KINDS, "SD3Transformer2DModel": sd3.KINDS, "FluxTransformer2DModel": flux.KINDS}


@cache
def build(architecture):
    """The denoiser of an architecture, without weights."""
    import diffusers

    part = "unet" if (CONFIGS / architecture / "unet").is_dir() else "transformer"
    config = json.loads((CONFIGS / architecture / part / "config.json").read_text())
    kinds = KINDS[config["_class_name"]]
    with torch.device("meta"):
        model = getattr(diffusers, config["_class_name"]).from_config(config).requires_grad_(False)
    return SimpleNamespace(denoiser=model, kinds=tuple(kinds), modules=kinds.__getitem__)


@cache
def lora(architecture, *targets):
    """(number of layers, number of parameters per rank) of an adapter: every layer has rank (in + out) of them."""
    family = build(architecture)
    with torch.device("meta"):
        parameters = add(family, LoRA(rank=2, alpha=None, targets=targets), 0)
    family.denoiser.delete_adapters("default")
    return len(parameters) // 2, sum(p.numel() for p in parameters.values()) // 2


@pytest.mark.parametrize(
    ("architecture", "count"),
    [
        ("sd15", 859_520_964),
        ("sdxl", 2_567_463_684),
        ("sd35-large", 8_056_627_520),
        ("flux-dev", 11_901_408_320),
    ],
)
def test_parameters(architecture, count):
    assert sum(p.numel() for p in build(architecture).denoiser.parameters()) == count


@pytest.mark.parametrize(("rank", "count"), [(32, 3_188_736), (128, 12_754_944), (512, 51_019_776)])
def test_sd15_lora_of_queries_and_values(rank, count):
    layers, per_rank = lora("sd15", "to_q", "to_v")
    assert (layers, rank * per_rank) == (64, count)


def test_sd15_lora_of_all_attention():
    layers, per_rank = lora("sd15", "attention")
    assert (layers, 32 * per_rank) == (128, 6_377_472)
    halves = [lora("sd15", kind) for kind in ("self_attention", "cross_attention")]
    assert [n for n, _ in halves] == [64, 64] and sum(n for _, n in halves) == per_rank


@pytest.mark.parametrize(
    ("architecture", "into", "samplers"),
    [
        (
            "sd15",
            {320: [320, 320, 960, 640, 640], 640: [320, 640, 1920, 1280, 960]}
            | {1280: [640, 1280, 1280, 1280, 1280, 1280, *[2560] * 5, 1920]},
            [320, 640, 1280, 1280, 1280, 640],
        ),
        (
            "sdxl",
            {320: [320, 320, 960, 640, 640], 640: [320, 640, 1920, 1280, 960]}
            | {1280: [640, 1280, 1280, 1280, 2560, 2560, 1920]},
            [320, 640, 1280, 640],
        ),
    ],
)
def test_lora_of_a_u_net_s_convolutions(architecture, into, samplers):
    """into: {width: what each resnet of it takes in}, as published: down, middle, up with what the way down kept."""
    convolutions = [(n, width) for width, sides in into.items() for n in sides]  # conv1
    convolutions += [(width, width) for width, sides in into.items() for _ in sides]  # conv2
    convolutions += [(width, width) for width in samplers]
    assert lora(architecture, "convolution") == (len(convolutions), sum(9 * n + out for n, out in convolutions))


@pytest.mark.parametrize(
    ("kind", "rank", "count", "modules"),
    [
        ("attention", 4, 5_895_168, 303),
        ("attention", 32, 47_161_344, 303),
        ("attention", 128, 188_645_376, 303),
        ("image_stream", 32, 23_658_496, 152),
    ],
)
def test_sd35_large_lora(kind, rank, count, modules):
    layers, per_rank = lora("sd35-large", kind)
    assert (layers, rank * per_rank) == (modules, count)


@pytest.mark.parametrize(("rank", "count"), [(4, 11_219_200), (32, 89_753_600), (128, 359_014_400)])
def test_flux_lora_of_the_paper_s_list(rank, count):
    """324 layers, the last `proj_out` among them: without it there are 89,653,248 parameters at rank 32."""
    layers, per_rank = lora("flux-dev", "attention")
    assert (layers, rank * per_rank) == (324, count)
    assert 32 * (per_rank - 3072 - 64) == 89_653_248
