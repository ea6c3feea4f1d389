"""From --image to items: captions, triggers, buckets, masks, and what is left out."""

import os
import random
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from impasto.config import change, make_config
from impasto.data import items
from impasto.data.config import DataConfig
from impasto.data.items import KEPT, caption_stats, expand_captions, hashes, summary
from impasto.errors import UserError
from impasto.training.plan import expand

CARD = {"bucket_step": 8}
STYLE = "in ink style"


def paint(path, size=(16, 16), colour="red", mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path)
    return path


@pytest.fixture
def folder(tmp_path):
    """Three pictures with captions: square, wide, tall."""
    for name, size in (("a", (16, 16)), ("b", (40, 14)), ("n/c", (20, 50))):
        paint(tmp_path / "style" / f"{name}.png", size, colour={"a": "red", "b": "blue"}.get(name, "green"))
        (tmp_path / "style" / f"{name}.txt").write_text(f"a {name[-1]} {STYLE}")
    return tmp_path / "style"


def config_of(*images, **changes):
    return make_config(image=images, **{"size": 16} | changes)


def read(config):
    return items.read(config.data, config.base, CARD)


def quiet(config):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return read(config)


def test_the_captions_that_are_kept(folder):
    """Each once and as it is trained on; of very many the most common ones."""
    paint(folder / "d.png", colour="white").with_suffix(".txt").write_text("a [trigger] in ink style")
    found = read(config_of(folder, trigger="b", caption_prefix="photo of"))
    texts = [f"photo of a {name} in ink style" for name in "abc"]
    assert caption_stats(found) == {"pictures": 4, "captions": texts, "caption_counts": [1, 2, 1]}
    many = [replace(found[0], caption=f"{i} {STYLE}") for i in range(1000)] + [found[1]] * 2
    kept = caption_stats(many)
    assert kept["pictures"] == 1002 and len(kept["captions"]) == KEPT
    assert kept["captions"][-1] == texts[1] and kept["caption_counts"][-1] == 2


def test_a_folder(folder):
    found = quiet(config_of(folder))
    assert [(one.picture.path.name, one.caption, one.shape) for one in found] == [
        ("a.png", "a a in ink style", (16, 16)),
        ("b.png", "a b in ink style", (24, 8)),
        ("c.png", "a c in ink style", (8, 24)),
    ]
    assert summary(found) == {
        "pictures": 3,
        "captions": 3,
        "crops": 3,
        "masks": 0,
        "buckets": {"8x24": 1, "16x16": 1, "24x8": 1},
        "repeats": {"1": 3},
    }


def test_buckets_end_where_the_base_s_positions_do(folder):
    found = items.read(config_of(folder).data, "mini-sd3", CARD, largest=16)
    assert [one.shape for one in found] == [(16, 16), (8, 8), (16, 16)]  # 40 x 14 does not cover a square of 16


def test_buckets_may_be_switched(folder):
    with pytest.warns(UserWarning, match=r"b.png' is 40 x 14 and will be enlarged to 16 x 16"):
        assert {one.shape for one in read(config_of(folder, buckets="off"))} == {(16, 16)}
    (one,) = quiet(config_of(folder / "n" / "c.png", buckets="on"))
    assert one.shape == (8, 24) and one.caption == "a c in ink style"  # the .txt beside a picture
    (one,) = quiet(config_of(folder / "n" / "c.png"))
    assert one.shape == (16, 16)


def test_too_small_is_refused_or_left_out(folder):
    small = paint(folder / "d.png", (7 + 8, 8))
    small.with_suffix(".txt").write_text(f"a d {STYLE}")
    with pytest.raises(UserError, match=r"d.png' is too small: 15 x 8.*--size.*--skip-bad"):
        read(config_of(folder, size=32))
    with pytest.warns(UserWarning) as said:
        found = read(config_of(folder, size=32, skip_bad=True))
    assert [one.shape for one in found] == [(16, 16), (24, 8), (16, 48)] and len(said) == 1


def test_a_corrupt_picture_is_named_and_left_out_on_request(folder):
    data = (folder / "b.png").read_bytes()
    (folder / "b.png").write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match=r"b.png' is damaged.*--skip-bad leaves it out"):
        read(config_of(folder))
    with pytest.warns(UserWarning, match=r"b.png' is damaged.*: left out"):
        assert len(read(config_of(folder, skip_bad=True))) == 2
    with pytest.raises(UserError, match="damaged") as error:
        read(config_of(folder / "b.png", caption=(STYLE,)))
    assert "skip" not in str(error.value)
    (folder / "only").mkdir(), (folder / "only" / "b.png").write_bytes(b"no")
    with pytest.warns(UserWarning, match="left out"), pytest.raises(UserError, match="no picture is left"):
        read(config_of(folder / "only", caption=(STYLE,), skip_bad=True))


def test_captions_for_those_without(folder):
    (folder / "b.txt").unlink(), (folder / "n" / "c.txt").unlink()
    with pytest.raises(UserError, match=r"2 of 3 pictures in .* \(b.png, c.png\): write b.txt beside b.png"):
        read(config_of(folder))
    found = quiet(config_of(folder, caption=("all in ink style",)))
    assert [one.caption for one in found] == ["a a in ink style", "all in ink style", "all in ink style"]
    with pytest.raises(UserError, match="several captions, but a folder"):
        read(config_of(folder, caption=("x style", "y style")))


def test_captions_of_pictures_given_by_name(folder):
    a, b = folder / "a.png", folder / "b.png"
    assert [one.caption for one in quiet(config_of(a, b, size=8))] == ["a a in ink style", "a b in ink style"]
    assert [one.caption for one in quiet(config_of(a, b, size=8, caption=("x style",)))] == ["x style"] * 2
    (folder / "b.txt").unlink()
    with pytest.raises(UserError, match=r"2 of 3 pictures have no caption \(b.png, e.png\)"):
        read(config_of(b, paint(folder / "e.png"), a, size=8))


def test_trigger_and_prefix(folder):
    for name in ("a", "b", "n/c"):
        (folder / f"{name}.txt").write_text(f"a {name[-1]}, [trigger]")
    with pytest.raises(UserError, match=r"holds \[trigger\]: say what stands for it with --trigger"):
        read(config_of(folder))
    found = quiet(config_of(folder, trigger="wibble style", caption_prefix="[trigger] picture,"))
    assert found[1].caption == "wibble style picture, a b, wibble style"
    (one,) = quiet(config_of(folder / "a.png", caption=("a thing, [trigger]",), trigger="wibble"))
    assert one.caption == "a thing, wibble"
    with pytest.warns(UserWarning, match="lacks the trigger 'wibble', so nothing"):
        read(config_of(folder / "a.png", caption=("a thing in ink style",), trigger="wibble"))


def test_repeats(folder, tmp_path):
    with pytest.warns(UserWarning, match="repeats are the same for all pictures: no effect"):
        read(config_of(folder, repeats=(10,)))
    found = quiet(config_of(folder, folder / "a.png", size=8, caption=("x style",), repeats=(1, 5)))
    assert [one.repeats for one in found] == [1, 1, 1, 5]
    with pytest.raises(UserError, match="1 times --image but 2 times --repeats"):
        read(config_of(folder, repeats=(1, 2)))
    paint(folder / "3_x" / "e.png")
    with pytest.warns(UserWarning) as said:
        assert {one.repeats for one in read(config_of(folder, caption=("x style",), repeats=(10,)))} == {10}
    assert [str(warning.message) for warning in said] == [
        "--repeats 10 for all replaces what folders are called (1, 3): every picture counts the same"
    ]
    (folder / "3_x" / "e.png").unlink()
    folder.rename(tmp_path / "7_ink")
    paint(tmp_path / "7_ink" / "2_x" / "e.png")
    found = quiet(config_of(tmp_path / "7_ink", caption=("x style",)))
    assert [one.repeats for one in found] == [2, 7, 7, 7]
    paint(tmp_path / "3_wibble_style" / "e.png")
    with pytest.warns(
        UserWarning, match="1 of 1 images .* the name of their folder becomes the caption, 'wibble style'"
    ):
        assert read(config_of(tmp_path / "3_wibble_style"))[0].caption == "wibble style"


def test_masks(folder):
    paint(folder / "a.mask.png", mode="L", colour=255)
    with pytest.warns(UserWarning, match=r"1 mask is left out \(a.mask.png\): --mask files"):
        found = read(config_of(folder))
    assert [one.mask for one in found] == [None] * 3
    found = quiet(config_of(folder, mask="files"))
    assert [one.mask for one in found] == [folder / "a.mask.png", None, None] and len(found[0].mask_sha256) == 64
    paint(folder / "b.mask.png", (20, 8), mode="L", colour=255)
    with pytest.raises(UserError, match=r"b.mask.png' is 20 x 8 and its picture 40 x 14: make them the same size"):
        read(config_of(folder, mask="files"))
    with pytest.raises(UserError, match="--mask alpha, but no picture has one"):
        read(config_of(folder, mask="alpha"))
    paint(folder / "a.png", mode="RGBA", colour=(255, 0, 0, 100))
    assert quiet(config_of(folder, mask="alpha"))[0].mask == "alpha"


@pytest.mark.parametrize("how", ["files", "alpha"])
def test_a_mask_that_leaves_nothing_is_seen_at_once(folder, how):
    """Before anything is prepared, so that --skip-bad can leave it out. White outside of all crops is nothing."""
    for name in "bc":
        mask = Image.new("L", (40, 14) if name == "b" else (20, 50))
        if name == "c":
            mask.paste(255, (0, 0, 1, 50))  # 24 x 8 is cut from 40 x 13.3 of the wide one, 8 x 24 from 16.7 x 50
        path = next(folder.rglob(f"{name}.png"))
        if how == "alpha":
            image = Image.open(path)
            image.putalpha(mask)
            image.save(path)
        else:
            mask.save(path.with_suffix(".mask.png"))
    paint(folder / "d.png", mode="LA", colour=(0, 99)).with_suffix(".txt").write_text(STYLE)
    paint(folder / "d.mask.png", colour="white")
    with pytest.raises(UserError, match=r"the mask of .*b.png' leaves nothing of it: .*; --skip-bad leaves it out"):
        read(config_of(folder, mask=how))
    with pytest.warns(UserWarning, match=r"leaves nothing of it: white is what counts: left out"):
        found = read(config_of(folder, mask=how, skip_bad=True))
    assert [one.picture.path.name for one in found] == ["a.png", "d.png"] and found[1].mask


def test_notes_are_said_once_for_many(folder):
    for name in ("d", "e", "f", "g"):
        paint(folder / f"{name}.png", mode="RGBA", colour=(9, 9, 9, 9))
        (folder / f"{name}.txt").write_text(f"{name} {STYLE}")
    for _ in range(2):  # the second time from the cache
        with pytest.warns(UserWarning) as said:
            read(config_of(folder))
        (one,) = {str(warning.message) for warning in said}
        assert one == "4 images (d.png, e.png, f.png, ..): each is transparent: it is put on white"


def test_a_profile_that_does_not_fit_is_said(folder):
    Image.new("RGB", (16, 16)).save(folder / "a.png", icc_profile=b"none")
    for _ in range(2):
        with pytest.warns(UserWarning, match=r"a.png' has a colour profile that is damaged"):
            read(config_of(folder))


def test_crops_without_effect(folder):
    with pytest.warns(UserWarning, match="crops 3 has no effect"):
        read(config_of(folder / "a.png", caption=(STYLE,), crops=3, flip=True))
    assert len(quiet(config_of(folder, crops=3))[2].views) == 3


def test_hashes_see_everything(folder):
    """What a run is bound to: every change of a picture, caption, mask, repeat or bucket; not the place on disk."""
    config = config_of(folder, mask="files")
    paint(folder / "a.mask.png", mode="L", colour=255)
    before = hashes(read(config))
    moved = folder.with_name("moved")
    folder.rename(moved)
    assert hashes(read(change(config, image=(moved,)))) == before
    moved.rename(folder)
    seen = [before["data_sha256"]]
    for edit in (
        lambda: (folder / "b.txt").write_text("another in ink style"),
        lambda: paint(folder / "a.mask.png", mode="L", colour=254),
        lambda: paint(folder / "b.png", (40, 14), "yellow"),
        lambda: (folder / "n").rename(folder / "2_n"),
    ):
        edit()
        seen.append(hashes(read(config))["data_sha256"])
    seen.append(hashes(items.read(change(config, size=8).data, config.base, CARD))["data_sha256"])
    assert len(set(seen)) == 6


def test_a_changed_picture_is_seen_while_it_is_read(folder):
    (one, *_) = read(config_of(folder))
    paint(folder / "a.png", colour="black")
    with pytest.raises(UserError, match=r"a.png' was changed while it was read"):
        one.picture.load()


def test_expand_lists_images_and_the_first_captions_and_fills_triggers(folder):
    for i in range(9):
        paint(folder / f"x{i}.png")
        (folder / f"x{i}.txt").write_text(f"{i} {STYLE}")
    config = config_of(folder, trigger="wibble", preview_prompt=("a cat, [trigger]",))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = expand(config, read(config))
    assert len(result.data.image) == 12 and len(result.data.caption) == 4
    assert result.log.preview_prompt == ("a cat, wibble",) and result.data.caption[0] == "a a in ink style"
    by_name = tuple(folder / f"x{i}.png" for i in range(9))
    texts = tuple(f"{i} {STYLE}" for i in range(9))
    config = change(config, image=by_name, caption=texts, trigger="", preview_prompt=())
    assert expand_captions(config.data, read(config)).caption == texts[:4]


def test_the_order_of_files_on_disk_changes_nothing(tmp_path, folder):
    """Copied in another order, with other times: the same items in the same order."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    random.Random(3).shuffle(files)
    for i, file in enumerate(files):
        copy = tmp_path / "copy" / file.relative_to(folder)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(file.read_bytes())
        os.utime(copy, (i, i))
    one, two = read(config_of(folder)), read(config_of(Path(tmp_path / "copy")))
    assert [a.fingerprint() for a in one] == [b.fingerprint() for b in two]


def test_read_leaves_out_images_below_min_side_and_counts_them(tmp_path):
    for name, side in (("a", 40), ("b", 20), ("c", 64)):
        Image.new("RGB", (side + 8, side), "blue").save(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.txt").write_text(f"{name}, in ink style")
    config = DataConfig(image=(tmp_path,), size=16, min_side=40, buckets="off")
    with pytest.warns(UserWarning, match="1 of 3 images have a side below min_side 40"):
        found = items.read(config, "mini-sd15", {})
    assert [one.picture.path.name for one in found] == ["a.png", "c.png"]
    with pytest.raises(UserError, match="min_side"):
        DataConfig(min_side=-1)
