"""StyleAligned (Hertz et al. 2023, arXiv 2312.02133), from a real reference, with no training:

    z_T .. z_0 of the reference by DDIM inversion (a rectified flow: by Euler steps), told its caption
    every self-attention of every picture:  Attention(AdaIN(Q, Q_r), [AdaIN(K, K_r), K_r], [V, V_r])

`generate(..., guidances=[StyleAligned(image, caption)])` generates the same in batches of any size; a test compares
them. What the reference and the rows are to each other is told in `guidance.style_aligned`.
"""

from collections.abc import Sequence

import torch
from PIL.Image import Image

from impasto.data.references import read
from impasto.families.base import Family
from impasto.guidance.config import StyleAligned
from impasto.guidance.style_aligned import aligned
from impasto.inversion import invert


def style_aligned(
    family: Family,
    reference: StyleAligned,
    prompts: Sequence[str],
    *,
    steps: int,
    guidance: float,
    size: int,
    seed: int = 0,
) -> list[Image]:
    """One picture per prompt, in one batch; picture i starts from `torch.Generator("cpu").manual_seed(seed + i)`."""
    assert reference.image is not None
    pipe = family.pipeline(**{family.part: family.denoiser})
    y = family.encode_prompt([reference.caption, *prompts], pipe=pipe)
    y_r = {name: rows[:1] for name, rows in y.items()}
    guided = guidance > 1 and family.guided_by == "negative"
    null = family.encode_prompt([""] * (1 + len(prompts)), pipe=pipe) if guided else None

    x_r = family.encode_image(read(reference.image).pixels(size))
    height, width = x_r.shape[-2:]
    z_r = invert(family, x_r, y_r, levels=family.sampling_levels(steps, (height, width)))
    with aligned(family, family.denoiser, z_r, reference, halves=2 if guided else 1):
        pictures = pipe(
            **family.call_arguments(y, null),
            generator=[torch.Generator("cpu").manual_seed(s) for s in (0, *range(seed, seed + len(prompts)))],
            num_inference_steps=steps,
            guidance_scale=guidance,
            height=size,
            width=size,
        ).images
    return pictures[1:]
