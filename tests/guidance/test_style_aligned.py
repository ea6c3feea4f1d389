"""StyleAligned: the attention against a plain loop, rows that do not see each other, the reference at its level."""

import json
import math
import shutil
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.transformers.transformer_flux import FluxAttention

from impasto.bases.loader import load
from impasto.errors import UserError
from impasto.generation import generate
from impasto.guidance.config import StyleAligned
from impasto.guidance.style_aligned import BatchLayout, SharedAttention, aligned
from impasto.inversion import Trajectory, invert
from impasto.methods.style_aligned import style_aligned
from impasto.sampling.sample import Sampling

REFERENCE = StyleAligned(Path("reference.png"))
OFF = replace(REFERENCE, share=False, adain=())
CAPTION = "a star in neon style"


def layer(kind):
    """One attention layer of each kind that the families have, with norms that do something."""
    joint = {"query_dim": 16, "heads": 2, "dim_head": 8, "added_kv_proj_dim": 16, "out_dim": 16, "bias": True}
    make = {
        "sd3": lambda: Attention(**joint, context_pre_only=False),
        "sd35": lambda: Attention(**joint, context_pre_only=False, qk_norm="rms_norm"),
        "sd35 last": lambda: Attention(**joint, context_pre_only=True, qk_norm="rms_norm"),
        "sd35 dual": lambda: Attention(query_dim=16, heads=2, dim_head=8, out_dim=16, bias=True, qk_norm="rms_norm"),
        "unet": lambda: Attention(query_dim=16, heads=2, dim_head=8),
        "flux": lambda: FluxAttention(**joint, context_pre_only=False),
        "flux single": lambda: FluxAttention(query_dim=16, heads=2, dim_head=8, out_dim=16, bias=True, pre_only=True),
    }[kind]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        attn = make()
        for name, p in attn.named_parameters():
            if "norm" in name:
                torch.nn.init.uniform_(p, 0.5, 2)
    return attn.double()


KINDS = {"sd3": 3, "sd35": 3, "sd35 last": 3, "sd35 dual": 0, "unet": 0, "flux": 3, "flux single": 3}
"""Text tokens of each kind; five image tokens in all of them."""


def turned(x, rotary):
    """Pairs of channels turned by their token's angle; x (tokens, heads, channels), rotary (cos, sin) per channel."""
    cos, sin = (part[:, None, ::2] for part in rotary)
    a, b = x[..., ::2], x[..., 1::2]
    return torch.stack([a * cos - b * sin, b * cos + a * sin], dim=-1).flatten(-2)


def plain(attn, kind, image_rows, text_rows, rotary, scale, shift, parts):
    """One half, row by row and head by head: list of (tokens, heads, channels), text behind the image's."""

    def tokens(image, text):
        out = []
        for name in "qkv":
            x = getattr(attn, f"to_{name}")(image).unflatten(-1, (2, 8))
            norm = getattr(attn, f"norm_{name}", None)
            x = norm(x) if norm is not None else x
            if text is not None and kind != "flux single":
                y = getattr(attn, f"add_{name}_proj")(text).unflatten(-1, (2, 8))
                norm = getattr(attn, f"norm_added_{name}", None)
                x = torch.cat([x, norm(y) if norm is not None else y])
            elif text is not None:
                y = getattr(attn, f"to_{name}")(text).unflatten(-1, (2, 8))
                x = torch.cat([x, norm(y) if norm is not None else y])
            out.append(x)
        return out

    rows = [tokens(*pair) for pair in zip(image_rows, text_rows, strict=True)]
    for q, k, v in rows[1:]:
        for x, r, part in zip((q, k, v), rows[0], ("queries", "keys", "values"), strict=True):
            if part in parts:
                own, theirs = x[:5], r[:5]
                spread = ((theirs.var(0) + 1e-5) / (own.var(0) + 1e-5)).sqrt()
                x[:5] = (own - own.mean(0)) * spread + theirs.mean(0)
    if rotary is not None:
        rows = [[turned(q, rotary), turned(k, rotary), v] for q, k, v in rows]
    results = []
    for i, (q, k, v) in enumerate(rows):
        bias = torch.zeros(len(k) + (5 if i else 0), dtype=q.dtype)
        if i:
            k, v = torch.cat([k, scale * rows[0][1][:5]]), torch.cat([v, rows[0][2][:5]])
            bias[-5:] = shift
        heads = [((q[:, h] @ k[:, h].T) / 8**0.5 + bias).softmax(-1) @ v[:, h] for h in range(2)]
        results.append(torch.stack(heads, dim=1).flatten(1))
    return results


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("halves", [1, 2])
def test_the_attention_is_the_plain_loop(kind, halves):
    attn, words = layer(kind), KINDS[kind]
    shared = torch.Generator().manual_seed(1)
    image = torch.randn(halves * 3, 5, 16, generator=shared, dtype=torch.float64)
    text = torch.randn(halves * 3, words, 16, generator=shared, dtype=torch.float64) if words else None
    first = kind.startswith("flux")
    angles = torch.rand(5 + words, 4, generator=shared, dtype=torch.float64).repeat_interleave(2, dim=1) * 6
    rotary = (angles.cos(), angles.sin()) if first else None
    sharing = replace(REFERENCE, scale=0.7, shift=0.9, adain=("queries", "keys", "values"))
    processor = SharedAttention(sharing, BatchLayout(halves, words), text_first=first)
    if kind == "flux single":
        got = processor(attn, torch.cat([text, image], dim=1), image_rotary_emb=rotary)
        got = torch.cat([got[:, words:], got[:, :words]], dim=1)
    elif text is None:
        got = processor(attn, image)
    else:
        got = torch.cat(processor(attn, image, text, image_rotary_emb=rotary), dim=1)
    ours = None if rotary is None else tuple(torch.cat([part[words:], part[:words]]) for part in rotary)
    for half in range(halves):
        part = slice(3 * half, 3 * half + 3)
        texts = [None] * 3 if text is None else text[part]
        rows = plain(attn, kind, image[part], texts, ours, 0.7, 0.9, ("queries", "keys", "values"))
        for row, want in zip(got[part], rows, strict=True):
            if kind != "flux single":
                seen, said = attn.to_out[0](want[:5]), want[5:]
                want = torch.cat([seen, said if kind == "sd35 last" or not words else attn.to_add_out(said)])
            assert (row - want).abs().max() < (1e-6 if first else 1e-12)  # diffusers turns in float32


@pytest.fixture(scope="module")
def family(tiny_base):
    return load(str(tiny_base), device="cpu")


def noise(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def batch(family, rows, lam=0.0):
    """z, lam, condition of so many rows; row i is the same in every batch."""
    channels = family.config(family.part)["in_channels"] // (4 if family.text_first else 1)
    z = torch.cat([noise(1, channels, 8, 8, seed=i) for i in rows])
    cond = family.encode_prompt([f"a {['cat', 'star', 'rabbit', 'rocket'][i % 4]}" for i in rows])
    return z, torch.full((len(rows),), lam), cond


def trajectory_of(z):
    """Three levels, at each of which the reference is another picture; lam = 0 is the middle one."""
    return Trajectory(torch.cat([5 * z, z, -z]), torch.tensor([3.0, 0.0, -3.0], dtype=torch.float64))


@torch.no_grad()
def test_rows_see_the_reference_and_nothing_else(family):
    """Row 7 beside others is row 7 alone; the reference is as without sharing, whatever is put in its place; guided
    halves are two batches; all off is the plain model."""
    z, lam, cond = batch(family, [0, 5, 6, 7])
    before = family.denoiser.attn_processors
    plain = family.predict(z, lam, cond)
    with aligned(family, family.denoiser, trajectory_of(z[:1]), REFERENCE, 1):
        four = family.predict(torch.cat([100 * torch.ones_like(z[:1]), z[1:]]), lam, cond)
    two = batch(family, [0, 7])
    with aligned(family, family.denoiser, trajectory_of(z[:1]), REFERENCE, 1):
        alone = family.predict(*two)
    assert (four[3] - alone[1]).abs().max() < 1e-5
    assert (four[0] - plain[0]).abs().max() < 1e-5
    assert (four[1:] - plain[1:]).abs().amax(dim=(1, 2, 3)).min() > 1e-3
    z_other, _, _ = batch(family, [1])
    with aligned(family, family.denoiser, trajectory_of(z_other), REFERENCE, 1):
        assert (family.predict(z, lam, cond)[1:] - four[1:]).abs().max() > 1e-3
    unsaid = family.encode_prompt(["", "", "", ""])
    with aligned(family, family.denoiser, trajectory_of(z[:1]), REFERENCE, 1):
        first = family.predict(z, lam, unsaid)
    with aligned(family, family.denoiser, trajectory_of(z[:1]), REFERENCE, 2):
        halves = family.predict(
            *(torch.cat([x, x]) for x in (z, lam)), {n: torch.cat([unsaid[n], cond[n]]) for n in cond}
        )
    assert (halves[:4] - first).abs().max() < 1e-5 and (halves[4:] - four).abs().max() < 1e-5
    with aligned(family, family.denoiser, trajectory_of(z[:1]), OFF, 1):
        assert (family.predict(z, lam, cond) - plain).abs().max() < 1e-5
    assert {n: type(p) for n, p in family.denoiser.attn_processors.items()} == {n: type(p) for n, p in before.items()}
    assert (family.predict(z, lam, cond) == plain).all()


@torch.no_grad()
@pytest.mark.parametrize(
    "change",
    [{"shift": 0.0}, {"scale": 0.5}, {"adain": ()}, {"adain": ("queries", "keys", "values")}, {"share": False}],
    ids=str,
)
def test_every_setting_counts(tiny_sd3, change):
    family = load(str(tiny_sd3), device="cpu")
    z, lam, cond = batch(family, [0, 5])
    outs = []
    for sharing in (REFERENCE, replace(REFERENCE, **change)):
        with aligned(family, family.denoiser, trajectory_of(z[:1]), sharing, 1):
            outs.append(family.predict(z, lam, cond)[1])
    assert (outs[0] - outs[1]).abs().max() > 1e-4


def test_the_sd3_medium_s_second_attention_is_shared_too():
    from diffusers import SD3Transformer2DModel
    from tiny import sd3_config

    from impasto.families.sd3 import SD3
    from impasto.guidance.style_aligned import shareable

    names = SD3Transformer2DModel(**sd3_config(dual_attention_layers=(0,))).attn_processors
    assert len(names) == 3 and shareable(SD3, names) == set(names)


def pixels(image):
    return np.asarray(image).astype(int)


def draw(base, picture, sharing=None, prompts=("a cat", "a rocket in neon style", "a cactus"), **more):
    asked = replace(sharing or REFERENCE, image=picture, caption=CAPTION)
    return list(generate(str(base), list(prompts), guidances=[asked], device="cpu", **more))


def test_pictures(tiny_base, picture, monkeypatch):
    """The sampler asks for the inversion's own levels; batches do not matter; the method's file draws the same; with
    everything off they are the base's; with it on they are not."""
    asked, at = [], Trajectory.at
    monkeypatch.setattr(Trajectory, "at", lambda self, lam: (asked.append((lam, self.log_snr)), at(self, lam))[1])
    together = draw(tiny_base, picture, seed=3)
    steps = together[0][1]["steps"]
    assert len(asked) == steps == len(asked[0][1]) - 1
    for (lam, _), want in zip(asked, asked[0][1].flip(0)[:-1], strict=True):  # from the noise on
        assert lam.item() == pytest.approx(want.item(), abs=1e-3)
    family = load(str(tiny_base), device="cpu")
    guidance = family.card["generate"]["guidance"]
    by_hand = style_aligned(
        family, StyleAligned(picture, CAPTION), ["a cat", "a rocket in neon style", "a cactus"],
        steps=steps, guidance=guidance, size=16, seed=3,
    )  # fmt: skip
    for (image, _), again in zip(together, by_hand, strict=True):
        assert abs(pixels(image) - pixels(again)).max() <= 1
    plain = [image for image, _ in generate(str(tiny_base), ["a cat", "a rocket in neon style"], seed=3, device="cpu")]
    alone = draw(tiny_base, picture, prompts=["a rocket in neon style"], seed=4)[0]
    off = draw(tiny_base, picture, OFF, prompts=["a cat", "a rocket in neon style"], seed=3)
    assert abs(pixels(alone[0]) - pixels(together[1][0])).max() <= 1 and alone[1] == together[1][1]
    for i in range(2):
        assert abs(pixels(off[i][0]) - pixels(plain[i])).max() <= 1
        assert abs(pixels(together[i][0]) - pixels(plain[i])).max() > 1


def test_one_image_token_has_a_spread_of_0(tiny_sd3, picture):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (image, _) = draw(tiny_sd3, picture, prompts=["a cat"], sampling=Sampling(size=8))[0]
    assert len(np.unique(pixels(image))) > 1


def test_a_sampler_that_asks_twice(tiny_sd15, picture, tmp_path):
    """PNDM (SD1.5's and mini-sd15's) asks for its second level twice; its own latents do not matter."""
    base = tmp_path / "pndm"
    shutil.copytree(tiny_sd15, base)
    for name, part in (("scheduler/scheduler_config.json", "_class_name"), ("model_index.json", "scheduler")):
        content = json.loads((base / name).read_text())
        content[part] = "PNDMScheduler" if part == "_class_name" else ["diffusers", "PNDMScheduler"]
        (base / name).write_text(json.dumps(content | ({"skip_prk_steps": True} if part == "_class_name" else {})))
    family = load(str(base), device="cpu")
    levels = family.sampling_levels(10, (4, 4))
    assert len(levels) == 11
    cond, z = family.encode_prompt(["a cat"]), noise(1, 4, 4, 4, seed=0)
    same = invert(family, z, cond, levels=levels)
    assert torch.equal(same.log_snr, invert(family, z, cond, 10).log_snr)
    one, two = (draw(base, picture, sampling=Sampling(batch=batch)) for batch in (1, 3))
    for (a, _), (b, _) in zip(one, two, strict=True):
        assert abs(pixels(a) - pixels(b)).max() <= 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: replace(REFERENCE, adain=("keys", "querys")), "did you mean 'queries'"),
        (lambda: replace(REFERENCE, scale=0), "above 0"),
        (lambda: replace(REFERENCE, shift=math.inf), "finite"),
    ],
    ids=["part", "scale", "shift"],
)
def test_settings_that_cannot_be_meant(make, message):
    with pytest.raises(UserError, match=message):
        make()


def test_references_that_cannot_be_used(tiny_sd3, picture, tmp_path, monkeypatch):
    def refused(image, caption, message):
        with pytest.raises(UserError, match=message):  # at once, before anything is drawn
            generate(str(tiny_sd3), ["a cat"], guidances=[StyleAligned(image, caption)], device="cpu")

    refused(picture, " ", "no caption")
    refused(tmp_path / "nowhere.png", CAPTION, "does not exist")
    (tmp_path / "text.png").write_text("no picture")
    refused(tmp_path / "text.png", CAPTION, "not a picture")
    monkeypatch.setattr("impasto.families.sd3.SD3.image_attention", ())
    refused(picture, CAPTION, "no self-attention")
