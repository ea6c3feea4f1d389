"""Captions in two parts: an object and the words of its style."""

import re
from dataclasses import dataclass

from impasto.errors import UserError

ARTICLE = re.compile(r"^(an?|the) ", re.I)
FORMS = (
    re.compile(r"(?P<object>.+) in the style of (?P<words>.+)", re.I),
    re.compile(r"(?P<object>.+) in (?P<words>.+) style", re.I),
    re.compile(r"(?P<object>[^,]+), (?P<words>.+)"),
)
"""Of captions: "a cat in the style of ukiyo-e", "a cat in neon sign style", "cat, flat icon with a thick outline"."""


@dataclass(frozen=True)
class StyleCaption:
    """A caption in two parts, `text[object]` and `text[words]`: the object with its article, and the style words."""

    text: str
    object: slice
    words: slice

    @property
    def thing(self) -> str:
        """The object without its article."""
        return ARTICLE.sub("", self.text[self.object], count=1)

    def prompt(self, thing: str, words: str | None = None) -> str:
        """The caption with another object, "a" or "an" before it where the caption's has an article, and, where they
        are given, other style words."""
        if ARTICLE.match(self.text[self.object]):
            thing = f"{'an' if thing[:1].lower() in tuple('aeiou') else 'a'} {thing}"
        parts = {self.object.start: (self.object, thing)}
        parts |= {} if words is None else {self.words.start: (self.words, words)}
        text = self.text
        for _, (part, new) in sorted(parts.items(), reverse=True):
            text = text[: part.start] + new + text[part.stop :]
        return text


def read_caption(caption: str, style_words: str = "") -> StyleCaption:
    """Find object and style words by `FORMS`; `style_words` overrules them and has to be part of the caption, behind
    the object. Raises UserError where one of them is missing."""
    caption = " ".join(caption.split())
    if style_words:
        at = caption.find(style_words)
        object_ = re.sub(r"(,| in the style of| in)\s*$", "", caption[: max(at, 0)], flags=re.I).rstrip()
        if at < 0 or not object_:
            raise UserError(
                f"the style words {style_words!r} do not follow an object in the caption {caption!r}: write them as "
                f"they are there, as in 'a cat in {style_words} style'"
            )
        return StyleCaption(caption, slice(0, len(object_)), slice(at, at + len(style_words)))
    found = next((match for form in FORMS if (match := form.fullmatch(caption))), None)
    if found is None:
        raise UserError(
            f"the caption {caption!r} has no style words: write 'a cat in neon sign style' or 'cat, neon sign', or "
            "name them with --style-words"
        )
    return StyleCaption(caption, slice(*found.span("object")), slice(*found.span("words")))
