"""Regions by denoising error: which crop does the base denoise best when it is conditioned on which phrase?

With crops x_p, prompts y_c = "{concept}, {style words}", and noises eps_k at log-SNR lam_k that all crops share:

    e[p, c] = mean_k || predict(alpha_k x_p + sigma_k eps_k, lam_k, y_c) - target ||^2

or, of a base of masked tokens, the mean cross-entropy of the masked ones.

A crop with little in it is denoised well under any prompt, so that a crop counts by what a phrase gains on the mean of
all phrases, 1 - e[p, c] / mean_c e[p, c], and things take different crops (`assignment.assign`). A diffusion
classifier: Li et al. 2023, arXiv 2303.16203. At the levels used, what the prompt names matters most to a prediction.
"""

import warnings
from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from impasto.data.references import to_tensor
from impasto.errors import UserError
from impasto.families.base import Condition, Family
from impasto.noise.random import generator
from impasto.regions import Region, Search
from impasto.regions.assignment import assign
from impasto.regions.proposals import crop, propose

LEVELS = (-3.5, -2.5)
DRAWS = 16
BATCH = 64


@torch.no_grad()
def errors(
    family: Family, crops: Sequence[Image.Image], prompts: Sequence[str], seed: int = 0, draws: int = DRAWS
) -> Tensor:
    """float64 [crops, prompts]: mean error of the prediction. crops: all of one size that the base takes."""
    check_length(family, prompts)
    x = torch.cat([family.encode_image(to_tensor(crop)) for crop in crops])
    cond = family.encode_prompt(prompts)
    lam = torch.linspace(*LEVELS, draws, device=x.device)
    noise = [torch.randn(x.shape[1:], generator=generator(seed, k, "concept noise")) for k in range(draws)]
    rows = [(p, c, k) for p in range(len(crops)) for c in range(len(prompts)) for k in range(draws)]
    found = []
    for start in range(0, len(rows), BATCH):
        p, c, k = map(list, zip(*rows[start : start + BATCH], strict=True))
        eps = torch.stack([noise[i] for i in k]).to(x.device)
        rows_of: Condition = {name: t[c] for name, t in cond.items()}
        found.append(family.error(x[p], eps, lam[k], rows_of).double().cpu())
    return torch.cat(found).view(len(crops), len(prompts), draws).mean(-1)


def check_length(family: Family, prompts: Sequence[str]) -> None:
    """Raise UserError for a prompt that no text encoder reads to its end."""
    for prompt in prompts:
        if all(len(tokenizer(prompt).input_ids) > length for tokenizer, _, length in family.text_tokens()):
            raise UserError(f"the text encoder cuts off the concept {prompt!r}: name it in fewer words")


def find(search: Search, with_style: bool = False) -> list[Region]:
    """with_style: prompts with the style words. Raises UserError where the image has fewer regions than the caption has
    things, or a phrase is too long; warns of a region that its phrase describes no better than the others do."""
    family, size = search.family, int(search.family.card["size"])
    proposals = propose(search.image, len(search.things))
    prompts = search.prompts if with_style else search.things
    found = errors(family, [crop(search.image, proposal, size) for proposal in proposals], prompts, search.seed)
    gain = 1 - found / found.mean(1, keepdim=True)
    chosen = assign(-gain.numpy(), [proposal.box for proposal in proposals])
    if chosen is None:
        named = ", ".join(search.things)
        raise UserError(f"the image has fewer regions than things are named ({named}): name fewer, or give --boxes")
    if unsure := [thing for row, thing in zip(chosen, range(len(prompts)), strict=True) if gain[row, thing] <= 0]:
        named = ", ".join(repr(search.things[thing]) for thing in unsure)
        warnings.warn(f"no region shows {named} for certain: look at the overlay, or give --boxes", stacklevel=2)
    return [Region(proposals[row].box, round(gain[row, thing].item(), 4)) for thing, row in enumerate(chosen)]
