"""Files for other tools: after each conversion the same picture (through a consumer's map: test_consumers.py)."""

from types import SimpleNamespace

import pytest
import torch
from diffusers import DiffusionPipeline
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file

from impasto import load_style
from impasto.styles.convert import export_style, import_style

TRANSFORMER = ["to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"]
TRANSFORMER += ["ff.net.0.proj", "ff.net.2", "norm1.linear", "norm1_context.linear"]
UNET = ["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "proj_in", "conv1", "time_emb_proj"]
TARGETS = {
    "flux": r"transformer_blocks\.\d+\.(attn\.(to_[qkv]|to_out\.0|add_[qkv]_proj|to_add_out)"
    r"|ff(_context)?\.net\.(0\.proj|2)|norm1(_context)?\.linear)",  # without the single blocks, see below
    "sd3": TRANSFORMER,
    "sdxl": UNET,
    "sd15": UNET,
}
CLIP = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]  # as kohya does; diffusers overlooks q without out
LENGTH = {"flux": {"max_sequence_length": 6}, "sd3": {"max_sequence_length": 1}, "sdxl": {}, "sd15": {}}
PART = {"flux": "transformer", "sd3": "transformer", "sdxl": "unet", "sd15": "unet"}
TOWERS = {"flux": 1, "sd3": 2, "sdxl": 2, "sd15": 1}


def put(model, config, seed=0):
    """A LoRA on a model by peft alone, its B drawn large enough to be seen."""
    model.add_adapter(config)
    generator = torch.Generator().manual_seed(seed)
    for name, p in model.named_parameters():
        if "lora_B" in name:
            p.data = 0.2 * torch.randn(p.shape, generator=generator)
    return model


def latents(pipe, kind):
    call = {"num_inference_steps": 2, "output_type": "latent", "generator": torch.Generator().manual_seed(0)}
    return pipe("a cat in ink style", height=16, width=16, guidance_scale=3.0, **call, **LENGTH[kind]).images


def fresh(folder):
    pipe = DiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module", params=["flux", "sd3", "sdxl", "sd15"])
def style(request, tmp_path_factory):
    """kind, base folder, a file that diffusers saved (ranks 4 and 2, alpha 6 and 1, text encoders), its latents, and
    those without it."""
    kind = request.param
    base = request.getfixturevalue(f"tiny_{kind}")
    pipe = fresh(base)
    plain = latents(pipe, kind)
    model = getattr(pipe, PART[kind])
    # conv1's rank differs from the others', and so does its alpha
    config = {"rank_pattern": {"to_k": 2, "conv1": 3}, "alpha_pattern": {"to_k": 1.0}}
    put(model, LoraConfig(r=4, lora_alpha=6, target_modules=TARGETS[kind], init_lora_weights="gaussian", **config))
    parts = {f"{PART[kind]}_lora_layers": get_peft_model_state_dict(model, adapter_name="default")}
    metadata = {f"{PART[kind]}_lora_adapter_metadata": model.peft_config["default"].to_dict()}
    for i in range(TOWERS[kind]):
        name = f"text_encoder{'_2' if i else ''}"
        tower = put(getattr(pipe, name), LoraConfig(r=2, lora_alpha=3, target_modules=CLIP), seed=i + 1)
        parts[f"{name}_lora_layers"] = get_peft_model_state_dict(tower, adapter_name="default")
        metadata[f"{name}_lora_adapter_metadata"] = tower.peft_config["default"].to_dict()
    folder = tmp_path_factory.mktemp(kind) / "ink"
    type(pipe).save_lora_weights(folder, **parts, **metadata)
    picture = latents(pipe, kind)
    pipe = fresh(base)
    pipe.load_lora_weights(folder)
    assert torch.allclose(latents(pipe, kind), picture, atol=1e-5)  # what was saved is the style
    return SimpleNamespace(kind=kind, base=base, folder=folder, pipe=pipe, picture=picture, plain=plain)


def check(style, load):
    """The picture is the style's after `load(pipe)`, on a pipeline without any adapter."""
    style.pipe.unload_lora_weights()
    load(style.pipe)
    drawn = latents(style.pipe, style.kind)
    far = (style.picture - style.plain).abs().max().item()
    assert far > 0.02 and torch.allclose(drawn, style.picture, atol=1e-4 * far + 1e-5)


READ_BY_DIFFUSERS = {
    "kohya": ("flux", "sdxl", "sd15"),
    "comfyui": ("flux",),
}


@pytest.mark.parametrize("layout", ["diffusers", "kohya", "comfyui"])
def test_export_and_back(style, layout, tmp_path):
    """Through diffusers' own reading of the layout where it has one, and through ours into plain diffusers."""
    file = tmp_path / "ink.safetensors"
    result = export_style(style.folder, layout, file, base=str(style.base))
    assert result["architecture"] == style.kind
    if (
        layout == "diffusers"
    ):  # ComfyUI reads FLUX and SD3 in it without a look at the metadata: alpha is in the weights
        save_file(load_file(file), tmp_path / "bare.safetensors")
        check(style, lambda pipe: pipe.load_lora_weights(tmp_path, weight_name="bare.safetensors"))
    elif style.kind in READ_BY_DIFFUSERS[layout]:
        check(style, lambda pipe: pipe.load_lora_weights(tmp_path, weight_name=file.name))
    result = import_style(file, tmp_path / "back", base=str(style.base))
    assert result["checked"] and result["architecture"] == style.kind
    check(style, lambda pipe: pipe.load_lora_weights(tmp_path / "back"))
    if layout == "kohya":
        check(style, lambda pipe: load_style(pipe, tmp_path / "back"))
