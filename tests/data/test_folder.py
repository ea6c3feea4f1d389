"""Folders of pictures: captions, masks, repeats, and whatever is wrong with them."""

import json
import os
import random

import pytest
from PIL import Image

from impasto.data.folder import listing, singles
from impasto.errors import UserError


@pytest.fixture
def folder(tmp_path):
    """make(name, text): a file; a picture when no text is given."""

    def make(name, text=None):
        path = tmp_path / "style" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if text is None:
            Image.new("RGB", (16, 16), "red").save(path)
        else:
            path.write_text(text)
        return path

    make.path = tmp_path / "style"
    return make


def row(name, text="a cat"):
    return json.dumps({"file_name": name, "text": text})


def test_sidecars_metadata_and_what_is_passed_over(folder):
    for name in ("a.png", "b.JPG", "sub/c.webp", "._a.png", ".hidden/x.png"):
        folder(name)
    folder("a.txt", "\ufeff a rocket,\n in ink style ")
    folder("metadata.jsonl", row("b.JPG") + "\n\n" + row("sub/c.webp", "a star") + "\n")
    for name in ("a.npz", "notes.json", "README.txt", "video.mp4"):
        folder(name, "x")
    found = listing(folder.path)
    assert [(e.path.name, e.caption) for e in found] == [
        ("a.png", "a rocket, in ink style"),
        ("b.JPG", "a cat"),
        ("c.webp", "a star"),
    ]
    assert {e.repeats for e in found} == {1} and {e.mask for e in found} == {None}


def test_metadata_of_a_subfolder_names_its_own_files(folder):
    folder("a.png"), folder("sub/a.png")
    folder("metadata.jsonl", row("a.png", "above")), folder("sub/metadata.jsonl", row("./a.png", "below"))
    assert [entry.caption for entry in listing(folder.path)] == ["above", "below"]


def test_two_metadata_files_may_not_tell_two_things(folder):
    folder("a.png"), folder("sub/b.png")
    folder("metadata.jsonl", row("sub/b.png", "above"))
    own = folder("sub/metadata.jsonl", row("b.png", "below"))
    with pytest.raises(UserError, match=r"sub/metadata.jsonl', line 1: 'b.png' has another caption in another"):
        listing(folder.path)
    with pytest.warns(UserWarning, match="another caption.*left out"):
        assert [entry.caption for entry in listing(folder.path, skip=True)] == [None, "above"]
    own.write_text(row("b.png", " above"))
    assert [entry.caption for entry in listing(folder.path)] == [None, "above"]


@pytest.mark.parametrize("mark", ["\u2028", "\u2029", "\u0085"])
def test_only_a_line_feed_ends_a_line_of_metadata(folder, mark):
    """JSON may hold the others as they are, where it is not written as ASCII; Windows ends lines with \\r\\n."""
    folder("a.png"), folder("b.png")
    text = "".join(f'{{"file_name": "{name}.png", "text": "a cat{mark}on a mat"}}\r\n' for name in "ab")
    (folder.path / "metadata.jsonl").write_bytes(text.encode())
    assert [entry.caption for entry in listing(folder.path)] == ["a cat on a mat"] * 2


def test_the_order_of_the_disk_does_not_matter(folder, monkeypatch):
    for name in ("b.png", "a.png", "c/d.png", "B.png"):
        folder(name)
    folder("b.txt", "a cat")
    first = listing(folder.path)
    walk, shuffle = os.walk, random.Random(1).shuffle

    def shuffled(*args, **options):
        for place, folders, names in walk(*args, **options):
            shuffle(folders), shuffle(names)
            yield place, folders, names

    monkeypatch.setattr(os, "walk", shuffled)
    assert listing(folder.path) == first and [entry.path.name for entry in first] == [
        "B.png",
        "a.png",
        "b.png",
        "d.png",
    ]


def test_kohya_folders_count(folder):
    for name in ("10_wibble style/a.png", "10_wibble style/deep/b.png", "2_x/3_y/c.png", "2024_trip/d.png", "e.png"):
        folder(name)
    found = {entry.path.name: (entry.repeats, entry.spare) for entry in listing(folder.path)}
    assert found["a.png"] == found["b.png"] == (10, "wibble style") and found["c.png"] == (3, "y")
    assert found["d.png"] == found["e.png"] == (1, None)


def test_masks_are_found_and_are_no_pictures(folder):
    for name in ("a.png", "a.mask.png", "b.jpg", "masks/b.png", "n/c.png", "n/masks/c.png", "n/d.png", "masks/n/d.png"):
        folder(name)
    found = {entry.path.name: entry.mask for entry in listing(folder.path)}
    style = folder.path
    assert found == {
        "a.png": style / "a.mask.png",
        "b.jpg": style / "masks/b.png",
        "c.png": style / "n/masks/c.png",
        "d.png": style / "masks/n/d.png",
    }
    assert singles([style / "a.png"], True)[0].mask == style / "a.mask.png"
    assert singles([style / "b.jpg"], True)[0].mask == style / "masks/b.png"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"file_name": "a.png", ', "line 3: no valid JSON"),
        ("[" * 100_000, "line 3: nested too deeply"),
        ("[1]", "line 3: not an object"),
        ('{"file_name": "a.png"}', "line 3: 'text' is missing or empty"),
        ('{"file_name": "a.png", "text": "  "}', "line 3: 'text' is missing or empty"),
        ('{"text": "a cat"}', "line 3: 'file_name' is missing"),
        ('{"file_name": "c.png", "text": "a cat"}', "line 3: there is no picture 'c.png'"),
        ('{"file_name": "../out.png", "text": "a cat"}', "line 3: there is no picture '../out.png'"),
        ('{"file_name": "b.png", "text": "a dog"}', "line 3: 'b.png' was described before"),
    ],
)
def test_a_wrong_line_is_named(folder, line, message):
    folder("a.png"), folder("b.png"), folder("../out.png")
    folder("metadata.jsonl", f"{row('b.png')}\n\n{line}\n")
    with pytest.raises(UserError, match=message) as error:
        listing(folder.path)
    assert "metadata.jsonl" in str(error.value) and "\n" not in str(error.value) and "--skip-bad" in str(error.value)
    with pytest.warns(UserWarning, match="left out"):
        found = listing(folder.path, skip=True)
    assert [entry.caption for entry in found] == [None, "a cat"]


def test_captions_that_are_wrong(folder):
    folder("a.png"), folder("b.png")
    empty = folder("b.txt", " \n")
    with pytest.raises(UserError, match=r"b.txt' is empty: say what b.png shows"):
        listing(folder.path)
    with pytest.warns(UserWarning, match=r"b.txt' is empty.*left out"):
        assert [entry.path.name for entry in listing(folder.path, skip=True)] == ["a.png"]
    empty.rename(folder.path / "c.txt")
    with pytest.raises(UserError, match=r"c.txt' has no picture of that name"):
        listing(folder.path)
    (folder.path / "c.txt").unlink()
    (folder.path / "b.txt").write_bytes(b"caf\xe9")
    with pytest.raises(UserError, match=r"b.txt' is not UTF-8"):
        listing(folder.path)
    folder("b.txt", "a dog"), folder("metadata.jsonl", row("b.png"))
    with pytest.raises(UserError, match=r"b.png' has two captions"):
        listing(folder.path)


def test_endings_in_any_case(folder):
    folder("A.JPG"), folder("A.TXT", "a cat"), folder("b.png"), folder("b.Txt", "a dog"), folder("sub/c.png")
    folder("sub/Metadata.JSONL", row("c.png", "a cow"))
    assert [entry.caption for entry in listing(folder.path)] == ["a cat", "a dog", "a cow"]
    assert singles([folder.path / "A.JPG"], False)[0].caption == "a cat"
    folder("c.TXT", "a bird")
    with pytest.raises(UserError, match=r"c.TXT' has no picture of that name"):
        listing(folder.path)
    (folder.path / "c.TXT").unlink()
    folder("b.TXT", "a dog")
    assert listing(folder.path)[1].caption == "a dog"
    folder("b.TXT", "a wolf")
    if (folder.path / "b.Txt").read_text() == "a dog":  # two files, where the disk tells the cases apart
        with pytest.raises(UserError, match=r"b.png' has two captions, in b.TXT and b.Txt"):
            listing(folder.path)


def test_masks_in_any_case(folder):
    for name in ("a.png", "Masks/a.png", "b.png", "b.MASK.png", "n/c.png", "MASKS/n/c.PNG"):
        folder(name)
    found = {entry.path.name: entry.mask for entry in listing(folder.path)}
    style = folder.path
    assert found == {"a.png": style / "Masks/a.png", "b.png": style / "b.MASK.png", "c.png": style / "MASKS/n/c.PNG"}
    assert [singles([style / f"{name}.png"], True)[0].mask for name in "ab"] == [found["a.png"], found["b.png"]]


def test_links_are_followed_once(folder):
    """To a folder elsewhere, to one of its own, to where it lies itself, and to a picture."""
    folder("a.png"), folder("z/b.png"), folder("../far/deep/c.png"), folder("../far/d.png")
    for name, target in (("link", "../far"), ("b", "z"), ("z/up", ".."), ("e.png", "../far/d.png")):
        (folder.path / name).symlink_to(target)
    found = [entry.path.relative_to(folder.path).as_posix() for entry in listing(folder.path)]
    assert found == ["a.png", "e.png", "link/d.png", "link/deep/c.png", "z/b.png"]


@pytest.mark.parametrize("name", ["b.png", "sub"])
def test_a_link_that_leads_nowhere_is_named(folder, name):
    folder("a.png")
    (folder.path / name).symlink_to("nowhere")
    (folder.path / ".#a.txt").symlink_to("hidden")  # what editors leave
    with pytest.raises(UserError, match=f"{name}' is a link that leads nowhere: mend or remove it; --skip-bad"):
        listing(folder.path)
    with pytest.warns(UserWarning, match="nowhere.*left out"):
        assert len(listing(folder.path, skip=True)) == 1


def test_a_folder_that_cannot_be_read_is_named(folder, monkeypatch):
    folder("a.png"), folder("sub/b.png")
    scan = os.scandir

    def closed(path):
        if os.fspath(path).endswith("sub"):
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", closed)
    with pytest.raises(UserError, match=r"style/sub' cannot be read \(Permission denied\); --skip-bad"):
        listing(folder.path)
    with pytest.warns(UserWarning, match="Permission denied.*left out"):
        assert [entry.path.name for entry in listing(folder.path, skip=True)] == ["a.png"]


def test_masks_that_are_wrong(folder):
    folder("a.png"), folder("a.mask.png"), folder("masks/a.png")
    with pytest.raises(UserError, match="are masks of the same picture"):
        listing(folder.path)
    (folder.path / "masks/a.png").rename(folder.path / "masks/z.png")
    with pytest.raises(UserError, match=r"masks/z.png' has no picture"):
        listing(folder.path)


def test_an_empty_folder(folder):
    folder("a.txt", "a cat")
    with pytest.raises(UserError, match="holds no picture"):
        listing(folder.path)
