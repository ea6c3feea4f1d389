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


ORDINARY = """
an orange cat in ink style|cat
a pixel art cat|cat
a happy dog|dog
a sleeping cat|cat
a running horse|horse
a cat in the rain|cat
a fire truck|fire engine
cats|cat
a portrait of a fox|fox
two cats and a dog|
a red car, night|automobile
the Eiffel tower|
hot dog|hot dog
two hot dogs on a plate|hot dog
a dog house|
a mouse|mouse
a wireless mouse|
a bat|bat
a baseball bat|
an owl sitting on a branch|owl
a black and white cat|cat
a small black cat|black cat
an orange and black cat|cat
a cat wearing sunglasses|cat
a man riding a horse|man
a cat playing guitar|
an orange|tangerine
an orange sleeping corgi|
a fire-breathing dragon|dragon
a big snow-capped mountain|snow-capped mountain
a cup of coffee|hot beverage
iced coffee|
a slice of pizza|pizza
a bouquet of roses|bouquet
a house of cards|
the moon|
a wave|
a blue car|automobile
a yellow apple|
a rubber duck|
a guinea pig|
a red panda|
a rock star|
a castle on a hill at sunset|castle
sunset over the sea|sunset
a little girl with a red balloon|girl
a knight in shining armor|
the Statue of Liberty at night|statue of liberty
a statue of a lion|
a robot dog|
a golden bow and arrow|bow and arrow
three wolves howling at the moon|wolf
watercolor, a fox|fox
masterpiece, best quality, a dragon flying over a castle|dragon
a cat, a dog and a bird|
cat icon|cat
fried chicken|
a chicken wing|
a man cooking|man
people camping|
a sad face|
a sky full of stars|
two hearts, ink|two hearts
a blue heart|blue heart
a cat made of glass|cat
happy|
a crying baby|baby
an astronaut riding a horse on the moon|astronaut
a photo of two dogs --ar 16:9|dog
(fox:1.2), forest|fox
a horse racing|horse racing
a toy car|
an orange and a cat|
a shaking hand|
close-up of an eye|eye
Spider-Man|
"""
"""Prompts as people write them, and what each asks for: nothing where that is not certain, never a wrong thing."""


@pytest.mark.parametrize("row", ORDINARY.split("\n")[1:-1])
def test_ordinary_prompts(row):
    prompt, label = row.split("|")
    for text in (prompt, prompt.upper(), f"{prompt}."):
        found = LABELS.concept(text)
        assert ("" if found is None else LABELS.names[found]) == label, text


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
