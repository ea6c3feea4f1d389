"""Advice on pictures and captions for a style: what is likely to go wrong, and what to do. It never refuses.

What a caption says, the caption calls; what it leaves out goes into the style. So captions name the things that a
picture shows, call the style by one name, and leave the look of the style (its colours, its technique) unsaid.
"""

import re
from collections import Counter
from collections.abc import Sequence
from functools import partial

import numpy as np

from impasto.data.captions import STYLE_WORDS, TRIGGER, names_style, words
from impasto.data.companions import named
from impasto.data.config import DataConfig
from impasto.data.items import Item

COLOURS = """
red orange yellow green blue purple violet pink magenta cyan teal turquoise brown beige grey gray black white gold
golden silver colourful colorful vivid muted saturated desaturated neon pastel monochrome
"""
TECHNIQUES = """
brush brushstroke brushstrokes stroke strokes impasto hatching crosshatching stippling dots grain grainy texture
textured outline outlines outlined lineart linework contour contours gradient gradients shading shaded cel glow glowing
glossy matte flat watercolor watercolour gouache acrylic oil ink pencil crayon charcoal chalk pastel marker halftone
dithering pixel pixelated lowpoly isometric minimalist vector engraving etching woodcut linocut risograph bokeh
"""
STOP = """
a an the and or of in on at by with from to into over under behind beside near its his her their is are it as for some
one two three several many small large big little old young new thick thin bright dark light soft bold fine very
"""
SAME, ALIKE, FEW = 0.5, 3, 3  # share of captions; different bits of 64; pictures that a pattern needs
MOST_COMPARED = 2000  # pictures that are compared with all others: of more, a sample is enough for advice


def advise(items: Sequence[Item], config: DataConfig, prior: bool = False, preserved: Sequence[str] = ()) -> list[str]:
    """Lines of advice; `captions.check` is for the caption of a single image. prior: prior preservation is on.
    preserved: its captions."""
    captioned = [one for one in items if one.caption]
    checks = (uncalled, described_away, partial(same_thing, prior=prior, preserved=preserved), alike)
    return [line for check in checks if (line := check(captioned, config))]


def uncalled(items: Sequence[Item], config: DataConfig) -> str:
    """The trigger, or any word that names a style, is missing in captions of a folder."""
    silent = [one for one in items if not names_style(one.caption, config.trigger)]
    if not silent or not any(path.is_dir() for path in config.image):
        return ""
    count = f"{len(silent)} of {len(items)} captions ({named([one.picture.path for one in silent])})"
    if config.trigger:
        return f"{count} lack the trigger {config.trigger!r}: write {TRIGGER} in them, or --caption-prefix '{TRIGGER},'"
    return f"{count} name no style, so nothing will call it later: end them with 'in ... style', or use --trigger"


def described_away(items: Sequence[Item], config: DataConfig) -> str:
    """Captions say how the style looks: with a trigger, techniques in several captions; a colour in most of them."""
    found = Counter(word for one in items for word in set(content(one.caption, config.trigger)))
    colours, techniques = set(COLOURS.split()), set(TECHNIQUES.split())
    least = max(FEW, SAME * len(items))
    naming = [word for word, n in found.items() if word in colours and n >= least]
    if config.trigger:
        naming += [word for word, n in found.items() if word in techniques - colours and n >= min(2, len(items))]
    if not naming:
        return ""
    name = repr(config.trigger) if config.trigger else "the style's name"
    return (
        f"captions say how the style looks ({', '.join(sorted(naming)[:6])}): what they say is learnt by those words "
        f"instead of {name}; leave them out where they belong to the style"
    )


def same_thing(items: Sequence[Item], config: DataConfig, prior: bool = False, preserved: Sequence[str] = ()) -> str:
    """The same noun in every caption: the style may come with that thing only. A noun in `preserved` is the class of a
    subject, which prior preservation keeps."""
    if len(items) < FEW:
        return ""
    shared = set.intersection(*(set(content(one.caption, config.trigger)) for one in items))
    shared -= {*STOP.split(), *COLOURS.split(), *TECHNIQUES.split(), *(w for text in preserved for w in words(text))}
    first = [word for word in dict.fromkeys(words(items[0].caption)) if word in shared]
    if not first:
        return ""
    keep = "" if prior else ", or preserve what the base knows with --prior.weight 1"
    return (
        f"all {len(items)} captions say {' '.join(first[:4])!r}: the style may come with it everywhere; add pictures "
        f"of other things{keep}"
    )


def alike(items: Sequence[Item], config: DataConfig) -> str:
    """Pictures that are nearly the same: by their difference hashes, flat ones aside."""
    hashes = np.array([one.picture.dhash for one in items], dtype=np.int64).view(np.uint64)
    comparable = np.bitwise_count(hashes) > ALIKE
    pairs, count = [], 0
    for i in np.flatnonzero(comparable)[:MOST_COMPARED]:
        near = np.flatnonzero((np.bitwise_count(hashes[i + 1 :] ^ hashes[i]) <= ALIKE) & comparable[i + 1 :])
        pairs += [(i, i + 1 + j) for j in near[: 3 - len(pairs)]] if len(pairs) < 3 else []
        count += len(near)
    if not pairs:
        return ""
    some = "; ".join(named([items[i].picture.path, items[j].picture.path]) for i, j in pairs)
    more = f" and {count - 3} more" if count > 3 else ""
    what = "pair of pictures looks" if count == 1 else "pairs of pictures look"
    return f"{count} {what} nearly the same ({some}{more}): each counts by itself; keep one, or say so by --repeats"


def content(caption: str, trigger: str) -> list[str]:
    """The words of a caption that say what is shown: without its style phrase, the trigger and words for styles.

    A phrase reaches to a comma or an "in"; one with "style" in it is the style phrase.
    """
    known = {*words(trigger), *STYLE_WORDS.split()} - set(TECHNIQUES.split() if trigger else ())
    text = caption.lower().replace(trigger.lower(), " ") if trigger else caption.lower()
    phrases = [words(phrase) for phrase in re.split(r"[,;:.]|\bin\b", text)]
    return [word for phrase in phrases if not {"style", "styled"} & set(phrase) for word in phrase if word not in known]
