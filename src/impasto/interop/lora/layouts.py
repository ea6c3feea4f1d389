"""Names of a base's layers in other tools, as data.

Each denoiser has two namings: diffusers' ("transformer_blocks.0.attn.to_q") and that of the published checkpoint
("double_blocks.0.img_attn.qkv"), which kohya's sd-scripts and ComfyUI use. In the latter q, k and v (and, in FLUX's
single blocks, the first layer of the MLP) are one linear layer, with rows in that order. A layout is a naming with a
spelling:

    diffusers   transformer.transformer_blocks.0.attn.to_q.lora_A.weight       alpha in the file's metadata
    kohya       lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight        one alpha tensor per layer
    comfyui     diffusion_model.double_blocks.0.img_attn.qkv.lora_down.weight  one alpha tensor per layer

Sources, checked name by name in tests/adapters/test_layouts.py: sd-scripts (library/flux_models.py, sd3_models.py,
sdxl_original_unet.py; it trains SD1.5 under the names of diffusers), ComfyUI (comfy/lora.py, comfy/utils.py).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

LAYOUTS = ("diffusers", "kohya", "comfyui")
ARCHITECTURES = {
    "FluxPipeline": "flux",
    "StableDiffusion3Pipeline": "sd3",
    "StableDiffusionXLPipeline": "sdxl",
    "StableDiffusionPipeline": "sd15",
}
"""By the pipeline class of a diffusers folder."""
PIPELINES = {architecture: pipeline for pipeline, architecture in ARCHITECTURES.items()}
DENOISER = {"flux": "transformer", "sd3": "transformer", "sdxl": "unet", "sd15": "unet"}
TEXT_ENCODERS = {
    "flux": {"text_encoder": ("lora_te1", "clip_l")},
    "sd3": {"text_encoder": ("lora_te1", "clip_l"), "text_encoder_2": ("lora_te2", "clip_g")},
    "sdxl": {"text_encoder": ("lora_te1", "clip_l"), "text_encoder_2": ("lora_te2", "clip_g")},
    "sd15": {"text_encoder": ("lora_te", "clip_l")},
}
"""Text encoders for which diffusers supports LoRA (not T5), with kohya's and ComfyUI's names."""
SD2_TEXT = 1024
"""Width of SD2's text encoder, "clip_h" in ComfyUI; SD1's is 768."""

DEPTH = {
    "flux": {"double_blocks": 19, "transformer_blocks": 19, "single_blocks": 38, "single_transformer_blocks": 38},
    "sd3": {"joint_blocks": 38, "transformer_blocks": 38},
}
"""Numbers of transformer blocks in both namings, of FLUX.1 and of SD3.5 large, the deepest SD3."""
UNET_DEPTH = 10  # transformer blocks in one attention of a U-Net; SDXL has 10
TEXT_DEPTH = 32  # layers of a CLIP tower; the larger tower of SDXL has 32

FLUX_DOUBLE = {
    "img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "img_attn.proj": ("attn.to_out.0",),
    "txt_attn.proj": ("attn.to_add_out",),
    "img_mlp.0": ("ff.net.0.proj",),
    "img_mlp.2": ("ff.net.2",),
    "txt_mlp.0": ("ff_context.net.0.proj",),
    "txt_mlp.2": ("ff_context.net.2",),
    "img_mod.lin": ("norm1.linear",),
    "txt_mod.lin": ("norm1_context.linear",),
}
FLUX_SINGLE = {
    "linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
    "linear2": ("proj_out",),
    "modulation.lin": ("norm.linear",),
}
XLABS = {
    "double_blocks": {"qkv_lora1": "img_attn.qkv", "qkv_lora2": "txt_attn.qkv"}
    | {"proj_lora1": "img_attn.proj", "proj_lora2": "txt_attn.proj"},
    "single_blocks": {"qkv": "qkv", "proj": "linear2"},  # without "_lora", which is in diffusers' old suffixes
}
"""XLabs' layers of a block, "double_blocks.0.processor.qkv_lora1", and their published names; as diffusers reads them
(`_convert_xlabs_flux_lora_to_diffusers`), which has no MLP in the single blocks' qkv."""
FLUX_REST = {
    "img_in": "x_embedder",
    "txt_in": "context_embedder",
    "time_in.in_layer": "time_text_embed.timestep_embedder.linear_1",
    "time_in.out_layer": "time_text_embed.timestep_embedder.linear_2",
    "vector_in.in_layer": "time_text_embed.text_embedder.linear_1",
    "vector_in.out_layer": "time_text_embed.text_embedder.linear_2",
    "guidance_in.in_layer": "time_text_embed.guidance_embedder.linear_1",
    "guidance_in.out_layer": "time_text_embed.guidance_embedder.linear_2",
    "final_layer.linear": "proj_out",
    "final_layer.adaLN_modulation.1": "norm_out.linear",
}
SD3_BLOCK = {
    "x_block.attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "x_block.attn2.qkv": ("attn2.to_q", "attn2.to_k", "attn2.to_v"),  # SD3.5 medium
    "context_block.attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "x_block.attn.proj": ("attn.to_out.0",),
    "x_block.attn2.proj": ("attn2.to_out.0",),
    "context_block.attn.proj": ("attn.to_add_out",),
    "x_block.mlp.fc1": ("ff.net.0.proj",),
    "x_block.mlp.fc2": ("ff.net.2",),
    "context_block.mlp.fc1": ("ff_context.net.0.proj",),
    "context_block.mlp.fc2": ("ff_context.net.2",),
    "x_block.adaLN_modulation.1": ("norm1.linear",),
    "context_block.adaLN_modulation.1": ("norm1_context.linear",),
}
SD3_REST = {
    "x_embedder.proj": "pos_embed.proj",
    "context_embedder": "context_embedder",
    "t_embedder.mlp.0": "time_text_embed.timestep_embedder.linear_1",
    "t_embedder.mlp.2": "time_text_embed.timestep_embedder.linear_2",
    "y_embedder.mlp.0": "time_text_embed.text_embedder.linear_1",
    "y_embedder.mlp.2": "time_text_embed.text_embedder.linear_2",
    "final_layer.linear": "proj_out",
    "final_layer.adaLN_modulation.1": "norm_out.linear",
}
SWAPPED = ("norm_out.linear", "norm1_context.linear")
"""Layers stored as (scale, shift) in diffusers and (shift, scale) in the published checkpoint, if they have twice as
many rows as columns (other norm1_context layers have six times as many, in the same order)."""

RESNET = {
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
ATTENTIONS = ("to_q", "to_k", "to_v", "to_out.0")
IN_TRANSFORMER = (
    *(f"attn1.{name}" for name in ATTENTIONS),
    *(f"attn2.{name}" for name in ATTENTIONS),
    *("ff.net.0.proj", "ff.net.2"),
)
UNET_REST = {
    "input_blocks.0.0": "conv_in",
    "out.2": "conv_out",
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb.0.0": "add_embedding.linear_1",
    "label_emb.0.2": "add_embedding.linear_2",
}
ATTENDING_UP_BLOCKS = {"sdxl": (0, 1), "sd15": (1, 2, 3)}
CONVOLUTIONS = ("conv1", "conv2", "conv_shortcut", "conv", "conv_in", "conv_out", "pos_embed.proj")
PROJECTIONS = ("proj_in", "proj_out")
"""Ends of the names of convolutions, and of the layers of a U-Net that are 1x1 convolutions in SD1 and matrices in SD2
and SDXL (`use_linear_projection`)."""
LINEAR_PROJECTION = {768: False, 1024: True, 2048: True}
"""By the width of the text states."""
IN_TEXT_LAYER = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj", "mlp.fc1", "mlp.fc2")


@dataclass(frozen=True)
class Names:
    """The layers of a denoiser. fused: published name -> diffusers' names of its parts, in the order of its rows.

    place: the inverse, diffusers' name -> (published name, index of the part). dotted: either name with underscores ->
    the name.
    """

    fused: dict[str, tuple[str, ...]]
    place: dict[str, tuple[str, int]]
    dotted: dict[str, str]


@cache
def names(architecture: str, layers_per_block: int = 2) -> Names:
    """All layers of an architecture by name. layers_per_block: of its U-Net, 2 in SD1.5 and SDXL."""
    pairs = dict(PAIRS[architecture](architecture, layers_per_block))
    place = {part: (whole, i) for whole, parts in pairs.items() for i, part in enumerate(parts)}
    return Names(pairs, place, {name.replace(".", "_"): name for name in [*pairs, *place]})


@cache
def text_names() -> dict[str, str]:
    """Layers of a CLIP tower, name with underscores -> transformers' name."""
    layers = [f"text_model.encoder.layers.{i}.{name}" for i in range(TEXT_DEPTH) for name in IN_TEXT_LAYER]
    return {name.replace(".", "_"): name for name in [*layers, "text_projection"]}


def flux(architecture: str, layers_per_block: int) -> Iterator[tuple[str, tuple[str, ...]]]:
    for i in range(DEPTH[architecture]["double_blocks"]):
        yield from blocks(f"double_blocks.{i}", FLUX_DOUBLE, f"transformer_blocks.{i}")
    for i in range(DEPTH[architecture]["single_blocks"]):
        yield from blocks(f"single_blocks.{i}", FLUX_SINGLE, f"single_transformer_blocks.{i}")
    yield from ((whole, (part,)) for whole, part in FLUX_REST.items())


def sd3(architecture: str, layers_per_block: int) -> Iterator[tuple[str, tuple[str, ...]]]:
    for i in range(DEPTH[architecture]["joint_blocks"]):
        yield from blocks(f"joint_blocks.{i}", SD3_BLOCK, f"transformer_blocks.{i}")
    yield from ((whole, (part,)) for whole, part in SD3_REST.items())


def unet(architecture: str, layers_per_block: int) -> Iterator[tuple[str, tuple[str, ...]]]:
    """input_blocks count conv_in, then per level its layers and its downsampler; output_blocks one layer more each."""
    n = layers_per_block
    for level in range(4):
        for i in range(n):
            whole = f"input_blocks.{1 + level * (n + 1) + i}"
            yield from resnet(f"{whole}.0", f"down_blocks.{level}.resnets.{i}")
            yield from transformer(f"{whole}.1", f"down_blocks.{level}.attentions.{i}")
        yield f"input_blocks.{(level + 1) * (n + 1)}.0.op", (f"down_blocks.{level}.downsamplers.0.conv",)
        for i in range(n + 1):
            whole = f"output_blocks.{level * (n + 1) + i}"
            yield from resnet(f"{whole}.0", f"up_blocks.{level}.resnets.{i}")
            yield from transformer(f"{whole}.1", f"up_blocks.{level}.attentions.{i}")
        after = 2 if level in ATTENDING_UP_BLOCKS[architecture] else 1
        yield f"output_blocks.{level * (n + 1) + n}.{after}.conv", (f"up_blocks.{level}.upsamplers.0.conv",)
    yield from resnet("middle_block.0", "mid_block.resnets.0")
    yield from transformer("middle_block.1", "mid_block.attentions.0")
    yield from resnet("middle_block.2", "mid_block.resnets.1")
    yield from ((whole, (part,)) for whole, part in UNET_REST.items())


def blocks(whole: str, pairs: dict[str, tuple[str, ...]], block: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    for name, parts in pairs.items():
        yield f"{whole}.{name}", tuple(f"{block}.{part}" for part in parts)


def resnet(whole: str, block: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    yield from ((f"{whole}.{name}", (f"{block}.{part}",)) for name, part in RESNET.items())


def transformer(whole: str, block: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    inside = [f"transformer_blocks.{i}.{name}" for i in range(UNET_DEPTH) for name in IN_TRANSFORMER]
    yield from ((f"{whole}.{name}", (f"{block}.{name}",)) for name in ("proj_in", "proj_out", *inside))


PAIRS = {"flux": flux, "sd3": sd3, "sdxl": unet, "sd15": unet}


def part_widths(parts: int, rows: int, columns: int) -> list[int]:
    """Rows of the parts of a fused layer: q, k and v are equal; in FLUX's single blocks the MLP has the rest."""
    return [columns] * 3 + [rows - 3 * columns] if parts == 4 else [rows // parts] * parts
