"""InstaStyle's first stage: captions, candidates, selection."""

import numpy as np
import pytest
import torch
from PIL import Image

from impasto.artworld import concept_index, load_meta
from impasto.bases.loader import load
from impasto.errors import UserError
from impasto.inversion import invert
from impasto.inversion.noise_file import InversionNoise, NoiseInfo
from impasto.methods.instastyle import (
    EMBEDDED_OBJECTS,
    PAPER_OBJECTS,
    default_objects,
    generate_candidates,
    read_caption,
    score_candidates,
    select_candidates,
)


@pytest.mark.parametrize(
    ("caption", "words", "prompt"),
    [
        ("a cat in neon sign style", "neon sign", "an owl in neon sign style"),
        ("A cat in the style of ukiyo-e", "ukiyo-e", "an owl in the style of ukiyo-e"),
        ("cat, flat icon, thick outline", "flat icon, thick outline", "owl, flat icon, thick outline"),
        ("a cat in a hat in a flat style", "a flat", "an owl in a flat style"),
    ],
)
def test_read_caption_finds_object_and_style_words(caption, words, prompt):
    found = read_caption(caption)
    assert caption[found.words] == words and found.prompt("owl") == prompt
    assert found.prompt("owl", "<style1>") == prompt.replace(words, "<style1>")


def test_style_words_overrule_the_form():
    found = read_caption("a cat in a hat in a flat style", "a hat in a flat")
    assert found.prompt("owl", "<style1>") == "an owl in <style1> style"
    assert found.text[found.object] == "a cat"
    assert read_caption("cat, with a hat, flat icon", "flat icon").prompt("owl") == "owl, flat icon"


@pytest.mark.parametrize(
    ("caption", "words", "message"),
    [("a cat", "", "has no style words"), ("a cat in ink style", "oil", "do not follow"), ("ink cat", "ink", "do not")],
)
def test_caption_without_style_words_raises(caption, words, message):
    with pytest.raises(UserError, match=message):
        read_caption(caption, words)


def test_embedded_objects_are_those_that_the_docstring_says():
    meta = load_meta()
    ids = {concept_index(label) for label in EMBEDDED_OBJECTS}
    assert len(ids) == len(set(PAPER_OBJECTS)) == 15
    assert ids <= set(meta["split"]["core_concepts"])
    assert not ids & {*meta["split"]["evaluation_concepts"], *meta["split"]["reference_concepts"]}
    assert all(ids <= set(meta["drawn"][style]) for style in meta["split"]["primary_styles"])


@pytest.mark.parametrize("base", ["tiny_sd15", "tiny_sd3", "tiny_flux"])
def test_candidates_do_not_depend_on_the_batch(base, request):
    family = load(str(request.getfixturevalue(base)), device="cpu")
    z = family.encode_image(torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1)
    found = invert(family, z, family.encode_prompt(["a cat"]), 5)
    noise = InversionNoise.of(found, NoiseInfo(family.hash, 16, 5, "a cat"))
    prompts = ["a cat", "a rocket in neon style", "a star"]
    whole, single = (generate_candidates(family, noise, prompts, batch=n) for n in (None, 1))
    together, alone = (np.stack([np.asarray(image).astype(int) for image in images]) for images in (whole, single))
    assert abs(together - alone).max() <= 1 and (together[0] != together[1]).any()
    assert default_objects(family) == PAPER_OBJECTS


def test_noise_of_another_base_raises(tiny_sd15):
    family = load(str(tiny_sd15), device="cpu")
    noise = InversionNoise(torch.zeros(1, 4, 4, 4), torch.tensor([7.0, -5.0]), NoiseInfo("0" * 64, 16, 1, "a cat"))
    with pytest.raises(UserError, match="another base"):
        generate_candidates(family, noise, ["a cat"])


def test_scores_are_cosines_with_reference_and_prompt(tmp_path):
    from tiny import encoder_folders

    from impasto.evaluation.encoders import load_encoder

    encoder_folders(tmp_path / "clip", tmp_path / "dino")
    clip, dino = load_encoder(tmp_path / "clip"), load_encoder(tmp_path / "dino")
    images = [Image.new("RGB", (32, 32), colour) for colour in ("red", "navy")]
    style, content = score_candidates(images, ["a cat", "a star"], images[1], clip)
    assert style[1] == pytest.approx(1, abs=1e-5) and style[0] < style[1]
    texts = clip.texts(["a cat", "a star"])
    assert texts is not None and content[1] == pytest.approx(float(clip.images(images)[1] @ texts[1]), abs=1e-5)
    with pytest.raises(UserError, match="reads no text"):
        score_candidates(images, ["a cat", "a star"], images[1], dino)


def test_selection_is_by_the_worse_rank_then_the_sum_then_style():
    style, content = [0.9, 0.8, 0.7, 0.6, 0.5], [0.1, 0.5, 0.4, 0.3, 0.2]  # ranks 1 5, 2 1, 3 2, 4 3, 5 4
    assert select_candidates(style, content, 5) == [1, 2, 3, 0, 4]
    assert select_candidates([0.9, 0.8], [0.1, 0.2], 2) == [0, 1]  # ranks 1 2 and 2 1: style decides
    assert select_candidates([0.5, 0.9, 0.7], [0.9, 0.5, 0.7], 3) == [2, 1, 0]  # 3 1, 1 3, 2 2


@pytest.mark.parametrize("n", [0, 4])
def test_selection_of_too_few_or_too_many_raises(n):
    with pytest.raises(UserError, match="cannot be selected"):
        select_candidates([1, 2, 3], [1, 2, 3], n)
