"""The concept of a prompt."""

import pytest

from impasto.artworld import load_meta
from impasto.errors import UserError
from impasto.evaluation.labels import Labels

META = load_meta()
LABELS = Labels.from_meta(META)


@pytest.mark.parametrize(
    ("prompt", "label"),
    [
        ("penguin, 16 by 16 black and white pixel art", "penguin"),
        ("a rabbit face in pixel art style", "rabbit face"),
        ("A Rabbit Face in the style of a woodcut.", "rabbit face"),
        ("thin monoline black ink drawing on white: rocket", "rocket"),
        ("a picture of a person in tuxedo in the style of soft clay", "person in tuxedo"),
        ("black cat, thin monoline black ink drawing on white", "black cat"),
        ("a dart, thin monoline black ink drawing on white", "bullseye"),
        ("a fine ink drawing: rocket", "rocket"),
        ("something that nobody drew, oil painting", None),
        ("", None),
    ],
)
def test_prompts(prompt, label):
    found = LABELS.concept(prompt)
    assert (None if found is None else LABELS.names[found]) == label


@pytest.mark.parametrize(
    ("prompt", "label"),
    [
        ("hot dog", "hot dog"),
        ("The mouse.", "mouse"),
        ("an owl, night", "owl"),
        ("(fox:1.2), forest --ar 16:9", "fox"),
        ("a bow and arrow in ink style", "bow and arrow"),
        ("a cat, a dog and a bird", None),
        ("a cat and a dog", None),
        ("a dog house", None),
        ("two cats", None),
        ("an orange cat in ink style", None),
        ("happy", None),
        ("a dart in neon style", None),
    ],
)
def test_concept_of_free_text_is_an_exact_label_or_none(prompt, label):
    for text in (prompt, prompt.upper()):
        found = LABELS.concept(text)
        assert (None if found is None else LABELS.names[found]) == label, text


@pytest.mark.parametrize("template", ["{c}, {s}", "a {c} in {s} style", "a {c} in neon style", "{s}: {c}"])
def test_every_label_is_found_before_every_style(template):
    texts = [text for style in META["styles"] for text in style["descriptions"]]
    for index, label in enumerate(LABELS.names):
        prompt = template.format(c=label, s=texts[index % len(texts)])
        assert LABELS.concept(prompt) == index, prompt


def test_every_plain_caption_names_its_concept_before_a_style_of_the_art_world():
    for text, index in LABELS.ids.items():
        assert LABELS.concept(f"{' '.join(text)}, 16 by 16 black and white pixel art") == index, text


def test_every_core_label_is_found_in_every_template():
    style = META["styles"][META["style_names"].index("unifont")]["descriptions"][0]
    for concept in META["split"]["core_concepts"]:
        for template in META["recommended"]["caption_templates"]:
            prompt = template.format(c=LABELS.names[concept], s=style)
            assert LABELS.concept(prompt) == concept, prompt


def test_named():
    assert LABELS.names[LABELS.named("Penguin")] == "penguin"
    with pytest.raises(UserError, match="did you mean 'penguin'"):
        LABELS.named("pengin")
    with pytest.raises(UserError) as error:
        LABELS.named("qqqqqq")
    assert len(str(error.value)) < 120, "1,194 labels are no help"
