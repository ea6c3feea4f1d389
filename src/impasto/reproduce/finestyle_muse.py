"""FineStyle's and StyleDrop's claims on their own kind of base, a transformer of masked tokens (Muse; here mini-muse).

FineStyle is as published: bottlenecks behind keys and values of cross-attention, mask ratios cos(pi u / 2), and the
guidance (lambda1, lambda2, 0) with the empty null prompt. StyleDrop is `methods.styledrop`, with its guidance
(lambda_A, 0, lambda_B). The weights of both follow from the base's guidance scale (`guidance.config.PRESETS`).
"""

from itertools import product
from typing import Any

from impasto.reproduce.claims import Arm, Claim, Compare, Reading, more, no_less
from impasto.reproduce.finestyle import (
    CLAIMS as DIFFUSION_CLAIMS,
)
from impasto.reproduce.finestyle import (
    CONTROLS,
    LAMBDA1,
    LAMBDA2,
    grid,
    leaks_less,
    leaks_no_more,
    trained,
)

MASKS = {"noise": "cosine-mask"}
RATE = 1e-3
"""Learning rate of adapters of a part of the layers, as in the base's card."""
OWN: dict[str, Any] = {"weights": "finestyle"}
KV = {**MASKS, "adapter": "kv-bottleneck", "lr": RATE}
LAWS = {"law 0": 0.0, "law -4": -4.0, "law -6": -6.0}
"""Means of style-friendly laws (standard deviation 2) of lam = 2 log((1 - m) / m): medians of m .5, .88, .95; that of
cosine-mask is .71."""


def styledrop(what: str, selection: str, settings: Any = None) -> Arm:
    """StyleDrop with a selection of `styledrop_jobs`, which selects in place of a person."""
    own = {"adapter": "styledrop", "lr": RATE, "select": "human", **MASKS, **(settings or {})}
    options = {"selection": selection, "weights": "styledrop"}
    return Arm(what, own, how="styledrop", options=options, where="scene", recipe="styledrop")


def finestyle(what: str, where: str = "scene", pairs: str = "found", settings: Any = None, **sampling: Any) -> Arm:
    """FineStyle; `pairs` and `sampling` as `finestyle.trained`."""
    return trained(what, where, pairs, {**KV, **(settings or {})}, **(sampling or OWN))


def contrasted(where: str) -> dict[str, Arm]:
    """Base, FineStyle, and FineStyle without data scaling, on other prompts."""
    return {
        f"{where}: base": Arm("Muse alone", how="base", where=where),
        f"{where}: whole": finestyle("without data scaling", where, ""),
        f"{where}: finestyle": finestyle("FineStyle", where),
    }


ARMS: dict[str, Arm] = {
    "base": Arm("Muse alone, the style in words", how="base", where="scene"),
    "R1": styledrop("StyleDrop, round 1", "none"),
    "CF": styledrop("StyleDrop, round 2 on images selected by CLIP", "clip"),
    "HF": styledrop("StyleDrop, round 2 on images selected by an oracle that has the true images", "oracle"),
    "random": styledrop("StyleDrop, round 2 on images selected at random", "random"),
    "lora": trained("LoRA of all attention, ordinary guidance", settings=MASKS),
    "finestyle": finestyle("FineStyle"),
    "whole": finestyle("FineStyle without data scaling: the whole image, as often", pairs=""),
    "random crops": finestyle("crops at random places", pairs="random"),
    "nameless": finestyle("crops without the concept's name", pairs="nameless"),
    "q": finestyle("bottlenecks behind queries", settings={"adapter.location": "q"}),
    "out": finestyle("bottlenecks behind the output of cross-attention", settings={"adapter.location": "out"}),
    "blocks": finestyle(
        "StyleDrop's places, behind cross-attention and MLP", settings={"adapter.location": "attention-and-mlp"}
    ),
    "all attention": trained("LoRA of all attention", pairs="found", settings=MASKS, **OWN),
    **{
        grid(a, b): finestyle(f"FineStyle, lambda1 {a:g}, lambda2 {b:g}", weights=[a, b, 0.0])
        for a, b in product(LAMBDA1, LAMBDA2)
    },
    **{name: arm for where in ("near", "middle", "far", "ground") for name, arm in contrasted(where).items()},
    **{
        name: styledrop(
            f"StyleDrop, round 1, style-friendly law of mean {mean:g} on mask ratios",
            "none",
            {"noise": "style-friendly", "noise.mean": mean, "noise.std": 2.0},
        )
        for name, mean in LAWS.items()
    },
}

RIVALS = ("R1", "CF", "random")
SCALING = tuple("random crops" if name == "random" else name for name in CONTROLS)
PLACES = ("q", "out", "blocks", "all attention")
OF_DIFFUSION = {claim.id: claim for claim in DIFFUSION_CLAIMS}


def no_less_style(arm: str, other: str) -> Compare:
    return no_less(arm, other, "style")


CLAIMS: tuple[Claim, ...] = (
    Claim(
        "F1",
        OF_DIFFUSION["F1"].claim,
        {"its tables": "against Muse, StyleDrop, StyleAligned and IP-Adapter; no numbers are available to us"},
        (
            Reading(
                "against StyleDrop's rounds",
                tuple(one for rival in RIVALS for one in (leaks_less("finestyle", rival),
                                                          no_less_style("finestyle", rival))),
            ),
            Reading("no more than the base", (leaks_no_more("finestyle", "base"),), ours=True),
        ),
        shown=("HF", "lora"),
        sheet=("base", "R1", "CF", "HF", "finestyle"),
    ),
    Claim(
        "F2",
        OF_DIFFUSION["F2"].claim,
        OF_DIFFUSION["F2"].paper,
        (
            Reading(
                "style and text",
                tuple(one for other in SCALING for one in (more("finestyle", other), no_less("finestyle", other))),
            ),
            Reading("leakage", tuple(leaks_less("finestyle", other) for other in SCALING)),
        ),
        shown=("base",),
        sheet=("base", "finestyle", *SCALING),
    ),
    Claim(
        "F3",
        OF_DIFFUSION["F3"].claim,
        OF_DIFFUSION["F3"].paper,
        (
            Reading("harmonic mean of style and text", tuple(more("finestyle", other, "both") for other in PLACES)),
            Reading("StyleDrop's places are better", (more("blocks", "finestyle", "both"),), ours=True),
        ),
        sheet=("finestyle", *PLACES),
    ),
    *(OF_DIFFUSION[name] for name in ("F4", "F5", "F6")),
    Claim(
        "F8",
        OF_DIFFUSION["F8"].claim,
        OF_DIFFUSION["F8"].paper,
        (Reading("against all others", tuple(more("finestyle", other, "both") for other in ("base", *RIVALS))),),
        shown=("HF", "whole", *PLACES),
    ),
    Claim(
        "D1",
        "StyleDrop's first round takes the style; its second round on selected images gives back text.",
        {
            "text / style by CLIP, 190 Parti prompts, 6 styles": "Muse .323 / .556, R1 .313 / .705, HF .322 / .694, "
            "CF .329 / .673, random .316 / .678"
        },
        (
            Reading("round 1 has more style than Muse", (more("R1", "base"),)),
            Reading("CLIP feedback: more text than round 1", (more("CF", "R1", "text"),)),
            Reading(
                "human feedback (oracle): more text than round 1, no less style",
                (more("HF", "R1", "text"), no_less_style("HF", "R1")),
            ),
            Reading("the selection does it: CLIP has more text than random", (more("CF", "random", "text"),)),
            Reading("harmonic mean: CLIP above round 1", (more("CF", "R1", "both"),), ours=True),
        ),
        sheet=("base", "R1", "HF", "CF", "random"),
    ),
    Claim(
        "M1",
        "Our own question: style-friendly laws on mask ratios, which mask more, take more style than cosine-mask.",
        {"source": "not in the papers; theirs is cosine-mask, the median of m .71"},
        (
            Reading("median m .88", (more("law -4", "R1"), no_less("law -4", "R1")), ours=True),
            Reading("median m .95", (more("law -6", "R1"), no_less("law -6", "R1")), ours=True),
            Reading("masking less takes less", (more("R1", "law 0"),), ours=True),
        ),
        sheet=("R1", *LAWS),
    ),
)  # fmt: skip
