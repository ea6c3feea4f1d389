"""A style's sampling defaults: where they come from, who wins, and that `generate`, previews and sheets use them."""

import json
import shutil
import warnings

import numpy as np
import pytest
from PIL import Image

from impasto.bases.cards import card, cards
from impasto.bases.loader import load
from impasto.bases.style_defaults import PLAIN, StyleDefaults, of_card
from impasto.config import default_recipe, recipe_note, resolve
from impasto.errors import UserError
from impasto.evaluation import evaluate
from impasto.generation import generate, generate_folder
from impasto.sampling.config import GenerateConfig
from impasto.sampling.sample import Sampling
from impasto.styles import defaults as style_defaults
from impasto.styles.defaults import style_words
from impasto.training.sheet import checkpoint_sheet
from impasto.training.train import train

CARD = {"strength": 0.5, "style_guidance": 2.0, "negative": "style words", "plain_strength": 0.8}


@pytest.fixture(scope="module")
def base(tiny_sd3, tmp_path_factory):
    """A base whose card advises."""
    folder = tmp_path_factory.mktemp("advised") / "base"
    shutil.copytree(tiny_sd3, folder)
    own = json.loads((folder / "impasto.json").read_text()) if (folder / "impasto.json").is_file() else {}
    own |= {"style": CARD | {"recipes": {"prior-preservation": {"strength": 0.9}}}}
    (folder / "impasto.json").write_text(json.dumps(own))
    return folder


@pytest.fixture(scope="module")
def style(base, picture, tmp_path_factory):
    out = tmp_path_factory.mktemp("style") / "neon"
    settings = {"steps": 2, "rank": 2, "size": 16, "batch": 1, "accumulate": 1, "lr": 0.3, "tensorboard": False}
    train(resolve(base=str(base), image=[picture], caption=["a cat in neon sign style"], out=out, **settings))
    return out


def one(base, styles, **sampling):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        made = generate(str(base), ["a dog in neon sign style"], styles=styles, sampling=Sampling(2, **sampling))
    image, info = next(iter(made))
    used = info["styles"][0]["strength"], info.get("style_guidance"), info["negative_prompt"]
    return np.asarray(image), used


@pytest.mark.parametrize(
    ("captions", "words"),
    [
        (["rabbit face, 16 by 16 black and white pixel art"], "16 by 16 black and white pixel art"),
        (["a rocket in neon sign style"], "neon sign style"),
        (["A man in a hat in watercolor painting style."], "watercolor painting style"),
        (["a cat in the style of an engraving"], "an engraving"),
        (["a rocket, a teapot and a lion, in kid crayon drawing style"], "kid crayon drawing style"),
        (["a dog in ink style, on a dark ground"], "ink style, on a dark ground"),
        (["a banana drawn as a flat icon"], "a flat icon"),
        (["a cat, flat ink drawing", "two dogs, flat ink drawing"], "flat ink drawing"),
        (["a red cat, sitting, flat, ink drawing", "two dogs, flat, ink drawing"], "flat, ink drawing"),
        (["a cat, oil painting", "a dog, pencil drawing"], None),
        (["pixel art of a rocket"], None),
        ([], None),
    ],
)
def test_style_words_from_captions(captions, words):
    assert style_words(captions) == words


def test_generate_takes_the_cards_defaults(base, style):
    assert one(base, [str(style)])[1] == (0.5, 2.0, "neon sign style")
    assert one(base, [f"{style}:0.7"])[1] == (0.7, 2.0, "neon sign style")
    assert "style_guidance" not in next(iter(generate(str(base), ["a dog"], sampling=Sampling(2))))[1]


def test_generate_flags_win_one_by_one(base, style):
    assert one(base, [str(style)], style_guidance=1.0)[1] == (0.5, 1.0, "neon sign style")
    assert one(base, [str(style)], negative="blurry")[1] == (0.5, 2.0, "blurry")
    image, used = one(base, [f"{style}:1"], style_guidance=0.0, negative="")
    assert used == (1.0, 0.0, "")
    assert not np.array_equal(image, one(base, [str(style)])[0])


def test_style_json_beats_the_card_and_the_recipe_its_base(base, style, tmp_path):
    own = tmp_path / "own"
    shutil.copytree(style, own)
    (own / "style.json").write_text(json.dumps({"sampling": {"style_guidance": 0.5, "negative": ""}}))
    assert one(base, [str(own)])[1] == (0.5, 0.5, "")
    assert of_card(card(str(base)), "prior-preservation") == StyleDefaults(0.9, 2.0, 0.0, None, "style words", 0.8)
    assert style_defaults.own_sampling(own) == {"style_guidance": 0.5, "negative": ""}
    for text, message in (("{", "cannot be read"), ('{"sampling": {"strenght": 1}}', "unknown key 'strenght'"),
                          ('{"sampling": {"strength": "1"}}', "strength must be float"),
                          ('{"sampling": 3}', "must be a table")):  # fmt: skip
        (own / "style.json").write_text(text)
        with pytest.raises(UserError, match=message):
            one(base, [str(own)])


def test_a_folders_card_is_checked(base, tmp_path):
    shutil.copytree(base, tmp_path / "base")
    (tmp_path / "base/impasto.json").write_text('{"style": {"strength": 0.5, "guidnce": 2.0}}')
    with pytest.raises(UserError, match=r"unknown key 'guidnce'.*guidance"):
        card(str(tmp_path / "base"))


def test_several_styles_take_the_strongest_ones(base, style, tmp_path):
    weak = tmp_path / "weak"
    shutil.copytree(style, weak)
    (weak / "style.json").write_text(json.dumps({"sampling": {"strength": 0.2, "style_guidance": 0.0, "negative": ""}}))
    with pytest.warns(UserWarning, match=f"defaults differ: those of '{style}', the strongest, are used"):
        _, info = next(iter(generate(str(base), ["a dog"], styles=[str(weak), str(style)], sampling=Sampling(2))))
    assert [used["strength"] for used in info["styles"]] == [0.2, 0.5]
    assert (info["style_guidance"], info["negative_prompt"]) == (2.0, "neon sign style")


def test_without_style_words_the_negative_prompt_stays_empty(base, picture, tmp_path):
    out = tmp_path / "wordless"
    settings = {"steps": 1, "rank": 2, "size": 16, "batch": 1, "accumulate": 1, "tensorboard": False, "preview": False}
    train(resolve(base=str(base), image=[picture], caption=["pixel art of a rocket"], out=out, **settings))
    with pytest.warns(UserWarning, match="do not tell its style words: the negative prompt stays empty"):
        _, info = next(iter(generate(str(base), ["a dog"], styles=[str(out)], sampling=Sampling(2))))
    assert info["negative_prompt"] == "" and info["style_guidance"] == 2.0
    with pytest.raises(UserError, match="do not tell its style words: write them out, as in --negative 'ink drawing'"):
        generate(str(base), ["a dog"], styles=[str(out)], sampling=Sampling(2, negative="style words"))


def test_a_base_without_negative_prompts_ignores_the_default(tiny_flux, picture, tmp_path):
    base = tmp_path / "flux"
    shutil.copytree(tiny_flux, base)
    (base / "impasto.json").write_text(json.dumps({"style": CARD}))
    out, settings = tmp_path / "style", {"steps": 1, "rank": 2, "size": 16, "preview": False, "tensorboard": False}
    train(resolve(base=str(base), image=[picture], caption=["a cat in ink style"], out=out, **settings))
    assert one(base, [str(out)], guidance=2.0)[1] == (0.5, 2.0, "")


def test_a_negative_prompt_that_is_too_long_is_said(base, style):
    with pytest.warns(UserWarning, match="too long for the text encoder"):
        list(generate(str(base), ["a dog"], styles=[str(style)], sampling=Sampling(2, negative="ink drawing " * 60)))


def test_the_folder_result_and_scores_say_what_was_used(base, style, tmp_path):
    result = generate_folder(GenerateConfig(str(base), style=(str(style),), prompt=("a dog",), steps=2, out=tmp_path))
    assert result["styles"] == [f"{style}:0.5"]
    assert (result["style_guidance"], result["negative_prompt"]) == (2.0, "neon sign style")
    text = Image.open(tmp_path / "0000.png").info["parameters"]
    assert "Negative prompt: neon sign style" in text and "Style guidance: 2" in text and "<lora:neon:0.5>" in text
    said = evaluate(tmp_path, encoder=None)["sampling"]
    assert (said["strength"], said["style_guidance"], said["negative_prompt"]) == ([0.5], 2.0, "neon sign style")


def test_previews_are_what_generate_will_draw(base, style):
    preview = Image.open(style / "previews/step-000002-0.png")
    info = json.loads(preview.info["impasto"])
    assert (info["styles"][0]["strength"], info["style_guidance"]) == (0.5, 2.0)
    made = generate(str(base), [info["prompt"]], styles=[str(style)], seed=info["seed"], sampling=Sampling(size=16))
    assert np.abs(np.asarray(next(iter(made))[0]).astype(int) - np.asarray(preview).astype(int)).max() <= 1


def test_sheets_use_style_guidance_and_flags_win(base, style, tmp_path):
    about = checkpoint_sheet(style, ["a dog in neon sign style"], [0.5], steps=2, out=tmp_path / "a.png")
    assert (about["style_guidance"], about["negative_prompt"]) == (2.0, "neon sign style")
    settings = {"steps": 2, "style_guidance": 0.0, "negative": "", "out": tmp_path / "b.png"}
    about = checkpoint_sheet(style, ["a dog in neon sign style"], [0.5], **settings)
    assert (about["style_guidance"], about["negative_prompt"]) == (0.0, "")
    pixels = [np.asarray(Image.open(tmp_path / name)) for name in ("a.png", "b.png")]
    assert not np.array_equal(*pixels)


def test_embedded_bases_have_their_own_recipe():
    assert default_recipe() == default_recipe("mini-sd15") == resolve().recipe == "style-friendly-128px"
    assert default_recipe("black-forest-labs/FLUX.1-dev") == "style-friendly"
    assert recipe_note(resolve()) is None
    assert "style-friendly-128px" in (recipe_note(resolve("style-friendly")) or "")
    assert recipe_note(resolve("style-friendly", noise_mean=-2.0)) is None
    assert recipe_note(resolve("style-friendly", "black-forest-labs/FLUX.1-dev")) is None


def test_big_bases_keep_strength_1(tmp_path):
    for name in ("FluxPipeline", "StableDiffusion3Pipeline", "StableDiffusionXLPipeline", "StableDiffusionPipeline"):
        assert of_card(cards()[name]) == PLAIN
    assert of_card(load("mini-sd3").card) == PLAIN
    own = of_card(load("mini-sd15").card)
    assert (own.strength, own.style_guidance, own.negative) == (0.7, 2.0, "style words") and own.plain_strength == 1


def test_sampling_of_a_recipe_becomes_the_styles_own(base, picture, tmp_path):
    recipe, out = tmp_path / "soft.toml", tmp_path / "soft"
    recipe.write_text('[sampling]\nstrength = 0.6\nnegative = ""\n[adapter]\nrank = 2\n')
    settings = {"steps": 1, "size": 16, "batch": 1, "accumulate": 1, "preview": False, "tensorboard": False}
    own = {"image": [picture], "caption": ["a cat in neon sign style"], "out": out}
    train(resolve(str(recipe), str(base), **own, **settings))
    assert one(base, [str(out)])[1] == (0.6, 2.0, "")  # style guidance is the card's
    with pytest.raises(UserError, match=r"sampling\.strength"):
        train(resolve(str(recipe), str(base), **own, **settings, **{"sampling.strength": 0.7}))
    with pytest.raises(UserError, match=r"sampling\.strength must be at least 0"):
        resolve(str(recipe), str(base), **{"sampling.strength": -1.0})
