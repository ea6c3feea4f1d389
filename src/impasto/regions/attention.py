"""Regions by cross-attention, FineStyle's way: where does the base look for the words of a phrase?

The noised image is denoised under its whole caption at log-SNR LEVELS (a masked-token base: with .3, .5 and .7 of
its tokens masked, lam = 2 log((1 - r) / r)). Attention probabilities of image tokens to text tokens are averaged over
heads, draws and the middle half of the layers: A [image tokens, text tokens]. Of concept j with tokens T_j

    M_j = mean_{t in T_j} A[:, t] - mean_{t in all T} A[:, t],   scaled to [0, 1]

is thresholded (Otsu), and the box of its largest component is the region. Cross-attention is a U-Net's `attn2`, and in
joint attention (SD3, FLUX) the part of image queries and text keys, after the softmax over both.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from impasto.data.concepts import Box
from impasto.data.references import to_tensor
from impasto.errors import UserError
from impasto.families.base import Family
from impasto.noise.random import generator
from impasto.regions import Region, Search
from impasto.regions.proposals import box_of, components

LEVELS = (1.7, 0.0, -1.7)
DRAWS = 4
PADDING = 0.1  # of a box's sides
LEAST_SIDE = 0.4  # of the image's shorter side
FALLBACK = 0.25  # of the image, where Otsu's threshold leaves next to nothing or nearly all


class Recorder:
    """An attention processor that records probabilities and leaves the output to the `inner` one."""

    def __init__(self, inner: Any, name: str, text_first: bool, maps: dict[str, Tensor]) -> None:
        self.inner, self.name, self.text_first, self.maps = inner, name, text_first, maps
        self.text = 0  # text tokens at the start, where image and text come as one sequence (FLUX's single blocks)

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
        **rest: Any,
    ) -> Any:
        if encoder_hidden_states is not None or self.text_first:
            found = probabilities(
                attn, hidden_states, encoder_hidden_states, image_rotary_emb, self.text_first, self.text
            )
            self.maps[self.name] = self.maps.get(self.name, 0) + found
        if image_rotary_emb is not None:
            rest["image_rotary_emb"] = image_rotary_emb
        return self.inner(
            attn,
            hidden_states,
            encoder_hidden_states=encoder_hidden_states,
            attention_mask=attention_mask,
            **rest,
        )


def probabilities(
    attn: Any,
    hidden: Tensor,
    text: Tensor | None,
    rotary: tuple[Tensor, Tensor] | None,
    text_first: bool,
    text_tokens: int,
) -> Tensor:
    """float32 [image tokens, text tokens]: of one attention layer, mean over the batch and heads.

    hidden (B, n, D), text (B, m, D'): the layer's inputs; text None: the first `text_tokens` of hidden are text.
    """
    from diffusers.models import embeddings

    rotate: Any = embeddings.apply_rotary_emb
    q, k = queries_and_keys(attn, hidden, text, text_first)
    if rotary is not None:
        q, k = rotate(q, rotary, sequence_dim=1), rotate(k, rotary, sequence_dim=1)
    image = words = slice(None)
    if text is None or is_joint(attn):
        m, tokens = text_tokens if text is None else text.shape[1], q.shape[1]
        image, words = (slice(m, None), slice(m)) if text_first else (slice(tokens - m), slice(tokens - m, None))
    found = []
    for head in range(q.shape[2]):  # one at a time: all of a large base's do not fit
        scores = q[:, image, head].float() @ k[:, :, head].float().transpose(1, 2) / q.shape[-1] ** 0.5
        found.append(scores.softmax(-1)[..., words].mean(0))
    return torch.stack(found).mean(0)


def is_joint(attn: Any) -> bool:
    """Whether image and text tokens attend to each other in one sequence."""
    return getattr(attn, "add_k_proj", None) is not None


def queries_and_keys(attn: Any, hidden: Tensor, text: Tensor | None, text_first: bool) -> tuple[Tensor, Tensor]:
    """(B, tokens, heads, channels) each, of one sequence in joint attention, else of `hidden` and `text`."""
    q = projected(attn, hidden, "to_q", "norm_q")
    if text is not None and not is_joint(attn):
        return q, projected(attn, text, "to_k", "norm_k")
    k = projected(attn, hidden, "to_k", "norm_k")
    if text is None:
        return q, k
    added_q, added_k = (projected(attn, text, f"add_{x}_proj", f"norm_added_{x}") for x in "qk")
    if text_first:
        return torch.cat([added_q, q], dim=1), torch.cat([added_k, k], dim=1)
    return torch.cat([q, added_q], dim=1), torch.cat([k, added_k], dim=1)


def projected(attn: Any, tokens: Tensor, layer: str, norm: str) -> Tensor:
    """(B, n, heads, channels) by a layer of `attn`, normed where it has that norm."""
    x = getattr(attn, layer)(tokens).unflatten(-1, (attn.heads, -1))
    normed = getattr(attn, norm, None)
    return x if normed is None else normed(x)


@contextmanager
def recording(family: Family, text: int) -> Iterator[dict[str, Tensor]]:
    """Inside, forward passes of the denoiser add their layers' probabilities to the dict, by the layers' names in
    order. text: text tokens of the condition."""
    denoiser, maps = family.denoiser, {}
    before = dict(denoiser.attn_processors)
    recorders = {name: Recorder(inner, name, family.text_first, maps) for name, inner in before.items()}
    for recorder in recorders.values():
        recorder.text = text
    denoiser.set_attn_processor(dict(recorders))
    try:
        yield maps
    finally:
        denoiser.set_attn_processor(before)


def phrase_rows(family: Family, caption: str, phrase: str) -> list[int]:
    """The rows of the condition's "text" that the phrase's words have in the caption.

    Raises UserError for a phrase that is not in the caption, or that no text encoder reads to its end.
    """
    match = re.search(rf"(?<!\w){re.escape(phrase)}(?!\w)", caption, re.I)
    if match is None:
        raise UserError(
            f"the concept {phrase!r} is not in the caption {caption!r}: the finder 'attention' needs its words"
        )
    rows = []
    for tokenizer, first, length in family.text_tokens():
        offsets = tokenizer(caption, return_offsets_mapping=True)["offset_mapping"]
        own = [i for i, (start, end) in enumerate(offsets) if start < match.end() and end > match.start()]
        if own and own[-1] < length - 1:  # the last row is the end's
            rows += [first + i for i in own]
    if not rows:
        raise UserError(f"the text encoder cuts off the concept {phrase!r}: shorten the caption {caption!r}")
    return rows


@torch.no_grad()
def attention_maps(family: Family, image: Image.Image, caption: str, phrases: Sequence[str], seed: int = 0) -> Tensor:
    """float32 [phrases, rows, columns] in [0, 1]: M_j, see above. image: of a size that the base takes."""
    rows = [phrase_rows(family, caption, phrase) for phrase in phrases]
    cond = family.encode_prompt([caption])
    x = family.encode_image(to_tensor(image))
    with recording(family, cond["text"].shape[1]) as maps:
        for level in LEVELS:
            lam = torch.full((DRAWS,), level, device=x.device)
            eps = torch.stack(
                [torch.randn(x.shape[1:], generator=generator(seed, k, f"attention {level}")) for k in range(DRAWS)]
            ).to(x.device)
            z = family.schedule.add_noise(x.expand(DRAWS, -1, -1, -1), eps, lam)
            family.predict(z, lam, {name: t.expand(DRAWS, *t.shape[1:]) for name, t in cond.items()})
    layers = list(maps.values())
    quarter = len(layers) // 4
    size = (x.shape[-2] // family.patch, x.shape[-1] // family.patch)
    mean = torch.stack([as_map(layer, size) for layer in layers[quarter : len(layers) - quarter]]).mean(0)
    content = mean[sorted({row for own in rows for row in own})].mean(0)
    found = torch.stack([mean[own].mean(0) - content for own in rows])
    low, high = found.amin((1, 2), keepdim=True), found.amax((1, 2), keepdim=True)
    return ((found - low) / (high - low).clamp_min(1e-12)).cpu()


def as_map(layer: Tensor, size: tuple[int, int]) -> Tensor:
    """[image tokens, text tokens] -> [text tokens, *size]; a U-Net's lower levels have fewer tokens."""
    scale = (layer.shape[0] / (size[0] * size[1])) ** 0.5
    grid = layer.T.unflatten(1, (round(size[0] * scale), -1))
    return interpolate(grid[None], size, mode="bilinear", align_corners=False)[0]


def region(found: Tensor, width: int, height: int) -> tuple[Box, float]:
    """The box of a map [rows, columns] in [0, 1], in pixels of an image of that size, and the map's mean inside less
    that outside."""
    values = interpolate(found[None, None], (height, width), mode="bilinear", align_corners=False)[0, 0].numpy()
    threshold = otsu(values)
    if not 0.01 <= (values >= threshold).mean() <= 0.6:
        threshold = float(np.quantile(values, 1 - FALLBACK))
    parts = components(values >= threshold)
    box = squared(box_of(parts[0]), width, height) if parts else (0, 0, width, height)
    inside = np.zeros_like(values, dtype=bool)
    inside[box[1] : box[3], box[0] : box[2]] = True
    outside = values[~inside].mean() if not inside.all() else 0.0
    return box, float(values[inside].mean() - outside)


def otsu(values: np.ndarray, bins: int = 64) -> float:
    """The threshold that divides values in [0, 1] into two classes with the largest variance between them.

    Otsu 1979, "A threshold selection method from gray-level histograms"."""
    counts, edges = np.histogram(values, bins=bins, range=(0, 1))
    centres = (edges[1:] + edges[:-1]) / 2
    weight = np.cumsum(counts)
    mean = np.cumsum(counts * centres)
    low, high = weight[:-1], weight[-1] - weight[:-1]
    with np.errstate(divide="ignore", invalid="ignore"):
        between = low * high * (mean[:-1] / low - (mean[-1] - mean[:-1]) / high) ** 2
    return float(edges[1:-1][np.nanargmax(between)])


def squared(box: Box, width: int, height: int) -> Box:
    """Padded by PADDING, at least LEAST_SIDE, square as far as the image allows, and within it."""
    side = max(box[2] - box[0], box[3] - box[1]) * (1 + 2 * PADDING)
    side = min(round(max(side, LEAST_SIDE * min(width, height))), width, height)
    left = min(max(0, round((box[0] + box[2] - side) / 2)), width - side)
    top = min(max(0, round((box[1] + box[3] - side) / 2)), height - side)
    return left, top, left + side, top + side


def find(search: Search) -> list[Region]:
    """Raises UserError as `phrase_rows` does."""
    width, height = search.image.size
    size = base_size(search.family, width, height)
    image = search.image.resize(size, Image.Resampling.LANCZOS)
    maps = attention_maps(search.family, image, search.caption, search.things, search.seed)
    found = [region(one, width, height) for one in maps]
    return [Region(box, round(score, 4)) for box, score in found]


def base_size(family: Family, width: int, height: int) -> tuple[int, int]:
    """(width, height) of about the base's own area and the image's proportions, in whole patches."""
    scale = int(family.card["size"]) / (width * height) ** 0.5
    largest = family.largest or width + height
    width, height = (max(1, round(side * scale / family.unit)) * family.unit for side in (width, height))
    return min(width, largest), min(height, largest)
