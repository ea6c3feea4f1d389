"""tools/make_language_base.py: captions without English, the measures, and what is trained."""

import random
import re
import sys
from pathlib import Path

import pytest
import torch

from impasto.artworld import load_meta
from impasto.artworld.colours import BACKGROUNDS

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

import make_language_base as tool


@pytest.fixture(scope="module")
def chinese():
    return tool.Language("zh")


def test_captions_name_things_style_and_ground_in_chinese(chinese):
    meta, rng = load_meta(), random.Random(0)
    for style in meta["split"]["train_styles"]:
        for kind, n in (("plain", 1), ("ground", 1), ("scene", 3)):
            concepts = tuple(rng.sample(tool.known_concepts(), n))
            ground = rng.choice(list(BACKGROUNDS)) if kind != "plain" else None
            text = tool.TranslatedEntry(kind, concepts, style, ground, chinese).caption(rng)
            assert not set(re.findall(r"[A-Za-z]{2,}", text)) - {"Noto", "Fluent", "OK", "ATM", "SOS", "WC"}
            assert all(chinese.labels[concept] in text for concept in concepts)
            assert ground is None or text.endswith(f"{chinese.words['colours'][ground]}背景")


def test_labels_are_distinct_and_styles_have_as_many_descriptions_as_in_english(chinese):
    meta = load_meta()
    assert len(set(chinese.labels)) == len(meta["concepts"]) == len(chinese.labels)
    for style in meta["split"]["train_styles"]:
        assert len(chinese.styles[style]) == len(meta["styles"][style]["descriptions"])
    assert all(chinese.styles[style] is None for style in meta["split"]["heldout_styles"])


def test_tokenizer_reads_every_label_without_unknown_and_captions_fit(chinese, tmp_path):
    tokenizer = tool.make_tokenizer(chinese, tmp_path)
    ids = [tuple(tokenizer(chinese.labels[concept]).input_ids) for concept in tool.known_concepts()]
    assert len(set(ids)) == len(ids) and max(map(len, ids)) <= 8
    rng = random.Random(1)
    for style in load_meta()["split"]["train_styles"] * 20:
        things = tuple(rng.sample(tool.known_concepts(), 4))
        text = tool.TranslatedEntry("scene", things, style, "forest green", chinese).caption(rng)
        assert len(tokenizer(text).input_ids) <= tool.tokens(tokenizer, [text]).shape[1] == 32


def test_prior_prompts_are_translated(chinese):
    prompts = tool.translated_prompts(chinese)
    assert len(prompts) == 24 and prompts[0] == "老虎头, 柔和渐变与阴影的光泽卡通表情"


def test_linear_cka_is_1_under_rotation_and_scale_and_small_for_unrelated():
    g = torch.Generator().manual_seed(0)
    x, other = (torch.randn(2000, 24, generator=g, dtype=torch.float64) for _ in range(2))
    rotation = torch.linalg.qr(torch.randn(24, 24, generator=g, dtype=torch.float64))[0]
    assert tool.linear_cka(x, 3 * x @ rotation + 5) == pytest.approx(1)
    assert tool.linear_cka(x, other) < 0.05


def test_image_components_are_uncorrelated_with_root_of_their_deviation():
    g = torch.Generator().manual_seed(0)
    latents = torch.randn(500, 2, 4, 4, generator=g) * torch.logspace(1, -1, 32).reshape(2, 4, 4)
    found = tool.image_components(latents, 8)
    covariance = torch.cov(found.T)
    assert found.square().mean() == pytest.approx(1, abs=1e-5)
    assert (covariance - covariance.diag().diag()).abs().max() < 0.05 * covariance.diag().max()
    deviations = latents.flatten(1).double().sub(latents.flatten(1).double().mean(0))
    largest = torch.linalg.svdvals(deviations)[:8].float()
    assert torch.allclose(covariance.diag() / covariance[0, 0], largest / largest[0], atol=0.05)


def test_only_cross_attention_is_trained_with_new_keys_and_values():
    from diffusers import UNet2DConditionModel

    start = UNet2DConditionModel.from_pretrained(tool.MODELS / "mini-sd15" / "unet", torch_dtype=torch.float32)
    old, new = dict(start.named_parameters()), dict(tool.new_unet().named_parameters())
    changed = {name for name, p in new.items() if not torch.equal(p, old[name])}
    assert changed == {name for name in new if "attn2.to_k" in name or "attn2.to_v" in name}
    assert {name for name, p in new.items() if p.requires_grad} == {name for name in new if "attn2" in name}
