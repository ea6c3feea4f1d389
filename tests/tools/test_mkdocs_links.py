"""The mkdocs hook: links out of docs/ and to folders."""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools"))

from mkdocs_links import DOCS, replace_links  # noqa: E402  # pyright: ignore[reportMissingImports]

FORGE = "https://forge.example/me/impasto"


def test_link_out_of_docs_becomes_the_forges_address():
    text = "See [the card](../../src/impasto/models/mini-sd3/card.json) and [tests](../../tests)."
    replaced = replace_links(text, DOCS / "results", FORGE)
    assert replaced == (
        f"See [the card]({FORGE}/blob/main/src/impasto/models/mini-sd3/card.json) and [tests]({FORGE}/tree/main/tests)."
    )
    assert replace_links(text, DOCS / "results", None) == "See the card and tests."


def test_link_to_a_folder_leads_to_its_page():
    assert replace_links("[a](results/)", DOCS, FORGE) == "[a](results/README.md)"
    assert replace_links("[log](log/)", DOCS, FORGE).startswith("[log](log/20")
    assert replace_links("[x](images/)", DOCS, FORGE) == "x"


def test_other_links_stay():
    text = "[a](noise.md#recipes) [b](https://arxiv.org) [c](#here) ![d](images/demo.png) [e](mailto:me@x.org)"
    assert replace_links(text, DOCS, FORGE) == text
