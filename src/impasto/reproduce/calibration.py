"""The law proposed by `impasto noise calibrate` against the best of a sweep: our own claims.

    sweep        laws log-SNR ~ N(mean, std^2), tried on the secondary held-out styles, with concepts that are neither
                 evaluation nor reference concepts
    best         of them, by the harmonic mean of style accuracy and concept top-5
    calibrated   the proposal of a calibration file, without training
    test         both on the primary held-out styles, with references and seeds that neither the other claims nor the
                 demo use

The rule from the curve to the law (calibration/emergence.py) may be fitted to the sweep; it is then tested once.
"""

from dataclasses import replace
from pathlib import Path
from statistics import harmonic_mean
from typing import TYPE_CHECKING

import numpy as np

from impasto.errors import UserError
from impasto.reproduce.claims import Arm, Claim, Compare, Reading, falls
from impasto.reproduce.style_friendly import calibrated, law, normal

if TYPE_CHECKING:
    from impasto.reproduce.campaign import Campaign

STD = 2.0
MEANS = {f"mean {mean:+g}": float(mean) for mean in (-8, -6, -4, -2, 0, 2, 4)}
STDS = {f"mean {mean:+g}, std {std:g}": (float(mean), float(std)) for mean in (-4, -2, 0) for std in (1, 3)}
SWEEP = {name: (mean, STD) for name, mean in MEANS.items()} | STDS
CALIBRATED, BEST = "calibrated", "best of the sweep"
INCOMPLETE = "the sweep (C1) is not complete"
GAIN = {CALIBRATED: 1.0, BEST: -1.0}

ARMS: dict[str, Arm] = {
    **{name: Arm(f"log-SNR ~ N({m:g}, {s:g}²)", law(m, s), where="secondary") for name, (m, s) in SWEEP.items()},
    CALIBRATED: Arm("the law of a calibration", where="fresh", absent="no calibration was given (--calibration)"),
    BEST: Arm("the best law of the sweep", where="fresh", absent=INCOMPLETE),
}

CLAIMS: tuple[Claim, ...] = (
    Claim(
        "C1",
        "How well one picture becomes a style depends on the mean of the noise law: style falls from -4 to 4.",
        {},
        (
            Reading(
                "on the secondary styles",
                (falls({name: MEANS[name] for name in list(MEANS)[2:]}, "style falls from mean -4 to 4"),),
            ),
        ),
        shown=tuple(STDS),
        curves={"mean log-SNR": MEANS},
    ),
    Claim(
        "C2",
        "The law that calibration proposes is as good as the best of the sweep: at most .03 of style accuracy and .05 "
        "of concept top-5 below it.",
        {},
        (
            Reading(
                "on the primary styles, fresh references and seeds",
                (
                    Compare(f"{CALIBRATED} loses at most .03 of style", GAIN, "style", -0.6, -0.6),
                    Compare(f"{CALIBRATED} loses at most .05 of text", GAIN, "text", -1.0, -1.0),
                ),
            ),
        ),
    ),
)


def arms(base_hash: str, calibration: Path | None, world: str) -> dict[str, Arm]:
    """ARMS, with the law of a calibration file.

    Raises UserError when the calibration is of another base, and in a world without styles for choosing.
    """
    if world != "small-world":
        raise UserError("the claims about calibration are for the small world: leave out --protocol")
    if calibration is None:
        return ARMS
    return ARMS | {CALIBRATED: replace(calibrated(calibration, base_hash), where="fresh")}


def following(campaign: "Campaign") -> dict[str, Arm]:
    """The best law of the sweep and the calibrated one, once the sweep is complete; neither is run on the primary
    styles before."""
    name, arm = best(campaign), campaign.arms[CALIBRATED]
    own = {CALIBRATED: replace(arm, absent="" if name else INCOMPLETE)} if arm.settings else {}
    if name is None:
        return own
    return own | {BEST: replace(normal(*SWEEP[name], what=f"the best of the sweep: {ARMS[name].what}"), where="fresh")}


def best(campaign: "Campaign") -> str | None:
    """The name of the sweep's law with the largest harmonic mean of style accuracy and concept top-5 (means over the
    full cells on the secondary styles); None while any of the current cells is missing."""
    scores = {}
    for name in SWEEP:
        cells = [campaign.known.get(cell.key) for cell in campaign.cells_of(name, "full")]
        own = [(c["scores"]["style_accuracy"], c["scores"]["concept_top5"]) for c in cells if c is not None]
        if len(own) < len(cells):
            return None
        scores[name] = np.mean(own, axis=0).tolist()
    return max(scores, key=lambda name: harmonic_mean(scores[name]))
