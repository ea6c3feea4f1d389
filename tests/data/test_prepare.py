"""Preparing: cached by content, paired by content."""

import random

import pytest
import torch
from PIL import Image

from impasto.data import references
from impasto.data.prepare import cached, prepare
from impasto.families import load
from impasto.paths import cache_dir


@pytest.fixture
def pairs(tmp_path, monkeypatch):
    monkeypatch.setenv("IMPASTO_CACHE", str(tmp_path / "cache"))
    result = []
    for i, colour in enumerate(["red", "green", "blue", "white"]):
        Image.new("RGB", (16, 16), colour).save(tmp_path / f"{i}.png")
        result.append((references.read(tmp_path / f"{i}.png"), f"a {colour} rocket in pixel art style"))
    return result


def test_latents_and_embeddings_are_the_family_s(tiny_sd3, pairs):
    family = load(str(tiny_sd3), device="cpu")
    prepared = prepare(family, pairs, 16)
    assert prepared.x.shape == (4, 4, 4, 4) and prepared.conds.keys() == prepared.shares.keys() == {1, 5}
    for i, (reference, caption) in enumerate(pairs):
        assert torch.equal(prepared.x[i : i + 1], family.encode_image(reference.pixels(16)))
        for length, cond in prepared.conds.items():
            assert torch.equal(cond["text"][i : i + 1], family.encode_prompt([caption], length)["text"])


def test_pairs_stay_together_however_they_are_shuffled(tiny_sd3, pairs):
    """Prepared once in one order, and read from the cache in another: picture and caption never part."""
    family = load(str(tiny_sd3), device="cpu")
    prepared = prepare(family, pairs, 16)
    order = list(range(4))
    random.Random(1).shuffle(order)
    again = prepare(family, [pairs[i] for i in order], 16)
    assert order != [0, 1, 2, 3]
    assert torch.equal(again.x, prepared.x[order])
    assert torch.equal(again.conds[5]["pooled"], prepared.conds[5]["pooled"][order])


def test_the_cache_needs_no_encoders(tiny_sd3, pairs, monkeypatch):
    first = prepare(load(str(tiny_sd3), device="cpu"), pairs, 16)
    family = load(str(tiny_sd3), device="cpu")
    monkeypatch.setattr(type(family), "encode_image", None)
    monkeypatch.setattr(type(family), "encode_prompt", None)
    second = prepare(family, pairs, 16)
    assert torch.equal(first.x, second.x) and torch.equal(first.conds[1]["text"], second.conds[1]["text"])


def test_a_changed_picture_under_the_same_name_is_prepared_anew(tiny_sd3, pairs, tmp_path):
    family = load(str(tiny_sd3), device="cpu")
    before = prepare(family, pairs[:1], 16)
    Image.new("RGB", (16, 16), "yellow").save(tmp_path / "0.png")
    after = prepare(family, [(references.read(tmp_path / "0.png"), pairs[0][1])], 16)
    assert not torch.equal(before.x, after.x)


def test_another_base_is_prepared_anew(tiny_sd3, pairs, tmp_path):
    from tiny import sd3_folder

    other = sd3_folder(tmp_path / "other", seed=1)
    one = prepare(load(str(tiny_sd3), device="cpu"), pairs[:1], 16)
    two = prepare(load(str(other), device="cpu"), pairs[:1], 16)
    assert not torch.equal(one.x, two.x) and not torch.equal(one.conds[1]["text"], two.conds[1]["text"])


def test_a_damaged_or_foreign_cache_file_is_made_again(pairs):
    made = []

    def make():
        made.append(1)
        return {"x": torch.ones(3)}

    cached({"a": 1}, make)
    (file,) = cache_dir("prepared").iterdir()
    good = file.read_bytes()
    file.write_bytes(good[:-4])
    assert torch.equal(cached({"a": 1}, make)["x"], torch.ones(3)) and len(made) == 2
    cached({"a": 2}, make)
    (foreign,) = set(cache_dir("prepared").iterdir()) - {file}
    foreign.write_bytes(good)
    assert torch.equal(cached({"a": 2}, make)["x"], torch.ones(3)) and len(made) == 4
    cached({"a": 2}, make)
    assert len(made) == 4 and {f.suffix for f in cache_dir("prepared").iterdir()} == {".safetensors"}
