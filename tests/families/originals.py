"""Rename the tensors of a tiny diffusers folder to the layout of the authors' single files.

Written from the layouts of CompVis' latent-diffusion (SD1.5), Stability's generative-models (SDXL) and sd3-ref (SD3).
"""

import re
from pathlib import Path

import torch
from safetensors.torch import load_file

RESNET = [
    ("norm1", "in_layers.0"),
    ("conv1", "in_layers.2"),
    ("time_emb_proj", "emb_layers.1"),
    ("norm2", "out_layers.0"),
    ("conv2", "out_layers.3"),
    ("conv_shortcut", "skip_connection"),
]
TOP = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}


def part(folder: Path, name: str) -> dict[str, torch.Tensor]:
    return load_file(next((folder / name).glob("*.safetensors")))


def unet(state, layers: int) -> dict[str, torch.Tensor]:
    """layers: per block."""

    def name(key: str) -> str:
        for theirs, ours in TOP.items():
            if key.startswith(f"{theirs}."):
                return ours + key[len(theirs) :]
        block, b, kind, i, rest = re.fullmatch(r"(down|up|mid)_block(?:s\.(\d+))?\.(\w+)\.(\d+)\.(.*)", key).groups()
        i = int(i)
        if kind == "resnets":
            for theirs, ours in RESNET:
                rest = re.sub(rf"^{theirs}\.", f"{ours}.", rest)
        if block == "mid":
            return f"middle_block.{1 if kind == 'attentions' else 2 * i}.{rest}"
        b = int(b)
        if kind == "downsamplers":
            return f"input_blocks.{1 + b * (layers + 1) + layers}.0.op.{rest.removeprefix('conv.')}"
        if kind == "upsamplers":
            after = 2 if f"up_blocks.{b}.attentions.0.norm.weight" in state else 1
            return f"output_blocks.{b * (layers + 1) + layers}.{after}.{rest}"
        place = 1 + b * (layers + 1) + i if block == "down" else b * (layers + 1) + i
        return f"{'in' if block == 'down' else 'out'}put_blocks.{place}.{int(kind == 'attentions')}.{rest}"

    return {f"model.diffusion_model.{name(key)}": v for key, v in state.items()}


def vae(state, blocks: int) -> dict[str, torch.Tensor]:
    out = {}
    for old, v in state.items():
        key = old
        key = re.sub(r"encoder\.down_blocks\.(\d+)\.resnets\.", r"encoder.down.\1.block.", key)
        key = re.sub(r"encoder\.down_blocks\.(\d+)\.downsamplers\.0\.", r"encoder.down.\1.downsample.", key)
        up = re.match(r"decoder\.up_blocks\.(\d+)\.", key)
        if up:
            key = f"decoder.up.{blocks - 1 - int(up[1])}." + key[up.end() :]
            key = key.replace("resnets.", "block.").replace("upsamplers.0.", "upsample.")
        key = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", key)
        if "mid_block.attentions.0" in key:
            key = key.replace("mid_block.attentions.0", "mid.attn_1").replace("group_norm", "norm")
            key = key.replace("to_out.0", "proj_out")
            key = re.sub(r"to_([qkv])\.", r"\1.", key)
            v = v[:, :, None, None] if key.endswith("weight") and "norm" not in key else v
        out[key.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")] = v
    return out


def clip(state) -> dict[str, torch.Tensor]:
    """transformers' names before its CLIPTextModel was flattened."""
    return {
        key if key.startswith(("text_model.", "text_projection.")) else f"text_model.{key}": v
        for key, v in state.items()
    }


def open_clip(state) -> dict[str, torch.Tensor]:
    out, names = {}, {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}
    for key, v in state.items():
        layer = re.match(r"text_model\.encoder\.layers\.(\d+)\.(.*)\.(weight|bias)$", key)
        if layer is None:
            continue
        n, rest, kind = layer.groups()
        base = f"transformer.resblocks.{n}"
        if rest == "self_attn.q_proj":
            qkv = [state[key.replace("q_proj", f"{x}_proj")] for x in "qkv"]
            out[f"{base}.attn.in_proj_{kind}"] = torch.cat(qkv)
        elif rest == "self_attn.out_proj":
            out[f"{base}.attn.out_proj.{kind}"] = v
        elif rest in names:
            out[f"{base}.{names[rest]}.{kind}"] = v
    out["token_embedding.weight"] = state["text_model.embeddings.token_embedding.weight"]
    out["positional_embedding"] = state["text_model.embeddings.position_embedding.weight"]
    out["ln_final.weight"] = state["text_model.final_layer_norm.weight"]
    out["ln_final.bias"] = state["text_model.final_layer_norm.bias"]
    out["text_projection"] = state["text_projection.weight"].T.contiguous()
    return out


def swapped(v: torch.Tensor) -> torch.Tensor:
    """(scale, shift) -> (shift, scale)."""
    scale, shift = v.chunk(2)
    return torch.cat([shift, scale])


def mmdit(state, layers: int) -> dict[str, torch.Tensor]:
    top = {
        "pos_embed.proj": "x_embedder.proj",
        "time_text_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
        "time_text_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",
        "time_text_embed.text_embedder.linear_1": "y_embedder.mlp.0",
        "time_text_embed.text_embedder.linear_2": "y_embedder.mlp.2",
        "context_embedder": "context_embedder",
        "proj_out": "final_layer.linear",
    }
    inner = {
        "attn.to_out.0": "x_block.attn.proj",
        "attn.to_add_out": "context_block.attn.proj",
        "attn.norm_q": "x_block.attn.ln_q",
        "attn.norm_k": "x_block.attn.ln_k",
        "attn.norm_added_q": "context_block.attn.ln_q",
        "attn.norm_added_k": "context_block.attn.ln_k",
        "norm1.linear": "x_block.adaLN_modulation.1",
        "norm1_context.linear": "context_block.adaLN_modulation.1",
        "ff.net.0.proj": "x_block.mlp.fc1",
        "ff.net.2": "x_block.mlp.fc2",
        "ff_context.net.0.proj": "context_block.mlp.fc1",
        "ff_context.net.2": "context_block.mlp.fc2",
    }
    out = {"pos_embed": state["pos_embed.pos_embed"]}
    for kind in ("weight", "bias"):
        out |= {f"{ours}.{kind}": state[f"{theirs}.{kind}"] for theirs, ours in top.items()}
        out[f"final_layer.adaLN_modulation.1.{kind}"] = swapped(state[f"norm_out.linear.{kind}"])
        for i in range(layers):
            theirs, ours = f"transformer_blocks.{i}", f"joint_blocks.{i}"
            for block, names in (("x_block", "to_{}"), ("context_block", "add_{}_proj")):
                qkv = [state[f"{theirs}.attn.{names.format(x)}.{kind}"] for x in "qkv"]
                out[f"{ours}.{block}.attn.qkv.{kind}"] = torch.cat(qkv)
            for old, new in inner.items():
                v = state.get(f"{theirs}.{old}.{kind}")
                if v is not None:
                    last = i == layers - 1 and old == "norm1_context.linear"
                    out[f"{ours}.{new}.{kind}"] = swapped(v) if last else v
    return {f"model.diffusion_model.{key}": v for key, v in out.items()}


def under(prefix: str, state) -> dict[str, torch.Tensor]:
    return {prefix + key: v.contiguous() for key, v in state.items()}


def sd15(folder: Path) -> dict[str, torch.Tensor]:
    return {
        **unet(part(folder, "unet"), 1),
        **under("first_stage_model.", vae(part(folder, "vae"), 3)),
        **under("cond_stage_model.transformer.", clip(part(folder, "text_encoder"))),
    }


def sdxl(folder: Path) -> dict[str, torch.Tensor]:
    return {
        **unet(part(folder, "unet"), 1),
        **under("first_stage_model.", vae(part(folder, "vae"), 3)),
        **under("conditioner.embedders.0.transformer.", clip(part(folder, "text_encoder"))),
        **under("conditioner.embedders.1.model.", open_clip(part(folder, "text_encoder_2"))),
    }


def sd3(folder: Path) -> dict[str, torch.Tensor]:
    clip_l = {k: v for k, v in clip(part(folder, "text_encoder")).items() if not k.startswith("text_projection")}
    return {
        **mmdit(part(folder, "transformer"), 2),
        **under("first_stage_model.", vae(part(folder, "vae"), 3)),
        **under("text_encoders.clip_l.transformer.", clip_l),
        **under("text_encoders.clip_g.transformer.", clip(part(folder, "text_encoder_2"))),
        **under("text_encoders.t5xxl.transformer.", part(folder, "text_encoder_3")),
    }


def flux_names(guided: bool) -> dict[str, tuple[int, ...]]:
    """Names and shapes of black-forest-labs' flux1-dev / flux1-schnell.safetensors (flux/model.py at its release)."""
    d, out = 3072, {}

    def linear(name: str, i: int, o: int) -> None:
        out[f"{name}.weight"], out[f"{name}.bias"] = (o, i), (o,)

    def norms(name: str) -> None:
        out[f"{name}.query_norm.scale"] = out[f"{name}.key_norm.scale"] = (128,)

    for name, width in (("time_in", 256), ("vector_in", 768), *([("guidance_in", 256)] if guided else [])):
        linear(f"{name}.in_layer", width, d)
        linear(f"{name}.out_layer", d, d)
    linear("img_in", 64, d)
    linear("txt_in", 4096, d)
    for i in range(19):
        for stream in ("img", "txt"):
            name = f"double_blocks.{i}.{stream}"
            linear(f"{name}_mod.lin", d, 6 * d)
            linear(f"{name}_attn.qkv", d, 3 * d)
            linear(f"{name}_attn.proj", d, d)
            norms(f"{name}_attn.norm")
            linear(f"{name}_mlp.0", d, 4 * d)
            linear(f"{name}_mlp.2", 4 * d, d)
    for i in range(38):
        linear(f"single_blocks.{i}.linear1", d, 7 * d)
        linear(f"single_blocks.{i}.linear2", 5 * d, d)
        linear(f"single_blocks.{i}.modulation.lin", d, 3 * d)
        norms(f"single_blocks.{i}.norm")
    linear("final_layer.linear", d, 64)
    linear("final_layer.adaLN_modulation.1", d, 2 * d)
    return out
