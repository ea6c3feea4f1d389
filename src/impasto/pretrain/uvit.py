"""The denoiser of `mini-muse`: a transformer that predicts the masked ones of 32 x 32 image tokens.

Like amused-512 it works on half the resolution, 16 x 16. Share m = cos(pi u / 2) of the tokens masked, u ~ U(0, 1)
(Muse, arXiv 2301.00704); cross-entropy on the masked places, their mean over the batch. Conditions as aMUSEd has them:
text and pooled text of the CLIP tower, and micro-conditions, which are the same for all pictures here (128 px,
uncropped).
"""

import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import AmusedScheduler, UVit2DModel, VQModel
from diffusers.models.attention_processor import Attention, AttnProcessor
from diffusers.models.unets.uvit_2d import UVit2DConvEmbed
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTextModelWithProjection

from impasto.errors import UserError
from impasto.families.muse import MusePipeline, micro_conditions
from impasto.noise.schedule import MaskRatio
from impasto.pretrain.clip import WIDTH
from impasto.pretrain.image_tokenizer import CODES, SIDE, image_tokens, read_image_tokenizer

VOCABULARY = CODES + 64  # the codes, the mask token, and rows that round the table off
MASK = VOCABULARY - 1
MICRO = 32  # channels of each of the five micro-conditions
RES_BLOCKS = 3  # aMUSEd's; the only knowledge of place is what each one's 3 x 3 convolution carries in from the border
PLACES = 256  # masked places of an image whose logits are computed


class UViT:
    """See `base.Denoiser`. A shape is (layers, heads of 64). Latents are token ids [n, 1, 32, 32]."""

    part, autoencoder = "transformer", "image-tokenizer"
    architecture = "UVit2DModel, masked image tokens"
    call: Mapping[str, Any] = {"num_inference_steps": 16, "temperature": (3.0, 0.0)}
    sizes: Mapping[str, tuple[int, ...]] = {"small": (2, 3), "medium": (6, 4)}  # 7.8M, 19M parameters
    long_text = False
    flash_on_cpu = True  # for the 256 image tokens; not for the 32 of the text, see `new`
    pipeline_class = MusePipeline
    schedule = MaskRatio(MASK)

    def __init__(self) -> None:
        self.cross_entropy = cross_entropy

    def new(self, shape: tuple[int, ...]) -> UVit2DModel:
        """RES_BLOCKS convolutional blocks with attention to the text on each side of the transformer layers.

        Attention to the text by the plain formula: the CPU's flash kernel is slower for 32 keys.
        """
        layers, heads = shape
        width = 64 * heads
        model = UVit2DModel(
            hidden_size=width,
            cond_embed_dim=WIDTH,
            micro_cond_encode_dim=MICRO,
            micro_cond_embed_dim=5 * MICRO,
            encoder_hidden_size=WIDTH,
            vocab_size=VOCABULARY,
            codebook_size=CODES,
            in_channels=width,
            block_out_channels=width,
            num_res_blocks=RES_BLOCKS,
            downsample=True,
            upsample=True,
            block_num_heads=heads,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            intermediate_size=11 * width // 4,
            sample_size=SIDE,
        )
        for name, module in model.named_modules():
            if isinstance(module, Attention) and (name.endswith("attn2") or "attention_blocks" in name):
                module.set_processor(AttnProcessor())
        model.embed.forward = partial(embed_by_code, model.embed)
        return model

    def shape(self, config: Mapping[str, Any]) -> tuple[int, ...]:
        return (config["num_hidden_layers"], config["num_attention_heads"])

    def scheduler(self) -> AmusedScheduler:
        return AmusedScheduler(mask_token_id=MASK)

    def matrices(self, model: Any) -> list[nn.Parameter]:
        """Those of the blocks; embeddings and output layer are AdamW's."""
        blocks = (model.transformer_layers, model.down_block, model.up_block)
        return [p for block in blocks for p in block.parameters() if p.ndim == 2]

    def load_autoencoder(self, folder: Path) -> Any:
        return VQModel.from_pretrained(folder, torch_dtype=torch.float32).eval()

    def encode(self, vae: Any, device: str) -> Callable[[Tensor], Tensor]:
        """Images uint8 [n, h, w, 3] -> token ids [n, 1, h/4, w/4], int16."""
        parts = [part.to(device) for part in read_image_tokenizer(vae)]
        return lambda rgb: image_tokens(rgb, *parts)[:, None].to(torch.int16)

    def text(self, tower: CLIPTextModelWithProjection, ids: Tensor, long: bool = False) -> dict[str, Tensor]:
        """Tokens [n, 32, 192], the hidden states before the last layer, and the pooled state [n, 192]."""
        out = tower(input_ids=ids.long(), output_hidden_states=True)
        hidden: Any = out.hidden_states
        return {"encoder_hidden_states": hidden[-2], "pooled_text_emb": out.text_embeds}

    def levels(self, z: Tensor) -> Tensor:
        """Mask ratios cos(pi u / 2), u by the normal cdf of -z: a high z is a high ratio."""
        return torch.cos(torch.special.ndtr(-z) * (math.pi / 2)).clamp(1e-3, 1 - 1e-6)

    def signal(self, t: Tensor) -> tuple[Tensor, Tensor]:
        raise UserError("mini-muse predicts tokens, for which there is no teacher: leave out --teacher")

    def loss(
        self,
        model: Any,
        x0: Tensor,
        eps: Tensor,
        t: Tensor,
        cond: Mapping[str, Tensor],
        teacher_targets: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Mean cross-entropy of the masked tokens, each image's estimated from PLACES of its masked places.

        The output layers are applied here, at these places alone; the model's forward ends before them. Under autocast
        everything runs in bf16, from parameters that are cast once: a quarter faster on the CPU.
        """
        count = (t * x0[0].numel()).round().clamp(min=1)  # of masked places, as in `MaskRatio.add_noise`
        z = self.schedule.add_noise(x0, eps, self.schedule.log_snr(t))
        device = x0.device.type
        dtype = torch.bfloat16 if torch.is_autocast_enabled(device) else torch.float32
        given = {name: value.to(dtype) for name, value in cond.items()}
        given["micro_conds"] = micro_conditions(len(z), 128, 128).to(z.device, dtype)
        output, model.mlm_layer = model.mlm_layer, nn.Identity()
        try:
            with torch.autocast(device, enabled=False):
                weights = {name: p.to(dtype) for name, p in model.named_parameters()}
                features = torch.func.functional_call(model, weights, (z[:, 0],), given)
                # the places of the largest eps are masked, so the first of them are a random part
                places = eps.flatten(1).argsort(dim=1, descending=True)[:, :PLACES]
                features = features.permute(0, 2, 3, 1).flatten(1, 2)
                features = features.gather(1, places[:, :, None].expand(-1, -1, features.shape[2]))
                weights = {name: p.to(dtype) for name, p in output.named_parameters()}
                loss = self.cross_entropy(output, weights, features, x0.flatten(1).gather(1, places))
        finally:
            model.mlm_layer = output
        used = torch.arange(places.shape[1], device=z.device) < count[:, None]
        own = (loss * used).sum(1) / used.sum(1)
        return (own * count).sum() / count.sum()

    def compile(self, model: Any) -> Any:
        """Compile the model and the output layers, which `loss` applies outside of the model's forward."""
        self.cross_entropy = torch.compile(cross_entropy, dynamic=False)
        return torch.compile(model, dynamic=False)


def embed_by_code(embed: UVit2DConvEmbed, input_ids: Tensor) -> Tensor:
    """What `embed` gives, [n, channels, h, w], computed once per code of the vocabulary instead of once per token."""
    table = embed.layer_norm(embed.embeddings.weight)
    table = F.linear(table, embed.conv.weight[:, :, 0, 0], embed.conv.bias)
    return F.embedding(input_ids, table).permute(0, 3, 1, 2)


def cross_entropy(layer: nn.Module, weights: Mapping[str, Tensor], features: Tensor, codes: Tensor) -> Tensor:
    """-log p(code) [n, places] by the output layers `mlm_layer`.

    weights: of the layer, by name. features: [n, places, channels]. codes: [n, places].
    """
    hidden = F.linear(features, weights["conv1.weight"][:, :, 0, 0])
    norm: Any = layer.layer_norm
    hidden = torch.func.functional_call(norm, {"weight": weights["layer_norm.weight"]}, (hidden,))
    logits = F.linear(hidden, weights["conv2.weight"][:, :, 0, 0]).float()
    return F.cross_entropy(logits.flatten(0, 1), codes.flatten(), reduction="none").view_as(codes)
