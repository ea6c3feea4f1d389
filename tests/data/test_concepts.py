"""Concepts: phrases of captions, the file, what is refused."""

import json
from dataclasses import replace

import pytest

from impasto.artworld import load_meta
from impasto.artworld.captions import join_labels
from impasto.data.concepts import (
    Concept,
    ConceptFile,
    iou,
    parse_caption,
    read_concepts,
    sub_prompt,
    with_boxes,
    write_concepts,
)
from impasto.data.pictures import look
from impasto.errors import UserError

SCENE = ("rocket", "teapot", "lion")


@pytest.mark.parametrize(
    ("caption", "phrases", "style"),
    [
        ("a rocket, a teapot and a lion, in flat vector style", SCENE, "flat vector"),
        (
            "a rocket and a lion in flat vector style on a red background",
            ("rocket", "lion", "red background"),
            "flat vector",
        ),
        ("a rocket and a lion in the style of Klee, on a red background", ("rocket", "lion", "red background"), "Klee"),
        ("A rocket, a teapot, and a lion in the style of Klee.", SCENE, "Klee"),
        ("a rocket, a teapot and a lion, flat vector art, bold lines", SCENE, "flat vector art, bold lines"),
        ("a rocket, skis and popcorn, ink drawing", ("rocket", "skis", "popcorn"), "ink drawing"),
        ("a cat and skis in pixel art style", ("cat", "skis"), "pixel art"),
        ("a cat and cooked rice in pixel art style", ("cat", "cooked rice"), "pixel art"),
        ("a fork and knife with a four leaf clover in ink style", ("fork and knife", "four leaf clover"), "ink"),
        (
            "two cats, a traffic light and an artist palette in ink style",
            ("two cats", "traffic light", "artist palette"),
            "ink",
        ),
        ("a black and white cat in pixel art style", ("black and white cat",), "pixel art"),
        ("a woman with a laptop in front of a bookshelf in flat cartoon style", ("woman", "laptop", "bookshelf"), None),
        ("a cat with wry smile on a white background in ink style", ("cat with wry smile", "white background"), "ink"),
        (
            "a drawing of a rocket and a lion, ink drawing, on a navy background",
            ("rocket", "lion", "navy background"),
            None,
        ),
    ],
)
def test_parse_caption_splits_phrases_from_style(caption, phrases, style):
    parsed = parse_caption(caption)
    assert tuple(concept.phrase for concept in parsed.concepts) == phrases
    assert style is None or parsed.style == style


def test_parse_caption_background_is_an_attribute():
    parsed = parse_caption("a rocket and a lion on a white background, in ink style")
    assert [concept.kind for concept in parsed.concepts] == ["thing", "thing", "attribute"]
    assert parsed.things == ("rocket", "lion")
    given = parse_caption("a rocket in ink style", phrases=("rocket", "Dark Background", "flat cartoon vector art"))
    assert [concept.kind for concept in given.concepts] == ["thing", "attribute", "attribute"]


def test_parse_caption_reads_every_description_of_the_art_world():
    labels = ["rocket", "cat with wry smile", "skis"]
    for style in load_meta()["styles"]:
        for words in style["descriptions"]:
            for ground in ("", ", on a navy background"):
                parsed = parse_caption(f"{join_labels(labels)}, {words}{ground}")
                assert (parsed.things, parsed.style) == (tuple(labels), words)


def test_parse_caption_reads_every_label_of_the_art_world():
    split = load_meta()["split"]
    for concept in {*split["core_everywhere"], *split["reference_concepts"]}:
        label = load_meta()["concepts"][concept]["label"]
        for labels in ([label, "ruler"], ["ruler", label], ["ruler", "abacus", label], [label, "ruler", "abacus"]):
            if label not in ("ruler", "abacus"):
                assert list(parse_caption(f"{join_labels(labels)}, ink drawing").things) == labels


def test_sub_prompt_has_the_form_of_the_caption():
    for caption, wanted in (
        ("a rocket and a lion in ink style", "rocket in ink style"),
        ("a rocket and a lion in the style of Klee", "rocket in the style of Klee"),
        ("a rocket and a lion, ink drawing", "rocket, ink drawing"),
    ):
        parsed = parse_caption(caption)
        assert sub_prompt(parsed.concepts[0].phrase, parsed.style, parsed.form) == wanted


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("in ink style",), "no concept in the caption"),
        (("a rocket and a lion",), "names no style"),
        (("a rocket, ink drawing", "pencil sketch"), "'pencil sketch' are not in the caption"),
        (("a rocket in ink style", None, ("rocket", " ")), "an empty concept"),
        (("a rocket and a rocket in ink style",), "'rocket' is named twice"),
    ],
)
def test_parse_caption_refuses(arguments, message):
    with pytest.raises(UserError, match=message):
        parse_caption(*arguments)


@pytest.fixture
def found(picture) -> ConceptFile:
    image = look(picture)
    concepts = (
        Concept("rocket", box=(0, 0, 20, 20), score=0.5),
        Concept("lion", box=(20, 20, 40, 40)),
        Concept("white background", "attribute"),
    )
    size = (image.width, image.height)
    form = "{concept} in {style} style"
    return ConceptFile(
        image.sha256, *size, "mini-sd15", "boxes", "a rocket and a lion in ink style", "ink", form, concepts
    )


def test_concept_file_written_is_read_back(found, picture, tmp_path):
    write_concepts(tmp_path / "concepts.json", found)
    assert read_concepts(tmp_path / "concepts.json", look(picture), "mini-sd15") == found
    assert found.sub_prompt(found.concepts[1]) == "lion in ink style"


def edited(found: ConceptFile, **changes) -> ConceptFile:
    """The first concept changed."""
    return replace(found, concepts=(replace(found.concepts[0], **changes), *found.concepts[1:]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"box": (0, 0, 41, 20)}, "'rocket' is outside the image of 40 x 40"),
        ({"box": (5, 5, 5, 20)}, "region of 'rocket' is empty"),
        ({"box": (0, 0, 40, 40)}, "region of 'rocket' is the whole image"),
        ({"box": (20, 20, 40, 39)}, "'rocket' and 'lion' have the same region"),
        ({"box": None}, "'rocket' has no box"),
        ({"kind": "attribute"}, "'rocket' is an attribute of the whole image"),
        ({"phrase": " "}, "has no phrase"),
    ],
)
def test_read_concepts_refuses_regions(found, tmp_path, changes, message):
    write_concepts(tmp_path / "concepts.json", edited(found, **changes))
    with pytest.raises(UserError, match=message):
        read_concepts(tmp_path / "concepts.json")


def test_read_concepts_warns_of_overlap_and_of_a_single_thing(found, tmp_path):
    file = tmp_path / "concepts.json"
    write_concepts(file, edited(found, box=(18, 18, 32, 32)))
    with pytest.warns(UserWarning, match=r"'rocket' and 'lion' overlap by 73%"):
        read_concepts(file)
    write_concepts(file, replace(found, concepts=(Concept("rocket"), found.concepts[2])))
    with pytest.warns(UserWarning, match="'rocket' is the only thing"):
        read_concepts(file)


def test_read_concepts_refuses_another_image_or_base(found, picture, tmp_path):
    file = tmp_path / "concepts.json"
    write_concepts(file, replace(found, image_sha256="0"))
    with pytest.raises(UserError, match="is of another image"):
        read_concepts(file, look(picture))
    with pytest.raises(UserError, match="is of the base 'mini-sd15', not 'mini-sd3'"):
        read_concepts(file, base="mini-sd3")


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda c: c | {"concept": []}, "unknown key 'concept': did you mean 'concepts'"),
        (lambda c: c | {"concepts": []}, "has no concept"),
        (lambda c: {k: v for k, v in c.items() if k != "style"}, "lacks 'style'"),
        (lambda c: c | {"concepts": [{"phrase": "rocket", "boxes": None}]}, "unknown key 'boxes': did you mean 'box'"),
        (lambda c: c | {"concepts": [{"phrase": "rocket", "kind": "object"}]}, "must be one of thing, attribute"),
        (lambda c: c | {"concepts": [{"phrase": "rocket", "box": [1, 2, 3]}]}, r"must be \[left, top, right, bottom\]"),
        (lambda c: c | {"concepts": ["rocket"]}, "concept 1 must be an object"),
    ],
)
def test_read_concepts_refuses_a_damaged_file(found, tmp_path, edit, message):
    file = tmp_path / "concepts.json"
    write_concepts(file, found)
    file.write_text(json.dumps(edit(json.loads(file.read_text()))))
    with pytest.raises(UserError, match=message):
        read_concepts(file)


def test_read_concepts_refuses_what_is_no_json(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        read_concepts(tmp_path / "none.json")
    (tmp_path / "bad.json").write_text("[")
    with pytest.raises(UserError, match="cannot be read"):
        read_concepts(tmp_path / "bad.json")


def test_with_boxes_gives_each_thing_its_own():
    parsed = parse_caption("a rocket on a white background with a lion in ink style")
    placed = with_boxes(parsed, [((0, 0, 2, 2), 0.1), ((2, 2, 4, 4), None)])
    assert [concept.box for concept in placed] == [(0, 0, 2, 2), None, (2, 2, 4, 4)]


def test_iou_of_boxes():
    assert iou((0, 0, 2, 2), (1, 0, 3, 2)) == pytest.approx(1 / 3)
    assert iou((0, 0, 2, 2), (2, 0, 3, 2)) == 0
