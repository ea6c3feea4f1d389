"""Learned tokens as text conditioning: trained, resumed, saved as a style folder, sampled."""

import json
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

from impasto.adapters import token as tokens
from impasto.bases import loader
from impasto.config import change, read_recipe_file, resolve, to_paths
from impasto.contact_sheet import fit
from impasto.errors import UserError
from impasto.generation import generate
from impasto.sampling.sample import Sampling
from impasto.styles.load import load_style
from impasto.styles.parts import read_parts
from impasto.styles.weights import style_hash
from impasto.training.checkpoints import saved_states
from impasto.training.sheet import checkpoint_sheet
from impasto.training.train import train

CAPTION = "a rocket in <style1> style"
EMBEDS = tokens.EMBEDS


def config_of(base, picture, out, **changes):
    keys = {"rank": 2, "targets": ["cross_attention_kv"], "lr": 1e-2, "steps": 4, "batch": 2, "accumulate": 1}
    keys |= {"text": "token", "text.words": ["pixel art"], "checkpoint_every": 2, "preview": False}
    files = {"image": [str(picture)], "caption": [CAPTION], "out": str(out), "tensorboard": False}
    return resolve("uniform", str(base), **keys | files | changes)


@pytest.fixture(scope="module")
def trained(tiny_sd15, picture, tmp_path_factory):
    config = config_of(tiny_sd15, picture, tmp_path_factory.mktemp("token") / "run", keep=0)
    train(config)
    return config


def pixels(images):
    return np.stack([np.asarray(image).astype(int) for image in images])


@pytest.mark.parametrize("base", ["tiny_sd15", "tiny_sdxl", "tiny_sd3", "tiny_flux"])
def test_training_moves_token_and_adapter(base, request, picture, tmp_path):
    config = config_of(request.getfixturevalue(base), picture, tmp_path / "run")
    train(config)
    token, rows = tokens.read(config.out / EMBEDS)
    assert (token.name, token.words) == ("<style1>", "pixel art")
    family = loader.load(config.base, device="cpu")
    _, start = tokens.add(family, "<style1>", "pixel art")
    for part, values in rows.items():
        assert (values != start[f"{part}.token.<style1>"]).any()
    assert [part.kind for part in read_parts(config.out)] == ["lora", "token"]


def test_resumed_run_is_bit_equal(trained, tmp_path):
    config = change(trained, out=str(tmp_path / "again"))

    class StopError(Exception):
        pass

    def progress(phase, step=0, total=None, note=""):
        if phase == "training" and step == 3:
            raise StopError

    with pytest.raises(StopError):
        train(config, progress)
    assert list(saved_states(config.out / "state")) == [2]
    assert train(config)["resumed_from"] == 2
    for name in (EMBEDS, "pytorch_lora_weights.safetensors"):
        assert (config.out / name).read_bytes() == (trained.out / name).read_bytes()
    assert (config.out / "metrics.jsonl").read_bytes() == (trained.out / "metrics.jsonl").read_bytes()


def test_recipe_of_the_run_reads_back(trained):
    flat, _ = read_recipe_file(trained.out / "recipe.toml")
    again = change(trained, **to_paths(flat))
    assert again.text == trained.text and again.text.words == ("pixel art",)


def test_own_learning_rate_and_two_tokens(tiny_sd15, picture, tmp_path):
    keys = {"text.tokens": ["<style1>", "<style2>"], "text.words": ["pixel art", "neon"], "text.lr": 1e-12}
    config = config_of(tiny_sd15, picture, tmp_path / "run", **keys)
    with pytest.warns(UserWarning, match="has not moved at all"):
        train(config)
    family = loader.load(config.base, device="cpu")
    for file, name, words in ((EMBEDS, "<style1>", "pixel art"), ("learned_embeds_2.safetensors", "<style2>", "neon")):
        token, rows = tokens.read(config.out / file)
        _, start = tokens.add(family, name, words)
        assert token.name == name
        assert torch.allclose(rows["text_encoder"], start[f"text_encoder.token.{name}"], atol=1e-9)


def test_generate_reads_words_as_the_token(trained):
    kind = {"styles": [str(trained.out)], "seed": 3, "device": "cpu", "sampling": Sampling(steps=2)}
    prompts = ["a cat in pixel art style", "a cat in <style1> style", "a cat in style"]
    words, name, other = (next(generate(trained.base, [p], **kind)) for p in prompts)
    assert (pixels([words[0]]) == pixels([name[0]])).all() and (pixels([words[0]]) != pixels([other[0]])).any()
    assert words[1]["prompt"] == prompts[0] and words[1]["styles"][0]["hash"] == style_hash(trained.out)
    plain = next(generate(trained.base, [prompts[0]], seed=3, device="cpu", sampling=Sampling(steps=2)))
    assert (pixels([plain[0]]) != pixels([words[0]])).any()


def test_plain_pipeline_generates_the_same(trained):
    image, _ = next(
        generate(
            trained.base,
            [CAPTION],
            styles=[f"{trained.out}:0.5"],
            seed=3,
            device="cpu",
            sampling=Sampling(steps=2, guidance=3.0),
        )
    )
    name = json.loads((Path(trained.base) / "model_index.json").read_text())["_class_name"]
    pipe = getattr(diffusers, name).from_pretrained(trained.base)
    assert load_style(pipe, trained.out, 0.5) == {}
    kind = {"num_inference_steps": 2, "guidance_scale": 3.0, "height": 16, "width": 16}
    theirs = pipe(CAPTION, generator=torch.Generator().manual_seed(3), **kind).images
    assert abs(pixels(theirs) - pixels([image])).max() <= 1


def test_sheet_and_previews_know_the_token(trained, tmp_path):
    """The last state of the sheet, and a preview, are what `generate` gives."""
    config = change(trained, out=str(tmp_path / "run"), preview=True, preview_prompt=[CAPTION])
    train(config)
    sampling = Sampling(size=16)
    image, _ = next(generate(config.base, [CAPTION], styles=[str(config.out)], device="cpu", sampling=sampling))
    preview = Image.open(config.out / "previews" / "step-000004-0.png")
    assert abs(pixels([image]) - pixels([preview])).max() <= 1
    checkpoint_sheet(config.out, [CAPTION], (1.0,), device="cpu")
    cell = np.asarray(Image.open(config.out / "sheet.png").convert("RGB")).astype(int)
    big = np.asarray(fit(image, 112)).astype(int)
    ys, xs = range(cell.shape[0] - 111), range(cell.shape[1] - 111)
    found = [abs(cell[y : y + 112, x : x + 112] - big).max() for y in ys for x in xs]
    assert min(found) <= 2


@pytest.mark.filterwarnings("ignore:the prompt is too long for the text encoder")
@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"text.words": []}, "no style words for <style1>"),
        ({"text.words": ["a", "b"]}, "1 text.tokens but 2 text.words"),
        ({"text.tokens": ["<a>", "<a>"], "text.words": []}, "different names"),
        ({"text.tokens": ["cat"]}, "in the vocabulary"),
        ({"caption": [" ".join(["a"] * 29) + " <style1>"]}, "too long: 33 tokens with the 2 of <style1>"),
        ({"text.rows": "2"}, "one of all, 1"),
    ],
)
def test_bad_token_settings_raise(tiny_sd15, picture, tmp_path, keys, message):
    with pytest.raises(UserError, match=message):
        train(config_of(tiny_sd15, picture, tmp_path / "run", **keys))
