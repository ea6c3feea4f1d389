"""Reading LoRA files: the ways in which the same layers are written, and everything that is refused by name."""

import json

import pytest
import torch

from impasto.bases.cards import cards
from impasto.errors import UserError
from impasto.interop.lora.layouts import ARCHITECTURES
from impasto.interop.lora.read import check_architecture, parse_architecture, read
from impasto.interop.lora.write import Adapter, Lora, write

LAYER = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
OUT = LAYER.replace("to_q", "to_out.0")
CLIP = "text_encoder.text_model.encoder.layers.3.self_attn.k_proj"
FLAT = "down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
A, B = torch.arange(8.0).reshape(2, 4), torch.arange(1.0, 7).reshape(3, 2)


def file(*layers, down="lora_down.weight", up="lora_up.weight", alpha=None):
    tensors = {}
    for layer in layers:
        dot = "" if down.startswith("_") else "."
        tensors |= {f"{layer}{dot}{down}": A, f"{layer}{dot}{up}": B}
        if alpha is not None:
            tensors[f"{layer}.alpha"] = torch.tensor(alpha, dtype=torch.bfloat16)
    return tensors


@pytest.mark.parametrize(
    ("tensors", "layer"),
    [
        (file(LAYER, down="lora_A.weight", up="lora_B.weight"), LAYER),
        (file(LAYER, down="lora_A.default.weight", up="lora_B.default.weight"), LAYER),
        (file(LAYER, down="lora.down.weight", up="lora.up.weight"), LAYER),
        (file(LAYER.replace("to_q", "processor.to_q"), down="_lora.down.weight", up="_lora.up.weight"), LAYER),
        (file(LAYER.replace("to_q", "processor.to_out"), down="_lora.down.weight", up="_lora.up.weight"), OUT),
        (file(f"lora_unet_{FLAT}"), LAYER),
        (file("lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_q"), LAYER),
        (file("diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q"), LAYER),
        (file(LAYER.replace("unet.", "base_model.model.")), LAYER),
        (file("lora_te_text_model_encoder_layers_3_self_attn_k_proj"), CLIP),
        (file("lora_te1_text_model_encoder_layers_3_self_attn_k_proj"), CLIP),
        (file("text_encoders.clip_l.transformer.text_model.encoder.layers.3.self_attn.k_proj"), CLIP),
        (file("text_encoders.clip_h.transformer.text_model.encoder.layers.3.self_attn.k_proj"), CLIP),
        (file(CLIP.replace("text_model.", "")), CLIP),
        (file(CLIP.replace("k_proj", "to_k"), down="_lora.down.weight", up="_lora.up.weight"), CLIP),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_one_layer_in_many_ways(tensors, layer):
    adapter = read(tensors, architecture="sd15")
    assert list(adapter.layers) == [layer]
    assert torch.equal(adapter.layers[layer].down, A) and adapter.layers[layer].scale == 1


def test_where_alpha_comes_from():
    scale = lambda tensors, metadata=None: read(tensors, metadata, architecture="sd15").layers[LAYER].scale  # noqa: E731
    assert scale(file(LAYER, alpha=8.0)) == 4
    assert scale(file(LAYER, alpha=0.0)) == 1  # as kohya reads it
    stated = {"unet.r": 2, "unet.lora_alpha": 1, "unet.alpha_pattern": {"attn1.to_q": 6}}
    assert scale(file(LAYER), {"lora_adapter_metadata": json.dumps(stated)}) == 3
    del stated["unet.alpha_pattern"]
    assert scale(file(LAYER), {"lora_adapter_metadata": json.dumps(stated)}) == 0.5
    stated["unet.use_rslora"] = True
    assert scale(file(LAYER), {"lora_adapter_metadata": json.dumps(stated)}) == pytest.approx(1 / 2**0.5)


FLUX, JOINT = "lora_unet_single_blocks_0_linear2", "lora_unet_joint_blocks_0_x_block_attn_proj"


@pytest.mark.parametrize(
    ("tensors", "metadata", "architecture"),
    [
        (file(FLUX), {}, "flux"),
        (file("transformer.single_transformer_blocks.1.proj_out"), {}, "flux"),
        (file(JOINT), {}, "sd3"),
        (file(f"lora_unet_{FLAT}"), {}, "sd15"),
        (file("lora_te2_text_model_encoder_layers_3_mlp_fc1", "lora_unet_middle_block_1_proj_in"), {}, "sdxl"),
        (file("lora_unet_middle_block_1_proj_in"), {"ss_base_model_version": "sdxl_base_v1-0"}, "sdxl"),
        (file("lora_unet_middle_block_1_proj_in"), {"modelspec.architecture": "stable-diffusion-v1/lora"}, "sd15"),
        (file("transformer.transformer_blocks.0.attn.to_q"), {"ss_base_model_version": "5-large"}, "sd3"),
        (file("transformer.transformer_blocks.0.attn.to_q"), {"modelspec.architecture": "flux-1-dev/lora"}, "flux"),
        (file("transformer.transformer_blocks.0.attn.to_q"), {"modelspec.architecture": "Flux.1-dev/lora"}, "flux"),
        (file("transformer.transformer_blocks.0.attn.to_q"), {"ss_base_model_version": "sd_3"}, "sd3"),
        (file("lora_unet_middle_block_1_proj_in"), {"ss_base_model_version": "sd_1.5"}, "sd15"),
        (file("lora_unet_middle_block_1_proj_in"), {"modelspec.architecture": "sdxl-base-1.0/lora"}, "sdxl"),
        (file(FLUX), {"ss_base_model_version": "unknown"}, "flux"),
    ],
)
def test_the_architecture_is_found(tensors, metadata, architecture):
    assert read(tensors, metadata).architecture == architecture


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({}, "it contains no LoRA"),
        ({"encoder.weight": A}, "it contains no LoRA, but encoder.weight"),
        (file(LAYER) | {"encoder.weight": A}, "are not part of a LoRA: encoder.weight"),
        ({f"{LAYER}.lora_down.weight": A}, "to_q has no up"),
        ({f"{LAYER}.lora_up.weight": B, **file(OUT)}, "to_q has no down"),
        ({f"{LAYER}.lora_down.weight": A, f"{LAYER}.lora_up.weight": A.T[:, :1]}, "have incompatible shapes"),
        ({f"{LAYER}.lora_down.weight": A[0], f"{LAYER}.lora_up.weight": A[0]}, "have incompatible shapes"),
        ({f"{LAYER}.lora_down.weight": A[:0], f"{LAYER}.lora_up.weight": B[:, :0]}, "have incompatible shapes"),
        (file(LAYER) | {f"{LAYER}.lora_up.weight": B / 0}, "lora_up.weight' holds NaN or infinite values"),
        (file(LAYER) | {f"{LAYER}.alpha": torch.tensor(float("nan"))}, "to_q.alpha' holds NaN or infinite"),
        (file(LAYER) | {f"{LAYER}.alpha": torch.ones(2)}, "its alpha has 2 values, not one"),
        (file("lora_unet_down_blocks_9_resnets_0_conv1"), "lora_unet_down_blocks_9_resnets_0_conv1: sd15 has no layer"),
        (file("lora_unet_double_blocks_0_img_attn_proj"), "sd15 has no layer"),
        (file("lora_prior_unet_x"), "lora_prior_unet_x: sd15 has no layer"),
        (file("text_encoder_2.text_model.encoder.layers.0.mlp.fc1"), "sd15 has no layer"),
        (file(LAYER) | {f"{LAYER}.dora_scale": A}, "to_q.dora_scale' is DoRA"),
        (file(LAYER) | {f"{LAYER}.lora_magnitude_vector": A}, "is DoRA"),
        ({"lora_unet_x.lokr_w1": A}, "is LoKr"),
        ({"lora_unet_x.hada_w1_a": A}, "is LoHa"),
        ({"lora_unet_x.oft_blocks": A}, "is OFT"),
        (file(LAYER) | {f"{LAYER}.lora_mid.weight": A}, "is LoCon in Tucker form"),
        (file(LAYER) | {f"{LAYER}.diff_b": A}, "not a low-rank update"),
        (file("lora_te3_encoder_block_0_layer_0_SelfAttention_q"), "a LoRA on T5"),
        ({key: torch.zeros_like(t) for key, t in file("lora_te3_x").items()}, "all its LoRAs are zero"),
    ],
    ids=str,
)
def test_what_is_refused(tensors, message):
    with pytest.raises(UserError, match=message.replace("(", r"\(")):
        read(tensors, architecture="sd15")


@pytest.mark.parametrize("stated", ["chroma/lora", "Chroma1/lora", "flux-2-dev/lora", "Flux.2", "flux.1_kontext"])
def test_another_model_with_layers_of_the_same_names_is_refused(stated):
    for key in ("modelspec.architecture", "ss_base_model_version"):
        with pytest.raises(UserError, match=rf"states '{stated}' \({key}\), not a supported base"):
            read(file(FLUX), {key: stated})
        with pytest.raises(UserError, match="not a supported base"):
            check_architecture({key: stated}, "flux")
    assert read(file(FLUX), {"modelspec.architecture": stated}, architecture="flux").architecture == "flux"


def test_metadata_that_contradicts_the_base_or_itself_is_refused():
    with pytest.raises(UserError, match="another architecture than sdxl"):
        check_architecture({"modelspec.architecture": "stable-diffusion-v1/lora"}, "sdxl")
    with pytest.raises(UserError, match="another architecture than flux"):
        check_architecture({"modelspec.architecture": "flux-1-dev/lora", "ss_base_model_version": "sd_v1"})
    with pytest.raises(UserError, match="'stable-diffusion-xl-v1-refiner/lora'"):
        check_architecture({"modelspec.architecture": "stable-diffusion-xl-v1-refiner/lora"}, "sdxl")
    assert (
        check_architecture({"modelspec.architecture": "flux-1/lora", "ss_base_model_version": "flux1"}, "flux")
        == "flux"
    )


def test_what_we_state_is_known():
    """The cards' own names, and kohya's of all versions that it has."""
    stated = {card["modelspec"]: card.get("pipeline", name) for name, card in cards().items() if "modelspec" in card}
    assert len(stated) == 10 and all(
        parse_architecture(f"{name}/lora") == ARCHITECTURES[kind] for name, kind in stated.items()
    )
    versions = ["flux1", "5-large", "5-medium", "medium", "sdxl_base_v1-0", "sd_v1", "sd_v1_v", "sd_v2", "sd_v2_v"]
    assert [parse_architecture(version) for version in versions] == ["flux", *["sd3"] * 3, "sdxl", *["sd15"] * 4]


def test_damaged_metadata_and_an_unknown_base():
    with pytest.raises(UserError, match="lora_adapter_metadata is not a JSON object"):
        read(file(LAYER), {"lora_adapter_metadata": "{"}, architecture="sd15")
    for stated in ("[" * 10**5, '{"unet.lora_alpha": "x"}', '{"unet.lora_alpha": NaN}', '{"unet.alpha_pattern": [1]}'):
        with pytest.raises(UserError, match=r"its metadata is damaged: .*lora_adapter_metadata"):
            read(file(LAYER), {"lora_adapter_metadata": stated}, architecture="sd15")
    with pytest.raises(UserError, match="states DoRA"):
        read(file(LAYER), {"lora_adapter_metadata": '{"unet.use_dora": true}'}, architecture="sd15")
    with pytest.raises(UserError, match="its base cannot be determined: give --base"):
        read(file("transformer.transformer_blocks.0.attn.to_q"))


@pytest.mark.parametrize(("width", "tower"), [(768, "clip_l"), (1024, "clip_h")])
def test_comfyui_calls_the_text_encoder_of_sd2_by_another_name(width, tower):
    """Of every layer, the MLP's wide ones too."""
    sizes = {"self_attn.q_proj": (width, width), "mlp.fc1": (4 * width, width), "mlp.fc2": (width, 4 * width)}
    layer = "text_encoder.text_model.encoder.layers.0"
    layers = {f"{layer}.{name}": Lora(torch.ones(1, i), torch.ones(o, 1), 1.0) for name, (o, i) in sizes.items()}
    tensors, _ = write(Adapter("sd15", layers), "comfyui")
    assert all(key.startswith(f"text_encoders.{tower}.transformer.text_model.") for key in tensors)
    assert read(tensors, architecture="sd15").layers.keys() == layers.keys()


@pytest.mark.parametrize(("name", "rows"), [("double_blocks_0_img_attn_qkv", 13), ("single_blocks_0_linear1", 12)])
def test_a_fused_layer_of_other_rows_is_refused(name, rows):
    halves = {"down": torch.ones(2, 4), "up": torch.ones(rows, 2)}
    tensors = {f"lora_unet_{name}.lora_{half}.weight": tensor for half, tensor in halves.items()}
    with pytest.raises(UserError, match=rf"{name}': its {rows} rows do not fit [34] fused layers"):
        read(tensors, architecture="flux")


def test_text_encoders_can_be_left_out():
    text = file(CLIP, "lora_te3_encoder_block_0_layer_0_SelfAttention_q")
    assert list(read(file(LAYER) | text, architecture="sd15", denoiser_only=True).layers) == [LAYER]


def test_a_fused_layer_keeps_the_ranks_of_its_parts_and_comes_back_to_the_bit():
    """Ranks 2, 3 and none; then a shared A, as a fused LoRA has it, which is not made three times as large."""
    block = "transformer.transformer_blocks.0.attn."
    layers = {f"{block}to_q": Lora(torch.randn(2, 4), torch.randn(4, 2), 3.0)}
    layers |= {f"{block}to_v": Lora(torch.randn(3, 4), torch.randn(4, 3), 4.5)}
    tensors, _ = write(Adapter("sd3", layers), "kohya")
    assert tensors["lora_unet_joint_blocks_0_x_block_attn_qkv.lora_down.weight"].shape == (5, 4)
    again = read(tensors).layers
    assert again.keys() == layers.keys() and all(again[k].scale == lora.scale for k, lora in layers.items())
    assert torch.equal(again[f"{block}to_v"].down, layers[f"{block}to_v"].down)
    name = "lora_unet_joint_blocks_0_x_block_attn_qkv"
    dense = {f"{name}.lora_down.weight": torch.randn(2, 4), f"{name}.lora_up.weight": torch.randn(12, 2)}
    dense[f"{name}.alpha"] = torch.tensor(1.0)
    back, _ = write(read(dense), "kohya")
    assert back.keys() == dense.keys() and all(torch.equal(back[key], dense[key]) for key in dense)


def attention(prefix, blocks, width=3072, separator="."):
    """A LoRA of rank 1 on the queries of so many blocks."""
    tensors = {}
    for i in range(blocks):
        stem = f"{prefix}{separator}{i}{separator}" + separator.join(("attn", "to_q"))
        tensors |= {f"{stem}.lora_A.weight": torch.ones(1, width), f"{stem}.lora_B.weight": torch.ones(width, 1)}
    return tensors


@pytest.mark.parametrize(
    ("tensors", "architecture"),
    [
        (attention("transformer.transformer_blocks", 60), None),  # Qwen-Image
        (attention("lora_unet_transformer_blocks", 20, separator="_"), None),
        (attention("transformer.transformer_blocks", 20), "flux"),
        (attention("transformer.single_transformer_blocks", 39), None),
        (attention("transformer.transformer_blocks", 39, 1536), None),
        (file("lora_unet_single_blocks_38_linear2"), None),
        (file("diffusion_model.joint_blocks.38.x_block.attn.proj"), None),
        (file("diffusion_model.double_blocks.19.img_attn.proj"), None),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_more_blocks_than_the_architecture_has_are_another_model(tensors, architecture):
    with pytest.raises(UserError, match=r"is for another model: (flux|sd3) has fewer blocks \("):
        read(tensors, architecture=architecture)


def test_the_last_blocks_are_known():
    assert len(read(attention("transformer.transformer_blocks", 19)).layers) == 19
    assert len(read(attention("transformer.single_transformer_blocks", 38)).layers) == 38
    assert len(read(attention("transformer.transformer_blocks", 38, 2432)).layers) == 38


def test_files_in_8_bits_are_read():
    """A T5 that changes nothing among them."""
    zero = {key: torch.zeros_like(t) for key, t in file("lora_te3_encoder_block_0_layer_0_SelfAttention_q").items()}
    fused = file("lora_unet_joint_blocks_0_x_block_attn_qkv")
    small = {key: t.to(torch.float8_e4m3fn) for key, t in (fused | zero).items()}
    assert len(read(small, architecture="sd3").layers) == 3
    with pytest.raises(UserError, match="a LoRA on T5"):
        read({key: torch.ones_like(t.float()).to(t.dtype) for key, t in small.items()}, architecture="sd3")
