"""Which concept a prompt asks for, None where that is not certain.

First the text before the style, or up to a comma, as a whole: a label or a caption ("a hot dog, ink style"). Else what
its first noun phrase ends in (phrases.py). Of the captions only those count that name the thing (lexicon.py): moods and
doings ("happy", "sleeping"), general words of which there are several ("moon", "boat") and an entry's keywords do not.
Before one of the art world's own descriptions every caption counts, as a whole: so its bases have learnt it.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from impasto.errors import UserError, nearest
from impasto.evaluate.lexicon import NAMING, NOT_NAMING, SAME
from impasto.evaluate.phrases import others, subject, tokens

WORDS = re.compile(r"[\w'’]+")
STYLE_TAIL = re.compile(r"(.*)\bin (the style of\b.*|(an? |the )?[^,:]*\bstyle\b.*)$")
SETTINGS = re.compile(r"\s--\w+(\s+[\w.:]+)?|:\d[\d.]*(?!\w)")  # --ar 16:9, (cat:1.2)
ARTICLE = re.compile(r"^(an?|the) ")
BEFORE_STYLE = re.compile(r"\s(in|drawn as|in the style of)$")


@dataclass(frozen=True)
class Labels:
    """The names of the art world's concepts. `ids`: words -> concept; a caption of two concepts is left out."""

    names: tuple[str, ...]
    ids: Mapping[tuple[str, ...], int]
    styles: tuple[str, ...]  # style descriptions, lower case, longest first
    things: Mapping[tuple[str, ...], int]  # those of `ids` that name a thing in free text

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
        return cls(names, ids, tuple(sorted(texts, key=len, reverse=True)), _things(names, ids))

    def concept(self, prompt: str) -> int | None:
        """The concept of a prompt, None when no known name stands in it, or it is not certain which one is meant.

        Only the words apart from the style are read: "{concept}, {style}", "{concept} in {style} style",
        "{style}: {concept}". What comes after in, on, with, ... is not the subject; "a cat and a dog" is None.
        """
        text = SETTINGS.sub("", prompt.lower())
        plain = text
        for style in self.styles:
            text = text.replace(style, " , ")
        known = self.ids if text != plain else self.things
        text = STYLE_TAIL.sub(r"\1", text).split(":")[-1].strip(" ,.")
        parts = text.split(",")
        for end in range(len(parts), 0, -1):
            whole = BEFORE_STYLE.sub("", ",".join(parts[:end]).strip())
            for exact in (words(whole), words(ARTICLE.sub("", whole))):
                if exact in known:
                    more = others(",".join(parts[end:]), known[exact], self.things, self.names)
                    return None if more else known[exact]
        return subject(text, self.things, self.names)

    def named(self, label: str) -> int:
        """The concept of a label or caption given by hand. UserError (nearest named) when it is unknown."""
        found = self.ids.get(words(label))
        if found is None:
            close = nearest(label.lower(), self.names).split(" known:")[0]
            hint = close if close.startswith("did you mean") else "the art world's meta lists them"
            raise UserError(f"unknown concept {label!r}: {hint}")
        return found


def _things(names: tuple[str, ...], ids: Mapping[tuple[str, ...], int]) -> dict[tuple[str, ...], int]:
    labels = {words(name) for name in names}
    naming = {k for k in ids if (k[0] in NAMING if len(k) == 1 else " ".join(k) not in NOT_NAMING)}
    found = {key: ids[key] for key in naming | labels}
    found |= {words(text): ids[words(label)] for text, label in SAME.items() if words(label) in ids}
    return {tokens(name): index for index, name in enumerate(names)} | found


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
    """The concept of each prompt; None where there is no prompt or no known name in it."""
    return [labels.concept(prompt) if prompt else None for prompt in prompts]
