"""StyleAligned (Hertz et al. 2023, arXiv 2312.02133): pictures in the style of a reference, with no training.

The reference is row 0 of every batch. In each self-attention, with Q, K, V of a row and Q_r, K_r, V_r of row 0,

    Attention(AdaIN(Q, Q_r), [AdaIN(K, K_r), K_r], [V, V_r]),   AdaIN(x, y) = std(y) (x - mean(x)) / std(x) + mean(y)

where image tokens take the reference's mean and spread, per head and channel over the tokens, and every token
of the row attends to its own row and to the reference's image tokens; to its text tokens never. The reference attends
to itself alone, so no picture depends on another. Halves of a guided batch are kept apart: unconditional rows look at
the unconditional reference, conditional ones at the conditional.

Decided here: AdaIN comes after the norm of queries and keys, which would undo its scale, and before the rotary
embedding (FLUX), which turns each token by its place, so that a mean over turned tokens would mean nothing; the
reference's keys then carry the same places as the row's own. The reference is real, so it is inverted, and at every
step its latents *are* those of the inversion at that level, not what the sampler makes of the inverted noise: the
features are those of the picture itself however badly it would come back. GroupNorm is not shared between rows
(google/style-aligned does that in U-Nets).
"""

import inspect
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from impasto.data import references
from impasto.errors import UserError
from impasto.families.base import Family
from impasto.guidance.base import Encode, Guidance, Rows, Sampling
from impasto.guidance.config import PARTS, StyleAligned
from impasto.inversion import Trajectory, invert


@dataclass
class BatchLayout:
    """How the batch in flight is laid out: its halves (2 under guidance by a negative prompt), its text tokens."""

    halves: int
    text: int = 0

    def split(self, x: Tensor) -> Tensor:
        """(B, ...) -> (halves, rows, ...)."""
        return x.unflatten(0, (self.halves, -1))


SHIFT = math.log(2)
"""`StyleAligned.shift` of bases whose card states none."""


class SharedAttention:
    """An attention processor for `Attention` of U-Nets and SD3 and for `FluxAttention`: see the module's docstring."""

    def __init__(self, settings: StyleAligned, rows: BatchLayout, text_first: bool) -> None:
        self.settings, self.rows, self.text_first = settings, rows, text_first
        self.shift = SHIFT if settings.shift is None else settings.shift

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
        **unused: Any,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """hidden_states (B, n, D), encoder_hidden_states (B, m, D) -> the same, or the first where there is one only.

        Tokens within are (B, tokens, heads, channels). Where text is not given apart but comes first (FLUX's single
        blocks), it is as long as what the denoiser was given.
        """
        from diffusers.models import embeddings

        turn: Any = embeddings.apply_rotary_emb
        assert attention_mask is None, "no pipeline of ours masks image tokens"
        qkv = project(attn, hidden_states, "to_{}", "norm_{}")
        text = self.rows.text if self.text_first else 0
        if encoder_hidden_states is not None:
            text = encoder_hidden_states.shape[1]
            told = project(attn, encoder_hidden_states, "add_{}_proj", "norm_added_{}")
            pairs = zip(told, qkv, strict=True) if self.text_first else zip(qkv, told, strict=True)
            qkv = [torch.cat(pair, dim=1) for pair in pairs]
        tokens = qkv[0].shape[1]
        image, words = slice(0, tokens - text), slice(tokens - text, tokens)
        if self.text_first:
            image, words = slice(text, tokens), slice(0, text)
        q, k, v = (
            adain(x, self.rows, image) if part in self.settings.adain else x for part, x in zip(PARTS, qkv, strict=True)
        )
        if image_rotary_emb is not None:
            q, k = (turn(x, image_rotary_emb, sequence_dim=1) for x in (q, k))
        out = self.attend(q, k, v, image).flatten(2).to(hidden_states.dtype)
        if encoder_hidden_states is None:
            return output(attn, out)
        said = out[:, words]
        return output(attn, out[:, image]), said if attn.context_pre_only else attn.to_add_out(said)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, image: slice) -> Tensor:
        """Row 0 of each half by itself, the others to themselves and to its `image` tokens."""
        if not self.settings.share:
            return attention(q, k, v)
        own = [self.rows.split(x) for x in (q, k, v)]
        reference = attention(*(x[:, 0] for x in own))
        q, k, v = (x[:, 1:] for x in own)
        seen_k, seen_v = (x[:, :1, image].expand(-1, k.shape[1], -1, -1, -1) for x in own[1:])
        k, v = torch.cat([k, self.settings.scale * seen_k], dim=2), torch.cat([v, seen_v], dim=2)
        bias = None
        if self.shift:
            bias = q.new_zeros(k.shape[2])
            bias[q.shape[2] :] = self.shift
        others = attention(*(x.flatten(0, 1) for x in (q, k, v)), bias=bias)
        return torch.cat([reference[:, None], self.rows.split(others)], dim=1).flatten(0, 1)


def project(attn: Any, tokens: Tensor, to: str, norm: str) -> list[Tensor]:
    """Queries, keys and values of tokens (B, n, D) by `attn`'s layers of these names, normed where it has norms."""
    parts = [getattr(attn, to.format(name))(tokens).unflatten(-1, (attn.heads, -1)) for name in "qkv"]
    norms = [getattr(attn, norm.format(name), None) for name in "qkv"]
    return [x if layer is None else layer(x) for x, layer in zip(parts, norms, strict=True)]


def adain(x: Tensor, rows: BatchLayout, image: slice, eps: float = 1e-5) -> Tensor:
    """x (B, tokens, heads, channels): rows 1.. of each half take mean and spread of row 0, at their image tokens.

    The spread of a single token is 0.
    """
    x = rows.split(x).clone()
    tokens = x[:, :, image].to(torch.promote_types(x.dtype, torch.float32))
    n = tokens.shape[2]
    mean, var = tokens.mean(2, keepdim=True), tokens.var(2, correction=min(1, n - 1), keepdim=True)
    std = (var + eps).sqrt()
    x[:, 1:, image] = ((tokens[:, 1:] - mean[:, 1:]) / std[:, 1:] * std[:, :1] + mean[:, :1]).to(x.dtype)
    return x.flatten(0, 1)


def attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """(B, tokens, heads, channels) each; bias (keys,) is added to the logits."""
    mask = None if bias is None else bias.expand(len(q), 1, q.shape[1], -1)
    return scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)), attn_mask=mask).transpose(1, 2)


def output(attn: Any, out: Tensor) -> Tensor:
    """Through the output projection and its dropout; FLUX's single blocks have none of their own."""
    return out if getattr(attn, "pre_only", False) else attn.to_out[1](attn.to_out[0](out))


class AlignedToReference(Guidance):
    """StyleAligned on one base; the reference is read and checked at once, inverted when first used.

    Raises UserError for an image that cannot be read, no caption, a base without self-attention that can be shared.
    """

    def __init__(self, settings: StyleAligned, family: Family, sampling: Sampling, encode: Encode) -> None:
        assert settings.image is not None and sampling.steps is not None and sampling.size is not None
        if not settings.caption.strip():
            raise UserError(
                "the reference has no caption: say what it shows and in what style with --reference-caption, "
                "in the words of the prompts, as in 'a rocket in neon sign style'"
            )
        if family.schedule.masked:
            raise UserError("aligned-to inverts its reference, which a base of masked tokens cannot: leave it out")
        if not shareable(family, family.denoiser.attn_processors):
            raise UserError(f"{str(family.folder)!r} has no self-attention of image tokens: it cannot be style-aligned")
        shift = settings.shift if settings.shift is not None else float(family.card.get("aligned_shift", SHIFT))
        self.settings, self.family, self.encode = replace(settings, shift=shift), family, encode
        self.steps, self.scheduler = sampling.steps, sampling.scheduler(family)
        self.size, self.height = sampling.size, sampling.height
        self.picture = references.read(settings.image, sampling.size)
        self.leading = (settings.caption,)

    @cached_property
    def trajectory(self) -> Trajectory:
        """The reference's latents at every level of the sampler, by DDIM or Euler inversion with the caption alone."""
        x = self.family.encode_image(self.picture.pixels(self.size, self.height))
        self.family.free("vae")  # the pipeline has its own
        height, width = x.shape[-2:]
        levels = self.family.sampling_levels(self.steps, (height, width), self.scheduler)
        return invert(self.family, x, self.encode(self.settings.caption), levels=levels)

    @contextmanager
    def apply(self, pipe: Any, rows: Rows) -> Iterator[dict[str, Any]]:
        with aligned(self.family, self.family.denoiser, self.trajectory, self.settings, rows.halves):
            yield {}

    def info(self, prompt: str) -> dict[str, Any]:
        own = self.settings
        about = {"reference": str(own.image), "hash": self.picture.sha256, "caption": own.caption, "share": own.share}
        about |= {"adain": list(own.adain), "scale": own.scale, "shift": own.shift}
        return {"aligned": {"method": "style-aligned"} | about}


bind = AlignedToReference


def shareable(family: Family, processors: Iterable[str]) -> set[str]:
    """Names of the processors of attention layers in which image tokens attend to each other."""
    return {name for name in processors if name.split(".")[-2] in family.image_attention}


@contextmanager
def aligned(
    family: Family, denoiser: Any, trajectory: Trajectory, settings: StyleAligned, halves: int
) -> Iterator[None]:
    """Inside, row 0 of every half of `denoiser`'s batches is the reference, at the level that is asked for.

    denoiser: the family's own or that of its pipeline. trajectory: the inverted reference. halves: 2 where a batch is
    unconditional rows and then conditional ones. What the caller puts into row 0 of the latents does not matter; its
    text should be the reference's caption. The reference's levels are found by the timestep, whatever the sampler.
    """
    rows, before = BatchLayout(halves), denoiser.attn_processors
    shared = SharedAttention(settings, rows, family.text_first)
    denoiser.set_attn_processor(before | dict.fromkeys(shareable(family, before), shared))
    arguments = inspect.signature(denoiser.forward)

    def lead(module: Any, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        given = arguments.bind(*args, **kwargs)
        latents = next(iter(given.arguments))  # the first, whatever its name
        lam = family.schedule.log_snr(torch.as_tensor(given.arguments["timestep"]).flatten()[0].cpu().double())
        z = rows.split(given.arguments[latents]).clone()
        z[:, 0] = family.pack(trajectory.at(lam)).to(z)
        given.arguments[latents] = z.flatten(0, 1)
        rows.text = given.arguments["encoder_hidden_states"].shape[1]
        return given.args, given.kwargs

    hook = denoiser.register_forward_pre_hook(lead, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()
        denoiser.set_attn_processor(dict(before))
