"""The concept of a prompt."""

import pytest

from impasto.artworld import load_meta
from impasto.errors import UserError
from impasto.evaluate.labels import Labels

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
        ("a dart in neon style", "bullseye"),
        ("a fine ink drawing: rocket", "rocket"),
        ("something that nobody drew, oil painting", None),
        ("", None),
    ],
)
def test_prompts(prompt, label):
    found = LABELS.concept(prompt)
    assert (None if found is None else LABELS.names[found]) == label


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
