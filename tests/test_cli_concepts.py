"""`impasto concepts`: what it writes, prints and refuses."""

import json
import sys

import pytest
from PIL import Image, ImageDraw

from impasto.cli.main import main

CAPTION = "a rocket and a cactus in pixel art style"


@pytest.fixture
def image(tmp_path):
    image = Image.new("RGB", (64, 64), "white")
    ImageDraw.Draw(image).rectangle((4, 4, 24, 24), fill="red")
    ImageDraw.Draw(image).ellipse((36, 30, 60, 60), fill="navy")
    image.save(tmp_path / "ref.png")
    return tmp_path / "ref.png"


def run(monkeypatch, capsys, *args):
    monkeypatch.setattr(sys, "argv", ["impasto", "concepts", *map(str, args)])
    with pytest.raises(SystemExit) as stop:
        main()
    return stop.value.code, capsys.readouterr()


def test_find_writes_the_file_and_an_overlay(monkeypatch, capsys, image):
    boxes = ("--boxes", "4,4,25,25; 36,30,61,61")
    code, out = run(monkeypatch, capsys, "find", image, "--caption", CAPTION, "--base", "mini-sd15", *boxes, "--json")
    folder = image.parent / "ref-concepts"
    assert code == 0, out.err
    assert json.loads((folder / "concepts.json").read_text())["concepts"][1]["box"] == [36, 30, 61, 61]
    assert Image.open(folder / "concepts.png").width == 640
    told = json.loads(out.out.splitlines()[-1])
    assert [row["prompt"] for row in told["concepts"]] == ["rocket in pixel art style", "cactus in pixel art style"]
    code, out = run(monkeypatch, capsys, "show", folder)
    assert code == 0 and "cactus (thing): [36, 30, 61, 61]" in out.out
    code, out = run(monkeypatch, capsys, "find", image, "--caption", CAPTION, *boxes)
    assert code == 2 and "--overwrite replaces it" in out.err


def test_find_with_a_base_writes_valid_regions(monkeypatch, capsys, image, tiny_sd15):
    args = ("--caption", CAPTION, "--base", tiny_sd15, "--finder", "error", "--device", "cpu")
    code, out = run(monkeypatch, capsys, "find", image, *args)
    assert code == 0 and "rocket (thing)" in out.out, out.err
    file = image.parent / "ref-concepts" / "concepts.json"
    assert {tuple(one["box"]) for one in json.loads(file.read_text())["concepts"]} == {(4, 4, 25, 25), (36, 30, 61, 61)}


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("find", "IMAGE", "--caption", CAPTION, "--boxes", "1,2,3"), "a box is left,top,right,bottom"),
        (("find", "IMAGE", "--caption", "a rocket and a cactus"), "names no style"),
        (("find", "none.png", "--caption", CAPTION), "does not exist"),
        (("find", "IMAGE", "--caption", CAPTION, "--concepts", "rocket;; cactus"), "an empty concept"),
        (("fnd",), "did you mean 'find'"),
        (("show", "nowhere"), "write it with `impasto concepts find`"),
    ],
)
def test_concepts_refuses(monkeypatch, capsys, image, args, message):
    code, out = run(monkeypatch, capsys, *[image if arg == "IMAGE" else arg for arg in args])
    assert code == 2 and message in out.err and len(out.err.strip().splitlines()) == 1
