"""The names of layers against those of the consumers, at the real sizes; see reference/consumer_layers.tsv.gz."""

import csv
import gzip
from functools import cache
from pathlib import Path

import pytest
import torch

from impasto.interop.lora import write as convert
from impasto.interop.lora.layouts import Names, names
from impasto.interop.lora.read import resolve
from impasto.interop.lora.write import Adapter, Lora

TABLE = Path(__file__).parents[1] / "reference" / "consumer_layers.tsv.gz"
ARCHITECTURE = {"flux": "flux", "sd3.5-large": "sd3", "sd3.5-medium": "sd3", "sdxl": "sdxl", "sd15": "sd15"}


@cache
def table(model):
    """Rows of one model: diffusers, original, row, rows, swap, kohya, shape (text)."""
    with gzip.open(TABLE, "rt") as file:
        rows = csv.DictReader((line for line in file if not line.startswith("#")), delimiter="\t")
        return [row for row in rows if row["model"] == model]


def shape(row):
    return tuple(int(n) for n in row["shape"].split("x"))


@cache
def real(model):
    """The denoiser as diffusers builds it at its real size, on the meta device: name -> weight shape."""
    from diffusers import FluxTransformer2DModel, SD3Transformer2DModel, UNet2DConditionModel

    sd3 = {"sample_size": 128, "in_channels": 16, "out_channels": 16, "joint_attention_dim": 4096}
    sd3 |= {"pooled_projection_dim": 2048, "qk_norm": "rms_norm", "attention_head_dim": 64}
    large = {"num_layers": 38, "num_attention_heads": 38, "caption_projection_dim": 2432, "pos_embed_max_size": 192}
    medium = {"num_layers": 24, "num_attention_heads": 24, "caption_projection_dim": 1536, "pos_embed_max_size": 384}
    xl = {"sample_size": 128, "block_out_channels": (320, 640, 1280), "attention_head_dim": (5, 10, 20)}
    xl |= {"down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D")}
    xl |= {"up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), "cross_attention_dim": 2048}
    xl |= {"transformer_layers_per_block": (1, 2, 10), "use_linear_projection": True}
    xl |= {"addition_embed_type": "text_time", "addition_time_embed_dim": 256}
    xl |= {"projection_class_embeddings_input_dim": 2816}
    build = {
        "flux": lambda: FluxTransformer2DModel(guidance_embeds=True),
        "sd3.5-large": lambda: SD3Transformer2DModel(**sd3, **large),
        "sd3.5-medium": lambda: SD3Transformer2DModel(**sd3, **medium, dual_attention_layers=tuple(range(13))),
        "sdxl": lambda: UNet2DConditionModel(**xl),
        "sd15": lambda: UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8),
    }
    with torch.device("meta"):
        net = build[model]()
    kinds = (torch.nn.Linear, torch.nn.Conv2d)
    part = "unet" if model in ("sdxl", "sd15") else "transformer"
    return {f"{part}.{n}": tuple(m.weight.shape) for n, m in net.named_modules() if isinstance(m, kinds)}


def numbered(weight, number, swapped):
    """alpha / r B A has `number` everywhere, and in its second half twice that where halves shall be swapped."""
    rows, columns, *kernel = weight
    up = torch.ones(1).expand(rows, 1, *[1] * len(kernel))
    if swapped:
        up = torch.cat([up[: rows // 2], 2 * up[rows // 2 :]])
    return Lora(torch.full((1,), float(number)).expand(1, columns, *kernel), 2 * up, 0.5)


def kohya_name(row):
    """As in the table; for the few layers that kohya has no LoRA for, as ComfyUI reads them in such a file."""
    own = row["diffusers"] if row["model"] == "sd15" else row["original"]
    return row["kohya"] or "lora_unet_" + own.partition(".")[2].replace(".", "_")


@pytest.mark.parametrize("model", ARCHITECTURE)
def test_every_layer_of_the_real_model_is_known_by_its_name(model):
    known = names(ARCHITECTURE[model])
    listed = {row["diffusers"] for row in table(model)}
    for layer in real(model):
        name = layer.partition(".")[2]
        assert layer in listed and known.dotted[name.replace(".", "_")] == name
        assert resolve(name.replace(".", "_"), known) == ((name,), False)
    assert len(real(model)) == len([row for row in table(model) if not row["diffusers"].startswith("text_encoder")])


@pytest.mark.parametrize("model", ARCHITECTURE)
@pytest.mark.parametrize("layout", ["kohya", "comfyui"])
def test_names_shapes_and_rows_are_the_consumers(model, layout, monkeypatch):
    """A LoRA on every layer there is: the consumer's names and no others, its shapes, and in its rows of q, k and v."""
    sizes = real(model) | {r["diffusers"]: shape(r) for r in table(model) if r["diffusers"].startswith("text")}
    layers = {
        row["diffusers"]: numbered(sizes[row["diffusers"]], i, row["swap"]) for i, row in enumerate(table(model), 1)
    }
    monkeypatch.setattr(
        convert, "contiguous", dict
    )  # it takes little memory as long as the numbers are not written out
    tensors, _ = convert.write(Adapter(ARCHITECTURE[model], layers), layout)
    theirs = {kohya_name(row) if layout == "kohya" else row["original"] for row in table(model)}
    assert set(tensors) == {f"{n}.{half}" for n in theirs for half in ("lora_down.weight", "lora_up.weight", "alpha")}
    for i, row in enumerate(table(model), 1):
        name = kohya_name(row) if layout == "kohya" else row["original"]
        down, up, alpha = (tensors[f"{name}.{half}"] for half in ("lora_down.weight", "lora_up.weight", "alpha"))
        assert (up.shape[0], *down.shape[1:]) == shape(row) and up.shape[1] == down.shape[0] and alpha.shape == ()
        start = int(row["row"] or 0)
        added = (
            alpha / down.shape[0] * (up.flatten(1) @ down.flatten(1)[:, -1:])[start : start + int(row["rows"] or 10**9)]
        )
        first, second = added.chunk(2)
        assert torch.all(first == (2 * i if row["swap"] else i)) and torch.all(second == i)


def test_planted_errors_are_seen(monkeypatch):
    """The test above can fail: k and v exchanged, then halves not swapped."""
    order = convert.names("flux").fused["double_blocks.0.img_attn.qkv"]
    broken = dict(convert.names("flux").place)
    broken[order[1]], broken[order[2]] = broken[order[2]], broken[order[1]]
    with monkeypatch.context() as patch:
        patch.setattr(convert, "names", lambda *args: Names(names("flux").fused, broken, names("flux").dotted))
        with pytest.raises(AssertionError):
            test_names_shapes_and_rows_are_the_consumers("flux", "kohya", patch)
    monkeypatch.setattr(convert, "SWAPPED", ())
    with pytest.raises(AssertionError):
        test_names_shapes_and_rows_are_the_consumers("sd3.5-large", "comfyui", monkeypatch)
