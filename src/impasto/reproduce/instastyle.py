"""The claims of "InstaStyle: Inversion Noise of a Stylized Image is Secretly a Style Adviser" (Cui et al. 2023).

Its numbers are CLIP scores on 60 references, whose table we do not have; what is known of them is their order. Here
style is the judge's, content the concept judge's top-5. Thresholds are those of issue 26, from a trial.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from impasto.errors import UserError
from impasto.reproduce import instastyle_jobs, instastyle_paper, instastyle_sheets
from impasto.reproduce.claims import Arm, Claim, Compare, Reading, more
from impasto.reproduce.clip_world import CLIP
from impasto.reproduce.instastyle_others import other_arms, with_others
from impasto.reproduce.instastyle_rates import BASELINES, REFINEMENT
from impasto.reproduce.instastyle_world import MEASURES, NoiseWorld

if TYPE_CHECKING:
    from impasto.reproduce.campaign import Campaign

BASE = "mini-sd15"
TIMESTEPS = (321, 481, 561, 641, 721, 801)
"""Terminal timesteps beside the last one, 981."""
GUIDANCES = (1.5, 3.5, 5.0, 6.5)
"""Guidance scales beside 2.5."""
ONE_IMAGE = {"noise": "uniform", "batch": 2, "accumulate": 1, "weight_decay": 0.0}
PRIOR = {
    "prior.weight": 1.0,
    "prior.batch": 2,
    "prior.per_prompt": 4,
    "prior.target": "data",
    "prior.prompt": ("horse", "rose", "ship", "umbrella"),
}
"""Prior preservation of DreamBooth: the base's images of other objects, without style words."""
CURVES = {
    "N4-timestep.svg": ("terminal timestep", {f"T {t}": float(t) for t in TIMESTEPS} | {"inversion": 981.0}),
    "N4-guidance.svg": ("guidance", {f"w {w:g}": w for w in GUIDANCES} | {"inversion": 2.5}),
}
"""{file: (x axis, {arm: x})}."""


def noise(what: str, where: str = "white", **options: Any) -> Arm:
    """An arm without training."""
    return Arm(what, how="noise", options=options, where=where)


def refined(
    what: str,
    where: str = "white",
    options: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Arm:
    """An arm of the recipe."""
    own = {**REFINEMENT, **(settings or {})}
    return Arm(what, own, how="instastyle", options=options or {}, where=where, recipe="instastyle")


def mix(what: str, where: str) -> Arm:
    """An arm of a joint refinement."""
    return Arm(what, REFINEMENT, how="mix", options={"of": where}, where=where, recipe="instastyle")


def first_stage(where: str, prefix: str = "") -> dict[str, Arm]:
    """N1's arms."""
    found = {
        "inversion": noise("inversion noise, style words", where),
        "one gaussian": noise("one Gaussian noise for all, style words", where, start="gaussian"),
        "gaussians": noise("a Gaussian noise per image, style words", where, start="gaussians"),
        "no words": noise("inversion noise, no style words", where, words=""),
        "forward": noise("the image noised forward to the same level", where, start="forward"),
        "statistics": noise("Gaussian noise with the channels' statistics (noise_random 1)", where, random=1.0),
    }
    return {prefix + name: arm for name, arm in found.items()}


TOKEN = {"text": "token", "text.words": ("style",)}
ARMS: dict[str, Arm] = {
    **first_stage("white"),
    **first_stage("ground", "ground: "),
    "full": refined("InstaStyle"),
    "no noise": refined("refined, a Gaussian noise per image", options={"start": "gaussians"}),
    "single: score": refined("selected by score", "single"),
    "single: random": refined("selected at random", "single", settings={"method.select": "random"}),
    "single: oracle": refined("selected by the true images", "single", {"oracle": True}),
    "single: 1e-5": refined("the paper's learning rate", "single", settings={"lr": 1e-5}),
    "single: inversion": noise("no refinement", "single"),
    **{f"T {t}": noise(f"inversion to t = {t}", until=float(t)) for t in TIMESTEPS},
    **{f"w {w:g}": noise(f"guidance {w:g}", guidance=w) for w in GUIDANCES},
    "grid": mix("two styles, alpha x beta", "pair"),
    "line": mix("two styles, alpha = beta", "line"),
    "several": mix("three styles, the first with each of the others", "trio"),
    "same style": Arm("three references of one style", how="references", options={"of": "same"}, where="references"),
    "other styles": Arm(
        "references of three styles, one style in words", how="references", options={"of": "other"}, where="references"
    ),
    "three gaussians": Arm("three Gaussian noises", how="references", options={"of": "gaussian"}, where="references"),
    "specific": noise('"specific style" in place of the style words', words=instastyle_jobs.SPECIFIC),
    "single: prompt": noise("the base, the style in words", "single", start="gaussians"),
    "single: style-friendly": Arm("Style-Friendly SNR sampler", where="single"),
    "single: style-aligned": Arm("StyleAligned", how="aligned", options={"shift": 0.0}, where="single"),
    "single: textual inversion": Arm(
        "Textual Inversion: the token alone",
        {**ONE_IMAGE, **TOKEN, "rank": 1, "lr": 1e-30, "text.lr": BASELINES["textual inversion"], "steps": 500},
        how="token",
        where="single",
    ),
    "single: custom diffusion": Arm(
        "Custom Diffusion: token, keys and values of cross-attention",
        {
            **ONE_IMAGE,
            **TOKEN,
            "adapter": "full-rank",
            "adapter.block_first_token": True,
            "targets": ("cross_attention_kv",),
            "lr": BASELINES["custom diffusion"],
            "steps": 250,
        },
        how="token",
        where="single",
    ),
    "single: dreambooth": Arm(
        "DreamBooth: the whole U-Net",
        {**ONE_IMAGE, **PRIOR, "adapter": "full", "lr": BASELINES["dreambooth"], "steps": 250},
        where="single",
    ),
}


def at_least(arm: str, other: str, measure: str, amount: float) -> Compare:
    """`arm` has at least `amount` more of a measure."""
    at = amount / MEASURES[measure].margin
    return Compare(f"{arm} has {amount:g} more {measure} than {other}", {arm: 1.0, other: -1.0}, measure, at, at)


def above(arm: str, measure: str, value: float) -> Compare:
    """The measure itself is at least `value`."""
    at = value / MEASURES[measure].margin
    return Compare(f"{measure} of {arm} is at least {value:g}", {arm: 1.0}, measure, at, at)


def below(arm: str, measure: str, value: float) -> Compare:
    """The measure itself is at most `value`."""
    at = -value / MEASURES[measure].margin
    return Compare(f"{measure} of {arm} is at most {value:g}", {arm: -1.0}, measure, at, at)


def less(arm: str, other: str, measure: str) -> Compare:
    """`arm` has less of an error."""
    return Compare(f"{arm} has less {measure} error than {other}", {arm: -1.0, other: 1.0}, measure)


HALF = Compare(
    "ground error from inversion noise is at most half",
    {"ground: one gaussian": 0.5, "ground: inversion": -1.0},
    "ground",
    below=0.0,
)
ORDER = {"table 1": "InstaStyle first in style and content (CLIP scores; the numbers are not available to us)"}
OTHERS = (
    *("single: prompt", "single: textual inversion", "single: custom diffusion", "single: dreambooth"),
    *("single: style-aligned", "single: style-friendly"),
)
CLAIMS: tuple[Claim, ...] = (
    Claim(
        "N1",
        "The inversion noise of one image carries its style to other objects without training.",
        {"figure 3 and 16": "qualitative; SNR .0151 of the signal is left at T = 1000"},
        (
            Reading(
                "white grounds",
                (
                    at_least("inversion", "one gaussian", "cosine", 0.1),
                    more("inversion", "one gaussian", "probability"),
                ),
            ),
            Reading("coloured and dark grounds", (HALF, less("ground: inversion", "ground: one gaussian", "palette"))),
            Reading("without style words", (more("no words", "one gaussian", "cosine"),)),
            Reading(
                "more than the channels' statistics and than the image noised forward",
                (more("inversion", "statistics", "cosine"), more("inversion", "forward", "cosine")),
                ours=True,
            ),
            Reading("at less content", (more("one gaussian", "inversion", "text"),), ours=True),
        ),
        shown=("gaussians", *(f"ground: {name}" for name in ("gaussians", "no words", "forward", "statistics"))),
        sheet=("inversion", "one gaussian", "gaussians", "no words", "forward", "statistics"),
    ),
    Claim(
        "N2",
        "Prompt refinement helps style and content.",
        {"figure 8": "style and content fall without refinement, style most without inversion noise"},
        (
            Reading("style", tuple(more("full", arm, "probability") for arm in ("inversion", "no noise", "gaussians"))),
            Reading("content", (more("full", "inversion", "text"),)),
            Reading(
                "the paper's learning rate trains nothing",
                (
                    Compare(
                        "1e-5 adds less than a margin",
                        {"single: 1e-5": -1.0, "single: inversion": 1.0},
                        "probability",
                        above=-1.0,
                        below=-1.0,
                    ),
                ),
                ours=True,
            ),
        ),
        sheet=("gaussians", "no noise", "inversion", "full"),
    ),
    Claim(
        "N3",
        "Candidates selected by a person give more style than by score, by score more than at random.",
        {"section 4.3": "human > score > random; here the true images stand in for the person"},
        (
            Reading(
                "true images for the person",
                (
                    more("single: oracle", "single: score", "probability"),
                    more("single: score", "single: random", "probability"),
                ),
            ),
        ),
        sheet=("single: random", "single: score", "single: oracle"),
    ),
    Claim(
        "N4",
        "An earlier terminal timestep keeps the reference's structure, the last one its style with little structure.",
        {"figure 19": "style is always kept; structure fades with T", "figure 18": "guidance trades style for content"},
        (
            Reading(
                "leakage and content over T",
                (
                    above("T 321", "leakage", 0.8),
                    below("inversion", "leakage", 0.4),
                    at_least("inversion", "T 321", "text", 0.3),
                ),
            ),
            Reading(
                "style is always kept",
                (
                    Compare(
                        "the last T has no less cosine than t = 721",
                        {"inversion": 1.0, "T 721": -1.0},
                        "cosine",
                        above=-1.0,
                        below=-1.0,
                    ),
                ),
            ),
            Reading(
                "guidance trades style for content",
                (more("w 6.5", "w 1.5", "text"), more("w 1.5", "w 6.5", "cosine")),
            ),
        ),
        shown=("one gaussian", *(f"w {w:g}" for w in GUIDANCES)),
        sheet=(*(f"T {t}" for t in TIMESTEPS), "inversion"),
    ),
    Claim(
        "N5",
        "alpha and beta mix two styles smoothly, the noise mainly, the prompt less.",
        {"figure 7, 14 and 15": "qualitative"},
        (
            Reading("each style's cosine follows alpha", (above("grid", "tau", 0.7),)),
            Reading("the line is in order", (above("line", "tau", 0.7),)),
            Reading(
                "the noise more than the prompt", (Compare("alpha moves more than beta", {"grid": 1.0}, "alpha_over"),)
            ),
            Reading("one style with several others", (above("several", "present", 0.0),)),
        ),
    ),
    Claim(
        "N6",
        "References of the same style and other content give the same style.",
        {"figure 17": "qualitative"},
        (
            Reading(
                "consistency of the references' images",
                (more("same style", "other styles", "consistency"),),
            ),
            Reading("against Gaussian noises", (more("same style", "three gaussians", "consistency"),), ours=True),
        ),
        sheet=("same style", "other styles", "three gaussians"),
    ),
    Claim(
        "N7",
        "The learned token serves as well as fitting words, better than words that say nothing.",
        {"figure 2": "qualitative"},
        (
            Reading("style", (more("full", "specific", "probability"), more("full", "inversion", "probability"))),
            Reading("words that say nothing", (more("inversion", "specific", "probability"),)),
        ),
        sheet=("specific", "inversion", "full"),
    ),
    Claim(
        "N8",
        "Styles that are near each other stay apart.",
        {"figure 1a": "qualitative"},
        (
            Reading("nearer to its own style than to the nearest other", (above("full", "apart", 0.0),)),
            Reading("more than by words", (more("full", "gaussians", "apart"),)),
        ),
        shown=("inversion",),
    ),
    Claim(
        "N9",
        "InstaStyle has more style and no less content than the other methods for one reference.",
        ORDER,
        (
            Reading("style", tuple(more("single: score", arm, "probability") for arm in OTHERS)),
            Reading("content", tuple(more("single: score", arm, "text") for arm in OTHERS)),
        ),
        sheet=("single: score", *OTHERS),
    ),
)


def arms(base_hash: str, calibration: Path | None, world: str) -> dict[str, Arm]:
    """ARMS; those of the paper's protocol in its world."""
    return instastyle_paper.ARMS if world == "paper" else ARMS


def claims(world: str) -> tuple[Claim, ...]:
    """CLAIMS; in the paper's protocol those that its numbers decide."""
    return instastyle_paper.claims(CLAIMS) if world == "paper" else CLAIMS


def others(out: Path, claims: Sequence[Claim], arms: Mapping[str, Arm]) -> tuple[tuple[Claim, ...], dict[str, Arm]]:
    """N9 with other methods, whose images lie in `out/others`."""
    own = other_arms(out)
    return with_others(claims, own), {**arms, **own}


def drawings(campaign: "Campaign", claim: Claim, size: str) -> dict[str, str | bytes]:
    """Sheets of mixtures (N5) and of lost objects (N1), a point per reference (N2), scores over T and guidance (N4)."""
    if campaign.world.name == "paper":
        return {}
    if claim.id == "N4":
        curves = {name: instastyle_sheets.trade_off(campaign, size, *own) for name, own in CURVES.items()}
        return {name: drawing for name, drawing in curves.items() if drawing}
    return {
        "N1": lambda: instastyle_sheets.limits(campaign, size),
        "N2": lambda: instastyle_sheets.points(campaign, size),
        "N5": lambda: instastyle_sheets.mixtures(campaign, size),
    }.get(claim.id, dict)()


def small_world(folder: Path | None = None, clip: str | None = None, dino: str | None = None) -> NoiseWorld:
    """The small world with the method's jobs. Raises UserError on flags of the paper's protocol."""
    if folder or clip or dino:
        raise UserError("--references, --clip and --dino need --protocol paper")
    return NoiseWorld(jobs=instastyle_jobs.JOBS)


def paper_world(folder: Path | None, clip: str | None, dino: str | None) -> instastyle_paper.ReferenceWorld:
    """The paper's protocol. Raises UserError without references."""
    if folder is None or dino:
        raise UserError("--protocol paper needs --references DIR, the folder of the references; it has no --dino")
    return instastyle_paper.ReferenceWorld(folder, clip or CLIP, jobs=instastyle_jobs.JOBS)


WORLDS = {"small-world": small_world, "paper": paper_world}
