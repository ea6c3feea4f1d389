"""Methods of a comparison: recipes that are trained on each reference, finished styles, and those without training."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from impasto.bases import cards, loader
from impasto.bases.style_defaults import current_recipe
from impasto.compare.references import ReferenceImage
from impasto.config import FREE, Fit, TrainConfig, flat_defaults, flatten, recipes, resolve
from impasto.errors import UserError, nearest
from impasto.evaluation.equal_text import STRENGTHS
from impasto.guidance.config import StyleAligned
from impasto.methods.style_caption import read_caption
from impasto.styles import defaults as style_defaults
from impasto.styles.metadata import read_about
from impasto.styles.parts import has_weights
from impasto.styles.weights import style_hash
from impasto.training.plan import make_plan
from impasto.training.train import dry_run

PROMPT, ALIGNED = "prompt", "style-aligned"
TRAINING_FREE = {
    PROMPT: "the base alone, the style in words",
    ALIGNED: "StyleAligned: attention shared with the reference",
}


@dataclass(frozen=True)
class Method:
    """kind: what `name` is. path: of a finished style, or of a recipe that is a file."""

    name: str
    kind: Literal["recipe", "style", "prompt", "style-aligned"]
    path: str = ""

    @property
    def trained(self) -> bool:
        """Whether each cell trains it."""
        return self.kind == "recipe"

    @property
    def factors(self) -> tuple[float, ...]:
        """Of its own strength; the base alone has no strength."""
        return (1.0,) if self.kind == PROMPT else STRENGTHS


def find_methods(names: Sequence[str]) -> list[Method]:
    """The methods by these names. Raises UserError for an unknown one, and for one that is given twice."""
    found = [find_method(name) for name in names]
    if not found:
        raise UserError(f"no method: name recipes, style folders, or {' and '.join(TRAINING_FREE)}")
    if twice := [one.name for one in found if sum(other.name == one.name for other in found) > 1]:
        raise UserError(f"the method {twice[0]!r} is given twice: leave one of them out")
    return found


def find_method(name: str) -> Method:
    """One method: a name of TRAINING_FREE, a recipe of the package, a style folder, or a recipe file."""
    if name in TRAINING_FREE:
        return Method(name, ALIGNED if name == ALIGNED else PROMPT)
    if (own := current_recipe(name)) in recipes():
        return Method(own, "recipe", own)
    path = Path(name)
    if path.is_file() and path.suffix == ".toml":
        return Method(path.stem, "recipe", str(path))
    if path.suffix == ".safetensors" or (path.is_dir() and has_weights(path)):
        return Method(path.name, "style", str(path))
    if path.exists():
        raise UserError(f"{name!r} is neither a style folder nor a recipe file")
    raise UserError(f"unknown method {name!r}: {nearest(name, [*recipes(), *TRAINING_FREE])}, or a style folder")


def config_of(
    method: Method,
    reference: ReferenceImage,
    base: str,
    seed: int,
    out: Path,
    steps: int | None = None,
    **hardware: Any,
) -> TrainConfig:
    """The training of a recipe on a reference. steps: None for the recipe's own."""
    own: dict[str, Any] = {"image": (reference.image,), "caption": (reference.caption,), "seed": seed, "out": out}
    own |= {"preview": False, "tensorboard": False} | ({} if steps is None else {"steps": steps}) | hardware
    config = resolve(method.path, base, **own)
    if config.prior.weight and config.prior.target == "data" and not config.prior.prompt and not config.prior.image:
        config = resolve(method.path, base, **own, prior_prompt=(class_prompt(reference),))
    return config


def class_prompt(reference: ReferenceImage) -> str:
    """The reference's thing without its style: the class that DreamBooth preserves."""
    try:
        return read_caption(reference.caption).thing
    except UserError:
        return reference.caption


def default_steps(base: str) -> int:
    """The base's own number of training steps."""
    return resolve(None, base).optim.steps


def settings_of(config: TrainConfig) -> dict[str, Any]:
    """What a training depends on beside reference, base and seed: the settings that differ from the defaults."""
    default = flat_defaults()
    left_out = {*FREE, "seed", "caption", "precision"}
    return {k: v for k, v in sorted(flatten(config).items()) if k not in left_out and v != default.get(k)}


def check(method: Method, reference: ReferenceImage, base: str, out: Path, steps: int | None, **hardware: Any) -> None:
    """Raise UserError where this base, or this reference, cannot be used with the method; nothing is trained."""
    if method.kind == "style":
        about = read_about(Path(method.path))
        if about.base and about.base != base:
            raise UserError(f"it was trained on the base {about.base!r}")
        style_hash(method.path)
    elif method.kind == ALIGNED:
        family = loader.load_config_only(base)
        if family is not None and family.schedule.masked:
            raise UserError("it inverts its reference, which a base of masked tokens cannot")
    elif method.trained:
        config = config_of(method, reference, base, 0, out, steps, **hardware)
        if isinstance(config.method, Fit):
            make_plan(config)
        else:
            dry_run(config)


def reads_caption(method: Method, base: str) -> bool:
    """Whether a method may refuse one reference and take another: those of several stages parse the caption."""
    return method.trained and not isinstance(resolve(method.path, base).method, Fit)


def spec_of(method: Method, config: TrainConfig | None) -> dict[str, Any]:
    """What identifies the method in a cell's key."""
    if config is not None:
        return {"kind": method.kind, "settings": settings_of(config)}
    return {"kind": method.kind} | ({"hash": style_hash(method.path)} if method.kind == "style" else {})


def own_strength(method: Method, style: Path | None, base: str) -> float:
    """The strength that counts as 1 on a method's curve: of a style its advised one; else 1."""
    if style is None:
        return 1.0
    return style_defaults.of_style(style, read_about(style), cards.card(base)).strength


def guidances_of(method: Method, reference: ReferenceImage, base: str, factor: float) -> list[Any] | None:
    """Guidances that replace a style's own; None for its own.

    StyleAligned at strength s counts the reference's tokens s times as often as at 1: the shift of the attention's
    logits grows by log s.
    """
    if method.kind != ALIGNED:
        return None
    shift = float(cards.card(base).get("aligned_shift", math.log(2))) + math.log(factor)
    return [StyleAligned(reference.image, reference.caption, shift=shift)]


def describe(method: Method, rows: Mapping[str, str]) -> str:
    """One line about a method, for the page. rows: {recipe: first sentence of its comment}."""
    if method.kind in TRAINING_FREE:
        return TRAINING_FREE[method.kind]
    return f"style {method.path}" if method.kind == "style" else rows.get(method.name, "")


PLAIN = "style-friendly"
"""A recipe of one forward and backward pass per step, by which times are estimated."""
