"""The settings of a training run: one section per axis, filled in by a recipe, a base's card and flags.

    [noise] name = "style-friendly", mean = -6.0        the name selects the class of the section, and so its keys
    [adapter] name = "lora", rank = 32
    [optim] lr = 1e-4, steps = 300

Precedence: a flag beats what the base's card states for this recipe, that beats the recipe, that beats the card's own
`train` table, and that beats the defaults of the classes, which are the paper's (Style-Friendly SNR sampler, A.4).

A setting has a path, "adapter.rank". Keys of `data`, `optim`, `execution` and `log` are known by their name alone
("lr"), and those of ALIASES by their flat name, in which recipes and style folders were written before.
"""

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from functools import cache
from pathlib import Path
from textwrap import shorten
from typing import Any, Literal, get_origin, get_type_hints

import tyro

from impasto.adapters import ADAPTERS, TEXT
from impasto.adapters.config import FrozenText, LoRA
from impasto.bases.style_defaults import current_recipe
from impasto.coerce import check_numbers, check_seed, convert
from impasto.data.config import DataConfig
from impasto.errors import UserError, nearest
from impasto.execution.config import ExecutionConfig
from impasto.files import PACKAGE
from impasto.noise import NOISE_LAWS
from impasto.noise.config import StyleFriendlyNoise
from impasto.objectives import OBJECTIVES
from impasto.objectives.config import Denoise, PriorConfig
from impasto.optim.config import OptimConfig
from impasto.registry import Entry, Table, look_up, name_of

RECIPES = PACKAGE / "recipes"
Append = tyro.conf.UseAppendAction

METHODS: dict[str, Entry] = {
    "fit": Entry("impasto.config:Fit", "impasto.training.fit:fit", "train the adapter on the references"),
    "finestyle": Entry(
        "impasto.methods.config:FineStyle",
        "impasto.methods.finestyle:run",
        "concepts of one image as training pairs; guidance for style and semantics",
    ),
    "instastyle": Entry(
        "impasto.methods.config:InstaStyle",
        "impasto.methods.instastyle:run",
        "the inversion noise of one reference, refined on images that it gives",
    ),
    "styledrop": Entry(
        "impasto.methods.config:StyleDrop",
        "impasto.methods.styledrop:run",
        "an adapter on the references, and a fresh one on selected images of the first",
    ),
    "style-mix": Entry(
        "impasto.methods.config:StyleMix",
        "impasto.methods.style_mix:run",
        "several styles of instastyle refined together (impasto mix)",
    ),
}
"""A row's builder runs a method: `run(config, progress, preparing, dry_run) -> summary`; it leaves a style folder, or
with dry_run writes nothing and returns the plan."""


@dataclass(frozen=True, kw_only=True)
class Fit:
    """One training on the references."""


@dataclass(frozen=True, kw_only=True)
class LogConfig:
    """Checkpoints, previews, logs, publishing."""

    checkpoint_every: int = 50
    """Steps between two checkpoints."""
    keep: int = 2
    """Checkpoints that are kept; 0 keeps all."""
    preview: bool = True
    """Generate previews at the end (and on the way, see preview_every)."""
    preview_every: int = 0
    """Steps between two previews; 0 generates them at the end only."""
    preview_prompt: Append[tuple[str, ...]] = ()
    """A preview's prompt, may be given several times; four other things in the captions' style words when not given."""
    tensorboard: bool = True
    """Write tensorboard logs into the style folder."""
    wandb: bool = False
    """Log to Weights & Biases (the extra wandb; WANDB_MODE=offline keeps it here)."""
    push_to_hub: str | None = None
    """Publish the finished style in the Hub's repository owner/name."""
    hub_private: bool = False
    """Make that repository a private one, where it is new."""

    def __post_init__(self) -> None:
        check_numbers(self, above_0=("checkpoint_every",), at_least_0=("preview_every", "keep"))
        if self.hub_private and not self.push_to_hub:
            raise UserError("hub_private goes with push_to_hub")


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Scores while training, see `training.watch`: they choose the checkpoint, when to stop, and how the style is
    sampled by default."""

    every: int = 0
    """Steps between two evaluations on fixed prompts and seeds; 0 evaluates nothing."""
    prompt: Append[tuple[str, ...]] = ()
    """A prompt, may be given several times; eight other things in the captions' style words when not given."""
    clip: str = ""
    """A CLIP that measures style, a transformers folder or hub id; the small packaged one when not given."""
    margin: float = 0.1
    """Of the checkpoints whose text is at most this share below the best, the one with the highest style is chosen."""
    patience: int = 0
    """Stop after so many evaluations without a new choice; 0 trains all steps."""
    advice: bool = True
    """Choose strength and style guidance of the finished style by the same rule (ten points of eight images)."""

    def __post_init__(self) -> None:
        check_numbers(self, at_least_0=("every", "patience", "margin"), prefix="evaluate.")


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How the finished style is sampled where no flag of `generate` says otherwise; the adapter's own default, else
    that of the base's card, where a value is not given."""

    strength: float | None = None
    """Strength of the style."""
    style_guidance: float | None = None
    """Weight by which the style is amplified against the base."""
    base_guidance: float | None = None
    """Weight of the base's own guidance, beside the style's."""
    guidance: float | None = None
    """Guidance scale."""
    negative: str | None = None
    """Negative prompt; "style words" takes the words by which the captions name the style."""

    def __post_init__(self) -> None:
        names = ("strength", "style_guidance", "base_guidance", "guidance")
        check_numbers(self, at_least_0=names, prefix="sampling.")

    @property
    def given(self) -> dict[str, Any]:
        """The values that are given."""
        return {one.name: value for one in fields(self) if (value := getattr(self, one.name)) is not None}


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Train a style on one or a few reference images."""

    base: str = "mini-sd3"
    """Base model: an embedded one, a diffusers folder, a .safetensors checkpoint, or a hub id."""
    components: Path | None = None
    """A diffusers folder for what a .safetensors checkpoint does not hold: tokenisers, text encoders, autoencoder."""
    out: Path = Path("runs/style")
    """The style folder. The same command again resumes where it stopped; with more --steps it goes on."""
    recipe: str = "style-friendly"
    """A recipe by name (`impasto recipes` lists them), or a TOML file; the base's own when not given (style-friendly,
    on the embedded bases style-friendly-128px)."""
    seed: int = 0
    """All randomness is a function of (seed, step, item)."""
    init_from: Path | None = None
    """A style to start from, a folder or a LoRA file: its layers and rank have to fit into this run's LoRA. Its
    optimiser is not resumed; give more --steps to a run for that."""
    device: str = "auto"
    """cpu, cuda, mps or auto."""
    precision: str = "auto"
    """Of the frozen base: fp32, bf16 or auto (bf16 on CUDA). The adapter is always float32."""
    method: Any = field(default_factory=Fit)
    data: DataConfig = field(default_factory=DataConfig)
    noise: Any = field(default_factory=StyleFriendlyNoise)
    objective: Any = field(default_factory=Denoise)
    prior: PriorConfig = field(default_factory=PriorConfig)
    adapter: Any = field(default_factory=LoRA)
    text: Any = field(default_factory=FrozenText)
    optim: OptimConfig = field(default_factory=OptimConfig)
    execution: ExecutionConfig = field(default_factory=ExecutionConfig)
    log: LogConfig = field(default_factory=LogConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)

    def __post_init__(self) -> None:
        check_seed(self.seed)
        if self.prior.weight and not isinstance(self.text, FrozenText):
            raise UserError(
                "a trained text encoder and prior.weight exclude each other: the prior's captions are encoded once, by "
                "the base"
            )


AXES: dict[str, tuple[Table, str, str]] = {
    "method": (METHODS, "fit", "method"),
    "noise": (NOISE_LAWS, "style-friendly", "noise law"),
    "objective": (OBJECTIVES, "denoise", "objective"),
    "adapter": (ADAPTERS, "lora", "adapter"),
    "text": (TEXT, "frozen", "text encoder training"),
}
"""Sections whose class a name selects: its table, the default name, the word for it in messages."""
SECTIONS = {
    "data": DataConfig,
    "prior": PriorConfig,
    "optim": OptimConfig,
    "execution": ExecutionConfig,
    "log": LogConfig,
    "evaluate": EvaluateConfig,
    "sampling": SamplingConfig,
}
PREFIXED = ("prior", "evaluate", "sampling")
"""Sections whose keys are always written with the section."""
TOP = tuple(one.name for one in fields(TrainConfig) if one.name not in (*AXES, *SECTIONS))
SHORT = {one.name: f"{name}.{one.name}" for name in SECTIONS if name not in PREFIXED for one in fields(SECTIONS[name])}
ALIASES = {
    **{axis: f"{axis}.name" for axis in AXES},
    **{f"noise_{key}": f"noise.{key}" for key in ("mean", "std", "shift", "low", "high")},
    "offset_noise": "noise.offset",
    **{f"dco_{key}": f"objective.{key}" for key in ("beta", "reduction")},
    **{key: f"objective.{key}" for key in ("weighting", "gamma")},
    **{f"prior_{key}": f"prior.{key}" for key in ("weight", "batch", "prompt", "per_prompt", "image", "target")},
    **{key: f"adapter.{key}" for key in ("rank", "alpha", "targets")},
    "text_encoder_lr": "text.lr",
    "token_rows": "text.rows",
    **{key: f"method.{key}" for key in ("concepts", "boxes", "finder", "style_words", "select", "include_reference")},
    "rounds": "method.rounds",
}
"""Flat key -> path. `text_encoder_lora`, true or false, is text.name "lora" or "frozen"."""
FLAT = {path: key for key, path in (*SHORT.items(), *ALIASES.items())}

FREE = (
    *("out", "recipe", "base", "components", "image", "pairs", "concept_file", "device", "checkpoint_every", "keep"),
    *("preview", "preview_every", "preview_prompt", "tensorboard", "wandb", "skip_bad"),
    *("checkpointing", "compile", "offload", "attention", "push_to_hub", "hub_private"),
    *("concepts", "boxes", "finder", "rounds"),
)
"""Flat keys that do not change what is learnt: bases, images and concepts are compared by their content instead."""
OWN_RATES = {"prodigy": 1.0}
"""Learning rates of optimisers that do not take the base's."""

Paths = dict[str, Any]
"""Settings by path; "noise.name" for the name that selects a section's class."""


def to_paths(keys: Mapping[str, Any], where: str = "settings") -> Paths:
    """Keys, which may be paths, short or flat names, or tables of a section, by path. UserError on an unknown one."""
    found: Paths = {}
    for key, value in keys.items():
        if key in AXES and is_dataclass(value):
            found |= section_paths(key, value)
        elif key in (*AXES, *SECTIONS) and isinstance(value, Mapping):
            found |= {f"{key}.{name}": one for name, one in value.items()}
        elif key == "text_encoder_lora":
            found["text.name"] = "lora" if convert(value, bool, f"{where}: {key}") else "frozen"
        elif key in TOP or "." in key:
            found[key] = value
        elif path := SHORT.get(key) or ALIASES.get(key):
            found[path] = value
        else:
            known = [*TOP, *SHORT, *ALIASES, "text_encoder_lora"]
            raise UserError(f"{where}: unknown key {key!r}: {nearest(key, known)}")
    return found


def section_paths(name: str, section: Any) -> Paths:
    """The settings of one section by path."""
    own = {f"{name}.{one.name}": getattr(section, one.name) for one in fields(section)}
    return own | ({f"{name}.name": name_of(AXES[name][0], section)} if name in AXES else {})


def paths_of(config: TrainConfig) -> Paths:
    """All settings of a config by path."""
    found: Paths = {name: getattr(config, name) for name in TOP}
    for name in (*AXES, *SECTIONS):
        found |= section_paths(name, getattr(config, name))
    return found


def merge(below: Paths, above: Paths) -> Paths:
    """`above` wins. Where it selects another class of a section, of the keys of the old class only those stay that both
    classes inherit (noise.offset)."""
    result = dict(below)
    for axis, (table, default, what) in AXES.items():
        old, new = (str(paths.get(f"{axis}.name", default)) for paths in (below, below | above))
        if new != old:
            classes = [look_up(table, name, what).settings_class for name in (old, new)]
            shared = {one.name for kind in common_bases(*classes) for one in fields(kind)}
            keep = {f"{axis}.{name}" for name in shared}
            result = {path: x for path, x in result.items() if not path.startswith(f"{axis}.") or path in keep}
    return result | above


def common_bases(one: type, other: type) -> list[Any]:
    return [kind for kind in one.__mro__ if kind in other.__mro__ and is_dataclass(kind) and kind not in (one, other)]


def build_config(paths: Paths, where: str = "settings") -> TrainConfig:
    """The config of these settings, defaults elsewhere. Raises UserError on unknown paths, wrong types and values."""
    given: dict[str, dict[str, Any]] = {}
    top = {}
    for path, value in paths.items():
        section, dot, name = path.partition(".")
        if not dot and section in TOP:
            kind = hints(TrainConfig)[section]
            top[section] = None if value is None else convert(value, kind, f"{where}: {section}")
        elif dot and section in (*AXES, *SECTIONS):
            given.setdefault(section, {})[name] = value
        else:
            raise UserError(f"{where}: unknown key {path!r}: {nearest(path, [*TOP, *SECTIONS, *AXES])}")
    for section, values in given.items():
        top[section] = build_section(section, values, where)
    return TrainConfig(**top)


def build_section(section: str, values: dict[str, Any], where: str) -> Any:
    """A section from its settings by name."""
    if section in SECTIONS:
        kind = SECTIONS[section]
    else:
        table, default, what = AXES[section]
        kind = look_up(table, convert(values.pop("name", default), str, f"{where}: {section}"), what).settings_class
    own = {}
    for name, value in values.items():
        if name in hints(kind):
            own[name] = None if value is None else convert(value, hints(kind)[name], f"{where}: {shown(section, name)}")
        elif value is not None and value != absent_default(section, name):
            raise UserError(f"{where}: {no_such_key(section, kind, name)}")
    return kind(**own)


@cache
def hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind, include_extras=False)


def shown(section: str, name: str) -> str:
    """A setting as a user writes it: its short name where it has one."""
    return name if SHORT.get(name) == f"{section}.{name}" else f"{section}.{name}"


def absent_default(section: str, name: str) -> Any:
    """The default of a key in the first class of the axis that has it: a flat recipe states it beside other classes
    too, where it has no effect. MISSING when no class has it."""
    for kind in classes_with(section, name):
        return next(one.default for one in fields(kind) if one.name == name)
    return MISSING


def classes_with(section: str, name: str) -> list[Any]:
    table = AXES[section][0] if section in AXES else {}
    return [kind for entry in table.values() if name in hints(kind := entry.settings_class)]


def no_such_key(section: str, kind: type, name: str) -> str:
    """The message for a key that the selected class lacks."""
    known = [shown(section, key) for key in hints(kind)]
    if section not in AXES:
        return f"unknown key {name!r} of {section}: {nearest(name, known)}"
    table, _, what = AXES[section]
    selected = next(key for key, entry in table.items() if entry.settings_class is kind)
    others = [key for key, entry in table.items() if entry.settings_class in classes_with(section, name)]
    has = f"it has {', '.join(known)}" if known else "it has no settings"
    instead = f"leave it out, or choose --{section} {others[0]}" if others else nearest(f"{section}.{name}", known)
    return f"the {what} {selected!r} has no {section}.{name} ({has}): {instead}"


def make_config(**keys: Any) -> TrainConfig:
    """A config from paths, short or flat keys over the defaults, without recipe and card."""
    return build_config(to_paths(keys))


def change(config: TrainConfig, **keys: Any) -> TrainConfig:
    """`config` with other values, by path (as a dict), short or flat key."""
    return build_config(merge(paths_of(config), to_paths(keys)))


def recipes() -> dict[str, Path]:
    """The recipes that come with the package."""
    return {file.stem: file for file in sorted(RECIPES.glob("*.toml"))}


def first_sentence(text: str, longest: int | None = 100) -> str:
    """The first sentence of a recipe's comment, cut at `longest` characters."""
    lines = [line.removeprefix("#").strip() for line in text.splitlines()[:6] if line.startswith("#")]
    sentence = re.split(r"(?<=[a-z0-9)\]])\.(?=\s[A-Z]|$)", " ".join(lines))[0]
    return sentence if longest is None else shorten(sentence, longest, placeholder=" ...")


def read_recipe(name: str) -> Paths:
    """The settings of a recipe: one of the package's by name, or a TOML file."""
    known = recipes()
    file = known.get(name, Path(name))
    try:
        content = tomllib.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, IsADirectoryError):
        raise UserError(f"unknown recipe {name!r}: {nearest(name, list(known))}, or a TOML file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"recipe {str(file)!r} is not valid TOML: {error}") from None
    content.pop("impasto", None)  # what the recipe.toml of a run states about itself
    paths = to_paths(content, f"recipe {name!r}")
    build_config(paths, f"recipe {name!r}")
    return paths


def resolve(recipe: str | None = None, base: str | None = None, **explicit: Any) -> TrainConfig:
    """The config of a recipe on a base, with other settings.

    Args:
        recipe: A name of `impasto recipes`, or a TOML file; the base's own when not given, see `default_recipe`.
        base: As `--base` takes it; the recipe's own when not given, else mini-sd3.
        explicit: Settings, which come before the recipe's: by path (`**{"adapter.rank": 8}`), short name (`lr=1e-4`) or
            flat name (`noise_mean=-4`).

    Raises:
        UserError: On an unknown recipe or key, a wrong type or value.
    """
    from impasto.bases.cards import card

    recipe = default_recipe(base) if recipe is None else current_recipe(recipe)
    content = read_recipe(recipe)
    base = str(content.get("base", TrainConfig.base)) if base is None else base
    known, where = card(base), f"card of {base!r}"
    train = to_paths(known.get("train", {}), where)
    if "size" in known:
        train["data.size"] = known["size"]
    special = to_paths(known.get("recipes", {}).get(recipe, {}), where)
    build_config(merge(train, special), where)
    own = to_paths(explicit)
    paths = merge(merge(merge(train, content), special), own)
    if "optim.lr" not in own:
        optimizer = paths.get("optim.optimizer", OptimConfig.optimizer)
        paths["optim.lr"] = rate(optimizer, (train, content, special))
    return build_config(paths | {"recipe": recipe, "base": base})


def default_recipe(base: str | None = None) -> str:
    """The recipe of `base` (mini-sd3 when it is None) where none is given: its card's, else style-friendly."""
    from impasto.bases.cards import card

    return str(card(TrainConfig.base if base is None else base).get("recipe", TrainConfig.recipe))


def recipe_note(config: TrainConfig) -> str | None:
    """One line where the law for 1024 px is used on an embedded base, which has a recipe of its own; else None."""
    own = default_recipe(config.base)
    if own == TrainConfig.recipe or config.recipe != TrainConfig.recipe:
        return None
    if getattr(config.noise, "mean", None) != read_recipe(TrainConfig.recipe)["noise.mean"]:
        return None
    return (
        f"recipe {config.recipe} has the noise law for 1024 px; {config.base} works at {config.data.size} px, where "
        f"the same noise hides less: its own recipe is {own}"
    )


def rate(optimizer: str, layers: Sequence[Paths]) -> float:
    """The learning rate for `optimizer` in these layers, the last one counting; one that is stated for optimisers of
    the other kind (OWN_RATES, or the base's) does not count."""
    found, current = OWN_RATES.get(optimizer, OptimConfig.lr), OptimConfig.optimizer
    for paths in layers:
        current = paths.get("optim.optimizer", current)
        if "optim.lr" in paths and OWN_RATES.get(current) == OWN_RATES.get(optimizer):
            found = float(paths["optim.lr"])
    return found


def plain(value: Any) -> Any:
    """What TOML and JSON can hold: paths as texts, tuples as lists."""
    if isinstance(value, tuple):
        return [item if isinstance(item, int | float) else str(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def flatten(config: TrainConfig) -> dict[str, Any]:
    """Plain values by flat key, None left out; a path where a setting has no flat key."""
    return flat_keys(nest(config))


def flat_defaults() -> dict[str, Any]:
    """The default of every flat key, also of those that the default classes lack."""
    found = {}
    for axis, (table, _, _) in AXES.items():
        for entry in reversed(list(table.values())):
            own = flat_keys({axis: {one.name: plain(one.default) for one in fields(entry.settings_class)}})
            found |= {key: value for key, value in own.items() if value is not None}
    return found | flatten(TrainConfig())


def nest(config: TrainConfig) -> dict[str, Any]:
    """Plain values, a table per section, None left out: what a recipe holds."""
    found: dict[str, Any] = {name: plain(getattr(config, name)) for name in TOP}
    for name in (*AXES, *SECTIONS):
        own = section_paths(name, getattr(config, name))
        table = {path.partition(".")[2]: plain(value) for path, value in own.items() if value is not None}
        found[name] = {"name": table.pop("name")} | table if "name" in table else table
    if found["method"] == {"name": "fit"}:
        del found["method"]
    return {name: value for name, value in found.items() if value is not None}


def flat_keys(content: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe's content, nested or flat, by flat key; keys that are not known here stay as they are."""
    found: dict[str, Any] = {}
    for key, value in content.items():
        if key not in (*AXES, *SECTIONS) or not isinstance(value, Mapping):
            found[key] = value
            continue
        found |= {FLAT.get(f"{key}.{name}", f"{key}.{name}"): one for name, one in value.items()}
    if found.get("text") in ("frozen", "lora"):
        found["text_encoder_lora"] = found.pop("text") == "lora"
    return found


def read_recipe_file(file: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The recipe.toml of a run: its settings by flat key, and its table [impasto]. Unknown keys stay, and so do choices
    that are not known here: another version may have them.

    Raises OSError, tomllib.TOMLDecodeError, UnicodeDecodeError, and UserError where a value has another type.
    """
    content = tomllib.loads(file.read_text(encoding="utf-8"))
    own = content.pop("impasto", {})
    flat = flat_keys(content)
    for key, value in flat.items():
        if (kind := kind_of(key)) is not None:
            convert(value, str if get_origin(kind) is Literal else kind, f"{file}: {key}")
    return flat, own if isinstance(own, dict) else {}


def flag_of(key: str) -> str:
    """The flag of a flat key: "--noise.mean" for "noise_mean"."""
    path = ALIASES.get(key, key)
    return f"--{path.removesuffix('.name') if path.endswith('.name') else path.replace('_', '-')}"


def kind_of(key: str) -> Any:
    """The type of a flat key, None where it is not known."""
    if key in AXES or key == "text_encoder_lora":
        return str if key in AXES else bool
    section, dot, name = (SHORT.get(key) or ALIASES.get(key) or key).partition(".")
    if not dot:
        return hints(TrainConfig)[key] if key in TOP else None
    kinds = [SECTIONS[section]] if section in SECTIONS else classes_with(section, name) if section in AXES else []
    return next((hints(kind)[name] for kind in kinds if name in hints(kind)), None)
