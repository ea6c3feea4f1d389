"""The settings of a training run as fields of a form, and the command line of what was filled in."""

import ast
import inspect
import textwrap
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache
from itertools import pairwise
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from impasto.config import AXES, FLAT, TrainConfig, flag_of, hints, paths_of, resolve
from impasto.data import captions
from impasto.errors import UserError
from impasto.registry import name_of

SELECTED = ("noise", "objective", "adapter", "text")
"""Axes that the form has a list for; the recipe selects the method."""
MAIN = ("optim.steps", "optim.lr", "log.preview_every", "seed")
MAIN_SECTIONS = ("noise", "adapter", "method")
"""Settings that are seen at once; the others are behind "More settings"."""
MORE_SECTIONS = ("data", "objective", "text", "prior", "optim", "execution", "log", "evaluate", "sampling")
NEVER = (
    *("data.image", "data.caption", "data.pairs", "data.concept_file", "data.repeats", "prior.image"),
    *("objective.teacher", "objective.teacher_style", "method.encoder", "method.styles"),
    *("log.push_to_hub", "log.hub_private", "log.wandb", "log.tensorboard", "log.preview", "log.keep"),
)
"""Settings that name files, use the server's logins, or have a field of their own."""
CLIPS = ("openai/clip-vit-base-patch32", "openai/clip-vit-large-patch14")
"""Encoders for `evaluate.clip`: it may also name a folder, which a field must not."""
PREVIEWS = 3  # times that a run generates previews, where its recipe asks for those at the end only


@dataclass(frozen=True)
class Field:
    """A setting. kind: number, integer, text, words (separated by spaces), flag, choice, with "" for None where it is
    `optional`. path: as in `config`."""

    path: str
    kind: str
    value: Any
    help: str
    choices: tuple[str, ...] = ()
    optional: bool = False

    @property
    def label(self) -> str:
        """As on the command line: "--lr" is "lr"."""
        return flag_of(FLAT.get(self.path, self.path)).removeprefix("--")


def config_of(recipe: str, base: str, selected: Mapping[str, str] | None = None, **explicit: Any) -> TrainConfig:
    """The settings of a recipe on a base, with other rows of the axes where these are given."""
    axes = {f"{axis}.name": name for axis, name in (selected or {}).items() if name}
    return resolve(recipe, base, **axes, **explicit)


def form_fields(config: TrainConfig) -> tuple[list[Field], list[Field]]:
    """(main fields, others) of the settings of a config that a form can hold."""
    values = paths_of(config)
    main, more = [], []
    for section in ("", *MAIN_SECTIONS, *MORE_SECTIONS):
        kind = type(getattr(config, section)) if section else TrainConfig
        names = [one.name for one in fields(kind)] if section else ["seed"]
        for name in names:
            path = f"{section}.{name}" if section else name
            if path in NEVER or (made := field_of(kind, path, values[path])) is None:
                continue
            (main if path in MAIN or section in MAIN_SECTIONS else more).append(made)
    main.sort(key=lambda one: MAIN.index(one.path) if one.path in MAIN else len(MAIN))
    return main, more


def field_of(owner: type, path: str, value: Any) -> Field | None:
    """The field of a setting; None where it names a file."""
    name = path.rpartition(".")[2]
    kind, about = hints(owner)[name], docs(owner).get(name, "")
    optional = False
    while get_origin(kind) in (Annotated, Union, UnionType):
        optional |= NoneType in get_args(kind)
        kind = next(one for one in get_args(kind) if one is not NoneType)
    if path == "optim.optimizer":
        from impasto.optim.optimizers import OPTIMIZERS

        return Field(path, "choice", value, about, tuple(OPTIMIZERS))
    if path == "evaluate.clip":
        return Field(path, "choice", value, about, CLIPS, optional=True)
    if get_origin(kind) is Literal:
        return Field(path, "choice", value or "", about, tuple(get_args(kind)), optional)
    if get_origin(kind) is tuple and get_args(kind)[0] is str:
        lines = name in ("preview_prompt", "prompt")
        return Field(path, "lines" if lines else "words", ("\n" if lines else " ").join(value), about)
    kinds = {bool: "flag", int: "integer", float: "number", str: "text"}
    if kind not in kinds or (kind is bool and optional):
        return None
    return Field(path, kinds[kind], "" if value is None and kind is str else value, about, optional=optional)


@cache
def docs(owner: type) -> dict[str, str]:
    """The docstring below each field of a settings class, those of its bases too."""
    found: dict[str, str] = {}
    for kind in reversed(owner.__mro__[:-1]):
        body = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0].body  # pyright: ignore[reportAttributeAccessIssue]
        for one, after in pairwise(body):
            is_text = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
            if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name) and is_text:
                found[one.target.id] = " ".join(str(after.value.value).split())  # pyright: ignore
    return found


def read_value(field: Field, value: Any) -> Any:
    """What a person wrote into a field as the setting's value. Raises UserError."""
    if field.kind in ("text", "choice"):
        text = str(value or "")
        if field.kind == "choice" and text not in (*field.choices, *([""] if field.optional else [])):
            raise UserError(f"{field.label} must be one of {', '.join(field.choices)}")
        return None if field.optional and not text else text
    if field.kind == "words":
        return tuple(str(value or "").split())
    if field.kind == "lines":
        return tuple(line.strip() for line in str(value or "").splitlines() if line.strip())
    if field.kind == "flag":
        return bool(value)
    if value is None or value == "":
        if field.optional:
            return None
        raise UserError(f"{field.label} is empty: give a number")
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            raise UserError(f"{field.label} must be a number, not {value!r}") from None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UserError(f"{field.label} must be a number, not {value!r}")
    if field.kind == "integer" and int(value) != value:
        raise UserError(f"{field.label} must be a whole number, not {value:g}")
    return int(value) if field.kind == "integer" else float(value)


def changes(fields: Sequence[Field], values: Sequence[Any]) -> dict[str, Any]:
    """{path: value} of the fields that were changed."""
    read = {field: read_value(field, value) for field, value in zip(fields, values, strict=True)}
    return {field.path: value for field, value in read.items() if value != read_value(field, field.value)}


def train_args(
    recipe: str,
    base: str,
    selected: Mapping[str, str],
    changed: Mapping[str, Any],
    images: Sequence[str],
    texts: Sequence[str],
    out: str,
    concept_file: str = "",
) -> list[str]:
    """The command line of a run; `changed` as `changes` returns it."""
    args = ["train", f"--recipe={recipe}", f"--base={base}"]
    args += [f"--{axis}={name}" for axis, name in selected.items() if name]
    args += [f"--image={image}" for image in images] + [f"--caption={text}" for text in texts]
    args += [f"--concept-file={concept_file}"] if concept_file else []
    for path, value in changed.items():
        args += flags(path, value)
    return [*args, f"--out={out}"]


def flags(path: str, value: Any) -> list[str]:
    """A setting as arguments."""
    flag = flag_of(FLAT.get(path, path))
    if isinstance(value, bool):
        section, dot, name = flag.removeprefix("--").rpartition(".")
        return [flag if value else f"--{section}{dot}no-{name}"]
    if path in ("log.preview_prompt", "prior.prompt", "evaluate.prompt"):  # flags that may be given several times
        return [f"{flag}={one}" for one in value]
    if isinstance(value, tuple):
        return [flag, *value] if value else []
    return [f"{flag}={value}"]


def axis_choices(axis: str) -> list[tuple[str, str]]:
    """(name and description, name) of the rows of an axis."""
    return [(f"{name}: {entry.about}" if entry.about else name, name) for name, entry in AXES[axis][0].items()]


def axis_name(config: TrainConfig, axis: str) -> str:
    return name_of(AXES[axis][0], getattr(config, axis))


def caption_of(name: str) -> str:
    """A caption to begin with, from a file name: "flying_rocket-2.png" gives "flying rocket in ... style"."""
    words = [
        word for word in captions.words(Path(name).stem.replace("_", " ").replace("-", " ")) if not word.isdecimal()
    ]
    return f"{' '.join(words) or 'a thing'} in ... style"


def caption_advice(caption: str, trigger: str = "") -> str:
    """The warning of `train` about a caption, "" where there is none."""
    if "..." in caption:
        return "Replace the dots by the words for the style, as in 'pixel art': they call it later."
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            captions.check(caption, "this image", trigger)
        except UserError as error:
            return str(error)
    return "; ".join(str(one.message) for one in caught)


def command_line(args: Sequence[str], quote: Callable[[str], str]) -> str:
    """The command as a shell reads it."""
    return " ".join(["impasto", *map(quote, args)])


def png_settings(meta: Mapping[str, Any], styles: Sequence[str]) -> dict[str, Any]:
    """The fields of the form of `generate` from what a PNG of impasto states. styles: names of the workspace's style
    folders. {} for a PNG of another origin."""
    if not isinstance(meta.get("prompt"), str) or "seed" not in meta:
        return {}
    found: dict[str, Any] = {"prompt": meta["prompt"], "seed": meta["seed"], "base": meta.get("base")}
    names = {Path(name).name: name for name in styles}
    listed = [
        (names.get(Path(str(one.get("path"))).name), one.get("strength", 1.0)) for one in meta.get("styles") or ()
    ]
    found["styles"] = [(name, strength) for name, strength in listed if name]
    found["missing"] = len(listed) - len(found["styles"])
    for key in ("steps", "guidance", "style_guidance", "base_guidance", "negative_prompt", "noise_random", "sampler"):
        found[key] = meta.get(key)
    semantics = meta.get("style_semantics") or {}
    found |= {key: semantics.get(key) for key in ("lambda1", "lambda2", "lambda_base")}
    return found
