"""StyleDrop's adapter: identity at the start, the paper's counts, where it sits, saved and loaded."""

import json

import pytest
import torch
from diffusers import UVit2DModel
from torch import nn

from impasto.adapters.base import adapter_of
from impasto.adapters.config import StyleDrop
from impasto.adapters.kv_bottleneck import KVBottleneckLayer
from impasto.adapters.text_encoder import FROZEN
from impasto.bases.loader import load
from impasto.families.muse import Muse
from impasto.styles import save
from impasto.styles.load import load_style

ADAPTER = adapter_of(StyleDrop())


def base(folder):
    return load(str(folder), device="cpu", precision="fp32")


@torch.no_grad()
def predict(family, denoiser=None):
    if denoiser is not None:
        family.denoiser = denoiser
    g = torch.Generator().manual_seed(0)
    shape = (2, 1, 8, 8) if family.schedule.masked else (2, 4, 4, 4)
    z = torch.randint(32, shape, generator=g) if family.schedule.masked else torch.randn(shape, generator=g)
    cond = family.encode_prompt(["a rocket in ink style", "a cat"])
    return family.predict(z, torch.tensor([-2.0, 1.0]), cond)


def folder_of(path, **changes):
    """Configurations alone of an aMUSEd folder."""
    configs = {
        "model_index.json": {"_class_name": "AmusedPipeline"},
        "vqvae/config.json": {"num_vq_embeddings": 8192, "block_out_channels": [1] * 5},
        "transformer/config.json": changes,
        "scheduler/scheduler_config.json": {"mask_token_id": 8255},
    }
    for name, content in configs.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text(json.dumps(content))
    return path


@pytest.mark.parametrize(
    ("width", "layers", "settings", "parameters"),
    [  # methods.md E17: Muse's base and its super-resolution, and amused-256
        (2048, 48, StyleDrop(), 229_760),
        (2048, 48, StyleDrop(dim=32, shared=False), 12_582_912),
        (1024, 22, StyleDrop(dim=4, shared=False), 2 * 22 * 2 * 1024 * 4),
    ],
)
def test_counts_are_the_papers(width, layers, settings, parameters, tmp_path):
    sizes = {"hidden_size": width, "num_hidden_layers": layers, "vocab_size": 8256, "codebook_size": 8192}
    family = Muse(folder_of(tmp_path, **sizes), {}, "cpu", "fp32")
    with torch.device("meta"):
        model = UVit2DModel(**sizes)
    assert ADAPTER.count(family, settings, model) == parameters


@pytest.mark.parametrize("settings", [StyleDrop(), StyleDrop(dim=3, shared=False)], ids=str)
@pytest.mark.parametrize("kind", ["muse", "sd15", "sd3", "flux"])
def test_attach_starts_as_the_base_and_is_saved_and_loaded(kind, settings, request, tmp_path):
    folder = request.getfixturevalue(f"tiny_{kind}")
    family = base(folder)
    before = predict(family)
    parameters = ADAPTER.attach(family, settings, 0)
    assert torch.equal(predict(family), before)
    assert sum(p.numel() for p in parameters.values()) == ADAPTER.count(family, settings, family.denoiser)
    with torch.no_grad():
        for i, p in enumerate(parameters.values()):
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(i)) * 0.3)
    after = predict(family)
    assert (after - before).abs().max() > 1e-3
    save.save(family, tmp_path, FROZEN, ADAPTER)
    assert json.loads((tmp_path / "style.json").read_text())["parts"][0]["kind"] == "styledrop"
    other = base(folder)
    pipe = other.pipeline()
    load_style(pipe, tmp_path)
    assert torch.equal(predict(other, getattr(pipe, other.part)), after)


def test_layers_are_the_outputs_of_cross_attention_and_mlp(tiny_muse):
    family = base(tiny_muse)
    ADAPTER.attach(family, StyleDrop(), 0)
    found = {name for name, m in family.denoiser.named_modules() if isinstance(m, KVBottleneckLayer)}
    ends = ("attn2.to_out.0", "ff.net.2")
    assert found == {f"transformer_layers.{i}.{end}" for i in range(2) for end in ends}
    owners = [m for m in family.denoiser.modules() if isinstance(m, KVBottleneckLayer) and not m.owner]
    assert len(owners) == 2 and all(isinstance(m.base_layer, nn.Linear) for m in owners)
