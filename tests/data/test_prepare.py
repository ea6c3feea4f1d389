"""Preparing: cached by content, paired by content."""

import random
import struct
import weakref

import numpy as np
import pytest
import torch
from fakes import prepare
from PIL import Image

from impasto.bases.loader import load
from impasto.config import make_config
from impasto.data import items, references
from impasto.data.draws import Draws
from impasto.data.masks import grey
from impasto.data.pictures import Picture
from impasto.data.prepare import cached, prepare_items
from impasto.errors import UserError
from impasto.files import cache_dir
from impasto.noise.laws import build_law


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


def test_the_autoencoder_has_gone_when_the_text_encoders_come(tiny_sd3, pairs, monkeypatch):
    family, there = load(str(tiny_sd3), device="cpu"), []
    encode = family.encode_prompt
    monkeypatch.setattr(
        family, "encode_prompt", lambda *args: there.append({"vae", "encoders"} & vars(family).keys()) or encode(*args)
    )
    prepare(family, pairs, 16)
    assert there[0] == set() and there[-1] == {"encoders"}


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


STYLE = "in ink style"


def paint(path, size, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.effect_noise(size, 90 + seed).convert("RGB")
    image.paste((seed * 20, 255 - seed * 20, 90), (0, 0, size[0] // 2, size[1]))
    image.save(path)
    return path


def items_of(folder, **changes):
    config = make_config(image=(folder,), **{"size": 16} | changes)
    return items.read(config.data, config.base, {"bucket_step": 8})


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Six pictures in three shapes, each with its own caption."""
    monkeypatch.setenv("IMPASTO_CACHE", str(tmp_path / "cache"))
    for i, size in enumerate([(16, 16), (40, 12), (20, 60), (33, 30), (48, 16), (64, 64)]):
        paint(tmp_path / "style" / f"{i}.png", size, i)
        (tmp_path / "style" / f"{i}.txt").write_text(
            f"{['rocket', 'cactus', 'star', 'rabbit', 'face', 'cat'][i]} {STYLE}"
        )
    return tmp_path / "style"


def test_nothing_is_paired_wrongly_however_it_is_shuffled(tiny_sd3, folder, monkeypatch):
    """Files renamed and listed in another order, items prepared in another order, a cache that was filled in a third.

    Each picture, found by its content, has the latents that the family gives for its own crops, its caption, its mask.
    """
    family = load(str(tiny_sd3), device="cpu")
    for i in (2, 5):
        Image.linear_gradient("L").resize(Image.open(folder / f"{i}.png").size).save(folder / f"{i}.mask.png")
    order = list(range(6))
    random.Random(0).shuffle(order)
    first = items_of(folder, mask="files", crops=2)
    truth = {}
    for one in first:  # by hand, one by one
        words = (folder / f"{one.picture.path.stem}.txt").read_text()
        latents = []
        for view in one.views:
            part = Image.open(one.picture.path).resize(view.shape, Image.Resampling.LANCZOS, box=view.box)
            latents.append(family.encode_image(references.to_tensor(part))[0])
        has_mask = (folder / f"{one.picture.path.stem}.mask.png").exists()
        truth[one.picture.sha256] = (latents, family.encode_prompt([words], 5)["text"][0], has_mask)
    prepare_items(family, [first[i] for i in order])  # the cache is filled in this order
    for i, j in enumerate(order):
        for file in sorted(folder.glob(f"{i}.*")):
            file.rename(folder / file.name.replace(f"{i}.", f"renamed-{9 - j}.", 1))
    again = items_of(folder, mask="files", crops=2)
    assert [one.picture.sha256 for one in again] != [one.picture.sha256 for one in first]
    random.Random(1).shuffle(again)
    monkeypatch.setattr(type(family), "encode_image", None)  # from the cache alone
    monkeypatch.setattr(type(family), "encode_prompt", None)
    prepared = prepare_items(family, again)
    for one, pair in zip(again, prepared.pairs, strict=True):
        latents, text, has_mask = truth[one.picture.sha256]
        assert len(pair.views) == len(latents)
        for view, expected in zip(pair.views, latents, strict=True):
            assert torch.equal(prepared.x[view], expected)
            assert (prepared.masks[view] is not None) == has_mask
        assert torch.equal(prepared.conds[5]["text"][pair.caption], text)


def test_each_thing_that_matters_has_a_cache_file_of_its_own(tiny_sd3, folder):
    """Size, crop, mirror, mask, caption and precision: a second preparation with one of them changed encodes anew."""
    family = load(str(tiny_sd3), device="cpu")

    def files():
        return {file.name for file in cache_dir("prepared").glob("*")}

    def new_files(**changes):
        before = files()
        prepare_items(family, items_of(folder, **changes))
        return len(files() - before)

    assert new_files() == 6 + 6 + 12  # facts, latents, captions at two lengths
    assert new_files() == 0
    assert new_files(size=24) > 0 and new_files(flip=True) == 6 and new_files(crops=2) == 5  # no room in 16 x 16
    assert new_files(caption_prefix="new,") == 12
    before = files()
    prepare_items(load(str(tiny_sd3), device="cpu", precision="bf16"), items_of(folder))
    assert len(files() - before) == 12  # the captions: the autoencoder computes in float32 all the same
    for i, value in enumerate((255, 100)):
        Image.new("L", (64, 64), value).save(folder / "5.mask.png")
        assert new_files(mask="files") == 3, i  # the mask's facts, what it leaves, and the latents with it
    (folder / "5.mask.png").unlink()
    (folder / "0.txt").write_text("another in ink style")
    assert new_files() == 2
    paint(folder / "0.png", (16, 16), 9)
    assert new_files() == 2


def test_masks_are_shares_of_area_with_mean_one(tiny_sd3, folder):
    """A 64 x 64 picture at 16 px and 4 latents a side: a latent stands for 16 x 16 pixels. The right quarter counts."""
    family = load(str(tiny_sd3), device="cpu")
    mask = Image.new("L", (64, 64), 0)
    mask.paste(255, (48, 0, 64, 64)), mask.paste(255, (0, 0, 8, 16))
    mask.save(folder / "5.mask.png")
    prepared = prepare_items(family, [one for one in items_of(folder, mask="files", flip=True) if one.mask])
    share = torch.tensor([[0.5, 0, 0, 1], [0, 0, 0, 1], [0, 0, 0, 1], [0, 0, 0, 1]])
    expected = (share / share.mean())[None]
    assert torch.allclose(prepared.masks[0], expected, atol=1e-6)
    assert torch.allclose(prepared.masks[1], expected.flip(2), atol=1e-6)
    assert prepared.masks[0].mean().item() == pytest.approx(1)


@pytest.mark.parametrize("under", [0, 255])
def test_a_mask_on_a_transparent_ground(tiny_sd3, folder, under):
    """White on nothing is white on black, whatever colour the transparent pixels have."""
    mask = Image.new("RGBA", (64, 64), (under, under, under, 0))
    mask.paste((255, 255, 255, 255), (48, 0, 64, 64)), mask.paste((255, 255, 255, 51), (0, 0, 16, 64))
    mask.save(folder / "5.mask.png")
    (one,) = [one for one in items_of(folder, mask="files") if one.mask]
    found = np.asarray(grey(one.mask, one.mask_sha256))
    assert (found[:, :16] == 51).all() and (found[:, 16:48] == 0).all() and (found[:, 48:] == 255).all()


def test_a_mask_is_read_as_its_values_stand(tiny_sd3, folder):
    """Whatever colour profile it was saved with: half is half."""
    lut = b"curv\0\0\0\0" + struct.pack(">IHxx", 1, 256)
    head = struct.pack(">I4sI4s4s4s", 160, b"lcms", 0x02400000, b"mntr", b"GRAY", b"XYZ ") + bytes(12) + b"acsp"
    linear = head + bytes(128 - len(head)) + struct.pack(">I4sII", 1, b"kTRC", 144, 14) + lut
    mask, plain = Image.new("L", (64, 64), 128), folder / "5.mask.png"
    mask.save(plain, icc_profile=linear)
    assert references.load(plain).image.getpixel((9, 9)) == (188, 188, 188)
    (one,) = [one for one in items_of(folder, mask="files") if one.mask]
    assert set(grey(one.mask, one.mask_sha256).tobytes()) == {128}


def test_the_alpha_channel_as_a_mask(tiny_sd3, folder):
    family = load(str(tiny_sd3), device="cpu")
    image = Image.open(folder / "5.png").convert("RGBA")
    image.paste((0, 0, 0, 0), (0, 0, 32, 64))
    image.save(folder / "5.png")
    prepared = prepare_items(family, [one for one in items_of(folder, mask="alpha") if one.mask])
    assert prepared.masks[0][0].tolist() == [[0.0, 0.0, 2.0, 2.0]] * 4


def test_crops_that_a_mask_leaves_nothing_of_are_not_used(tiny_sd3, folder):
    family = load(str(tiny_sd3), device="cpu")
    Image.new("L", (64, 64), 0).save(folder / "5.mask.png")
    with pytest.raises(UserError, match=r"the mask of .*5.png' leaves nothing of it: white is what counts"):
        prepare_items(family, items_of(folder, mask="files"))
    corner = Image.new("L", (64, 64), 0)
    corner.paste(255, (0, 0, 8, 8))
    corner.save(folder / "5.mask.png")
    (one,) = [one for one in items_of(folder, mask="files", crops=8) if one.mask]
    prepared = prepare_items(family, [one])
    assert 1 <= len(prepared.pairs[0].views) < len(one.views) == 8
    assert all(mask.mean().item() == pytest.approx(1) for mask in prepared.masks)


def test_captions_are_encoded_once(tiny_sd3, folder, monkeypatch):
    family = load(str(tiny_sd3), device="cpu")
    for file in folder.glob("*.txt"):
        file.write_text("all in ink style")
    asked = []
    encode = type(family).encode_prompt
    monkeypatch.setattr(type(family), "encode_prompt", lambda self, p, n: asked.append((p[0], n)) or encode(self, p, n))
    prepared = prepare_items(family, items_of(folder), dropout=True)
    assert sorted(asked) == [("", 1), ("", 5), ("all in ink style", 1), ("all in ink style", 5)]
    assert {pair.caption for pair in prepared.pairs} == {0} and prepared.empty == 1
    assert len(prepared.conds[1]["text"]) == 2


def test_size_conditions_are_for_families_that_ask(tiny_sd3, folder, tmp_path):
    """SDXL asks: the drawn batch tells them, and the U-Net hears them."""
    from tiny import sdxl_folder

    assert prepare_items(load(str(tiny_sd3), device="cpu"), items_of(folder)).sizes is None
    family = load(str(sdxl_folder(tmp_path / "sdxl")), device="cpu")
    prepared = prepare_items(family, items_of(folder))
    assert prepared.sizes.shape == (6, 6) and prepared.sizes.dtype == torch.float32
    assert prepared.sizes[5].tolist() == [64, 64, 0, 0, 16, 16]
    assert prepared.sizes[1].tolist() == [12, 40, 0, 1, 8, 24]  # scaled by 2/3 to 26.7 x 8, 1.3 cut on each side
    batch, _, _ = Draws(make_config(batch=2), build_law("uniform"), prepared)(1, 0)
    lam = torch.zeros(2)
    with torch.no_grad():
        told = family.predict(batch.x, lam, batch.cond)
        untold = family.predict(batch.x, lam, {name: batch.cond[name] for name in ("text", "pooled")})
    assert batch.cond["size_ids"].shape == (2, 6) and not torch.equal(told, untold)


def test_progress_and_memory(tiny_sd3, folder, monkeypatch):
    """Pictures are decoded one at a time; what is large stays in its file."""
    family = load(str(tiny_sd3), device="cpu")
    found, said, alive, most = items_of(folder), [], [], []
    load_picture = Picture.load

    def counted(self):
        reference = load_picture(self)
        alive.append(weakref.ref(reference.image))
        most.append(sum(image() is not None for image in alive))
        return reference

    monkeypatch.setattr(Picture, "load", counted)
    prepare_items(family, found, progress=lambda *at: said.append(at))
    counted = [(f"encoding {what}", i, 6) for what in ("images", "captions") for i in range(1, 7)]
    assert said == counted
    assert len(most) == 6 and max(most) <= 2  # the last one goes when the next one comes
