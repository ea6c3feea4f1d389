"""What a prompt is about: the name that its first noun phrase ends in, None where that is not certain.

    subject("two small orange cats asleep in the rain") -> cat

A name counts when only articles, numbers, qualities, words of a style and -ing or -ed forms stand before it: "a dog
house" and "a rock star" name nothing, as two nouns make a third thing. Plurals are taken. What comes after the subject
(in, on, with, wearing a ...) is not read; "and" between two things names nothing.
"""

import re
from collections.abc import Iterator, Mapping, Sequence

from impasto.evaluate import lexicon as lex

Words = tuple[str, ...]
Names = Mapping[Words, int]
WORDS = re.compile(r"[\w'’]+|[&+]")
SEPARATOR = re.compile(r"[,;|!?()\[\]{}\n]|(?<!mrs)(?<!\bst)\.(?:\s|$)|\s[-–—]+\s|[–—]")
COMPOUND = re.compile(r"(?<=\w)-(?=\w+(?:ing|ed)\b)")  # fire-breathing, snow-covered: one word


def tokens(text: str) -> Words:
    """Lower-case words; "fire-breathing" and "snow-covered" stay one, & and + are "and"."""
    found = WORDS.findall(COMPOUND.sub("_", text.lower()))
    return tuple("and" if word in "&+" else word for word in found)


def subject(text: str, names: Names, labels: Sequence[str]) -> int | None:
    """The thing that a text (its style cut off) is about. names: words -> thing; labels: thing -> label.

    Leading parts that only speak of style are skipped ("pixel art, a cat"); "a cat, a dog and a bird" is several
    things, so None.
    """
    parts = [part for part in map(tokens, SEPARATOR.split(text)) if part]
    while len(parts) > 1 and parts[0] not in names and all(_quality(w) for w in _bare(parts[0])):
        parts.pop(0)
    found = _thing(parts[0], names, labels) if parts else None
    return None if found is None or others(",".join(" ".join(p) for p in parts[1:]), found, names, labels) else found


def others(rest: str, found: int, names: Names, labels: Sequence[str]) -> bool:
    """Does the rest of a text list more things: ", a dog", ", a dog and a bird"? Bare words (", night") are none."""
    parts = [part for part in map(tokens, SEPARATOR.split(rest)) if part]
    listed = [part for part in parts if part[0] in lex.DETERMINERS or "and" in part]
    pieces = (tuple(piece.split()) for part in listed for piece in f" {' '.join(part)} ".split(" and "))
    return any(_thing(piece, names, labels) not in (None, found) for piece in pieces if piece)


def _thing(text: Words, names: Names, labels: Sequence[str]) -> int | None:
    if _bare(text) in names:
        return names[_bare(text)]
    while "of" in text[1:] and _seen_as(text[: text.index("of")]):
        text = text[text.index("of") + 1 :]
    for cut in range(len(text), 0, -1):
        if cut < len(text) and not _ends(text, cut):
            continue
        phrase = text[:cut]
        while phrase:
            if (found := _head(phrase, names, labels)) is not None:
                holds = text[len(phrase) : len(phrase) + 1] != ("of",) or phrase[-1] in lex.HOLDERS
                return found if holds else None
            if not (phrase[-1] in lex.AFTER or phrase[-1] in lex.STYLE or _verb(phrase[-1])):
                break
            phrase = phrase[:-1]
    return None


def _seen_as(before: Words) -> bool:
    """Is what stands before "of" a portrait, a pair, a slice ...?"""
    return bool(({before[-1]} | _singulars(before[-1])) & lex.SEEN_AS) and all(map(_quality, before[:-1]))


def _ends(text: Words, at: int) -> bool:
    """Does the noun phrase end before the word `at`?"""
    word, after = text[at], text[at + 1 : at + 2]
    if word in lex.STOPS or word == "of" or word in lex.CARRYING:
        return True
    return _verb(word) and (not after or after[0] in lex.DETERMINERS or after[0] in lex.STOPS or after[0] in lex.AFTER)


def _head(phrase: Words, names: Names, labels: Sequence[str]) -> int | None:
    """The thing whose name the phrase ends in, when nothing before it makes it another one."""
    for start in range(len(phrase)):
        name, before = phrase[start:], _bare(phrase[:start])
        known = next((key for key in _forms(name) if key in names), None)
        if known is None:
            continue
        other = bool(lex.ANOTHER_THING & set(before)) or any(f"{word} {known[-1]}" in lex.OTHERS for word in before)
        clash = lex.COLOURS & set(before) and lex.COLOURS & set(tokens(labels[names[known]]))
        colour = before and known[0] in lex.COLOURS and len(known) == 1  # "a big orange" may be a colour
        if _qualities(before) and not (other or clash or colour):
            return names[known]
    return None


def _qualities(before: Words) -> bool:
    """Only qualities, "and" between two of them."""
    inner = all(0 < i < len(before) - 1 for i, word in enumerate(before) if word == "and")
    return inner and all(word == "and" or (_quality(word) and word not in lex.DETERMINERS) for word in before)


def _quality(word: str) -> bool:
    known = any(word in words for words in (lex.COLOURS, lex.QUALITIES, lex.STYLE, lex.DETERMINERS)) or word.isdigit()
    return known or _verb(word) or (len(word) > 5 and word.endswith(lex.QUALITY_END) and word not in lex.NOUNS)


def _verb(word: str) -> bool:
    return word not in lex.NOUNS and word.endswith(("ing", "ed")) and len(word) > (5 if word.endswith("ing") else 4)


def _bare(text: Words) -> Words:
    """Without articles, numbers and the like at its beginning."""
    start = next((i for i, word in enumerate(text) if not (word in lex.DETERMINERS or word.isdigit())), len(text))
    return text[start:]


def _forms(name: Words) -> Iterator[Words]:
    """The name, its singulars, the plurals of one word."""
    yield name
    last = name[-1]
    yield from ((*name[:-1], word) for word in sorted(_singulars(last)))
    if len(name) == 1 and last not in lex.NO_PLURAL:
        yield (last + "s",)
        yield (last.removesuffix("y") + "ies",)


def _singulars(word: str) -> set[str]:
    if word in lex.IRREGULAR:
        return {lex.IRREGULAR[word]}
    if not word.endswith("s") or word.endswith("ss"):
        return set()
    found = {word[:-1]}
    if word.endswith("ies"):
        found.add(word[:-3] + "y")
    if word.endswith(("ches", "shes", "xes", "sses", "oes")):
        found.add(word[:-2])
    return found
