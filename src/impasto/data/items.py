"""What a run trains on: every picture with its caption, its bucket, its crops and its mask, read and checked."""

import hashlib
import json
import warnings
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

from impasto.data import buckets, captions, folder, masks
from impasto.data.buckets import Shape, View
from impasto.data.companions import named
from impasto.data.concepts import Box, Concept, intersection, read_concepts
from impasto.data.config import DataConfig
from impasto.data.folder import Entry
from impasto.data.pairs import read_pairs, with_teacher_captions
from impasto.data.pictures import Picture, look
from impasto.data.references import NOTES, TRANSPARENT, enlarged
from impasto.errors import UserError
from impasto.progress import Progress, ignore

FEW = 8  # pictures that need no progress bar
KEPT = 32  # different captions that recipe.toml keeps
PREVIEWS = 4  # prompts of previews and captions in the card, where pictures bring many


@dataclass(frozen=True)
class Item:
    """A picture to train on. mask: a file, "alpha", or a box; mask_sha256 of the file. views: at least one, all of
    `shape`. teacher_caption: for the teacher of a distillation, None where it is given the caption. concept: the phrase
    of which this is the training pair, None for the whole picture with its own caption."""

    picture: Picture
    caption: str
    shape: Shape
    views: tuple[View, ...]
    repeats: int = 1
    mask: masks.Mask | None = None
    mask_sha256: str | None = None
    teacher_caption: str | None = None
    concept: str | None = None

    def fingerprint(self) -> list[Any]:
        """All that training depends on, for hashes."""
        own = [self.picture.sha256, self.caption, self.shape, self.repeats, self.mask_sha256 or self.mask]
        own += [] if self.teacher_caption is None else [self.teacher_caption]
        return own if self.concept is None else [*own, self.concept, [view.box for view in self.views]]


def read(
    config: DataConfig,
    base: str,
    card: Mapping[str, Any],
    progress: Progress = ignore,
    largest: int | None = None,
) -> list[Item]:
    """The items of `config.image`. base, card: for the step between buckets. largest: side of a bucket, see `Family`.

    progress: called after each image, where there are more than a few.

    Raises UserError on anything that cannot be used, or warns and leaves it out with `skip_bad`.
    """
    bucketed = config.buckets == "on" or (config.buckets == "auto" and any(path.is_dir() for path in config.image))
    step = buckets.step_of(card, base, config.size) if bucketed else None
    items, listed = [], entries(config)
    small: list[Path] = []
    for done, entry in enumerate(listed, 1):
        found = item(entry, config, step, largest, small)
        items += [found] if found else []
        if len(listed) > FEW:
            progress("reading images", done, len(listed))
    if small:
        warnings.warn(
            f"{len(small)} of {len(listed)} images have a side below min_side {config.min_side} and are left out "
            f"({named(small)})",
            stacklevel=2,
        )
    if not items:
        raise UserError("no picture is left to train on")
    say_notes(items, config.size, config.mask == "alpha")
    check_settings(config, items)
    return items if config.concept_file is None else with_concepts(items, config, base, step, largest)


def with_concepts(
    items: Sequence[Item], config: DataConfig, base: str, step: int | None, largest: int | None
) -> list[Item]:
    """The one picture and the training pairs of the concepts in `config.concept_file`, with the repeats that give them
    `config.concept_share` of the draws. Raises UserError."""
    assert config.concept_file is not None
    if len(items) != 1:
        raise UserError(f"{str(config.concept_file)!r} is of one image, and {len(items)} are given: give that one")
    whole = items[0]
    found = read_concepts(config.concept_file, whole.picture, base)

    def others_of(concept: Concept) -> tuple[Box, ...]:
        return tuple(other.box for other in found.concepts if other is not concept and other.box is not None)

    pairs = [
        concept_item(whole, concept, others_of(concept), fill(found.sub_prompt(concept), config), config, step, largest)
        for concept in found.concepts
    ]
    say_enlarged(pairs)
    odds = (1 - Fraction(config.concept_share).limit_denominator(100)) * len(pairs)
    times = odds / Fraction(config.concept_share).limit_denominator(100)
    pairs = [replace(one, repeats=times.denominator) for one in pairs]
    return [replace(whole, repeats=times.numerator), *pairs] if times else pairs


def concept_item(
    whole: Item,
    concept: Concept,
    others: Sequence[Box],
    caption: str,
    config: DataConfig,
    step: int | None,
    largest: int | None,
) -> Item:
    """The training pair of a concept: crops around its box, of which the boxes of the others do not count, or with mode
    "mask" the loss inside its box; the whole picture where it has none."""
    pair, picture, box = replace(whole, caption=caption, concept=concept.phrase), whole.picture, concept.box
    if box is None:
        return pair
    if config.concept_mode == "mask":
        pair = replace(pair, mask=(box, None))
    else:
        width, height = picture.width, picture.height
        shape = (config.size, config.size)
        if step:  # a region too small for any bucket is scaled up
            w, h = (round(side) for side in buckets.region_size(box, width, height))
            shape = buckets.choose(w, h, config.size, step, largest) or shape
            if shape[0] > w or shape[1] > h:
                shape = buckets.choose(w * config.size, h * config.size, config.size, step, largest) or shape
        name = f"{picture.sha256} {concept.phrase}"
        options = (config.concept_crops, config.concept_jitter, config.flip, name)
        pair = replace(pair, shape=shape, views=buckets.region_views(box, width, height, shape, *options))
        near = tuple(other for other in others if any(intersection(other, view.box) for view in pair.views))
        if near and pair.mask is None:
            pair = replace(pair, mask=(box, near))
    if pair.mask is not None:
        masks.check_left(picture, pair.mask, pair.mask_sha256, pair.views)
    return pair


def say_enlarged(pairs: Sequence[Item]) -> None:
    """Warn of crops that have fewer pixels than they are trained at."""
    small = {}
    for pair in pairs:
        left, top, right, bottom = pair.views[0].box
        if right - left < pair.shape[0]:
            small[pair.concept] = f"{round(right - left)} x {round(bottom - top)} to {pair.shape[0]} x {pair.shape[1]}"
    if small:
        which = ", ".join(f"{concept!r} {scaled}" for concept, scaled in small.items())
        warnings.warn(f"crops of concepts are scaled up ({which}): train at a smaller --size", stacklevel=2)


def pictures(items: Sequence[Item]) -> Sequence[Item]:
    """The items without those of concepts, which show parts of the same pictures."""
    return [one for one in items if one.concept is None] or items[:1]


def entries(config: DataConfig) -> list[Entry]:
    """The picture files that `config.image` names, each with its caption. Raises UserError when one has none."""
    if not config.image:
        raise UserError("no reference picture: give one with --image")
    files = [path for path in config.image if not path.is_dir()]
    if len(files) < len(config.image) and len(config.caption) > 1:
        raise UserError("several captions, but a folder: give one for all pictures without, and a .txt beside others")
    times = config.repeats * len(config.image) if len(config.repeats) == 1 else config.repeats
    if times and len(times) != len(config.image):
        raise UserError(f"{len(config.image)} times --image but {len(times)} times --repeats: give one for each")
    singles = iter(by_name(files, config))
    result: list[Entry] = []
    own_repeats: set[int] = set()
    for i, path in enumerate(config.image):
        found = in_folder(path, config) if path.is_dir() else [next(singles)]
        own_repeats |= {entry.repeats for entry in found}
        result += [replace(entry, repeats=times[i]) for entry in found] if times else found
    masked = [entry.mask for entry in result if entry.mask]
    if masked and config.mask == "off":
        count = "1 mask is" if len(masked) == 1 else f"{len(masked)} masks are"
        warnings.warn(f"{count} left out ({named(masked)}): --mask files weights the loss by them", stacklevel=2)
    if times and len(set(times)) == 1:
        say_same(times[0], own_repeats)
    if config.pairs:
        result = with_teacher_captions(result, read_pairs(config.pairs, lambda text: fill(text, config)), config.pairs)
    captions.warn_syntax([entry.caption or "" for entry in result], "captions")
    return [with_trigger(entry, config) for entry in result]


def with_trigger(entry: Entry, config: DataConfig) -> Entry:
    """With the teacher's caption, where there is one, as `captions.fill` completes it; the prefix is not for it."""
    if entry.teacher_caption is None:
        return entry
    return replace(entry, teacher_caption=captions.fill(entry.teacher_caption, trigger=config.trigger))


def say_same(times: int, own_repeats: Collection[int]) -> None:
    """Warn that --repeats makes all pictures count the same. own_repeats: those in the names of folders."""
    if len(own_repeats) > 1:
        counts = ", ".join(map(str, sorted(own_repeats)))
        what = f"--repeats {times} for all replaces what folders are called ({counts}): every picture counts the same"
    else:
        what = "repeats are the same for all pictures: no effect, since steps are counted"
    warnings.warn(what, stacklevel=2)


def by_name(files: Sequence[Path], config: DataConfig) -> list[Entry]:
    """Pictures given by their names: with the captions given, or with those beside them."""
    if not files:
        return []
    found = folder.singles(files, bool(config.caption))
    if not config.caption and any(entry.caption for entry in found):
        refuse_silent(found, "pictures")
    given = config.caption or [entry.caption for entry in found if entry.caption]
    filled = [fill(caption, config) if caption.strip() else caption for caption in given]
    pairs = captions.pair(files, filled, config.trigger)
    return [replace(entry, caption=caption) for entry, (_, caption) in zip(found, pairs, strict=True)]


def in_folder(path: Path, config: DataConfig) -> list[Entry]:
    """Pictures of a folder: with their own caption, or the one given, or the one in a kohya folder's name."""
    spare, listed = config.caption[0].strip() if config.caption else None, folder.listing(path, config.skip_bad)
    found = [replace(e, caption=e.caption or spare or e.spare) for e in listed]
    called = [e.spare for e in listed if e.spare and not e.caption and not spare]
    if called:
        names = ", ".join(map(repr, list(dict.fromkeys(called))[:3]))
        warnings.warn(
            f"{len(called)} of {len(found)} images in {str(path)!r} have no caption of their own: the name of their "
            f"folder becomes the caption, {names}",
            stacklevel=2,
        )
    refuse_silent(found, f"pictures in {str(path)!r}")
    return [replace(entry, caption=fill(entry.caption or "", config)) for entry in found]


def refuse_silent(found: Sequence[Entry], what: str) -> None:
    """Raise UserError when pictures have no caption."""
    silent = [entry.path for entry in found if not entry.caption]
    if silent:
        raise UserError(
            f"{len(silent)} of {len(found)} {what} have no caption ({named(silent)}): write "
            f"{silent[0].stem}.txt beside {silent[0].name}, or give one for all of them with --caption"
        )


def fill(caption: str, config: DataConfig) -> str:
    return captions.fill(caption, config.caption_prefix, config.trigger)


def item(entry: Entry, config: DataConfig, step: int | None, largest: int | None, small: list[Path]) -> Item | None:
    """One entry, checked. step: between buckets, None for squares. largest: side of a bucket. None when it cannot be
    used and is skipped, or is below `config.min_side` and added to `small`."""
    size = config.size
    try:
        picture = look(entry.path)
        if min(picture.width, picture.height) < config.min_side:
            small.append(entry.path)
            return None
        shape = buckets.choose(picture.width, picture.height, size, step, largest) if step else (size, size)
        if shape is None:
            raise UserError(
                f"image {str(entry.path)!r} is too small: {picture.width} x {picture.height} pixels, and it is not "
                f"scaled up; train at a smaller --size (it is {size}), or with --buckets off"
            )
        mask, mask_sha256 = None, None
        if config.mask == "files" and entry.mask:
            mask, mask_sha256 = entry.mask, masks.check(entry.mask, picture)
        elif config.mask == "alpha" and TRANSPARENT in picture.notes:
            mask = "alpha"
        options = (config.crops, config.flip, picture.sha256, config.crop_scale)
        views = buckets.views(picture.width, picture.height, shape, *options)
        if mask:
            masks.check_left(picture, mask, mask_sha256, views)
    except UserError as error:
        if not config.skip_bad:
            skippable = config.image != (entry.path,)
            raise UserError(f"{error}" + ("; --skip-bad leaves it out" if skippable else "")) from None
        warnings.warn(f"{error}: left out", stacklevel=2)
        return None
    caption = entry.caption or ""
    return Item(picture, caption, shape, views, entry.repeats, mask, mask_sha256, entry.teacher_caption)


def say_notes(items: Sequence[Item], size: int, by_alpha: bool) -> None:
    """Warn of what had to be decided: once for each thing, however many pictures it concerns."""
    found: dict[str, list[Item]] = {}
    for one in items:
        picture = one.picture
        if min(picture.width, picture.height) < size and one.shape == (size, size):
            found.setdefault(enlarged(picture.width, picture.height, size), []).append(one)
        for note in NOTES:
            if note in picture.notes and not (by_alpha and note == TRANSPARENT):
                found.setdefault(note, []).append(one)
    for note, those in found.items():
        paths = [one.picture.path for one in those]
        who = f"image {str(paths[0])!r}" if len(those) == 1 else f"{len(those)} images ({named(paths)}): each"
        warnings.warn(f"{who} {note}", stacklevel=2)


def check_settings(config: DataConfig, items: Sequence[Item]) -> None:
    """Warn of settings without effect, refuse what cannot be meant."""
    if config.mask != "off" and not any(one.mask for one in items):
        where = "a.mask.png beside a.png, or masks/a.png" if config.mask == "files" else "transparent pictures"
        raise UserError(f"--mask {config.mask}, but no picture has one: there must be {where}")
    if config.crops > 1 and all(len(one.views) <= 1 + config.flip for one in items):
        warnings.warn(f"crops {config.crops} has no effect: no picture is larger than what is cut out", stacklevel=2)


def expand_captions(config: DataConfig, items: Sequence[Item]) -> DataConfig:
    """The config with its images and captions listed one by one; of the captions the first few different ones."""
    texts = list(dict.fromkeys(one.caption for one in items))[:PREVIEWS]
    return replace(config, image=tuple(one.picture.path for one in pictures(items)), caption=tuple(texts))


def hashes(items: Sequence[Item]) -> dict[str, Any]:
    """references_sha256: of the pictures, one hash for all where there are more than 16; data_sha256: of everything."""
    references = [one.picture.sha256 for one in pictures(items)]
    if len(references) > 16:
        references = [hashlib.sha256("\n".join(references).encode()).hexdigest()]
    everything = json.dumps([one.fingerprint() for one in items])
    return {"references_sha256": references, "data_sha256": hashlib.sha256(everything.encode()).hexdigest()}


def caption_stats(items: Sequence[Item]) -> dict[str, Any]:
    """How many pictures, and their different captions in order, each with the number of its pictures; of more than KEPT
    the most common ones."""
    counts = Counter(one.caption for one in items)
    most = dict(counts.most_common(KEPT))
    kept = [caption for caption in counts if caption in most]
    return {"pictures": len(pictures(items)), "captions": kept, "caption_counts": [counts[caption] for caption in kept]}


def inside(one: Item) -> Box | None:
    """The region of its concept, where of the whole picture only that counts."""
    return one.mask[0] if isinstance(one.mask, tuple) and one.mask[1] is None else None


def summary(items: Sequence[Item]) -> dict[str, Any]:
    """Counts for `--dry-run`: pictures, captions, crops, masks, pictures per bucket and per number of repeats; of each
    concept its caption, what it shows and its share of the draws."""
    in_bucket, repeated = Counter(one.shape for one in items), Counter(one.repeats for one in items)
    draws = sum(one.repeats for one in items)
    concepts = [
        {
            "concept": one.concept,
            "caption": one.caption,
            "region": [round(side) for side in inside(one) or one.views[0].box],
            "mode": "mask" if inside(one) else "crop",
            "crops": len(one.views),
            "share": round(one.repeats / draws, 4),
        }
        for one in items
        if one.concept is not None
    ]
    return {
        "pictures": len(pictures(items)),
        "captions": len({one.caption for one in items}),
        "crops": sum(len(one.views) for one in items),
        "masks": sum(one.mask is not None for one in items),
        "buckets": {f"{width}x{height}": n for (width, height), n in sorted(in_bucket.items())},
        "repeats": {str(times): n for times, n in sorted(repeated.items())},
    } | ({"concepts": concepts} if concepts else {})
