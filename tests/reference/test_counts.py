"""LoRA counts at real sizes, on the meta device (methods.md E16)."""

from types import SimpleNamespace

import pytest
import torch

from impasto.adapters.lora import add
from impasto.families.sd3 import KINDS

SD35_LARGE = {
    "sample_size": 128,
    "patch_size": 2,
    "in_channels": 16,
    "out_channels": 16,
    "num_layers": 38,
    "attention_head_dim": 64,
    "num_attention_heads": 38,
    "joint_attention_dim": 4096,
    "caption_projection_dim": 2432,
    "pooled_projection_dim": 2048,
    "pos_embed_max_size": 192,
    "qk_norm": "rms_norm",
}


def sd35_large():
    from diffusers import SD3Transformer2DModel

    with torch.device("meta"):
        model = SD3Transformer2DModel(**SD35_LARGE).requires_grad_(False)
    return SimpleNamespace(denoiser=model, kinds=tuple(KINDS), modules=KINDS.__getitem__)


def test_sd35_large_has_8_056_627_520_parameters():
    assert sum(p.numel() for p in sd35_large().denoiser.parameters()) == 8_056_627_520


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
    with torch.device("meta"):
        parameters = add(sd35_large(), rank=rank, alpha=None, targets=(kind,), seed=0)
    assert len(parameters) == 2 * modules
    assert sum(p.numel() for p in parameters.values()) == count
