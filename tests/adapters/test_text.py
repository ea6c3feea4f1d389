"""LoRA on the CLIP encoders: trained, saved, loaded by plain diffusers; and nothing of it where it is off."""

import json
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from impasto.adapters.text_encoder import build_text
from impasto.bases import loader
from impasto.config import change, resolve
from impasto.data.prepare import text as cached_text
from impasto.errors import UserError
from impasto.generation import generate
from impasto.interop.lora import read as parse
from impasto.styles.convert import export_style
from impasto.styles.load import load_style, plain_key
from impasto.styles.weights import WEIGHTS, read_file, write_tensors
from impasto.training.checkpoints import read_adapter, saved_states
from impasto.training.train import train

CAPTION = "a rocket in pixel art style"
BASES = ["tiny_sd15", "tiny_sdxl", "tiny_sd3", "tiny_flux"]
pytestmark = pytest.mark.filterwarnings("ignore:--text lora trains the CLIP")


def config_of(base, picture, out, **changes):
    settings = {"rank": 4, "alpha": 6.0, "checkpoint_every": 2, "lr": 1e-2, "preview": False, "tensorboard": False}
    settings |= {"text_encoder_lora": True, "steps": 4, "batch": 2, "accumulate": 1}
    files = {"image": [str(picture)], "caption": [CAPTION], "out": str(out)}
    return resolve("style-friendly", str(base), **settings | files | changes)


def draw(pipe):
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    kind = {"num_inference_steps": 2, "height": 16, "width": 16, "guidance_scale": 1.0, "output_type": "latent"}
    return pipe("a cat in pixel art style", generator=generator, **kind).images


def plain(base):
    name = json.loads((Path(base) / "model_index.json").read_text())["_class_name"]
    return getattr(diffusers, name).from_pretrained(base)


@pytest.mark.parametrize("base", BASES)
def test_embedding_with_gradient_is_encode_prompt(base, request):
    family = loader.load(str(request.getfixturevalue(base)), device="cpu", precision="fp32")
    prompts = ["a cat in pixel art style", "", "a rocket"]
    for length in family.text_lengths:
        truth = family.encode_prompt(prompts, length)
        frozen = {name: torch.full_like(t, 7.0) for name, t in truth.items()}
        anew = family.embed_clip(prompts, truth)
        assert all(torch.equal(anew[name], truth[name]) for name in truth)
        changed = family.embed_clip(prompts, frozen)
        assert torch.equal(changed["pooled" if "pooled" in truth else "text"], truth.get("pooled", truth["text"]))


@pytest.mark.parametrize("base", BASES)
def test_train_save_and_draw(base, request, picture, tmp_path):
    folder = request.getfixturevalue(base)
    config = config_of(
        folder, picture, tmp_path / "run", caption_dropout=0.5, ema=0.5, preview=True, preview_prompt=[CAPTION]
    )
    train(config)
    tensors = load_file(config.out / WEIGHTS)
    clips = ("text_encoder.",) if base in ("tiny_sd15", "tiny_flux") else ("text_encoder.", "text_encoder_2.")
    moved = {name: t.abs().max().item() for name, t in tensors.items() if "lora_B" in name}
    for clip in clips:
        assert any(value > 0 for name, value in moved.items() if name.startswith(clip))
    assert not any(name.startswith("text_encoder_3.") for name in tensors)
    towers = {name.partition(".")[2] for name in tensors if name.startswith("text_encoder")}
    assert all(name.startswith("text_model.encoder.layers.") for name in towers)  # as ComfyUI and older readers have it
    averages = read_adapter(saved_states(config.out / "state")[4])
    assert any(name.startswith("text_encoder.") for name in averages)
    assert not any(name.startswith(("adapter/", "average/")) for name in averages)

    pipe = plain(folder)
    bare = draw(pipe)
    pipe.load_lora_weights(str(config.out), weight_name=WEIGHTS)
    styled = draw(pipe)
    ours = plain(folder)
    load_style(ours, config.out)
    assert np.array_equal(draw(ours), styled) and not np.array_equal(styled, bare)
    family = loader.load(str(folder), device="cpu", precision="fp32")
    base_cond, cond = family.encode_prompt([CAPTION]), family.encode_prompt([CAPTION], pipe=ours)
    clip_says = {"pooled"} if base == "tiny_flux" else set(cond)  # FLUX's text is T5's
    assert {name for name in cond if not torch.equal(cond[name], base_cond[name])} == clip_says
    assert ours.text_encoder.peft_config["style0"].lora_alpha == 6
    image, _ = next(generate(str(folder), [CAPTION], styles=[str(config.out)], device="cpu", precision="fp32"))
    assert np.array_equal(image, Image.open(config.out / "previews" / "step-000004-0.png"))
    export_style(config.out, "kohya", tmp_path / "kohya.safetensors")
    kind = {"architecture": base.removeprefix("tiny_"), "layers_per_block": 1}
    again = parse.read(*read_file(tmp_path / "kohya.safetensors"), **kind)
    assert set(clips) <= {f"{part}." for part in again.components}
    weak = plain(folder)
    load_style(weak, config.out, 0.0)
    assert np.allclose(draw(weak), bare, atol=1e-5)
    before = plain(folder)  # loads also what was saved under the names of a CLIP without "text_model."
    flat = tuple(clip for clip in clips if not hasattr(getattr(before, clip[:-1]), "text_model"))
    kept = {plain_key(name) if name.startswith(flat) else name: t for name, t in tensors.items()}
    write_tensors(tmp_path / "before.safetensors", kept, read_file(config.out / WEIGHTS)[1])
    load_style(before, tmp_path / "before.safetensors")
    assert np.array_equal(draw(before), styled)


def test_resumed_is_the_same_run(tiny_sd15, picture, tmp_path):
    whole = config_of(tiny_sd15, picture, tmp_path / "whole")
    train(whole)

    def stop(phase, step=0, total=None, note=""):
        if phase == "training" and step == 3:
            raise RuntimeError("torn off")

    cut = change(whole, out=tmp_path / "cut")
    with pytest.raises(RuntimeError, match="torn off"):
        train(cut, stop)
    assert train(cut)["resumed_from"] == 2
    one, two = load_file(whole.out / WEIGHTS), load_file(cut.out / WEIGHTS)
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
    unchanged = json.loads((whole.out / "metrics.jsonl").read_text().splitlines()[-1])["unchanged"]
    assert "q_proj.lora_A" in unchanged


def test_adapters_are_float32_on_a_bf16_encoder_and_get_gradients(tiny_sdxl, picture, tmp_path):
    family = loader.load(str(tiny_sdxl), device="cpu", precision="bf16")
    config = config_of(tiny_sdxl, picture, tmp_path)
    text = build_text(config)
    parameters = text.attach(family)
    assert {p.dtype for p in parameters.values()} == {torch.float32}
    assert family.clip.text_encoder.get_input_embeddings().weight.dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        cond = text.encode([CAPTION], {})
        (cond["text"].float().square().mean() + cond["pooled"].float().square().mean()).backward()
    up = [p for name, p in parameters.items() if "lora_B" in name and name.startswith("text_encoder_2.")]
    assert up and all(p.grad is not None and p.grad.abs().sum() > 0 for p in up)
    frozen = [p for p in family.clip.text_encoder.parameters() if not p.requires_grad]
    assert frozen and all(p.grad is None for p in frozen)


def test_off_is_the_cached_condition(tiny_sd15):
    family = loader.load(str(tiny_sd15), device="cpu", precision="fp32")
    cond = cached_text(family, CAPTION, 32)
    text = build_text(resolve("style-friendly", str(tiny_sd15)))
    assert text.encode([CAPTION], cond) is cond and "clip" not in vars(family)
    assert text.rates == {} and text.attach(family) == {}


def test_rates(tiny_sd15):
    config = resolve("style-friendly", str(tiny_sd15), text_encoder_lora=True, lr=2e-4)
    assert build_text(config).rates == {"text_encoder": 1e-4}
    assert build_text(change(config, text_encoder_lr=3e-5)).rates == {"text_encoder": 3e-5}
    assert build_text(change(config, optimizer="prodigy", lr=1.0)).rates == {"text_encoder": 1.0}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prior_weight": 1.0}, "exclude each other"),
        ({"text_encoder_lr": -1.0}, "must be above 0"),
        ({"text_encoder_lora": False, "text_encoder_lr": 1e-5}, "'frozen' has no text.lr"),
    ],
)
def test_refused(tiny_sd15, changes, message):
    config = resolve("style-friendly", str(tiny_sd15), text_encoder_lora=True)
    with pytest.raises(UserError, match=message):
        change(config, **changes)


def test_t5_stays_and_it_is_said(tiny_flux):
    family = loader.load(str(tiny_flux), device="cpu", precision="fp32")
    config = resolve("style-friendly", str(tiny_flux), text_encoder_lora=True)
    with pytest.warns(UserWarning, match="T5 stays as it is"):
        build_text(config).check(family, False)
    with pytest.raises(UserError, match="sharded"):
        build_text(config).check(family, True)
