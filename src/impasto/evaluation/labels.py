"""Which concept a prompt asks for: the label that stands before its style, exactly; None for anything else.

"a hot dog, ink style", "a drawing of a cat in neon sign style", "a fine ink drawing: rocket". Before one of the art
world's own style descriptions an unambiguous caption of a concept counts as well, since its bases have learnt them.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from impasto.errors import UserError, nearest

WORDS = re.compile(r"[\w'’]+")
STYLE_TAIL = re.compile(r"(.*)\bin (the style of\b.*|(an? |the )?[^,:]*\bstyle\b.*)$")
SETTINGS = re.compile(r"\s--\w+(\s+[\w.:]+)?|:\d[\d.]*(?!\w)")  # --ar 16:9, (cat:1.2)
ARTICLE = re.compile(r"^(?:an? (?:drawing|picture|icon) of )?(?:an?|the) |^an? (?:drawing|picture|icon) of ")
BEFORE_STYLE = re.compile(r"\s(in|drawn as|in the style of)$")


@dataclass(frozen=True)
class Labels:
    """The names of the art world's concepts. `ids`: words of a label or caption -> concept; a caption of two concepts
    is left out. `styles`: style descriptions, lower case, longest first."""

    names: tuple[str, ...]
    ids: Mapping[tuple[str, ...], int]
    styles: tuple[str, ...]

    @classmethod
    def from_meta(cls, meta: Mapping[str, Any]) -> "Labels":
        """From the art world's `meta.json`: labels win over captions, ambiguous captions name nothing."""
        names = tuple(concept["label"] for concept in meta["concepts"])
        owners: dict[tuple[str, ...], set[int]] = {}
        for index, concept in enumerate(meta["concepts"]):
            for caption in concept.get("captions", []):
                owners.setdefault(words(caption), set()).add(index)
        ids = {text: next(iter(owner)) for text, owner in owners.items() if len(owner) == 1}
        ids |= {words(name): index for index, name in enumerate(names)}
        texts = {text.lower() for style in meta["styles"] for text in style["descriptions"]}
        return cls(names, ids, tuple(sorted(texts, key=len, reverse=True)))

    def concept(self, prompt: str) -> int | None:
        """The concept of a prompt, None where no label stands before the style, or the rest lists another one."""
        text = SETTINGS.sub("", prompt.lower())
        plain = text
        for style in self.styles:
            text = text.replace(style, " , ")
        known = self.ids if text != plain else {words(name): i for i, name in enumerate(self.names)}
        text = STYLE_TAIL.sub(r"\1", text).split(":")[-1].strip(" ,.")
        parts = [part.strip() for part in text.split(",")]
        for end in range(len(parts), 0, -1):
            found = _exact(BEFORE_STYLE.sub("", ", ".join(parts[:end])), known)
            if found is not None:
                listed = [part for part in parts[end:] if ARTICLE.match(part) or " and " in part]
                more = {_exact(piece, known) for part in listed for piece in part.split(" and ")}
                return None if more - {None, found} else found
        return None

    def named(self, label: str) -> int:
        """The concept of a label or caption given by hand. UserError (nearest named) when it is unknown."""
        found = self.ids.get(words(label))
        if found is None:
            close = nearest(label.lower(), self.names).split(" known:")[0]
            hint = close if close.startswith("did you mean") else "the art world's meta lists them"
            raise UserError(f"unknown concept {label!r}: {hint}")
        return found


def _exact(text: str, known: Mapping[tuple[str, ...], int]) -> int | None:
    return known.get(words(text), known.get(words(ARTICLE.sub("", text.strip()))))


def words(text: str) -> tuple[str, ...]:
    """Lower-case words of a text, punctuation dropped."""
    return tuple(WORDS.findall(text.lower()))


def read_concepts(path: Path | str, count: int, labels: Labels) -> list[int | None]:
    """Concepts from a file with one label per line, one line per image in name order; an empty line is "unknown".

    A byte order mark, and one empty line more at the end, are passed over. UserError for another number of lines.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").removesuffix("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"concepts file {path} cannot be read: {error}") from None
    if len(lines) == count + 1 and not lines[-1].strip():
        lines.pop()
    if len(lines) != count:
        raise UserError(f"{path} has {len(lines)} lines for {count} images: write one label per image, in name order")
    return [labels.named(line) if line.strip() else None for line in lines]


def concepts_of(prompts: Iterable[str | None], labels: Labels) -> list[int | None]:
    """The concept of each prompt; None where there is no prompt or no label in it."""
    return [labels.concept(prompt) if prompt else None for prompt in prompts]
