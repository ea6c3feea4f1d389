"""Which concept a prompt asks for: the longest known label or caption in the text that stands before the style."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from impasto.errors import UserError, nearest

WORDS = re.compile(r"[\w'’]+")
STYLE_TAIL = re.compile(r"(.*)\bin (the style of\b.*|(an? |the )?[^,:]*\bstyle\b.*)$")


@dataclass(frozen=True)
class Labels:
    """The names of the art world's concepts. `ids`: words -> concept; a caption of two concepts is left out."""

    names: tuple[str, ...]
    ids: Mapping[tuple[str, ...], int]
    styles: tuple[str, ...]  # style descriptions, lower case, longest first

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
        """The concept of a prompt, None when no known name stands in it.

        Only the words apart from the style are searched: "{concept}, {style}", "{concept} in {style} style",
        "{style}: {concept}". A prompt of several objects gives one of them.
        """
        text = prompt.lower()
        for style in self.styles:
            text = text.replace(style, " , ")
        text = STYLE_TAIL.sub(r"\1", text).split(":")[-1].strip(" ,.")
        return self.ids.get(words(text), self._longest(words(text.split(",")[0])))

    def _longest(self, text: tuple[str, ...]) -> int | None:
        spans = ((i, j) for i in range(len(text)) for j in range(i + 1, len(text) + 1) if text[i:j] in self.ids)
        best = max(spans, key=lambda span: (len(" ".join(text[span[0] : span[1]])), -span[0]), default=None)
        return None if best is None else self.ids[text[best[0] : best[1]]]

    def named(self, label: str) -> int:
        """The concept of a label or caption given by hand. UserError (nearest named) when it is unknown."""
        found = self.ids.get(words(label))
        if found is None:
            close = nearest(label.lower(), self.names).split(" known:")[0]
            hint = close if close.startswith("did you mean") else "the art world's meta lists them"
            raise UserError(f"unknown concept {label!r}: {hint}")
        return found


def words(text: str) -> tuple[str, ...]:
    """Lower-case words of a text, punctuation dropped."""
    return tuple(WORDS.findall(text.lower()))


def read_concepts(path: Path | str, count: int, labels: Labels) -> list[int | None]:
    """Concepts from a file with one label per line, one line per image in name order; an empty line is "unknown"."""
    try:
        lines = Path(path).read_text(encoding="utf-8").rstrip("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"concepts file {path} cannot be read: {error}") from None
    if len(lines) != count:
        raise UserError(f"{path} has {len(lines)} lines for {count} images: write one label per image, in name order")
    return [labels.named(line) if line.strip() else None for line in lines]


def concepts_of(prompts: Iterable[str | None], labels: Labels) -> list[int | None]:
    """The concept of each prompt; None where there is no prompt or no known name in it."""
    return [labels.concept(prompt) if prompt else None for prompt in prompts]
