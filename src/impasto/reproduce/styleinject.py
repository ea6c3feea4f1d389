"""The claims of "StyleInject: Parameter Efficient Tuning of Text-to-Image Diffusion Models" (Bai et al. 2024).

The paper's numbers are CLIP-S / ImageReward / PickScore - 21 on SD1.5 (Tables I-IV). Preference models have no weights
here, so that their readings are not testable; the others put style accuracy, what training is for in this world, in
the place of preference. Sizes are the small world's: StyleInject r 8 with n = 16 has 169 d parameters on a layer of
width d, LoRA r 96 192 d; n = 4 has 49 d, LoRA r 24 48 d.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from impasto.bases import loader
from impasto.errors import UserError
from impasto.files import cache_dir
from impasto.reproduce import folder_jobs, styleinject_paper, styleinject_router
from impasto.reproduce.claims import Arm, Claim, Compare, Reading, more, no_less, with_equal_text
from impasto.reproduce.clip_world import CLIP
from impasto.reproduce.folder_world import FolderWorld
from impasto.reproduce.sheets import images_of
from impasto.reproduce.styleinject_rates import RATES

if TYPE_CHECKING:
    from impasto.reproduce.campaign import Campaign

BASE = "mini-sd15"
SINGLE_STEPS, MIXED_STEPS, DISTILL_STEPS, SUBJECT_STEPS = 150, 450, 200, 150
COMMON = {"noise": "uniform", "batch": 8, "accumulate": 1, "weight_decay": 0.0}
ATTENTION = ("to_q", "to_v")
EVERYWHERE = (*ATTENTION, "convolution")
"""The paper distils into to_q, to_v and all convolutions (section V-B)."""
NO_PREFERENCE = "ImageReward and PickScore have no weights here"


def styleinject(n: int, rank: int = 8, targets: tuple[str, ...] = ATTENTION, **settings: Any) -> dict[str, Any]:
    """Settings of a StyleInject."""
    own = {"adapter": "styleinject", "adapter.n": n, "rank": rank, "targets": targets, "lr": RATES["styleinject"]}
    return {**COMMON, **own, **{f"adapter.{key}": value for key, value in settings.items()}}


def lora(rank: int, targets: tuple[str, ...] = ATTENTION) -> dict[str, Any]:
    """Settings of a LoRA on the same layers."""
    rate = RATES["lora, large" if rank > 48 else "lora"]
    return {**COMMON, "adapter": "lora", "rank": rank, "targets": targets, "lr": rate}


FULL = {**COMMON, "adapter": "full", "lr": RATES["full"]}
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "n 16": ("StyleInject n 16 r 8", styleinject(16)),
    "n 4": ("StyleInject n 4 r 8", styleinject(4)),
    "n 1": ("StyleInject n 1 r 8 (STA alone)", styleinject(1)),
    "n 4, r 4": ("StyleInject n 4 r 4", styleinject(4, 4)),
    "DMA": ("StyleInject n 16 r 8 without AdaIN (DMA alone)", styleinject(16, sta=False)),
    "lora 8": ("LoRA r 8 (neither)", lora(8)),
    "lora 24": ("LoRA r 24 (as many parameters as n 4)", lora(24)),
    "lora 96": ("LoRA r 96 (more parameters than n 16)", lora(96)),
    "full": ("the whole U-Net", FULL),
}
"""{name: (description, settings)} of the arms on folders."""
SETS = {"": ("mixed", "three styles in one folder", MIXED_STEPS), "one: ": ("single", "one style", SINGLE_STEPS)}
"""{prefix of an arm's name: (units, description, steps)}."""

PRIOR = {"prior.weight": 1.0, "prior.batch": 4, "prior.per_prompt": 4, "prior.target": "data"}
"""DreamBooth's prior preservation: the base's images of the class, with the ordinary loss."""
TAUGHT_RATE = {"lr": 1e-3}
"""Of distilled adapters, from the trial on one style."""
DISTILL: Mapping[str, float] = {}
"""Weights of the distillation errors; the objective's own."""
STUDENTS: dict[str, tuple[str, dict[str, Any]]] = {
    "student": ("StyleInject n 4 r 8, attention and convolutions", styleinject(4, 8, EVERYWHERE) | TAUGHT_RATE),
    "student, lora": ("LoRA r 32, the same layers", lora(32, EVERYWHERE) | TAUGHT_RATE),
    "student, full": ("the whole U-Net", FULL | {"lr": 5e-5}),
}


def on_folder(
    what: str, settings: Mapping[str, Any], where: str, steps: int, how: str = "folder", **options: Any
) -> Arm:
    """An arm that trains on the unit's folder."""
    return Arm(what, {**settings, "steps": steps}, how=how, options=options, where=where)


def students(where: str, prefix: str) -> dict[str, Arm]:
    """Teacher, base and students."""
    return {
        f"{prefix}teacher": Arm("the teacher", how="teacher", where=where),
        f"{prefix}untaught": Arm("the base alone", how="untaught", where=where),
        **{
            prefix + name: on_folder(what, settings, where, DISTILL_STEPS, "distill", distill=dict(DISTILL))
            for name, (what, settings) in STUDENTS.items()
        },
    }


STUDENT_BASE, LABELS = "mini-sd15-zh", "labels.json"
UNSHARED_STEPS = (50, 100, 200)
UNSHARED_CURVE = "unshared{}, {} steps"


def unshared() -> dict[str, Arm]:
    """The arms of a student of another language; absent where the base is not in the cache, with its labels."""
    folder = cache_dir("bases", STUDENT_BASE)
    if (folder / LABELS).is_file():
        common = {"student": STUDENT_BASE, "sha256": loader.load(str(folder)).hash}
        absent = {}
    else:
        missing = f"no base {STUDENT_BASE} in {folder.parent}" if not folder.is_dir() else f"{folder} lacks {LABELS}"
        common, absent = {}, {"absent": missing, "untestable": True}
    found = {
        "unshared: teacher": Arm("the teacher, prompted in its language", how="teacher", where="unshared", **absent),
        "unshared: untaught": Arm("the student alone", how="unshared", where="unshared", options=common, **absent),
    }
    for name, method in (("", "student"), (" lora", "student, lora")):
        what, settings = STUDENTS[method]
        for steps in UNSHARED_STEPS:
            last = "unshared" + (":" + name if name else "")
            arm = last if steps == UNSHARED_STEPS[-1] else UNSHARED_CURVE.format(name, steps)
            own = on_folder(what, settings, "unshared", steps, "unshared", **common)
            found[arm] = replace(own, **absent)
    return found


def translations() -> dict[str, str] | None:
    """{label: label in the student's language}, None without that base."""
    file = cache_dir("bases", STUDENT_BASE) / LABELS
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None


def router(what: str, **options: bool) -> Arm:
    """The router of "n 16", measured."""
    return on_folder(what, styleinject(16), "probe", MIXED_STEPS, "router", **options)


ARMS: dict[str, Arm] = {
    "base": Arm("the base alone, the style in words", how="prompt", where="mixed"),
    "one: base": Arm("the base alone, the style in words", how="prompt", where="single"),
    **{
        prefix + name: on_folder(f"{what}, {of}", settings, where, steps)
        for prefix, (where, of, steps) in SETS.items()
        for name, (what, settings) in METHODS.items()
    },
    **students("taught", ""),
    **students("biased", "biased: "),
    "router": router("the trained router of n 16"),
    "router, shuffled": router("the same outputs, shuffled labels", shuffled=True),
    "router, untrained": router("a router as initialised", untrained=True),
    "subject: base": Arm("the base alone, the subject's class in words", how="plain", where="subject"),
    "subject: n 4": on_folder("StyleInject n 4 r 8", styleinject(4) | PRIOR, "subject", SUBJECT_STEPS),
    "subject: lora 24": on_folder("LoRA r 24", lora(24) | PRIOR, "subject", SUBJECT_STEPS),
}


def text_kept(arm: str, others: tuple[str, ...]) -> tuple[Compare, ...]:
    """No less text than any of the others."""
    return tuple(no_less(arm, other) for other in others)


def beats(arm: str, others: tuple[str, ...], measure: str = "style") -> tuple[Compare, ...]:
    """More than each of the others in a measure."""
    return tuple(more(arm, other, measure) for other in others)


def prefixed(prefix: str, *arms: str) -> tuple[str, ...]:
    return tuple(prefix + arm for arm in arms)


OTHERS = ("base", "lora 24", "lora 96", "full")
UNITS = {"its numbers": "CLIP-S / ImageReward / PickScore - 21"}
TABLE_I = UNITS | {
    "SD1.5": ".8133 / .346 / .113",
    "U-Net tuning": ".8093 / .411 / .247",
    "LoRA r 32 / 128 / 512": ".8097 .387 .203 / .8093 .437 .197 / .8079 .443 .183",
    "StyleInject n 1 / 4 / 16": ".8119 .443 .234 / .8135 .449 .240 / .8149 .491 .306",
}
TABLE_III = UNITS | {
    "StyleInject, teachers 1 / 2 / 3": ".8198 .829 1.005 / .8215 .685 .936 / .8146 .716 .541",
    "LoRA": ".8182 .772 .991 / .8204 .671 .916 / .8037 .654 .516",
    "teachers": ".8127 .752 .956 / .8165 .681 .976 / .7835 .465 .076",
}
TABLE_III_ZH = UNITS | {
    "StyleInject into ZH_SD": ".8066 .761 1.040 / .8093 .702 .963 / .8022 .723 .647",
    "LoRA into ZH_SD": ".8022 .699 .781 / .7934 .383 .588 / .7980 .595 .421",
}
PREFERENCE = Reading("preference (ImageReward, PickScore)", untestable=NO_PREFERENCE)


def both_sets(compares: Any) -> tuple[Reading, ...]:
    """The same comparisons on three styles in one folder, and on one style. compares: prefix -> comparisons."""
    return tuple(Reading(of, compares(prefix)) for prefix, (_, of, _) in SETS.items())


STATED: tuple[Claim, ...] = (
    Claim(
        "I1",
        "StyleInject gives more style than LoRA of equal and larger size, U-Net tuning and the base, at equal text.",
        TABLE_I,
        (
            *both_sets(
                lambda p: (
                    *beats(p + "n 16", prefixed(p, *OTHERS)),
                    *text_kept(p + "n 16", prefixed(p, *OTHERS)),
                )
            ),
            Reading("text by CLIP-S, three styles", beats("n 16", OTHERS, "clip_s")),
            PREFERENCE,
            Reading("n 4 against LoRA of equal size", (more("n 4", "lora 24"), no_less("n 4", "lora 24")), ours=True),
        ),
        shown=("n 4, r 4", "one: n 4", "one: n 4, r 4"),
        sheet=("base", "n 16", "n 4", "lora 24", "lora 96", "full"),
    ),
    Claim(
        "I2",
        "Dynamic mixing (DMA) and style transfer by AdaIN (STA) each add style to LoRA, and both together most.",
        UNITS
        | {
            "DMA alone": ".8105 / .484 / .256",
            "STA alone (n 1)": ".8119 / .443 / .234",
            "both": ".8149 / .491 / .306",
            "neither (LoRA r 32)": ".8097 / .387 / .203",
        },
        both_sets(
            lambda p: (
                *(more(p + arm, p + "lora 8") for arm in ("DMA", "n 1")),
                *(more(p + "n 16", p + arm) for arm in ("DMA", "n 1")),
                *text_kept(p + "n 16", prefixed(p, "lora 8")),
            )
        ),
        sheet=("base", "lora 8", "DMA", "n 1", "n 16"),
    ),
    Claim(
        "I3",
        "More down matrices n gain style; a higher rank of LoRA loses text.",
        TABLE_I,
        both_sets(
            lambda p: (
                *(more(p + "n 4", p + "n 1"), more(p + "n 16", p + "n 4")),
                more(p + "lora 8", p + "lora 96", "text"),
            )
        ),
        curves={
            "n, three styles": {"n 1": 1.0, "n 4": 4.0, "n 16": 16.0},
            "rank of LoRA, three styles": {"lora 8": 8.0, "lora 24": 24.0, "lora 96": 96.0},
            "n, one style": {"one: n 1": 1.0, "one: n 4": 4.0, "one: n 16": 16.0},
            "rank of LoRA, one style": {"one: lora 8": 8.0, "one: lora 24": 24.0, "one: lora 96": 96.0},
        },
    ),
    Claim(
        "I4",
        "Distilled from three teachers with the same text encoder, a StyleInject student reaches its teacher's style "
        "and keeps more text, and beats base, LoRA and U-Net tuning.",
        TABLE_III,
        (
            Reading(
                "style for preference",
                (
                    *beats("student", ("untaught", "student, lora", "student, full")),
                    no_less("student", "teacher", "style"),
                    *text_kept("student", ("teacher", "student, lora", "student, full")),
                ),
            ),
            Reading(
                "nearer to the teacher's image", beats("student", ("untaught", "student, lora"), "teacher"), ours=True
            ),
            PREFERENCE,
        ),
        sheet=("untaught", "teacher", "student", "student, lora", "student, full"),
    ),
    Claim(
        "I5",
        "Distilled into a student with another text encoder, StyleInject keeps the text where LoRA loses it.",
        TABLE_III_ZH,
        (
            Reading(
                "style for preference",
                (
                    more("unshared", "unshared: lora"),
                    more("unshared", "unshared: lora", "text"),
                    more("unshared", "unshared: untaught"),
                ),
            ),
            PREFERENCE,
        ),
        shown=("unshared: teacher",),
        curves={
            "steps, StyleInject": {UNSHARED_CURVE.format("", steps): float(steps) for steps in UNSHARED_STEPS[:-1]}
            | {"unshared": float(UNSHARED_STEPS[-1])},
            "steps, LoRA": {UNSHARED_CURVE.format(" lora", steps): float(steps) for steps in UNSHARED_STEPS[:-1]}
            | {"unshared: lora": float(UNSHARED_STEPS[-1])},
        },
    ),
    Claim(
        "I6",
        "The router groups styles and concepts.",
        {"figure 9": "t-SNE of the router's outputs: clusters by style and by concept"},
        (
            Reading(
                "against shuffled labels",
                tuple(more("router", "router, shuffled", m) for m in ("router_style", "router_concept")),
            ),
            Reading(
                "against an untrained router",
                tuple(more("router", "router, untrained", m) for m in ("router_style", "router_concept")),
                ours=True,
            ),
        ),
    ),
    Claim(
        "I7",
        "With DreamBooth's loss StyleInject binds a subject and follows the text.",
        {"figure 7": "qualitative: subjects of 3 to 5 images in new scenes and styles"},
        (
            Reading(
                "subject and text",
                (
                    more("subject: n 4", "subject: base", "subject"),
                    no_less("subject: n 4", "subject: base"),
                    no_less("subject: n 4", "subject: lora 24", "subject"),
                    no_less("subject: n 4", "subject: lora 24"),
                ),
            ),
        ),
        sheet=("subject: base", "subject: n 4", "subject: lora 24"),
    ),
    Claim(
        "I8",
        "A teacher's bias to one subject is not inherited by its student.",
        {"section V-B": "the anime teacher draws a girl into most prompts; its student does not"},
        (
            Reading(
                "less of the subject, at no less style",
                (
                    Compare(
                        "the student shows less of the subject than its teacher",
                        {"biased: teacher": 1.0, "biased: student": -1.0},
                        "bias",
                    ),
                    no_less("biased: student", "biased: teacher", "style"),
                ),
            ),
        ),
        shown=("biased: student, lora",),
        sheet=("biased: untaught", "biased: teacher", "biased: student", "biased: student, lora"),
    ),
)


CLAIMS = tuple(with_equal_text(claim) if claim.id == "I1" else claim for claim in STATED)


def arms(base_hash: str, calibration: Path | None, world: str) -> dict[str, Arm]:
    """ARMS; those of the paper's protocol in its world."""
    return styleinject_paper.ARMS if world == "paper" else ARMS | unshared()


def claims(world: str) -> tuple[Claim, ...]:
    """CLAIMS; in the paper's protocol those that its numbers decide."""
    return styleinject_paper.claims(CLAIMS, PREFERENCE) if world == "paper" else CLAIMS


def small_world(folder: Path | None = None, clip: str | None = None, dino: str | None = None) -> FolderWorld:
    """The small world with the router's job. Raises UserError on flags of the paper's protocol."""
    if folder or clip or dino:
        raise UserError("--references, --clip and --dino need --protocol paper")
    return FolderWorld(jobs={**folder_jobs.JOBS, **styleinject_router.JOBS}, translations=translations())


def paper_world(folder: Path | None, clip: str | None, dino: str | None) -> styleinject_paper.PromptWorld:
    """The paper's protocol. Raises UserError without a training folder."""
    if folder is None or dino:
        raise UserError("--protocol paper needs --references DIR, the folder of images to train on; it has no --dino")
    return styleinject_paper.PromptWorld(folder, clip or CLIP)


def drawings(campaign: "Campaign", claim: Claim, size: str) -> dict[str, str]:
    """The map of the router's outputs (I6), where they are in the cache."""
    if claim.id != "I6" or "router" not in campaign.specs:
        return {}
    files = [images_of(cell).parent / "router.npz" for cell in campaign.cells_of("router", size)]
    return {"I6-map.svg": styleinject_router.router_map(files[0])} if files and files[0].is_file() else {}


WORLDS = {"small-world": small_world, "paper": paper_world}
