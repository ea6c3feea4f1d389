"""Other tools' noise settings in our terms, and back: TOOLS is the table, one module per tool.

All of them mix a rectified flow as `x_t = (1 - t) x + t eps` in the end, but no two agree on the sign of a mean or on
where a shift goes, so each module states the tool's own formula, where it was read, and follows it to the logit of t:

    logit(t) ~ N(M, S^2)  <=>  log-SNR ~ N(-2 M, (2 S)^2);    shift k adds log k to logit(t)

A module has SOURCE (repository, commit, files and lines), KEYS (the settings that concern noise, with the tool's
defaults), `read(given, s) -> our keys`, `write(law, offset, s) -> its keys` and `min_snr(gamma) -> its keys`. A law
without an exact counterpart raises; what else is not carried over, a note says.
"""

import json
import math
import re
import shlex
import tomllib
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from impasto import families
from impasto.bases import cards, hub
from impasto.config import TrainConfig, flag_of, make_config
from impasto.errors import UserError, nearest
from impasto.families import files
from impasto.files import atomic
from impasto.noise.laws import (
    FLOW_END,
    Law,
    LogitNormal,
    StyleFriendly,
    Uniform,
    check_ends,
    law_from_recipe,
    noise_law,
)

TOOLS = {
    "kohya": "impasto.interop.noise.kohya",
    "ai-toolkit": "impasto.interop.noise.ai_toolkit",
    "onetrainer": "impasto.interop.noise.onetrainer",
    "simpletuner": "impasto.interop.noise.simpletuner",
    "diffusers": "impasto.interop.noise.diffusers",
}
FLOWS = ("flux", "sd3")
PIPELINES = {
    "FluxPipeline": "flux",
    "StableDiffusion3Pipeline": "sd3",
    "StableDiffusionXLPipeline": "sdxl",
    "StableDiffusionPipeline": "sd15",
}
BASES = ("model_family", "model_type", "arch", "pretrained_model_name_or_path", "name_or_path", "base_model_name")
KINDS = {
    "flux": r"flux",
    "sd3": r"sd-?3|stable[-_]diffusion[-_]3",
    "sdxl": r"sdxl|xl(?![a-z])",
    "sd15": r"sd-?15|sd1x|v1-[45]|diffusion_15",
}
FLUX_2 = r"flux[-_.]?2(?!\d)"
WHICH = "say --architecture flux, sd3, sdxl or sd15"
LARGEST = 16384  # pixels of a side: FLUX's shift is exp(178) there


@dataclass
class Situation:
    """What a setting's meaning depends on. notes: what is said beside the result. size: pixels."""

    architecture: str | None
    size: int
    notes: list[str] = field(default_factory=list)

    @property
    def flow(self) -> bool:
        """Raises UserError where it is not known."""
        if self.architecture is None:
            raise UserError(f"these settings do not tell what is trained, and mean another law for each: {WHICH}")
        return self.architecture in FLOWS

    def assume(self, architecture: str, why: str) -> None:
        """Take it for that, and say so."""
        self.architecture = architecture
        self.notes.append(f"taken for {architecture}, as {why}; if it is another, say --architecture")

    @property
    def flux_shift(self) -> float:
        """FLUX's shift by resolution, exp(mu): mu linear from .5 at 256 tokens of 16 x 16 px to 1.15 at 4096."""
        if not 16 <= self.size <= LARGEST:
            raise UserError(f"size must be from 16 to {LARGEST} pixels, not {self.size}")
        tokens = (self.size // 16) ** 2
        return math.exp(0.5 + (1.15 - 0.5) * (tokens - 256) / (4096 - 256))


class Given(dict[str, Any]):
    """A tool's settings by lower-case name without dashes, its defaults behind them."""

    def __init__(self, values: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
        super().__init__(values)
        self.defaults = defaults

    def raw(self, key: str) -> Any:
        value = self.get(key)
        return self.defaults[key] if value in (None, "", "None", "null") else value

    def number(self, key: str) -> float:
        """Raises UserError when it is none."""
        value = self.raw(key)
        try:
            number = float(value)
        except (TypeError, ValueError):
            raise UserError(f"{key} must be a number, not {value!r}") from None
        if not math.isfinite(number):
            raise UserError(f"{key} must be a finite number, not {value!r}")
        return number

    def word(self, key: str) -> str:
        return str(self.raw(key))

    def on(self, key: str) -> bool:
        return str(self.raw(key)).lower() in ("true", "1", "yes", "on")

    def changed(self, *keys: str) -> list[str]:
        """Those of `keys` that are set to anything but their default."""
        pairs = ((key, self.raw(key), self.defaults[key]) for key in keys)
        return [
            key
            for key, value, default in pairs
            if str(value).lower() != str(default).lower()
            and not (is_number(value, default) and float(value) == float(default))
        ]

    def refuse(self, *keys: str, why: str = "has no counterpart here") -> None:
        """Raise UserError where one of `keys` is changed."""
        for key in self.changed(*keys):
            raise UserError(f"{key} = {self.raw(key)} {why}")

    def leave_out(self, s: Situation, why: str, *keys: str) -> None:
        """A note where some of `keys` are changed."""
        if found := self.changed(*keys):
            s.notes.append(f"{' and '.join(found)} {'is' if len(found) == 1 else 'are'} left out: {why}")


def is_number(*values: Any) -> bool:
    try:
        return all(math.isfinite(float(value)) for value in values)
    except (TypeError, ValueError):
        return False


def module(tool: str) -> Any:
    """Raises UserError on an unknown name."""
    if tool not in TOOLS:
        raise UserError(f"unknown tool {tool!r}: {nearest(tool, list(TOOLS))}")
    return import_module(TOOLS[tool])


def import_settings(tool: str, settings: Sequence[str], architecture: str | None, size: int = 1024) -> dict[str, Any]:
    """{"tool", "architecture", "settings": our keys, "law": log-SNR in words, "notes"}. Raises UserError."""
    theirs = module(tool)
    values = read_settings(settings, theirs.KEYS)
    if not set(theirs.KEYS) & values.keys():
        named = repr(settings[0]) if len(settings) == 1 and Path(settings[0]).exists() else "what was given"
        raise UserError(f"{named} holds no noise settings of {tool}: it knows {', '.join(theirs.KEYS)}")
    if size < 1:
        raise UserError(f"size must be above 0, not {size}")
    situation = Situation(architecture, size)
    if architecture is None and (told := told_architecture(values)):
        situation.assume(*told)
    ours = {
        key: value for key, value in theirs.read(Given(values, theirs.KEYS), situation).items() if value is not None
    }
    law = law_from_recipe(ours)
    make_config(**ours)
    check_within(law, situation)
    return report(tool, situation, ours, law)


def export_settings(tool: str, config: TrainConfig, architecture: str) -> dict[str, Any]:
    """{"tool", "architecture", "settings": its keys, "law", "notes"}. Raises UserError."""
    theirs = module(tool)
    situation = Situation(architecture, config.data.size)
    law = noise_law(config)
    check_within(law, situation)
    settings = theirs.write(law, config.noise.offset, situation) | weighed(tool, config, situation)
    return report(tool, situation, settings, law)


def report(tool: str, s: Situation, settings: dict[str, Any], law: Law) -> dict[str, Any]:
    told = {"tool": tool, "source": module(tool).SOURCE, "architecture": s.architecture}
    return told | {"settings": settings, "law": words(law), "notes": s.notes}


def check_within(law: Law, s: Situation) -> None:
    """Raise UserError when nearly all of a flow's law lies beyond one of its ends."""
    if s.flow:
        check_ends(law, -FLOW_END, FLOW_END)


def weighed(tool: str, config: TrainConfig, s: Situation) -> dict[str, Any]:
    """The tool's keys for the config's loss weighting; a note where it has none. Raises UserError on an unknown one."""
    from impasto.objectives import weighting

    name = getattr(config.objective, "weighting", "none")
    weighting.check(name)
    if name == "none":
        return {}
    if s.flow:
        s.notes.append(f"weighting {name} is left out: a rectified flow takes none, here neither")
    elif name != "min-snr":
        s.notes.append(f"weighting {name} is not carried over: {tool} has an exact min-snr alone")
    else:
        return module(tool).min_snr(config.objective.gamma)
    return {}


def architecture_of(base: str | None, said: str | None) -> str:
    """Of a base by its pipeline class, else as `said`. Raises UserError where the two differ, where neither tells, and
    for a class that impasto does not speak (FLUX.2, ...)."""
    if base is not None:
        name = pipeline_class(base)
        families.check_class(base, name)
        if name and said not in (None, PIPELINES[name]):
            raise UserError(
                f"base {base!r} is {PIPELINES[name]}, not {said}: leave out --architecture, or give another base"
            )
        said = PIPELINES[name] if name else said
    if said is None:
        why = "without a base it is not known" if base is None else f"it is not known here of base {base!r}"
        raise UserError(f"the settings depend on what is trained, and {why}: {WHICH}")
    return said


def pipeline_class(base: str) -> str:
    """Of any base, as far as it is known without its weights; "" where it is not. Raises UserError."""
    if Path(base).is_dir():
        return files.pipeline_class(Path(base))
    own = cards.card(base).get("pipeline")
    return own or hub.part_config(base, "model_index.json").get("_class_name", "")


def logit(law: Law, tool: str) -> tuple[float, float]:
    """(M, S) of a law that is normal in the logit of t. Raises UserError for others."""
    if isinstance(law, StyleFriendly | LogitNormal):
        mean, std = (law.mean, law.std) if isinstance(law, StyleFriendly) else law.log_snr
        half = round(std / 2, 10)
        if not half:
            raise UserError(f"noise_std = {std:g} is nothing to {tool}: choose a larger one")
        return round(-mean / 2, 10), half
    raise UserError(f"{tool} has no counterpart of {law}")


def uniform_in_time(law: Law, tool: str) -> None:
    """Raise UserError unless it is how a U-Net's own time is drawn: these tools do that alone with SD 1.5 and SDXL."""
    if law != Uniform():
        raise UserError(f"{tool} draws the time of SD 1.5 and SDXL uniformly: it has no counterpart of {law}")


def no_counterpart(scheme: str) -> UserError:
    """For a weighting_scheme of diffusers' scripts, whose names kohya's took over, that no law of ours has."""
    why = "draws by another curve" if scheme == "mode" else "weighs the loss of a rectified flow"
    return UserError(f"weighting_scheme = {scheme} {why}, which has no counterpart here")


def squared_sigma(law: Law) -> str:
    """What it does to compare x_0 instead of the velocity, where `law` is drawn: the loss is sigma^2 times as much."""
    lam = law.quantile((torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000)
    t = torch.sigmoid(-lam / 2)
    share = t.square().cumsum(0) / t.square().sum()
    i, j = len(lam) // 2, int((share < 0.5).sum())
    return (
        f"weighs the loss by sigma^2: in effect the median t is {t[j]:.2f}, log-SNR {lam[j]:.1f}, "
        f"instead of {t[i]:.2f}, {lam[i]:.1f}"
    )


def words(law: Law) -> str:
    if isinstance(law, StyleFriendly | LogitNormal):
        m, s = logit(law, "")
        return f"log-SNR ~ N({-2 * m:.4g}, {2 * s:.4g}^2), that is logit(t) ~ N({m:.4g}, {s:.4g}^2)"
    if isinstance(law, Uniform):
        return "t ~ U(0, 1)" + (f", then shift {law.shift:.4g}" if law.shift != 1 else ", in the base's own time")
    return str(law)


def told_architecture(values: Mapping[str, Any]) -> tuple[str, str] | None:
    """(architecture, what tells it) as the settings name what is trained: by the last part of a path or a hub id. None
    where they do not, or a name fits two. Raises UserError for FLUX.2."""
    for key in BASES:
        said = str(values.get(key, ""))
        name = re.split(r"[/\\]", said.rstrip("/\\"))[-1].lower()
        if re.search(FLUX_2, name):
            raise UserError(
                f"{key} = {said} is FLUX.2, another model than FLUX.1, which impasto does not speak; "
                "for a FLUX.1 of that name say --architecture flux"
            )
        if kinds := [kind for kind, pattern in KINDS.items() if re.search(pattern, name)]:
            return (kinds[0], f"{key} is {said}") if len(kinds) == 1 else None
    return None


def read_settings(settings: Sequence[str], keys: Container[str]) -> dict[str, Any]:
    """From one file, or from KEY=VALUE words; tables are flattened. Raises UserError, also where one of `keys` has two
    values: a law of each data set, say."""
    if len(settings) == 1 and "=" not in settings[0]:
        found = flat(read_file(Path(settings[0])))
    else:
        pairs = [word.partition("=") for word in settings]
        for key, equals, _ in pairs:
            if not equals:
                raise UserError(f"{key!r} is no KEY=VALUE; a settings file is given alone")
        found = flat([{key: value} for key, _, value in pairs])
    for key, values in found.items():
        if key in keys and any(value != values[0] for value in values):
            raise UserError(f"{key} is set more than once, to {' and '.join(map(str, values))}: leave one")
    return {key: values[-1] for key, values in found.items()}


def read_file(file: Path) -> Any:
    """TOML, JSON and YAML by suffix; anything else as a command line or lines of KEY=VALUE. Raises UserError."""
    try:
        content = file.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"{str(file)!r} does not exist: give a settings file, or KEY=VALUE ...") from None
    except (OSError, UnicodeDecodeError):
        raise UserError(f"{str(file)!r} cannot be read as text: give a settings file, or KEY=VALUE ...") from None
    try:
        if file.suffix == ".json":
            return json.loads(content)
        if file.suffix == ".toml":
            return tomllib.loads(content)
        if file.suffix in (".yaml", ".yml"):
            return read_yaml(content)
        return command_line(shlex.split(content.replace("\\\n", " "), comments=True))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{str(file)!r} cannot be read: {str(error).splitlines()[0]}") from None


def read_yaml(content: str) -> Any:
    import yaml

    try:
        return yaml.safe_load(content)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from None


def command_line(tokens: Sequence[str]) -> dict[str, Any]:
    """`--key value`, `--key=value`, `--flag` and `KEY=VALUE`."""
    found: dict[str, Any] = {}
    for i, token in enumerate(tokens):
        key, equals, value = token.partition("=")
        if equals:
            found[key.removeprefix("export ")] = value
        elif token.startswith("--"):
            following = tokens[i + 1] if i + 1 < len(tokens) else "--"
            found[token] = True if following.startswith("--") else following
    return found


def flat(content: Any) -> dict[str, list[Any]]:
    """Leaves of tables and lists by their last name, in lower case, without leading dashes; - is _. All values of a
    name, in order. A file that is neither holds none."""
    found: dict[str, list[Any]] = {}
    if not isinstance(content, Mapping | list):
        return found
    for name, value in content.items() if isinstance(content, Mapping) else enumerate(content):
        if isinstance(value, Mapping | list):
            for key, values in flat(value).items():
                found.setdefault(key, []).extend(values)
        elif isinstance(name, str):
            found.setdefault(name.lstrip("-").replace("-", "_").lower(), []).append(value)
    return found


def shown(result: Mapping[str, Any]) -> str:
    """An import for a person: flags of `impasto train`, the law, the notes."""
    flags = " ".join(
        f"{flag_of(key)} {value:g}" if isinstance(value, float) else f"{flag_of(key)} {value}"
        for key, value in result["settings"].items()
    )
    return "\n".join(
        [
            flags,
            f"  {result['law']}",
            *(f"  note: {note}" for note in result["notes"]),
            f"  read from {result['source']}",
        ]
    )


def lines(result: Mapping[str, Any]) -> str:
    """An export for a person: KEY = VALUE as TOML has it, which these tools' files have in their own syntax."""
    settings = [f"{key} = {json.dumps(value)}" for key, value in result["settings"].items()]
    return "\n".join(
        [f"# {result['architecture']}: {result['law']}", *settings, *(f"# note: {note}" for note in result["notes"])]
    )


def write_recipe(result: Mapping[str, Any], file: Path) -> None:
    """Our keys as a recipe."""
    head = [f"# Noise settings of {result['tool']}, as {result['source']} means them:", f"# {result['law']}"]
    body = [f"{key} = {json.dumps(value)}" for key, value in result["settings"].items()]
    file.parent.mkdir(parents=True, exist_ok=True)
    with atomic(file) as temporary:
        temporary.write_text(
            "\n".join([*head, *(f"# {note}" for note in result["notes"]), "", *body, ""]), encoding="utf-8"
        )
