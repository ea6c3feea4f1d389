"""Image folders as users of other tools have them: what is read, what is left out, and the one line about it."""

import json
import unicodedata
from pathlib import Path

import pytest
from PIL import Image

from impasto.data import items
from impasto.data.captions import warn_syntax
from impasto.data.config import DataConfig
from impasto.errors import UserError

FOLDERS = Path(__file__).parent / "reported" / "folders"
ROCKET, CAT, STARS = (
    f"{what}, wibble style" for what in ("a rocket on a hill", "a cat in a box", "two stars over a bridge")
)


def read(folder, **options):
    """{path in the folder: caption}."""
    found = items.entries(DataConfig(image=(folder,), **options))
    return {entry.path.relative_to(folder).as_posix(): entry.caption for entry in found}


def image(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (16, 16), "red").save(path)
    return path


@pytest.mark.parametrize(("name", "place"), [("caption_kohya", "10_wibble/"), ("caption_plain", "")])
def test_caption_files_are_read_as_txt(name, place):
    assert list(read(FOLDERS / name).values()) == [ROCKET, CAT, STARS]
    (entry,) = items.entries(DataConfig(image=(FOLDERS / name / f"{place}0.png",)))
    assert entry.caption == ROCKET


def test_caption_beside_txt_with_other_text_is_refused(tmp_path):
    image(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("a cat"), (tmp_path / "a.caption").write_text("a dog")
    with pytest.raises(UserError, match=r"a.png' has two captions, in a.caption and a.txt: remove one"):
        read(tmp_path)
    (tmp_path / "a.caption").write_text("a cat\n")
    assert read(tmp_path) == {"a.png": "a cat"}
    (tmp_path / "b.caption").write_text("a dog")
    with pytest.raises(UserError, match=r"b.caption' has no picture of that name"):
        read(tmp_path)


def test_folder_name_as_caption_is_reported_once(tmp_path):
    for name in "ab":
        image(tmp_path / "10_wibble style" / f"{name}.png")
    with pytest.warns(UserWarning) as found:
        assert set(read(tmp_path).values()) == {"wibble style"}
    assert [str(one.message).partition("have")[2] for one in found] == [
        " no caption of their own: the name of their folder becomes the caption, 'wibble style'"
    ]


@pytest.mark.parametrize("name", ["a.json", "a.png.json", "a.tags", "metadata.csv", "captions.json", "meta_cap.json"])
def test_unread_text_is_named_unless_all_images_have_captions(tmp_path, name):
    image(tmp_path / "a.png")
    (tmp_path / name).write_text('{"caption": "a cat"}')
    with pytest.warns(UserWarning, match=rf"1 file looks like captions and is not read \({name}\): captions are read"):
        assert read(tmp_path, caption=("a dog style",)) == {"a.png": "a dog style"}
    (tmp_path / "a.txt").write_text("a cat")
    assert read(tmp_path) == {"a.png": "a cat"}


def test_onetrainer_masks_belong_to_their_images():
    with pytest.warns(UserWarning, match=r"2 masks are left out \(a-masklabel.png, b-masklabel.png\): --mask files"):
        found = read(FOLDERS / "ot_mask_kohya")
    assert found == {"5_wibble style/a.png": ROCKET, "5_wibble style/b.png": CAT}
    entries = items.entries(DataConfig(image=(FOLDERS / "ot_mask_kohya",), mask="files"))
    assert [entry.mask and entry.mask.name for entry in entries] == ["a-masklabel.png", "b-masklabel.png"]
    (single,) = items.entries(DataConfig(image=(entries[0].path,), mask="files"))
    assert single.mask == entries[0].mask


def test_regularisation_folder_is_left_out_with_a_warning():
    with pytest.warns(UserWarning) as found:
        assert set(read(FOLDERS / "project")) == {f"img/10_wibble style/{name}.png" for name in "ab"}
    assert "2 image files are left out, regularisation images" in str(found[0].message)
    assert f"--prior.image {str(FOLDERS / 'project' / 'reg')!r}" in str(found[0].message)
    with pytest.warns(UserWarning, match="folder becomes the caption, 'photo'"):
        assert set(read(FOLDERS / "project" / "reg").values()) == {"photo"}


def test_companions_are_left_out_and_counted_once(tmp_path):
    made = ["@eaDir/a.png/SYNO_THUMB_M.png", "thumbs/a.png", "model/sample/s.png", "img/a-condlabel.png", "log/x.png"]
    for name in ("img/a.png", "img/model/b.png", "img/c-mask.png", *made):
        image(tmp_path / name)
    (tmp_path / "thumbs" / "z.txt").write_text("of no image")
    with pytest.warns(UserWarning, match="5 image files are left out, thumbnails and images that tools made") as said:
        found = read(tmp_path, caption=("a dog style",))
    assert len(said) == 1
    assert list(found) == ["img/a.png", "img/c-mask.png", "img/model/b.png"]
    image(tmp_path / "img" / "c.png")
    with pytest.warns(UserWarning, match=r"1 mask is left out \(c-mask.png\)|5 image files"):
        assert "img/c-mask.png" not in read(tmp_path, caption=("a dog style",))


def test_formats_that_pillow_reads_are_read_and_others_named():
    with pytest.warns(UserWarning, match=r"2 image files are left out, in a format that is not read \(c.HEIC, d.jxl\)"):
        assert list(read(FOLDERS / "formats", caption=("x style",))) == ["a.png", "b.jfif", "e.jpe", "f.png"]
    with pytest.warns(UserWarning, match=r"1 image file is left out, in a format that is not read \(c.HEIC\)"):
        assert read(FOLDERS / "formats_txt") == {"a.png": ROCKET, "b.jfif": CAT}
    assert items.look(FOLDERS / "formats" / "b.jfif").width > 0


@pytest.mark.parametrize(("of_image", "of_caption"), [("NFD", "NFC"), ("NFC", "NFD")])
@pytest.mark.parametrize("how", ["txt", "metadata"])
def test_names_are_compared_composed(tmp_path, of_image, of_caption, how):
    picture = image(tmp_path / unicodedata.normalize(of_image, "café.png"))
    image(tmp_path / unicodedata.normalize(of_caption, "café.mask.png"))
    name = unicodedata.normalize(of_caption, "café")
    if how == "txt":
        (tmp_path / f"{name}.txt").write_text("a cat style")
        (single,) = items.entries(DataConfig(image=(picture,), mask="files"))
        assert single.caption == "a cat style" and single.mask is not None
    else:
        row = json.dumps({"file_name": f"{name}.png", "text": "a cat style"})
        (tmp_path / "metadata.jsonl").write_text(row)
    (entry,) = items.entries(DataConfig(image=(tmp_path,), mask="files"))
    assert entry.caption == "a cat style" and entry.mask is not None


def test_metadata_reads_backslashes_and_right_absolute_paths(tmp_path, monkeypatch):
    assert read(FOLDERS / "meta_win") == {"img/a.png": ROCKET, "img/b.png": CAT}
    image(tmp_path / "real" / "a.png"), image(tmp_path / "real" / "B.png")
    (tmp_path / "link").symlink_to("real")
    rows = [(str(tmp_path / "link" / "a.png"), "a cat"), ("B.png", "a dog")]
    table = tmp_path / "real" / "metadata.jsonl"
    table.write_text("\n".join(json.dumps({"file_name": name, "text": text}) for name, text in rows))
    monkeypatch.chdir(tmp_path)
    assert read(Path("real")) == read(Path("link")) == {"B.png": "a dog", "a.png": "a cat"}
    table.write_text(json.dumps({"file_name": "/home/user/a.png", "text": "a cat"}))
    with pytest.raises(UserError, match=r"no picture '/home/user/a.png' in 'real': write it relative to that folder"):
        read(Path("real"))


def test_metadata_rows_of_left_out_files_are_passed_over(tmp_path):
    image(tmp_path / "a.png"), (tmp_path / "b.heic").write_bytes(b"x")
    rows = [{"file_name": name, "text": "a cat"} for name in ("a.png", "b.heic")]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.warns(UserWarning, match=r"b.heic"):
        assert read(tmp_path) == {"a.png": "a cat"}


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("weird", ["'<lora:neon:0.8>': leave it out", "'(rocket:1.3)': write the words alone", "'BREAK'"]),
        ("wild", ["'|||'", "'{red|blue}': write one of them", "'__colour__'"]),
        ("name_token", ["'[name]': write [trigger], with --trigger"]),
        ("lines", ["1 caption file has several lines (a.txt), which are read as one caption"]),
    ],
)
def test_syntax_of_other_tools_in_captions_is_named_once(name, found):
    with pytest.warns(UserWarning) as said:
        assert read(FOLDERS / name)
    assert len(said) == 1 and all(text in str(said[0].message) for text in found)


def test_plain_captions_have_no_syntax_warning():
    warn_syntax(
        ["a cat (at 10:30), [trigger] style -- a dog_and__cat", "A BREAKFAST in {ink} style", "<style1>"], "captions"
    )
