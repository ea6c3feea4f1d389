"""CSD (Somepalli et al. 2024, "Measuring Style Similarity in Diffusion Models"): the style head over CLIP's ViT-L/14.

    style(x) = normalise(features(x) @ last_layer_style),  features: the class token after CLIP's last layer norm

The published file names its tensors as OpenAI's CLIP does; here they go into transformers' vision model. Pixels: the
shorter side 224 (bicubic), centre crop, CLIP's mean and standard deviation. The authors note that the released weights
do not give the paper's numbers exactly. The content head is not used.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from impasto.evaluation.encoders.base import Encoder, placed
from impasto.evaluation.encoders.pixels import clip_pixels
from impasto.evaluation.encoders.weights import fill, read_weights, width

ROW = "csd"
HEAD = 64  # width of an attention head in CLIP
NAMES = {
    r"class_embedding": "embeddings.class_embedding",
    r"positional_embedding": "embeddings.position_embedding.weight",
    r"conv1": "embeddings.patch_embedding",
    r"ln_pre": "pre_layrnorm",
    r"ln_post": "post_layernorm",
    r"transformer\.resblocks\.(\d+)": r"encoder.layers.\1",
    r"attn\.out_proj": "self_attn.out_proj",
    r"ln_(\d)": r"layer_norm\1",
    r"mlp\.c_fc": "mlp.fc1",
    r"mlp\.c_proj": "mlp.fc2",
}


@dataclass(frozen=True)
class StyleEncoder(Encoder):
    """See `base.Encoder`; no text tower."""

    def _features(self, images: Sequence[Image.Image]) -> Tensor:
        size = self.model.config.image_size
        return self.model(pixel_values=clip_pixels(list(images), size).to(self.device)).image_embeds


def load(source: Path | str, device: str = "cpu", row: str = ROW) -> StyleEncoder:
    """From the converted file (or its folder, or a hub id of safetensors). Raises UserError."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    state = read_weights(source, row)
    wide, _, patch, _ = width(state, "backbone.conv1.weight", row)
    places, _ = width(state, "backbone.positional_embedding", row)
    config = CLIPVisionConfig(
        hidden_size=wide,
        intermediate_size=width(state, "backbone.transformer.resblocks.0.mlp.c_fc.weight", row)[0],
        projection_dim=width(state, "last_layer_style", row)[1],
        num_hidden_layers=len({name.split(".")[3] for name in state if ".resblocks." in name}),
        num_attention_heads=max(1, wide // HEAD),
        image_size=patch * round((places - 1) ** 0.5),
        patch_size=patch,
        hidden_act="quick_gelu",
    )
    model = fill(CLIPVisionModelWithProjection(config), translate(state), row)
    return StyleEncoder(row, placed(model, device, source), None, None)


def translate(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """OpenAI's names to transformers'; the joint projection of attention in its three parts."""
    found: dict[str, Any] = {"visual_projection.weight": state["last_layer_style"].T.contiguous()}
    for name, tensor in state.items():
        if not name.startswith("backbone.") or name == "backbone.proj":
            continue
        name = name.removeprefix("backbone.")
        for pattern, new in NAMES.items():
            name = re.sub(rf"(?:^|(?<=\.)){pattern}(?=\.|$)", new, name)
        if joint := re.fullmatch(r"(.*)attn\.in_proj_(weight|bias)", name):
            for part, own in zip("qkv", tensor.chunk(3), strict=True):
                found[f"vision_model.{joint[1]}self_attn.{part}_proj.{joint[2]}"] = own.contiguous()
        else:
            found[f"vision_model.{name}"] = tensor
    return found
