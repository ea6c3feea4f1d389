"""The commands in the documentation: every flag of `impasto train` and `generate` in a shell block exists."""

import re
import shlex
from pathlib import Path

import pytest

from impasto.cli.console import parse
from impasto.cli.generate import command_class
from impasto.cli.settings import parse_config

DOCS = Path(__file__).parents[1] / "docs"
BLOCK = re.compile(r"^ *```(?:sh|bash)?\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
PLACEHOLDERS = ("...", "FOLDER", "FILE", "PATH", "NAME", "|", "--help")


def commands(page: Path) -> list[list[str]]:
    """The words of each `impasto train` or `impasto generate` in a page's shell blocks."""
    found = []
    for block in BLOCK.findall(page.read_text(encoding="utf-8")):
        for line in block.replace("\\\n", " ").replace('"$(which impasto)"', "impasto").splitlines():
            start = re.search(r"impasto (train|generate) ", line)
            words = shlex.split(line[start.start() :], comments=True) if start else []
            if len(words) > 2 and not any(mark in word for word in words for mark in PLACEHOLDERS):
                found.append(words[1:])
    return found


PAGES = {str(page.relative_to(DOCS)): found for page in sorted(DOCS.rglob("*.md")) if (found := commands(page))}


def check(action: str, flags: list[str]) -> None:
    """Raise SystemExit where a flag does not exist."""
    if action == "train":
        parse_config([one for one in flags if one != "--dry-run"], "train")
    else:
        parse(command_class(), flags, "generate")


def test_pages_with_commands_are_found():
    assert {"quick-start.md", "howto/captions.md", "style-friendly.md"} <= set(PAGES)
    assert sum(map(len, PAGES.values())) > 20
    with pytest.raises(SystemExit):
        check("train", ["--image", "a.png", "--strenght", "1"])


@pytest.mark.parametrize("page", PAGES)
def test_flags_of_commands_exist(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for action, *flags in PAGES[page]:
        try:
            check(action, flags)
        except SystemExit:
            pytest.fail(f"{page}: impasto {action} {shlex.join(flags)}")
