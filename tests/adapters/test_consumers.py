"""What a consumer computes from our files, by its own map of names (reference/consumer_layers.tsv.gz) or its own code:
`W[rows] += alpha / r (up down)[rows]`, on models with a LoRA on every layer that they have, alpha other than r."""

import json

import pytest
import torch
from diffusers import FluxPipeline, FluxTransformer2DModel, SD3Transformer2DModel
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from test_layouts import kohya_name, table
from tiny import flux_config, sd3_config, unet

from impasto.interop.lora.read import read
from impasto.interop.lora.write import Adapter, Lora, write


def noise(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def sd3(model):
    return model(noise(1, 4, 4, 4), noise(1, 3, 48), noise(1, 24), torch.tensor([500.0])).sample


def flux(model):
    ids = {"img_ids": torch.arange(12.0).reshape(4, 3), "txt_ids": torch.zeros(3, 3), "guidance": torch.ones(1)}
    return model(noise(1, 4, 16), noise(1, 3, 24), noise(1, 16), torch.tensor([0.5]), **ids).sample


def conv(model):
    return model(noise(1, 4, 8, 8), 500, noise(1, 3, 16)).sample


SD15 = {"block_out_channels": (8, 8, 16, 16), "layers_per_block": 2}  # SD1.5's and SDXL's blocks, narrow
SD15 |= {"down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",)}
SD15 |= {"up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3}
SDXL = {"block_out_channels": (8, 8, 16), "layers_per_block": 2, "use_linear_projection": True}
SDXL |= {
    "down_block_types": ("DownBlock2D",) + ("CrossAttnDownBlock2D",) * 2,
    "transformer_layers_per_block": (1, 2, 3),
}
SDXL |= {"up_block_types": ("CrossAttnUpBlock2D",) * 2 + ("UpBlock2D",)}
MODELS = {
    "flux": (lambda: FluxTransformer2DModel(**flux_config()), flux, "transformer", "flux"),
    "sd3": (lambda: SD3Transformer2DModel(**sd3_config()), sd3, "transformer", "sd3.5-large"),
    "sd3-dual": (
        lambda: SD3Transformer2DModel(**sd3_config(dual_attention_layers=(0,))),
        sd3,
        "transformer",
        "sd3.5-medium",
    ),
    "sdxl": (lambda: unet(**SDXL), conv, "unet", "sdxl"),
    "sd15": (lambda: unet(**SD15), conv, "unet", "sd15"),
}


@pytest.fixture(scope="module", params=MODELS)
def case(request):
    """(architecture, model without LoRA, forward, output with it, its tensors and metadata as in a file, rows)"""
    build, forward, part, real = MODELS[request.param]
    kinds = (torch.nn.Linear, torch.nn.Conv2d)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        model = build().eval()
        for p in model.parameters():
            p.add_(0.1 * torch.randn(p.shape))
        names = [name for name, module in model.named_modules() if isinstance(module, kinds)]
        patterns = {"rank_pattern": {"to_k": 2}, "alpha_pattern": {"to_v": 1.0}}
        model.add_adapter(LoraConfig(r=3, lora_alpha=5, target_modules=names, **patterns))
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.copy_(0.05 * torch.randn(p.shape))
        wanted = forward(model)
        tensors = {f"{part}.{key}": t for key, t in get_peft_model_state_dict(model, adapter_name="default").items()}
        config = model.peft_config["default"].to_dict()
        kept = ("r", "lora_alpha", "rank_pattern", "alpha_pattern")
        metadata = {"lora_adapter_metadata": json.dumps({f"{part}.{key}": config[key] for key in kept})}
        model.delete_adapters("default")
        assert (forward(model) - wanted).abs().max() > 0.02
    architecture = request.param.partition("-")[0]
    last = len(model.transformer_blocks) - 1 if architecture == "sd3" else None
    return architecture, model, forward, wanted, tensors, metadata, list(rows_for(real, last))


def rows_for(real, last):
    """The consumer's rows; a smaller SD3's last block is the real one's last."""
    end = {"sd3.5-large": 37, "sd3.5-medium": 23}.get(real)
    for row in table(real):
        if end is not None and f".{last}." in row["diffusers"].partition("attn")[0] and "blocks" in row["diffusers"]:
            continue
        if end is not None and f"blocks.{end}." in row["diffusers"]:
            row = {
                key: value.replace(f".{end}.", f".{last}.").replace(f"_{end}_", f"_{last}_")
                for key, value in row.items()
            }
        yield row


@pytest.mark.parametrize("layout", ["kohya", "comfyui"])
def test_the_consumers_sum_is_the_lora(case, layout):
    architecture, model, forward, wanted, source, metadata, rows = case
    adapter = read(source, metadata, architecture=architecture)
    assert len(adapter.layers) == len(source) // 2
    tensors, _ = write(adapter, layout)
    before, used = {name: p.clone() for name, p in model.state_dict().items()}, set()
    for row in rows:
        name = kohya_name(row) if layout == "kohya" else row["original"]
        if f"{name}.lora_up.weight" not in tensors:
            continue
        keys = [f"{name}.{half}" for half in ("lora_up.weight", "lora_down.weight", "alpha")]
        up, down, alpha = (tensors[key] for key in keys)
        used.update(keys)
        delta = alpha / down.shape[0] * (up.flatten(1) @ down.flatten(1))
        if row["rows"]:  # in the same proportion as in the real model
            whole = int(row["shape"].split("x")[0])
            start, count = (int(row[key]) * len(delta) // whole for key in ("row", "rows"))
            delta = delta[start : start + count]
        if row["swap"]:
            delta = torch.cat([*reversed(delta.chunk(2))])
        weight = model.get_submodule(row["diffusers"].partition(".")[2]).weight
        weight.data += delta.reshape(weight.shape)
    assert used == set(tensors)
    with torch.no_grad():
        drawn = forward(model)
    model.load_state_dict(before)
    assert torch.allclose(drawn, wanted, rtol=1e-4, atol=1e-4 * wanted.abs().max().item())
    again = read(tensors, architecture=architecture)
    assert again.layers.keys() == adapter.layers.keys()
    for layer, lora in adapter.layers.items():
        a, b = ((x.scale * x.up.flatten(1) @ x.down.flatten(1)) for x in (lora, again.layers[layer]))
        assert torch.allclose(a, b, atol=1e-6)


def test_diffusers_reads_flux_at_its_real_width():
    """Its converter knows the widths of FLUX.1 only; the single blocks, q, k, v and MLP in one, are checked there."""
    block = {"attn.to_q": 3072, "attn.to_k": 3072, "attn.to_v": 3072, "proj_mlp": 12288}
    layers = {f"transformer.single_transformer_blocks.3.{name}": (rows, 3072) for name, rows in block.items()}
    layers |= {"transformer.single_transformer_blocks.3.proj_out": (3072, 15360)}
    layers |= {f"transformer.transformer_blocks.7.attn.{name}": (3072, 3072) for name in ("add_q_proj", "add_k_proj")}
    layers |= {"transformer.norm_out.linear": (6144, 3072), "transformer.proj_out": (64, 3072)}
    loras = {name: Lora(noise(2, i), noise(o, 2), 3.0) for name, (o, i) in layers.items()}
    for layout in ("kohya", "comfyui"):
        theirs = FluxPipeline.lora_state_dict(write(Adapter("flux", loras), layout)[0])
        for name, lora in loras.items():
            down, up = (
                theirs.get(f"{key}.{half}.weight", theirs.get(f"{key.partition('.')[2]}.{half}.weight"))
                for key, half in ((name, "lora_A"), (name, "lora_B"))
            )
            x = noise(lora.down.shape[1], 1)
            assert torch.allclose(up @ (down @ x), 1.5 * lora.up @ (lora.down @ x), rtol=1e-4, atol=1e-2)
