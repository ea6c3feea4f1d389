"""The model card: its code runs as it stands, on the device and at the size that the style is for."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline

from impasto.bases.loader import load
from impasto.config import resolve
from impasto.generation import generate
from impasto.sampling.sample import Sampling
from impasto.styles.card import made_card, trained_size, write_card
from impasto.styles.metadata import About
from impasto.styles.weights import WEIGHTS
from impasto.training.train import train

CAPTION = "a rocket in ink style"
OFFLOADED, MOVED = "enable_model_cpu_offload", "to cuda"


@pytest.fixture
def placed(monkeypatch):
    """Where the code puts its pipelines: noted, and left undone, as there is no GPU here."""
    calls, real = [], DiffusionPipeline.to

    def to(pipe, *args, **more):
        if args == ("cuda",):
            calls.append(MOVED)
            return pipe
        return real(pipe, *args, **more)

    monkeypatch.setattr(DiffusionPipeline, "to", to)
    monkeypatch.setattr(DiffusionPipeline, OFFLOADED, lambda pipe: calls.append(OFFLOADED))
    return calls


def run_code(card):
    """What the card's Python leaves behind."""
    left = {}
    exec(re.search(r"```python\n(.*?)```", card, re.DOTALL).group(1), left)
    return left


@pytest.mark.parametrize(("kind", "said"), [("int8", True), ("none", False), ("auto", False)])
def test_a_run_on_a_quantised_base_says_so(tiny_sd3, picture, tmp_path, kind, said):
    """Its own command draws on the same base; plain diffusers does not, and no one is told that it would."""
    about = {"image": [str(picture)], "caption": [CAPTION], "out": str(tmp_path), "quantize": kind}
    card = write_card(resolve("style-friendly", str(tiny_sd3), **about), load(str(tiny_sd3), device="cpu"), [], "1")
    text = card.read_text()
    assert (" --quantize int8 --seed 0" in text, "Trained on the base in int8" in text) == (said, said)
    assert ("The same picture" in text) != said and ("quantize" in text) == said


def style_on(base, picture, out, **changes):
    settings = {"rank": 4, "lr": 0.05, "steps": 2, "preview": False, "tensorboard": False} | changes
    about = {"image": [str(picture)], "caption": [CAPTION], "out": str(out)}
    train(resolve("style-friendly", str(base), **about, **settings))
    return (out / "README.md").read_text()


@pytest.mark.parametrize(("name", "where"), [("flux", OFFLOADED), ("sd3", OFFLOADED), ("sdxl", MOVED), ("sd15", MOVED)])
def test_the_code_of_a_run(request, picture, tmp_path, placed, name, where):
    """In bf16, on the GPU, at the run's own size, and the command beside it draws the same."""
    base = request.getfixturevalue(f"tiny_{name}")
    card = style_on(base, picture, tmp_path / "ink", size=32)  # the base's own is 16
    left = run_code(card)
    assert placed == [where] and left["image"].size == (32, 32)
    assert left["pipe"].dtype == torch.bfloat16
    assert re.search(r"^impasto generate .* --size 32 --seed 0 ", card, re.MULTILINE)
    styles, sampling = [str(tmp_path / "ink")], Sampling(size=32)
    (image, _), *_ = generate(str(base), [CAPTION], styles=styles, sampling=sampling, device="cpu", precision="bf16")
    assert (np.asarray(left["image"]) == np.asarray(image)).all()


@pytest.mark.parametrize("kind", ["styleinject", "full"])
def test_card_of_another_adapter_has_code_that_generates_its_image(tiny_sd15, picture, tmp_path, placed, kind):
    base, given = str(tiny_sd15), {"image": [str(picture)], "caption": [CAPTION], "out": str(tmp_path / "ink")}
    train(resolve("uniform", base, adapter=kind, lr=1e-2, steps=2, preview=False, tensorboard=False, **given))
    card = (tmp_path / "ink" / "README.md").read_text()
    assert "load_lora_weights" not in card and f'"{kind}"' in card and "sd-lora" not in card
    made = np.asarray(run_code(card)["image"])
    (image, _), *_ = generate(base, [CAPTION], styles=[str(tmp_path / "ink")], device="cpu", precision="bf16")
    assert (made == np.asarray(image)).all()


def test_code_of_a_style_on_masked_tokens_generates_its_image(tiny_muse, picture, tmp_path, placed):
    base, given = str(tiny_muse), {"image": [str(picture)], "caption": [CAPTION], "out": str(tmp_path / "ink")}
    train(resolve("cosine-mask", base, lr=1e-2, steps=2, preview=False, tensorboard=False, **given))
    card = (tmp_path / "ink" / "README.md").read_text()
    assert "temperature=(2.0, 0.0), token_temperature=0.5, " in card
    made = np.asarray(run_code(card)["image"])
    (image, _), *_ = generate(base, [CAPTION], styles=[str(tmp_path / "ink")], device="cpu", precision="bf16")
    assert (made == np.asarray(image)).all()


@pytest.mark.parametrize("parts", ["*", "unet"])
def test_the_code_on_a_base_of_half_precision_only(tiny_sd15, picture, tmp_path, placed, parts):
    base = shutil.copytree(tiny_sd15, tmp_path / "half")
    for weights in base.glob(f"{parts}/*.safetensors"):
        weights.rename(weights.with_suffix(".fp16.safetensors"))
    card = style_on(base, picture, tmp_path / "ink")
    assert 'variant="fp16"' in card and run_code(card)["image"].size == (16, 16)
    made = made_card("ink", "Made.", str(tmp_path / "ink"), str(base), {"size": 16}, "sd15", CAPTION)
    assert 'variant="fp16"' in made and run_code(made)["image"].size == (16, 16)
    assert "variant" not in style_on(tiny_sd15, picture, tmp_path / "plain")


@pytest.mark.parametrize(
    ("trigger", "captions", "called"),
    [
        ("wibble", ["a cat, wibble", "a dog, wibble"], "wibble"),
        ("wibble", ["a cat"], "a cat"),
        ("", ["a cat"], "a cat"),
    ],
)
def test_a_style_is_called_by_its_trigger(tiny_sd15, tmp_path, trigger, captions, called):
    """Where its captions hold it; the code draws a caption."""
    about = {"image": ["a.png"], "caption": captions, "trigger": trigger, "out": str(tmp_path)}
    config = resolve("style-friendly", str(tiny_sd15), **about)
    card = write_card(config, load(str(tiny_sd15), device="cpu"), [], "1").read_text()
    assert f'instance_prompt: "{called}"\n' in card and f'pipe("{captions[0]}"' in card


def test_at_the_base_s_own_size_no_size_is_named(tiny_sd15, picture, tmp_path):
    card = style_on(tiny_sd15, picture, tmp_path / "ink")
    assert "--size" not in card and "height=16, width=16" in card


def test_an_embedded_base_stays_on_the_cpu():
    """In float32, as its pictures are compared."""
    card = made_card("ink", "Made.", "ink", "mini-sd3", {"size": 128, "embedded": True}, "sd3", CAPTION)
    assert "cuda" not in card and "torch_dtype" not in card and "offload" not in card
    assert f'pipe("{CAPTION}", height=128, width=128, ' in card and "--size" not in card


def test_the_code_of_a_made_style(tiny_sd15, picture, tmp_path, placed):
    style_on(tiny_sd15, picture, tmp_path / "ink")
    path = str(tmp_path / "ink")
    card = made_card("ink", "Made.", path, str(tiny_sd15), {"size": 16}, "sd15", CAPTION, size=32)
    left = run_code(card)
    assert placed == [MOVED] and left["image"].size == (32, 32) and left["pipe"].dtype == torch.bfloat16
    assert "--prompt ... --size 32`" in card
    unknown = made_card("ink", "Made.", path, None, {}, "flux", None)
    assert "height" not in unknown and "--size" not in unknown and OFFLOADED in unknown


@pytest.mark.parametrize(
    ("recipe", "metadata", "size"),
    [
        ({"size": 512}, {"modelspec.resolution": "1024x1024"}, 512),
        ({}, {"modelspec.resolution": "768x768"}, 768),
        ({}, {"ss_resolution": "(512, 512)", "modelspec.resolution": "1024x1024"}, 512),
        ({}, {"ss_resolution": "(512, 768)"}, None),
        ({}, {}, None),
    ],
)
def test_what_a_style_says_of_its_size(recipe, metadata, size):
    assert trained_size(About(Path(WEIGHTS), recipe, metadata=metadata)) == size
