"""Loss weightings: how much an error counts at a noise level. WEIGHTINGS is the one table in which a name is looked up.

Each is stated for the error of the noise, `w(lam) ||eps^ - eps||^2`, with SNR = exp(lam) = alpha^2 / sigma^2. What a
family predicts, `target = a x + b eps`, has an error `c = b - a sigma / alpha` times as large for the same z_t, so the
same weighting of its loss is `w / c^2`: nothing changes for eps, and v = alpha eps - sigma x has c = 1 / alpha:

    min-snr   eps: min(SNR, g) / SNR       v: min(SNR, g) / (SNR + 1)     as its paper has both

A weighting multiplies with the noise law: a level counts p(lam) w(lam), whichever of the two it comes from. They were
made for levels drawn uniformly in t, where the unweighted loss of eps counts fine detail too much. Beside a law that
says where to train they are a second opinion on the same thing; `--dry-run` shows the product.

A rectified flow is refused. There t is drawn by a law chosen for its unweighted loss, in terms of eps
`||eps^ - eps||^2 / alpha^2`; these weightings would take that factor away again, and with it the high noise where
style is learnt. The same effect is had, with less variance, from another noise law.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from impasto.errors import UserError, nearest
from impasto.families.base import Family
from impasto.noise.schedule import RectifiedFlow
from impasto.objectives.config import Denoise


def min_snr(lam: Tensor, gamma: float) -> Tensor:
    """`min(SNR, g) / SNR`. Hang et al. 2023, arXiv 2303.09556, section 3.4; g = 5 there."""
    return torch.exp(-lam).mul(gamma).clamp(max=1)


def soft_min_snr(lam: Tensor, gamma: float) -> Tensor:
    """`g / (SNR + g)`: min-snr without its corner, 1 / (sigma^2 + 1/g) of the error of x. Crowson et al. 2024,
    arXiv 2401.11605, section 3.3; g = 4 there."""
    return gamma / (lam.exp() + gamma)


def debiased(lam: Tensor, gamma: float) -> Tensor:
    """`1 / sqrt(SNR)`. Yu et al. 2023, arXiv 2310.08442, eq. 11; gamma is not used. For v it stays the same loss
    (kohya's takes 1 / (SNR + 1) there, which is another one)."""
    return torch.exp(-lam / 2)


WEIGHTINGS: dict[str, tuple[Callable[[Tensor, float], Tensor], str]] = {
    "min-snr": (min_snr, "min(SNR, gamma) / SNR: fine detail counts less, from SNR gamma on"),
    "soft-min-snr": (soft_min_snr, "gamma / (SNR + gamma): the same, smoothly"),
    "debiased": (debiased, "1 / sqrt(SNR): more weight to high noise, without bound"),
}


def check(name: str) -> None:
    """Raise UserError unless it is "none" or a name of WEIGHTINGS."""
    if name != "none" and name not in WEIGHTINGS:
        raise UserError(f"unknown weighting {name!r}: {nearest(name, ['none', *WEIGHTINGS])}")


def build(settings: Denoise, family: Family) -> Callable[[Tensor], Tensor] | None:
    """`weight(lam_B) -> (B,)` of this family's loss, None for no weighting.

    Raises UserError on an unknown name, and where a weighting makes no sense.
    """
    check(settings.weighting)
    if settings.weighting == "none":
        return None
    if isinstance(family.schedule, RectifiedFlow):
        raise UserError(
            f"weighting {settings.weighting!r} is for eps- and v-prediction (SD 1.5, SDXL); this base is a rectified "
            "flow, where the noise law says what counts: leave it out, or change --noise"
        )
    of_eps = WEIGHTINGS[settings.weighting][0]
    return lambda lam_B: of_eps(lam_B, settings.gamma) / error_scale(family, lam_B) ** 2


def error_scale(family: Family, lam_B: Tensor) -> Tensor:
    """`c = b - a sigma / alpha` (B,) for `target = a x + b eps`, read off the family's own target."""
    alpha_B, sigma_B = family.schedule.alpha_sigma(lam_B)
    one, zero = (f(lam_B).view(-1, 1, 1, 1) for f in (torch.ones_like, torch.zeros_like))
    a_B, b_B = family.target(one, zero, lam_B).flatten(), family.target(zero, one, lam_B).flatten()
    return b_B - a_B * sigma_B / alpha_B


def predicts_noise(family: Family) -> bool:
    """Whether the family's target is the noise, not a velocity."""
    return error_scale(family, torch.zeros(1)).item() == 1
