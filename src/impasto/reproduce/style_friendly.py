"""The claims of "Style-Friendly SNR Sampler for Style-Driven Generation" (Choi et al., arXiv 2411.14793).

The paper trains FLUX.1-dev and SD3.5-large at 1024 px, 128 x 128 latent positions; its numbers are DINO / CLIP-I /
CLIP-T over 828 pictures (methods.md 1.6). Noise levels are log-SNR. By SD3's own argument (Esser et al. 2024, section
5.3.2) a level at m positions corresponds to the level shifted by log(m / n) at n positions: at 16 x 16 positions by
log 64 = +4.16. So most claims have two readings: *as published*, with the paper's numbers, and *matched*, with them
shifted by +4.16. Each reading has its own verdict; the claim's is that of the first, whose numbers were not chosen
here.
"""

import json
import math
from pathlib import Path

from impasto.errors import UserError
from impasto.reproduce.claims import Arm, Claim, Compare, Reading, falls, more, no_less, with_equal_text

SD3 = {"noise": "sd3", "noise_mean": 0.0, "noise_std": 1.0, "noise_shift": 3.0}
IMAGE_ONLY = "style-friendly-image-stream"


def law(mean: float, std: float = 2.0) -> dict:
    """Settings of log-SNR ~ N(mean, std^2)."""
    return {"noise": "style-friendly", "noise_mean": mean, "noise_std": std}


def decided_below(at: float) -> tuple[Compare, ...]:
    """The style's words only below `at` keep the style; only from there on they do not."""
    only, omitted = f"only below {at:g}", f"omitted below {at:g}"
    return more(only, omitted), more("style throughout", omitted), no_less(only, "style throughout", "style")


def dco(beta: float) -> dict:
    """Settings of Direct Consistency Optimization (Lee et al. 2024); the paper's beta is 1, the authors' 1000."""
    return {"objective": "dco", "dco_beta": float(beta)}


def aligned(shift: float, what: str) -> Arm:
    """StyleAligned. shift: added to the attention's logits at the reference."""
    return Arm(what, how="aligned", options={"shift": shift})


def normal(mean: float, std: float = 2.0, what: str = "", **settings) -> Arm:
    """An arm of log-SNR ~ N(mean, std^2)."""
    also = "".join(f", {key.replace('_', ' ')} {value}" for key, value in settings.items())
    return Arm(what or f"log-SNR ~ N({mean:g}, {std:g}²){also}", law(mean, std) | settings)


def image_only(what: str, settings: dict) -> Arm:
    """An arm without LoRA on the text stream, with the recipe's target layers for the base."""
    return Arm(what, settings, layers_of=IMAGE_ONLY, needs="text_stream")


def known_style_arm(what: str, how: str, **options: float) -> Arm:
    """An arm of the base alone, on train styles."""
    return Arm(what, how=how, options=options, where="known")


LEVELS = (-8.89, -6.54, -4.73, -2.38, 0.0, 2.0)
"""Log-SNR at which prompts are switched. The paper's first 1 and 3 of 28 steps lie below -8.89 and -6.54 (methods.md
E12; it prints -6.52); moved by +4.16 these are -4.73 and -2.38."""
OMITTED = {f"omitted below {at:g}": at for at in LEVELS}
ONLY = {f"only below {at:g}": at for at in LEVELS}
MATCHED, MATCHED_SD3 = law(-1.84), law(1.96)
MU = {"style-friendly" if mean == -6 else f"mu {mean:+g}": float(mean) for mean in (-8, -6, -4, -2, 0, 2, 4)}
STDS = (0.4, 1.0, 2.0, 3.0, 4.0)
SIGMAS = {"style-friendly" if std == 2 else f"sigma {std:g}": std for std in STDS}
SIGMAS_MATCHED = {"matched" if std == 2 else f"matched, sigma {std:g}": std for std in STDS}

ARMS: dict[str, Arm] = {
    "prompt": Arm(
        "the base alone, the style in words (it sees no reference: one cell per style and seed)", how="prompt"
    ),
    "style-friendly": normal(-6.0, what="the paper's sampler: log-SNR ~ N(-6, 2²), rank 32"),
    "sd3": Arm("SD3's sampler: logit-normal(0, 1) with shift 3, log-SNR ~ N(-2.2, 2²), rank 32", SD3),
    "matched": normal(-1.84, what="style-friendly moved by +4.16: log-SNR ~ N(-1.84, 2²)"),
    "matched sd3": normal(1.96, what="SD3's sampler moved by +4.16: log-SNR ~ N(1.96, 2²)"),
    "calibrated": Arm("mean and std from `impasto noise calibrate`", absent="no calibration was given (--calibration)"),
    "uniform": Arm("t ~ U(0, 1)", {"noise": "uniform"}),
    **{name: normal(mean) for name, mean in MU.items() if name != "style-friendly"},
    **{name: normal(-6.0, std) for name, std in SIGMAS.items() if std != 2},
    **{name: normal(-1.84, std) for name, std in SIGMAS_MATCHED.items() if std != 2},
    "rank 4": normal(-6.0, rank=4),
    "rank 8": normal(-6.0, rank=8),
    "rank 128": normal(-6.0, rank=128),
    "matched, rank 4": normal(-1.84, rank=4),
    "sd3, rank 128": Arm("SD3's sampler, rank 128", SD3 | {"rank": 128}),
    "matched sd3, rank 128": normal(1.96, rank=128),
    "image stream": image_only("style-friendly, no LoRA on the text stream", law(-6.0)),
    "matched, image stream": image_only("matched, no LoRA on the text stream", MATCHED),
    "sd3, offset": Arm("SD3's sampler, offset noise .1", SD3 | {"offset_noise": 0.1}),
    "style-friendly, offset": Arm("style-friendly, offset noise .01", law(-6.0) | {"offset_noise": 0.01}),
    "matched sd3, offset": Arm("matched SD3 sampler, offset noise .8", MATCHED_SD3 | {"offset_noise": 0.8}),
    "matched, offset": Arm("matched, offset noise .08", MATCHED | {"offset_noise": 0.08}),
    **{f"dco, beta {beta:g}": Arm(f"SD3's sampler, DCO, beta {beta:g}", SD3 | dco(beta)) for beta in (1, 100, 1000)},
    "dco, sum": Arm("SD3's sampler, DCO, beta 1, summed errors", SD3 | dco(1) | {"dco_reduction": "sum"}),
    "dco + style-friendly": Arm("style-friendly, DCO, beta 1", law(-6.0) | dco(1)),
    "matched dco": Arm("matched SD3 sampler, DCO, beta 1", MATCHED_SD3 | dco(1)),
    "matched dco + style-friendly": Arm("matched, DCO, beta 1", MATCHED | dco(1)),
    "style-aligned": aligned(
        math.log(2), "StyleAligned, attention to the reference counted twice (its authors' weight)"
    ),
    "style-aligned, plain": aligned(0.0, "StyleAligned, as its paper says"),
    "style throughout": known_style_arm("the base alone, the style's words in every step", "prompt"),
    "no style": known_style_arm("the base alone, no word of the style", "plain"),
    **{
        name: known_style_arm(f"the style's words from log-SNR {at:g} on", "omit-first", at=at)
        for name, at in OMITTED.items()
    },
    **{
        name: known_style_arm(f"the style's words below log-SNR {at:g} only", "only-first", at=at)
        for name, at in ONLY.items()
    },
}


def arms(base_hash: str, calibration: Path | None, world: str) -> dict[str, Arm]:
    """ARMS, with the law of a calibration file in the calibrated arm; in the paper's own protocol only what it has, and
    the calibrated arm where a calibration is given.

    Raises UserError when the calibration is another base's.
    """
    own = ARMS if calibration is None else ARMS | {"calibrated": calibrated(calibration, base_hash)}
    if world == "small-world":
        return own
    return {name: arm for name, arm in own.items() if arm.where == "heldout" and not (arm.absent or is_ours(name))}


def calibrated(file: Path, base_hash: str) -> Arm:
    """The arm of a calibration file's law. Raises UserError unless the file is a calibration of this base."""
    base, mean, std = proposal(file)
    if base != base_hash:
        raise UserError(f"{file} is of another base ({base[:12]}, not {base_hash[:12]}): calibrate this one")
    return normal(mean, std, f"calibrated: log-SNR ~ N({mean:g}, {std:g}²)")


def proposal(file: Path) -> tuple[str, float, float]:
    """(hash of the base, mean, std) of a calibration file. Raises UserError when it is not one."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        law = content["proposal"]
        return str(content["base_hash"]), float(law["noise_mean"]), float(law["noise_std"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        why = f"{type(error).__name__}: {error}"
        raise UserError(f"{file} is not a calibration.json of `impasto noise calibrate` ({why})") from None


def is_ours(name: str) -> bool:
    """Whether the arm is not in the paper (16 x 16 positions, other weights of DCO)."""
    return name.startswith("matched") or name in ("mu +2", "mu +4", "dco, beta 100", "dco, beta 1000", "dco, sum")


STATED: tuple[Claim, ...] = (
    Claim(
        "S1",
        "The style-friendly sampler learns more style than the SD3 sampler, at equal text.",
        {
            "SD3 sampler": {"SD3.5": ".424 / .670 / .350", "FLUX": ".373 / .645 / .350"},
            "style-friendly, sigma 2": {"SD3.5": ".489 / .698 / .349", "FLUX": ".461 / .686 / .344"},
            "style-friendly, sigma 3": {"FLUX": ".478 / .691 / .343"},
        },
        (
            Reading("as published", (more("style-friendly", "sd3"), no_less("style-friendly", "sd3"))),
            Reading("matched", (more("matched", "matched sd3"), no_less("matched", "matched sd3"))),
            Reading("calibrated", (more("calibrated", "sd3"), no_less("calibrated", "sd3"))),
            Reading(
                "against logit-normal(0, 1)",
                (more("style-friendly", "mu +0"), no_less("style-friendly", "mu +0")),
                ours=True,
            ),
            Reading(
                "against uniform", (more("style-friendly", "uniform"), no_less("style-friendly", "uniform")), ours=True
            ),
        ),
        shown=("prompt",),
    ),
    Claim(
        "S2",
        "Style falls as the mean log-SNR rises from -6 to 0.",
        {"figure 6": "DINO falls as mu rises to 0; CLIP-T hardly moves; mu in -8, -6, -4, -2, 0"},
        (
            Reading(
                "as published",
                (
                    falls(
                        {n: MU[n] for n in ("style-friendly", "mu -4", "mu -2", "mu +0")},
                        "style falls from mean -6 to 0",
                    ),
                ),
            ),
            Reading(
                "matched",
                (
                    falls(
                        {n: MU[n] for n in ("mu -2", "mu +0", "mu +2", "mu +4")},
                        "style falls from mean -2 to 4 (-6 to 0, moved by +4)",
                    ),
                ),
            ),
        ),
        curves={"mean log-SNR": MU},
    ),
    Claim(
        "S3",
        "At the style-friendly mean a standard deviation below 2 is poor.",
        {"figure 6": "sigma < 2 is poor at mu = -6; sigma in .4, 1, 2, 3, 4; FLUX sigma 2 .461, sigma 3 .478 (DINO)"},
        (
            Reading("as published", (more("style-friendly", "sigma 0.4"), more("style-friendly", "sigma 1"))),
            Reading("matched", (more("matched", "matched, sigma 0.4"), more("matched", "matched, sigma 1"))),
        ),
        curves={"standard deviation": SIGMAS, "standard deviation, matched": SIGMAS_MATCHED},
    ),
    Claim(
        "S4",
        "A high rank does not close the gap: the SD3 sampler at rank 128 stays behind style-friendly at rank 32.",
        {
            "SD3 sampler, rank 32": {"FLUX": ".373 / .645 / .350"},
            "SD3 sampler, rank 128": {"FLUX": ".426 / .668 / .345"},
            "style-friendly, rank 32": {"FLUX": ".461 / .686 / .344"},
        },
        (
            Reading("as published", (more("style-friendly", "sd3"), more("style-friendly", "sd3, rank 128"))),
            Reading("matched", (more("matched", "matched sd3"), more("matched", "matched sd3, rank 128"))),
        ),
        shown=("rank 128",),
    ),
    Claim(
        "S5",
        "Rank 4 with the style-friendly sampler beats rank 32 with the SD3 sampler in style.",
        {"figure 6": "rank 4 at mu = -6 above the SD3 sampler at rank 32 (DINO)"},
        (
            Reading("as published", (more("rank 4", "sd3"),)),
            Reading("matched", (more("matched, rank 4", "matched sd3"),)),
        ),
        shown=("style-friendly",),
        curves={"rank": {"rank 4": 4.0, "rank 8": 8.0, "style-friendly": 32.0, "rank 128": 128.0}},
    ),
    Claim(
        "S6",
        "Training the text stream's attention as well gives more style, at equal text.",
        {"both streams": {"SD3.5": ".489 / .698 / .349"}, "image stream only": {"SD3.5": ".462 / .693 / .349"}},
        (
            Reading(
                "as published", (more("style-friendly", "image stream"), no_less("style-friendly", "image stream"))
            ),
            Reading("matched", (more("matched", "matched, image stream"), no_less("matched", "matched, image stream"))),
        ),
    ),
    Claim(
        "S7",
        "Offset noise of .1 gives the SD3 sampler more style.",
        {
            "SD3 sampler": {"SD3.5": ".424 / .670 / .350", "FLUX": ".373 / .645 / .350"},
            "SD3 sampler, offset .1": {"SD3.5": ".452 / .678 / .353", "FLUX": ".451 / .679 / .349"},
            "style-friendly, offset .01": {"SD3.5": ".476 / .697 / .350", "FLUX": ".500 / .704 / .341"},
        },
        (
            Reading("as published", (more("sd3, offset", "sd3"),)),
            Reading("matched", (more("matched sd3, offset", "matched sd3"),)),
        ),
        shown=("style-friendly", "style-friendly, offset", "matched", "matched, offset"),
    ),
    Claim(
        "S8",
        "Style is decided early: without its words at the noisiest levels it is lost, and words there alone keep it.",
        {"figure 4": "style lost when y1 is left out below log-SNR -6.52 (3 of its 28 steps), kept when only there"},
        (
            Reading("as published", decided_below(-6.54)),
            Reading("matched", decided_below(-2.38)),
        ),
        shown=("no style",),
        curves={"log-SNR up to which the words are left out": OMITTED, "log-SNR up to which the words are there": ONLY},
    ),
    Claim(
        "S9",
        "DCO gives the SD3 sampler no more style, and adds style to the style-friendly sampler.",
        {
            "SD3 sampler": {"SD3.5": ".424 / .670 / .350", "FLUX": ".373 / .645 / .350"},
            "DCO": {"SD3.5": ".399 / .661 / .355", "FLUX": ".373 / .643 / .353"},
            "style-friendly": {"SD3.5": ".489 / .698 / .349", "FLUX (sigma 3)": ".478 / .691 / .343"},
            "DCO + style-friendly": {"SD3.5": ".478 / .695 / .351", "FLUX": ".488 / .698 / .341"},
        },
        (
            Reading(
                "as published", (no_less("sd3", "dco, beta 1", "style"), more("dco + style-friendly", "style-friendly"))
            ),
            Reading(
                "matched",
                (no_less("matched sd3", "matched dco", "style"), more("matched dco + style-friendly", "matched")),
            ),
        ),
        shown=("dco, beta 100", "dco, beta 1000", "dco, sum"),
    ),
    Claim(
        "S10",
        "The style-friendly sampler gives more style than StyleAligned, at equal text.",
        {
            "StyleAligned": {"SDXL": ".410 / .675 / .340"},
            "style-friendly": {"SD3.5": ".489 / .698 / .349", "FLUX": ".461 / .686 / .344"},
        },
        (
            Reading(
                "as published", (more("style-friendly", "style-aligned"), no_less("style-friendly", "style-aligned"))
            ),
            Reading("matched", (more("matched", "style-aligned"), no_less("matched", "style-aligned"))),
        ),
        shown=("style-aligned, plain", "prompt"),
    ),
)

EQUAL_TEXT = ("S1", "S6", "S7", "S9", "S10")
"""Claims about style at equal text: each reading has one on curves over strength beside it."""
CLAIMS = tuple(with_equal_text(claim) if claim.id in EQUAL_TEXT else claim for claim in STATED)
