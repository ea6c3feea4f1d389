"""Names, uploads and messages: nothing leads out of the workspace."""

import struct
import zlib
from pathlib import Path

import pytest
from PIL import Image

from impasto.errors import UserError
from impasto.studio import workspace as module
from impasto.studio.workspace import Workspace

TRAVERSALS = [
    *("../secret", "styles/../../secret", "/etc/passwd", "styles//etc/passwd", "styles/..", "..", ".", "", "styles/"),
    *("~/secret", "styles/~root", ".studio/queue.sqlite", "styles/.hidden", "styles\\..\\..\\secret", "C:/Windows/x"),
    *("file:///etc/passwd", "styles/a\0b", " styles/a", "styles/./a", "references/../.studio/queue.sqlite", "\n/etc"),
    *("styles/link/secret", "styles/link"),
]


@pytest.fixture
def place(tmp_path):
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_text("secret")
    found = Workspace(tmp_path / "workspace")
    (found.root / "styles" / "link").symlink_to(tmp_path / "outside")
    return found


@pytest.mark.parametrize("name", TRAVERSALS)
def test_inside_name_out_of_the_workspace_is_refused(place, name):
    with pytest.raises(UserError) as caught:
        place.inside(name)
    assert str(place.root) not in str(caught.value)


def test_inside_name_of_another_kind_is_refused(place):
    assert place.inside("styles/ink", "styles") == place.root / "styles" / "ink"
    for name in ("images/ink", "styles"):
        with pytest.raises(UserError, match="is not in styles"):
            place.inside(name, "styles")


@pytest.mark.parametrize("name", ["../x", "a/b", ".x", "", "a b", "x" * 65, "a\n"])
def test_new_bad_name_is_refused(place, name):
    with pytest.raises(UserError, match="cannot be a name"):
        place.new("styles", name)


@pytest.mark.parametrize("base", ["../../base", "/opt/base", "./base", "styles/link", "bases/none", "a/..", "", None])
def test_check_base_path_is_refused(place, base):
    with pytest.raises(UserError, match="unknown base"):
        place.check_base(base)


def test_check_base_names_and_hub_ids_pass(place):
    (place.root / "bases" / "own").mkdir(parents=True)
    (place.root / "bases" / "own" / "model_index.json").write_text("{}")
    for base in ("mini-sd3", "black-forest-labs/FLUX.1-dev", "someone/their-model", "bases/own"):
        assert place.check_base(base) == base


def test_check_recipe_file_is_refused(place):
    assert place.check_recipe("style-friendly") == "style-friendly"
    with pytest.raises(UserError, match="unknown recipe"):
        place.check_recipe("../secret.toml")


def upload(place, name: str, data: bytes) -> Path:
    file = place.root / "upload" / name
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(data)
    return file


def png_header(width: int, height: int) -> bytes:
    """A PNG whose header states a size that its pixels do not fill."""
    parts = (b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0), b"IDAT" + zlib.compress(bytes(9)))
    chunks = (struct.pack(">I", len(one) - 4) + one + struct.pack(">I", zlib.crc32(one)) for one in parts)
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"#!/bin/sh\nrm -rf /", "not a picture"),
        (b"", "is empty"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not a picture"),
        (png_header(60_000, 60_000), "too large"),
        (png_header(100, 100), "damaged"),
    ],
)
def test_add_reference_hostile_file_is_refused(place, data, message):
    file = upload(place, "cat.png", data)
    with pytest.raises(UserError, match=message) as caught:
        place.add_reference(file, "cat.png")
    assert str(place.root) not in str(caught.value)
    assert not file.exists() and not list((place.root / "references").iterdir())


def test_add_reference_too_many_bytes_or_pixels_is_refused(place, monkeypatch, picture):
    monkeypatch.setattr(module, "MAX_BYTES", 100)
    with pytest.raises(UserError, match="larger than"):
        place.add_reference(upload(place, "a.png", picture.read_bytes()), "a.png")
    monkeypatch.undo()
    monkeypatch.setattr(module, "MAX_SIDE", 30)
    with pytest.raises(UserError, match="larger than 30 pixels"):
        place.add_reference(upload(place, "a.png", picture.read_bytes()), "a.png")


def test_add_reference_keeps_the_bytes_under_a_plain_name(place, picture):
    data = picture.read_bytes()
    first = place.add_reference(upload(place, "x.png", data), "../../Flying Röcket!.PNG")
    assert first == "references/flying-r-cket.png"
    assert (place.root / first).read_bytes() == data
    assert place.add_reference(upload(place, "x.png", data), "Flying Röcket!.PNG") == first
    Image.new("RGB", (40, 40)).save(place.root / "upload" / "x.png")
    assert (
        place.add_reference(place.root / "upload" / "x.png", "Flying Röcket!.PNG") == "references/flying-r-cket-2.png"
    )


def test_scrub_message_names_no_path_of_the_machine(place):
    text = f"image '{place.root}/references/a.png' is damaged; see /home/me/.cache/x/y.log, https://hf.co/a/b and t/u"
    said = "image 'references/a.png' is damaged; see y.log, https://hf.co/a/b and t/u"
    assert place.scrub(text) == said
