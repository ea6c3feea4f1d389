"""Rows of a claim's sheet."""

from types import SimpleNamespace

from impasto.reproduce.sheets import prompt_rows


def test_rows_show_the_first_image_of_a_prompt():
    spec = {"style": "ink", "prompts": ["cat, ink", "dog, ink"]}
    one, several = SimpleNamespace(spec=spec), SimpleNamespace(spec=spec | {"count": 3})
    assert dict(prompt_rows({"u": one}, ["u"])) == {"ink: cat": ("u", 0), "ink: dog": ("u", 1)}
    assert dict(prompt_rows({"u": several}, ["u"])) == {"ink: cat": ("u", 0), "ink: dog": ("u", 3)}
