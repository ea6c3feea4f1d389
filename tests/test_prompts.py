"""The paper's own wordings."""

import pytest

from impasto.errors import UserError
from impasto.sampling.config import GenerateConfig
from impasto.sampling.prompts import lettering, multi_panel, read_prompts


def test_the_wordings_of_the_paper():
    assert multi_panel(["a red cartoon character", "a banana"]) == (
        "A humorous sequence featuring a red cartoon character and a banana in a multi-panel comic style"
    )
    assert multi_panel([" A banana "]) == "A banana in a multi-panel comic style"
    assert multi_panel(["a", "b", "c"], "ink") == "A humorous sequence featuring a, b and c in ink style"
    assert lettering("Hello", "neon") == "the words that says 'Hello' are written in English, in neon style"


def test_from_the_command_line():
    config = GenerateConfig(prompt=("a star",), panels=("a cat; a dog", "a moose"), letters=("Hi",), panel_style="ink")
    assert read_prompts(config) == [
        "a star",
        "A humorous sequence featuring a cat and a dog in ink style",
        "a moose in ink style",
        "the words that says 'Hi' are written in English, in ink style",
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"panels": ("a cat;; a dog",)}, "no subject in 'a cat;; a dog'"),
        ({"panels": ("",)}, "no subject"),
        ({"letters": (" ",)}, "letters are empty"),
        ({"letters": ("x",), "panel_style": " "}, "panel-style is empty"),
        ({"prompt": ("a cat",), "panel_style": "ink"}, "panel-style is of --panels and --letters"),
    ],
    ids=str,
)
def test_bad_input(changes, message):
    with pytest.raises(UserError, match=message):
        read_prompts(GenerateConfig(**changes))
