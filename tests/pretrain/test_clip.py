"""The contrastive loss against its formula, and the locked text tower."""

import math

import numpy as np
import pytest
import torch
from transformers import CLIPTokenizer

from impasto.artworld import ArtWorld, load_meta, load_slice
from impasto.bases import embedded as mini
from impasto.files import MODELS
from impasto.pretrain import clip as contrastive
from impasto.pretrain.pool import build_pool


@pytest.fixture(scope="module")
def tokenizer() -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(MODELS / "clip")


def test_contrastive_loss_is_symmetric_cross_entropy(tokenizer):
    torch.manual_seed(0)
    model = contrastive.new_clip(tokenizer).eval()
    x = torch.rand(4, 3, 128, 128) * 2 - 1
    ids = contrastive.tokens(tokenizer, ["a rocket", "a cactus", "a bus, flat", "an owl"])
    loss, _ = contrastive.contrastive_loss(model, x, ids)
    out = model(input_ids=ids, pixel_values=x)
    logits = out.logits_per_image.detach().double()
    rows = [math.log(sum(math.exp(v) for v in logits[i])) - float(logits[i, i]) for i in range(4)]
    columns = [math.log(sum(math.exp(v) for v in logits[:, i])) - float(logits[i, i]) for i in range(4)]
    assert float(loss) == pytest.approx((sum(rows) + sum(columns)) / 8, rel=1e-4)


def test_train_clip_with_locked_text_keeps_it_bit_identical(tokenizer, tmp_path):
    part = load_slice(styles=["fluent-emoji-3d", "streamline-emojis"])
    train = load_meta()["split"]["train_styles"]
    names = {style: train[i] for i, style in enumerate(np.unique(part.style_id))}
    world = ArtWorld(part.rgba, np.array([names[s] for s in part.style_id]), part.concept_id, part.meta)
    pool = build_pool(ground=0.0, procedurals=0.02, scenes=0.0, seed=0, world=world)
    text = mini.text_weights(MODELS / "clip")
    text["text_projection.weight"][0, :2] = torch.tensor([-0.0, 0.0])  # averaging would lose the sign
    model = contrastive.train_clip(pool, tokenizer, tmp_path, total_minutes=0.02, batch=16, text=text)
    after = model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in text.items())
    assert all(torch.equal(after[name].signbit(), value.signbit()) for name, value in text.items())
    torch.manual_seed(0)
    before = contrastive.new_clip(tokenizer).state_dict()
    moved = [name for name in before if name.startswith("vision_model.") and not torch.equal(after[name], before[name])]
    assert moved
