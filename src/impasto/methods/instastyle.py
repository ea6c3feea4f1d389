"""InstaStyle (Cui et al. 2023, arXiv 2311.15040), stage 1: the inversion noise of one image carries its style.

    z_T = invert(I, C(o_I, s))                                                  I the reference of object o_I
    I_k = sample(z_T, C(o_k, s), w = 2.5),    k = 1 .. 15                        the style words s the same in all
    keep the n = 5 of least max(rank of style, rank of content)                 Algorithm 1, lines 1 to 4

C(o, s) is the reference's caption with its object replaced. Style is CLIP(I_k, I), content CLIP(I_k, C(o_k, s)), each
ranked from 1, the highest first. No training; a rectified flow takes Euler steps in place of DDIM's.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image

from impasto.errors import UserError
from impasto.evaluation.encoders import Encoder
from impasto.families.base import Family
from impasto.inversion import sample
from impasto.inversion.noise_file import InversionNoise
from impasto.sampling.sample import as_image

GUIDANCE, SELECTED = 2.5, 5
PAPER_OBJECTS = (
    *("cat", "lighthouse", "volcano", "goldfish", "table lamp", "tram", "palace", "tower", "cup", "desk", "chair"),
    *("pot", "laptop", "door", "car"),
)
EMBEDDED_OBJECTS = (
    *("dog", "horse", "tropical fish", "snail", "rose", "mushroom", "strawberry", "birthday cake", "umbrella"),
    *("violin", "automobile", "ship", "red paper lantern", "telephone", "door"),
)
"""Core concepts of the art world that all primary styles have, neither evaluation nor reference concepts."""

ARTICLE = re.compile(r"(an?|the) ", re.I)
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


def default_objects(family: Family) -> tuple[str, ...]:
    """The 15 objects of stage 1: the paper's, or those that an embedded base knows."""
    return EMBEDDED_OBJECTS if family.card.get("embedded") else PAPER_OBJECTS


@torch.no_grad()
def generate_candidates(
    family: Family,
    noise: InversionNoise,
    prompts: Sequence[str],
    *,
    guidance: float = GUIDANCE,
    negative: str = "",
    batch: int | None = None,
) -> list[Image.Image]:
    """One image per prompt, all from the same inversion noise, `batch` at once (all by default).

    Raises UserError for noise of another base.
    """
    noise.check(family.hash, noise.info.size)
    cond, empty = family.encode_prompt(prompts), family.encode_prompt([negative])
    z = sample(family, noise.noise, noise.log_snr, cond, negative=empty, guidance=guidance, batch=batch)
    pixels = torch.cat([family.decode(part) for part in z.split(batch or len(z))])
    return [as_image(image) for image in (pixels.float().cpu().clamp(-1, 1) + 1) / 2]


def score_candidates(
    images: Sequence[Image.Image], prompts: Sequence[str], reference: Image.Image, encoder: Encoder
) -> tuple[list[float], list[float]]:
    """(style, content) of each image: cosines with the reference and with its own prompt, in [-1, 1].

    Raises UserError for an encoder without a text tower.
    """
    found, texts = encoder.images(images), encoder.texts(prompts)
    if texts is None:
        raise UserError(f"encoder {encoder.name} reads no text, which content is scored by: name a CLIP")
    return (found @ encoder.images([reference])[0]).tolist(), (found * texts).sum(1).tolist()


def select_candidates(style: Sequence[float], content: Sequence[float], n: int = SELECTED) -> list[int]:
    """Indices of the n candidates of least max(rank_style, rank_content), the best first.

    Equal ones by the sum of the ranks, then by the rank of style. Raises UserError unless 1 <= n <= candidates.
    """
    if not 1 <= n <= len(style):
        raise UserError(f"{n} of {len(style)} candidates cannot be selected")
    pairs = list(zip(ranks(style), ranks(content), strict=True))
    return sorted(range(len(pairs)), key=lambda i: (max(pairs[i]), sum(pairs[i]), pairs[i][0]))[:n]


def ranks(scores: Sequence[float]) -> list[int]:
    """Ranks from 1, the highest score first; of equal scores the earlier one."""
    order = sorted(range(len(scores)), key=lambda i: -scores[i])
    return [rank for _, rank in sorted(zip(order, range(1, len(order) + 1), strict=True))]
