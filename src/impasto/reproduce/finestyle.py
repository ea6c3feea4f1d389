"""The claims of "FineStyle: Fine-grained Controllable Style Personalization" (Zhang et al., NeurIPS 2024).

The paper adapts Muse and reports CLIP scores and human raters, in tables and figures; here style and text are those of
the judges, and leakage is measured (`evaluation.leakage`). Every arm that is trained is a LoRA of all attention unless
it says otherwise, 150 steps; FineStyle's weights and null prompt are those of the recipe `finestyle`, which were chosen
on secondary styles.
"""

from itertools import product
from pathlib import Path
from typing import Any

from impasto.errors import UserError
from impasto.families.base import Family
from impasto.reproduce import finestyle_paper
from impasto.reproduce.claims import Arm, Claim, Compare, Reading, more, no_less
from impasto.reproduce.finestyle_jobs import STYLE_WORDS
from impasto.reproduce.finestyle_world import SceneWorld

BASE = "mini-sd15"
RECIPE = "finestyle"
OWN = {"weights": [3.0, 2.0, 3.0], "null": STYLE_WORDS}
"""(lambda1, lambda2, lambda_base) and null prompt of the recipe."""
UNIFORM = {"noise": "uniform"}
PART_RATE = 4.0
"""Factor on the learning rate of adapters of a part of the attention, as in the recipe finestyle-kv."""
LAMBDA1, LAMBDA2 = (0.0, 1.0, 3.0), (0.0, 2.0, 5.0)


def trained(what: str, where: str = "scene", pairs: str = "", settings: Any = None, **sampling: Any) -> Arm:
    """An arm that trains on the scene. pairs: see `finestyle_jobs.PAIRS`, none by default. sampling: `weights` and
    `null`; ordinary guidance where there are none."""
    options = {**({"pairs": pairs} if pairs else {}), **sampling}
    return Arm(what, {"method": "fit", **(settings or {})}, how="scene", options=options, where=where, recipe=RECIPE)


def part(what: str, kind: str) -> Arm:
    """FineStyle with a LoRA of one kind of layers."""
    return trained(what, pairs="found", settings={"targets": (kind,), "lr": PART_RATE * 5e-4}, **OWN)


def grid(lambda1: float, lambda2: float) -> str:
    """Name of a cell of the paper's figure 9."""
    return f"({lambda1:g}, {lambda2:g})"


def contrasted(where: str, prefix: str) -> dict[str, Arm]:
    """Base, FineStyle, and FineStyle without data scaling, on other prompts."""
    return {
        f"{prefix}base": Arm("the base alone", how="base", where=where),
        f"{prefix}whole": trained("without data scaling", where, **OWN),
        f"{prefix}finestyle": trained("FineStyle", where, "found", **OWN),
    }


ARMS: dict[str, Arm] = {
    "base": Arm("the base alone, the style in words", how="base", where="scene"),
    "plain": trained("LoRA, t ~ U(0, 1), ordinary guidance", settings=UNIFORM),
    "styledrop": trained("the same LoRA by StyleDrop's guidance", settings=UNIFORM, weights="styledrop"),
    "style-friendly": trained("LoRA by the style-friendly law, ordinary guidance"),
    "style-aligned": Arm("StyleAligned, no training", how="scene-aligned", where="scene"),
    "finestyle": trained("FineStyle", pairs="found", **OWN),
    "whole": trained("without data scaling: the whole image, as often", **OWN),
    "random": trained("crops at random places", pairs="random", **OWN),
    "nameless": trained("crops without the concept's name", pairs="nameless", **OWN),
    "kv": part("LoRA of keys and values of cross-attention", "cross_attention_kv"),
    "q": part("LoRA of queries of cross-attention", "cross_attention_q"),
    "out": part("LoRA of the output of cross-attention", "cross_attention_out"),
    "kv bottleneck": trained(
        "the paper's bottleneck behind keys and values",
        pairs="found",
        settings={"adapter": "kv-bottleneck", "lr": PART_RATE * 5e-4},
        **OWN,
    ),
    **{
        grid(a, b): trained(f"FineStyle, lambda1 {a:g}, lambda2 {b:g}, empty null prompt", pairs="found",
                            weights=[a, b, 0.0])
        for a, b in product(LAMBDA1, LAMBDA2)
    },
    **{name: arm for where in ("near", "middle", "far") for name, arm in contrasted(where, f"{where}: ").items()},
    **contrasted("ground", "ground: "),
    **contrasted("subset", "subset: "),
    "plain, scaled": trained("LoRA, t ~ U(0, 1), data scaling, ordinary guidance", pairs="found", settings=UNIFORM),
    "style-friendly, scaled": trained("LoRA by the style-friendly law, data scaling, ordinary guidance", pairs="found"),
}  # fmt: skip


def leaks_less(arm: str, other: str) -> Compare:
    """`arm` leaks less than `other`: holds above 0, is refuted below the margin."""
    return Compare(f"{arm} leaks less than {other}", {other: 1.0, arm: -1.0}, "leak")


def leaks_no_more(arm: str, other: str) -> Compare:
    """`arm` leaks at most a margin more than `other`."""
    what = f"{arm} leaks no more than {other}"
    return Compare(what, {other: 1.0, arm: -1.0}, "leak", above=-1.0, below=-1.0)


def along(name: str, index: int, sign: float, measure: str) -> Compare:
    """From the smallest to the largest value of lambda1 (index 0) or lambda2 (1), over all values of the other."""
    values = (LAMBDA1, LAMBDA2)
    first, last = values[index][0], values[index][-1]
    pairs = [(a, b) for a, b in product(*values) if (a, b)[index] in (first, last)]
    share = sign / len(values[1 - index])
    weights = {grid(*pair): share if pair[index] == last else -share for pair in pairs}
    return Compare(f"{name} {'raises' if sign > 0 else 'lowers'} {measure}", weights, measure)


NO_NUMBERS = {"its figures": "images; no numbers are available to us"}
RIVALS = ("plain", "styledrop", "style-friendly", "style-aligned")
CONTROLS = ("whole", "random", "nameless")
PLACES = ("q", "out", "finestyle")

CLAIMS: tuple[Claim, ...] = (
    Claim(
        "F1",
        "Learnt from one image of several things, FineStyle leaks least of them at equal style.",
        {"its tables": "against Muse, StyleDrop, StyleAligned and IP-Adapter; no numbers are available to us"},
        (
            Reading(
                "against LoRA, StyleDrop's guidance and StyleAligned",
                tuple(
                    compare
                    for rival in RIVALS
                    for compare in (leaks_less("finestyle", rival), no_less("finestyle", rival, "style"))
                ),
            ),
            Reading("no more than the base", (leaks_no_more("finestyle", "base"),), ours=True),
        ),
        sheet=("base", *RIVALS, "finestyle"),
    ),
    Claim(
        "F2",
        "Data scaling by concepts gives more style at no less text, and it is the concepts' crops and names that do.",
        {"its ablation": "with and without data scaling"},
        (
            Reading(
                "style and text",
                tuple(
                    compare
                    for other in CONTROLS
                    for compare in (more("finestyle", other), no_less("finestyle", other))
                ),
            ),
            Reading("leakage", tuple(leaks_less("finestyle", other) for other in CONTROLS)),
        ),
        shown=("base",),
        sheet=("base", "finestyle", *CONTROLS),
    ),
    Claim(
        "F3",
        "The adapter belongs on keys and values of cross-attention.",
        {"its ablation": "locations of the adapter; the paper takes keys and values"},
        (
            Reading("LoRA, harmonic mean of style and text", tuple(more("kv", other, "both") for other in PLACES)),
            Reading("all attention is better", (more("finestyle", "kv", "both"),), ours=True),
        ),
        shown=("kv bottleneck",),
        sheet=("kv", "kv bottleneck", "q", "out", "finestyle"),
    ),
    Claim(
        "F4",
        "lambda1 raises style and leakage, lambda2 restores the semantics of the prompt.",
        {"figure 9": "lambda1 x lambda2; the values are not published"},
        (
            Reading("lambda1 and style, lambda2 and text", (along("lambda1", 0, 1.0, "style"),
                                                            along("lambda2", 1, 1.0, "text"))),
            Reading("lambda1 and leakage", (along("lambda1", 0, 1.0, "leak"),)),
            Reading("lambda1 lowers text", (along("lambda1", 0, -1.0, "text"),), ours=True),
        ),
        shown=("finestyle",),
        sheet=tuple(grid(a, b) for a, b in product(LAMBDA1, LAMBDA2)),
    ),
    Claim(
        "F5",
        "The style holds where the prompt is near a thing of the reference, and the thing does not take its place.",
        NO_NUMBERS,
        (
            Reading(
                "style near is no less than far, text no less than the base's",
                (no_less("near: finestyle", "far: finestyle", "style"), no_less("near: finestyle", "near: base")),
            ),
            Reading("near, more text than without data scaling", (more("near: finestyle", "near: whole", "text"),)),
        ),
        shown=("middle: base", "middle: whole", "middle: finestyle", "far: base", "far: whole"),
        sheet=("near: base", "near: whole", "near: finestyle"),
    ),
    Claim(
        "F6",
        "Attributes of the reference (its ground) are switched by words.",
        NO_NUMBERS,
        (
            Reading(
                "more often the ground that was asked for",
                (more("ground: finestyle", "ground: whole", "ground"), no_less("ground: finestyle", "ground: whole",
                                                                               "style")),
            ),
            Reading("as often as the base", (no_less("ground: finestyle", "ground: base", "ground"),), ours=True),
        ),
        sheet=("ground: base", "ground: whole", "ground: finestyle"),
    ),
    Claim(
        "F7",
        "Subsets of the reference's things are generated on request, without the others.",
        NO_NUMBERS,
        (
            Reading(
                "what was asked for, and no other thing",
                (
                    no_less("subset: finestyle", "subset: whole", "asked"),
                    leaks_less("subset: finestyle", "subset: whole"),
                ),
            ),
        ),
        sheet=("subset: base", "subset: whole", "subset: finestyle"),
    ),
    Claim(
        "F8",
        "FineStyle has the best of text and style together (harmonic mean).",
        {
            "third-party text / style by CLIP": "IP-Adapter .302 / .763, StyleAligned .315 / .716, StyleDrop "
            ".273 / .657"
        },
        (Reading("against all others", tuple(more("finestyle", other, "both") for other in ("base", *RIVALS))),),
    ),
    Claim(
        "F9",
        "Our own question: the style-friendly noise law leaks more, and data scaling cures it.",
        {"source": "not in the paper"},
        (
            Reading("the law leaks more", (leaks_less("plain", "style-friendly"),), ours=True),
            Reading("data scaling lowers it", (leaks_less("style-friendly, scaled", "style-friendly"),), ours=True),
            Reading(
                "with data scaling the law leaks no more",
                (leaks_no_more("style-friendly, scaled", "plain, scaled"),),
                ours=True,
            ),
        ),
        sheet=("plain", "plain, scaled", "style-friendly", "style-friendly, scaled"),
    ),
)  # fmt: skip


def arms(base_hash: str, calibration: Path | None, world: str) -> dict[str, Arm]:
    """ARMS; those of the paper's protocol in its world."""
    return finestyle_paper.ARMS if world == "paper" else ARMS


def claims(world: str) -> tuple[Claim, ...]:
    """CLAIMS; in the paper's protocol those that its scores decide."""
    return finestyle_paper.claims(CLAIMS) if world == "paper" else CLAIMS


def small_world(folder: Path | None = None, clip: str | None = None, dino: str | None = None) -> SceneWorld:
    """The small world. Raises UserError on flags of the paper's protocol."""
    if folder or clip or dino:
        raise UserError("--references, --clip and --dino need --protocol paper")
    return SceneWorld()


def on_family(
    claims: tuple[Claim, ...], arms: dict[str, Arm], family: Family
) -> tuple[tuple[Claim, ...], dict[str, Arm]]:
    """On a base of masked tokens, the papers' kind, the claims and arms of `finestyle_muse`."""
    if not family.schedule.masked:
        return claims, arms
    from impasto.reproduce import finestyle_muse

    return finestyle_muse.CLAIMS, finestyle_muse.ARMS


WORLDS = {"small-world": small_world, "paper": finestyle_paper.make_world}
"""{protocol: (references, clip, dino) -> World}."""
