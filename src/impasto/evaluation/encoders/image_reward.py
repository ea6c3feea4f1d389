"""ImageReward v1.0 (Xu et al. 2023): BLIP's text encoder reads the image by cross-attention; a linear stack rates it.

    reward = (mlp(h_cls(prompt | image)) - MEAN) / STD,  prompts of at most 35 word pieces

The published ImageReward.pt names its tensors as BLIP's repository does; here they go into transformers' BLIP. Pixels:
shorter side 224 (bicubic), centre crop, CLIP's mean and standard deviation. The tokenizer is bert-base-uncased's: its
files beside the weights, else from the hub.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from impasto.evaluation.encoders.base import Reward, batches, loading, placed
from impasto.evaluation.encoders.pixels import clip_pixels
from impasto.evaluation.encoders.weights import fill, find_folder, read_weights, width

ROW, TOKENIZER = "image-reward", "google-bert/bert-base-uncased"
MEAN, STD = 0.16717362830052426, 1.0333394966054072
LENGTH = 35
HEAD = 64  # width of an attention head
VISION = {
    r"patch_embed\.proj": "embeddings.patch_embedding",
    r"cls_token": "embeddings.class_embedding",
    r"pos_embed": "embeddings.position_embedding",
    r"blocks": "encoder.layers",
    r"norm": "post_layernorm",
    r"attn\.qkv": "self_attn.qkv",
    r"attn\.proj": "self_attn.projection",
    r"norm1": "layer_norm1",
    r"norm2": "layer_norm2",
}


class RewardModel(nn.Module):
    """vision, text: BLIP's; mlp: five linear layers without activations, as published."""

    def __init__(self, vision: Any, text: Any, widths: Sequence[int]) -> None:
        super().__init__()
        self.vision, self.text = vision, text
        self.mlp = nn.Sequential(*(nn.Linear(a, b) for a, b in pairwise(widths)))

    def forward(self, pixels: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """Pixels [n, 3, s, s], ids and mask [n, LENGTH] -> rewards [n]."""
        seen = self.vision(pixel_values=pixels).last_hidden_state
        words = self.text(ids, attention_mask=mask, encoder_hidden_states=seen).last_hidden_state[:, 0]
        return (self.mlp(words.float())[:, 0] - MEAN) / STD


@dataclass(frozen=True)
class ImageReward(Reward):
    tokenizer: Any

    @torch.no_grad()
    def rewards(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> Tensor:
        """The reward of each image for its prompt, [n]; about standard normal over the authors' images."""
        size, found = self.model.vision.config.image_size, []
        for chosen, texts in zip(batches(images), batches(prompts), strict=True):
            kinds = {"padding": "max_length", "truncation": True, "max_length": LENGTH, "return_tensors": "pt"}
            tokens = self.tokenizer(list(texts), **kinds).to(self.device)
            pixels = clip_pixels(list(chosen), size).to(self.device)
            found.append(self.model(pixels, tokens["input_ids"], tokens["attention_mask"]).cpu())
        return torch.cat(found)


def load(source: Path | str, device: str = "cpu", row: str = ROW) -> ImageReward:
    """From the converted file, or a folder with it (and bert's tokenizer). Raises UserError."""
    from transformers import AutoTokenizer, BlipTextConfig, BlipTextModel, BlipVisionConfig, BlipVisionModel

    state = read_weights(source, row)
    seen, _, patch, _ = width(state, "blip.visual_encoder.patch_embed.proj.weight", row)
    _, places, _ = width(state, "blip.visual_encoder.pos_embed", row)
    vision = BlipVisionConfig(
        hidden_size=seen,
        intermediate_size=width(state, "blip.visual_encoder.blocks.0.mlp.fc1.weight", row)[0],
        num_hidden_layers=layers(state, r"blip\.visual_encoder\.blocks\.(\d+)"),
        num_attention_heads=max(1, seen // HEAD),
        image_size=patch * round((places - 1) ** 0.5),
        patch_size=patch,
        layer_norm_eps=1e-6,
    )
    vocabulary, wide = width(state, "blip.text_encoder.embeddings.word_embeddings.weight", row)
    text = BlipTextConfig(
        vocab_size=vocabulary,
        hidden_size=wide,
        encoder_hidden_size=seen,
        intermediate_size=width(state, "blip.text_encoder.encoder.layer.0.intermediate.dense.weight", row)[0],
        num_hidden_layers=layers(state, r"blip\.text_encoder\.encoder\.layer\.(\d+)"),
        num_attention_heads=max(1, wide // HEAD),
        max_position_embeddings=width(state, "blip.text_encoder.embeddings.position_embeddings.weight", row)[0],
    )
    linear = sorted((name for name in state if re.fullmatch(r"mlp\.layers\.\d+\.weight", name)), key=index)
    widths = [wide, *(width(state, name, row)[0] for name in linear)]
    model = RewardModel(BlipVisionModel(vision), BlipTextModel(text, add_pooling_layer=False), widths)
    fill(model, translate(state, linear), row)
    path = find_folder(source, row)
    folder = path if path.is_dir() else path.parent
    beside = any((folder / name).is_file() for name in ("tokenizer.json", "vocab.txt"))
    with loading(TOKENIZER, row):
        tokenizer = AutoTokenizer.from_pretrained(str(folder) if beside else TOKENIZER)
    return ImageReward(row, placed(model, device, source), tokenizer)


def index(name: str) -> int:
    """The number of a layer of the linear stack: "mlp.layers.4.weight" -> 4."""
    return int(name.split(".")[2])


def layers(state: Mapping[str, Tensor], pattern: str) -> int:
    """How many numbers a name pattern has."""
    return len({found[1] for name in state if (found := re.match(pattern, name))})


def translate(state: Mapping[str, Tensor], linear: Sequence[str]) -> dict[str, Tensor]:
    """BLIP's names to transformers'. The projections of BLIP's own contrastive loss are left out."""
    found = {}
    for name, tensor in state.items():
        if name.startswith("blip.visual_encoder."):
            name = name.removeprefix("blip.visual_encoder.")
            for pattern, new in VISION.items():
                name = re.sub(rf"(?:^|(?<=\.)){pattern}(?=\.|$)", new, name)
            found[f"vision.{name}"] = tensor
        elif name.startswith("blip.text_encoder.") and not name.endswith("position_ids"):
            found[f"text.{name.removeprefix('blip.text_encoder.')}"] = tensor
    for i, name in enumerate(linear):
        found |= {f"mlp.{i}.{kind}": state[name.replace("weight", kind)] for kind in ("weight", "bias")}
    return found
