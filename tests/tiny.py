"""Tiny random base models, built from configs: ordinary diffusers folders that every test can afford."""

import json
from pathlib import Path

import torch

VOCABULARY = "a an the in of on style rocket cactus star rabbit face cat pixel art neon drawing and with"
WORDS = VOCABULARY.split()


def clip_tokenizer(length: int = 32):
    """A CLIP BPE of all bytes plus a few whole words, so that two prompts are two token lists."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPTokenizer

    letters = sorted(ByteLevel.alphabet())
    tokens = [*letters, *(letter + "</w>" for letter in letters)]
    merges: list[tuple[str, str]] = []
    for word in WORDS:
        symbols = [*word[:-1], word[-1] + "</w>"]
        while len(symbols) > 1:
            pair = (symbols[0], symbols[1])
            if pair not in merges:
                merges.append(pair)
                tokens.append("".join(pair))
            symbols = ["".join(pair), *symbols[2:]]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocab = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=length)


def t5_tokenizer():
    from transformers import T5TokenizerFast

    vocab = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), *((f"▁{w}", -1.0) for w in WORDS)]
    vocab += [(letter, -5.0) for letter in "abcdefghijklmnopqrstuvwxyz"]
    return T5TokenizerFast(vocab=vocab, extra_ids=0)


def clip_text(width: int, vocab: int, eos: int, projection: bool = True):
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=vocab,
        hidden_size=width,
        intermediate_size=2 * width,
        projection_dim=width,
        num_hidden_layers=3,
        num_attention_heads=2,
        max_position_embeddings=32,
        bos_token_id=eos - 1,
        eos_token_id=eos,
        pad_token_id=eos,
    )
    return (CLIPTextModelWithProjection if projection else CLIPTextModel)(config)


def t5_text(width: int, vocab: int, zero: bool):
    from transformers import T5Config, T5EncoderModel

    model = T5EncoderModel(T5Config(vocab_size=vocab, d_model=width, d_kv=8, d_ff=16, num_layers=1, num_heads=2))
    if zero:
        torch.nn.init.zeros_(model.encoder.final_layer_norm.weight)
    return model


def sd3_config(**changes):
    return {
        "sample_size": 4,
        "patch_size": 2,
        "in_channels": 4,
        "out_channels": 4,
        "num_layers": 2,
        "attention_head_dim": 8,
        "num_attention_heads": 2,
        "joint_attention_dim": 48,
        "caption_projection_dim": 16,
        "pooled_projection_dim": 24,
        "pos_embed_max_size": 8,
        "qk_norm": "rms_norm",
    } | changes


def autoencoder(**changes):
    """16 x 16 px to 4 channels of 4 x 4, with a shift as the newer ones have it."""
    from diffusers import AutoencoderKL

    config = {
        "block_out_channels": (8, 8, 8),
        "down_block_types": ("DownEncoderBlock2D",) * 3,
        "up_block_types": ("UpDecoderBlock2D",) * 3,
        "latent_channels": 4,
        "norm_num_groups": 4,
        "layers_per_block": 1,
        "sample_size": 16,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
        "shift_factor": 0.06,
        "scaling_factor": 1.5,
    }
    return AutoencoderKL(**(config | changes))


def unet(**changes):
    """Two levels, attention at both, like SD1.5's in small."""
    from diffusers import UNet2DConditionModel

    config = {
        "sample_size": 4,
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": (8, 16),
        "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        "layers_per_block": 1,
        "attention_head_dim": 2,
        "norm_num_groups": 4,
        "cross_attention_dim": 16,
    }
    model = UNet2DConditionModel(**(config | changes))
    torch.nn.init.normal_(model.conv_out.weight, std=0.2)
    for name, p in model.named_parameters():
        if name.endswith(("to_q.weight", "to_k.weight")):  # attention that attends: every path shall count
            torch.nn.init.normal_(p, std=0.5)
    return model


def write_card(folder: Path, card: dict | None, **changes) -> Path:
    """`impasto.json`: what a tiny base is trained and drawn with; `card` wins."""
    default = {
        "size": 16,
        "generate": {"steps": 4, "guidance": 3.0, "batch": 4},
        "train": {"lr": 1e-3, "steps": 6, "batch": 3, "accumulate": 2},
        "license": "apache-2.0",
    }
    (folder / "impasto.json").write_text(json.dumps(default | changes | (card or {})))
    return folder


SCALED_LINEAR = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}


def sd3_folder(folder: Path, *, zero_t5: bool = True, seed: int = 0, card: dict | None = None) -> Path:
    """A StableDiffusion3Pipeline folder of 16 x 16 px (f4 latents, 4 channels), some 50,000 weights, T5 included."""
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        tokenizer, tokenizer_3 = clip_tokenizer(), t5_tokenizer()
        eos = tokenizer.eos_token_id
        transformer = SD3Transformer2DModel(**sd3_config())
        for block in transformer.transformer_blocks:  # adaLN starts at zero in earnest; here every path shall count
            torch.nn.init.normal_(block.norm1.linear.weight, std=0.2)
        pipe = StableDiffusion3Pipeline(
            transformer=transformer,
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
            vae=autoencoder(),
            text_encoder=clip_text(16, len(tokenizer), eos),
            tokenizer=tokenizer,
            text_encoder_2=clip_text(8, len(tokenizer), eos),
            tokenizer_2=tokenizer,
            text_encoder_3=t5_text(48, len(tokenizer_3), zero_t5),
            tokenizer_3=tokenizer_3,
        )
    pipe.save_pretrained(folder)
    return write_card(folder, card, text_lengths={"1": 0.75, "5": 0.25})


def sd15_folder(folder: Path, *, seed: int = 0, card: dict | None = None, **scheduler) -> Path:
    """A StableDiffusionPipeline folder of 16 x 16 px with SD1.5's schedule; `scheduler` changes its settings."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        tokenizer = clip_tokenizer()
        settings = SCALED_LINEAR | {"clip_sample": False, "set_alpha_to_one": False} | scheduler
        pipe = StableDiffusionPipeline(
            unet=unet(),
            scheduler=DDIMScheduler(**settings),
            vae=autoencoder(shift_factor=None, scaling_factor=0.18215, use_quant_conv=True, use_post_quant_conv=True),
            text_encoder=clip_text(16, len(tokenizer), tokenizer.eos_token_id, projection=False),
            tokenizer=tokenizer,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    pipe.save_pretrained(folder)
    return write_card(folder, card)


def sdxl_folder(folder: Path, *, seed: int = 0, card: dict | None = None) -> Path:
    """A StableDiffusionXLPipeline folder of 16 x 16 px: two CLIP towers, size conditioning, zeros for no prompt."""
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        tokenizer = clip_tokenizer()
        eos = tokenizer.eos_token_id
        pipe = StableDiffusionXLPipeline(
            unet=unet(
                down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
                up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
                transformer_layers_per_block=(1, 2),
                use_linear_projection=True,
                cross_attention_dim=16 + 12,
                addition_embed_type="text_time",
                addition_time_embed_dim=8,
                projection_class_embeddings_input_dim=6 * 8 + 12,
            ),
            scheduler=EulerDiscreteScheduler(**SCALED_LINEAR, timestep_spacing="leading"),
            vae=autoencoder(shift_factor=None, scaling_factor=0.13025, use_quant_conv=True, use_post_quant_conv=True),
            text_encoder=clip_text(16, len(tokenizer), eos, projection=False),
            tokenizer=tokenizer,
            text_encoder_2=clip_text(12, len(tokenizer), eos),
            tokenizer_2=tokenizer,
            force_zeros_for_empty_prompt=True,
            add_watermarker=False,
        )
    pipe.save_pretrained(folder)
    return write_card(folder, card)


def flux_config(**changes):
    return {
        "patch_size": 1,
        "in_channels": 16,
        "num_layers": 2,
        "num_single_layers": 2,
        "attention_head_dim": 8,
        "num_attention_heads": 2,
        "joint_attention_dim": 24,
        "pooled_projection_dim": 16,
        "guidance_embeds": True,
        "axes_dims_rope": (2, 2, 4),
    } | changes


def flux_folder(folder: Path, *, guidance_embeds: bool = True, seed: int = 0, card: dict | None = None) -> Path:
    """A FluxPipeline folder of 16 x 16 px: four tokens of 2 x 2 latents. Without guidance_embeds it is a schnell."""
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        tokenizer, tokenizer_2 = clip_tokenizer(), t5_tokenizer()
        transformer = FluxTransformer2DModel(**flux_config(guidance_embeds=guidance_embeds))
        for block in [*transformer.transformer_blocks, *transformer.single_transformer_blocks]:
            for norm in ("norm1", "norm1_context", "norm"):
                if hasattr(block, norm):  # as in sd3_folder: every path shall count
                    torch.nn.init.normal_(getattr(block, norm).linear.weight, std=0.2)
        dynamic = {"base_shift": 0.5, "max_shift": 1.15, "base_image_seq_len": 256, "max_image_seq_len": 4096}
        shift = {"shift": 3.0, "use_dynamic_shifting": True, **dynamic} if guidance_embeds else {"shift": 1.0}
        pipe = FluxPipeline(
            transformer=transformer,
            scheduler=FlowMatchEulerDiscreteScheduler(**shift),
            vae=autoencoder(),
            text_encoder=clip_text(16, len(tokenizer), tokenizer.eos_token_id, projection=False),
            tokenizer=tokenizer,
            text_encoder_2=t5_text(24, len(tokenizer_2), zero=False),
            tokenizer_2=tokenizer_2,
        )
    pipe.save_pretrained(folder)
    generate = {"steps": 4, "guidance": 3.0 if guidance_embeds else 0.0, "batch": 4}
    return write_card(folder, card, text_lengths={"32": 0.75, "40": 0.25}, generate=generate)


def uvit(**changes):
    """Two transformer layers with one convolutional block on each side, 32 codes and a mask token."""
    from diffusers import UVit2DModel

    config = {
        "hidden_size": 16,
        "cond_embed_dim": 16,
        "micro_cond_encode_dim": 4,
        "micro_cond_embed_dim": 20,
        "encoder_hidden_size": 16,
        "vocab_size": 40,
        "codebook_size": 32,
        "in_channels": 16,
        "block_out_channels": 16,
        "num_res_blocks": 1,
        "block_num_heads": 2,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "sample_size": 8,
    }
    model = UVit2DModel(**(config | changes))
    torch.nn.init.normal_(model.mlm_layer.conv2.weight, std=0.2)
    return model


def muse_parts(**changes):
    """Components of an aMUSEd pipeline of 16 x 16 px, 8 x 8 tokens; `changes` of the transformer."""
    from diffusers import AmusedScheduler, VQModel

    vqvae = VQModel(
        block_out_channels=(8, 8),  # pyright: ignore[reportArgumentType]
        down_block_types=("DownEncoderBlock2D",) * 2,  # pyright: ignore[reportArgumentType]
        up_block_types=("UpDecoderBlock2D",) * 2,  # pyright: ignore[reportArgumentType]
        latent_channels=4,
        norm_num_groups=4,
        num_vq_embeddings=32,
        vq_embed_dim=4,
        sample_size=16,
        lookup_from_codebook=True,
    )
    torch.nn.init.normal_(vqvae.quantize.embedding.weight, std=0.5)
    tokenizer = clip_tokenizer()
    return {
        "vqvae": vqvae,
        "tokenizer": tokenizer,
        "text_encoder": clip_text(16, len(tokenizer), tokenizer.eos_token_id),
        "transformer": uvit(**changes),
        "scheduler": AmusedScheduler(mask_token_id=39),
    }


def muse_folder(folder: Path, *, seed: int = 0, card: dict | None = None, **changes) -> Path:
    """An AmusedPipeline folder of 16 x 16 px: 8 x 8 tokens of 32 codes. changes: of the transformer's configuration."""
    from diffusers import AmusedPipeline

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        pipe = AmusedPipeline(**muse_parts(**changes))
    pipe.save_pretrained(folder)
    return write_card(
        folder, card, generate={"steps": 4, "guidance": 3.0, "batch": 4, "temperature": 2.0, "token_temperature": 0.5}
    )


def encoder_folders(clip: Path, dino: Path) -> None:
    """Write a tiny random CLIP with tokenizer, and a tiny random ViT (DINO's architecture), as transformers folders."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, ViTConfig, ViTImageProcessor, ViTModel

    with torch.random.fork_rng():
        torch.manual_seed(0)
        tokenizer = clip_tokenizer()
        end = tokenizer.convert_tokens_to_ids("<|endoftext|>")
        size = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
        text = {"vocab_size": len(tokenizer), "max_position_embeddings": 32}
        text |= {"eos_token_id": end, "bos_token_id": end - 1}
        vision = size | {"image_size": 32, "patch_size": 16}
        CLIPModel(CLIPConfig(text_config=size | text, vision_config=vision, projection_dim=8)).save_pretrained(clip)
        ViTModel(ViTConfig(**vision)).save_pretrained(dino)
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(clip)
    tokenizer.save_pretrained(clip)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(dino)
