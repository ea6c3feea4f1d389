"""Import and export of other tools' noise settings: TOOLS is the table, one module per tool.

All mix a rectified flow as `x_t = (1 - t) x + t eps`, but differ in the sign of means and the place of shifts, so each
module states the tool's formula with its source and converts it to the logit of t:

    logit(t) ~ N(M, S^2)  <=>  log-SNR ~ N(-2 M, (2 S)^2);    shift k adds log k to logit(t)

A module has SOURCE (repository, commit, files and lines), KEYS (the noise settings with the tool's defaults), DROPPED
(its settings of other things that a run needs, with our keys: they are listed and not taken over), MODELS (its settings
that state the model, with {value in lower case: architecture}), `read(given, s) -> our keys`,
`write(law, offset, s) -> its keys` and `min_snr(gamma) -> its keys`; kohya has `select(found, s)` as well, the settings
that its GUI passes on. A law without an exact counterpart raises; other settings that are not converted are mentioned
in notes.
"""

import json
import math
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from impasto import families
from impasto.bases import cards, hub
from impasto.config import TrainConfig, flag_of, make_config
from impasto.errors import UserError
from impasto.families import files
from impasto.files import atomic
from impasto.interop.settings_file import TOOLS, check_tool, last_values, read_values
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
from impasto.optim.optimizers import OPTIMIZERS

FLOWS = ("flux", "sd3")
PIPELINES = {
    "FluxPipeline": "flux",
    "StableDiffusion3Pipeline": "sd3",
    "StableDiffusionXLPipeline": "sdxl",
    "StableDiffusionPipeline": "sd15",
}
BASES = ("pretrained_model_name_or_path", "name_or_path", "base_model_name")
KINDS = {
    "flux": r"flux",
    "sd3": r"sd-?3|stable[-_]diffusion[-_]3",
    "sdxl": r"sdxl|xl(?![a-z])",
    "sd15": r"sd-?15|v1-[45]|diffusion_15",
}
FLUX_2 = r"flux[-_.]?2(?!\d)"
ARCHITECTURE_HINT = "give --architecture flux, sd3, sdxl or sd15"
MAX_SIZE = 16384  # pixels of a side: FLUX's shift is exp(178) there


@dataclass
class ImportContext:
    """The context that determines a setting's meaning. size: pixels. notes: are added to the result."""

    architecture: str | None
    size: int
    notes: list[str] = field(default_factory=list)

    @property
    def flow(self) -> bool:
        """Whether the architecture is a rectified flow. Raises UserError when it is unknown."""
        if self.architecture is None:
            raise UserError(f"the architecture is unknown, and the law depends on it: {ARCHITECTURE_HINT}")
        return self.architecture in FLOWS

    def assume(self, architecture: str, why: str) -> None:
        """Set the architecture, with a note."""
        self.architecture = architecture
        self.notes.append(f"assumed {architecture}, as {why}; if it is another, give --architecture")

    def state(self, architecture: str, why: str) -> None:
        """Set the architecture that the settings state, with a note. Raises UserError when another one was given."""
        if self.architecture not in (None, architecture):
            raise UserError(f"{why}, which is {architecture}, not {self.architecture}: leave out --architecture")
        if self.architecture is None:
            self.architecture = architecture
            self.notes.append(f"{architecture}, as {why}")

    @property
    def flux_shift(self) -> float:
        """FLUX's shift by resolution, exp(mu): mu linear from .5 at 256 tokens of 16 x 16 px to 1.15 at 4096."""
        if not 16 <= self.size <= MAX_SIZE:
            raise UserError(f"size must be from 16 to {MAX_SIZE} pixels, not {self.size}")
        tokens = (self.size // 16) ** 2
        return math.exp(0.5 + (1.15 - 0.5) * (tokens - 256) / (4096 - 256))


class ToolSettings(dict[str, Any]):
    """A tool's settings by lower-case name with underscores, and its defaults."""

    def __init__(self, values: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
        super().__init__(values)
        self.defaults = defaults

    def raw(self, key: str) -> Any:
        value = self.get(key)
        return self.defaults[key] if value in (None, "", "None", "null") else value

    def number(self, key: str) -> float:
        """The value as a finite float. Raises UserError."""
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
        """The `keys` whose value differs from the default."""
        pairs = ((key, self.raw(key), self.defaults[key]) for key in keys)
        return [
            key
            for key, value, default in pairs
            if str(value).lower() != str(default).lower()
            and not (are_numbers(value, default) and float(value) == float(default))
        ]

    def refuse(self, *keys: str, why: str = "has no counterpart here") -> None:
        """Raise UserError if one of `keys` is changed."""
        for key in self.changed(*keys):
            raise UserError(f"{key} = {self.raw(key)} {why}")

    def leave_out(self, s: ImportContext, why: str, *keys: str) -> None:
        """Add a note if some of `keys` are changed."""
        if found := self.changed(*keys):
            s.notes.append(f"{' and '.join(found)} {'is' if len(found) == 1 else 'are'} left out: {why}")


def are_numbers(*values: Any) -> bool:
    try:
        return all(math.isfinite(float(value)) for value in values)
    except (TypeError, ValueError):
        return False


def tool_module(tool: str) -> Any:
    """The module of a tool. Raises UserError on an unknown name."""
    check_tool(tool)
    return import_module(TOOLS[tool])


def import_settings(tool: str, settings: Sequence[str], architecture: str | None, size: int = 1024) -> dict[str, Any]:
    """{"tool", "architecture", "settings": our keys, "law": description, "notes", "dropped": settings of other things
    than noise, see `dropped`}. Raises UserError."""
    theirs = tool_module(tool)
    if size < 1:
        raise UserError(f"size must be above 0, not {size}")
    context = ImportContext(architecture, size)
    given = read_values(settings)
    if hasattr(theirs, "select"):
        given = theirs.select(given, context)
    values = last_values(given, {*theirs.KEYS, *theirs.MODELS})
    if stated := stated_architecture(values, theirs.MODELS):
        context.state(*stated)
    if not set(theirs.KEYS) & values.keys():
        named = repr(settings[0]) if len(settings) == 1 and Path(settings[0]).exists() else "what was given"
        if len({*theirs.DROPPED, *theirs.MODELS} & values.keys()) < 2:
            raise UserError(f"{named} has no noise settings of {tool}; known: {', '.join(theirs.KEYS)}")
        context.notes.append(f"{named} has no noise settings: these are the defaults of {tool}")
    if context.architecture is None and (found := detect_architecture(values)):
        context.assume(*found)
    ours = {
        key: value
        for key, value in theirs.read(ToolSettings(values, theirs.KEYS), context).items()
        if value is not None
    }
    law = law_from_recipe(ours)
    make_config(**ours)
    check_flow_ends(law, context)
    return build_result(tool, context, ours, law) | {"dropped": dropped(given, theirs.DROPPED)}


def dropped(found: Mapping[str, list[Any]], names: Mapping[str, str]) -> list[dict[str, Any]]:
    """[{"key", "value", "flag"}] of the settings that an import does not take over: the flag of `impasto train` with
    the value, None where there is no such value here. names: of the tool's settings, with our flat keys."""
    result = []
    for name, ours in names.items():
        for value in dict.fromkeys(str(value) for value in found.get(name, []) if value not in (None, "")):
            flag: str | None = f"{flag_of(ours)} {shlex.quote(value)}"
            if ours == "optimizer":
                same = re.sub(r"[^a-z0-9]", "", value.lower())
                flag = f"--optimizer {same}" if same in OPTIMIZERS else None
            elif ours == "size":  # "1024,1024"
                sides = set(re.findall(r"\d+", value))
                flag = f"--size {sides.pop()}" if len(sides) == 1 else None
            result.append({"key": name, "value": value, "flag": flag})
    return result


def export_settings(tool: str, config: TrainConfig, architecture: str) -> dict[str, Any]:
    """{"tool", "architecture", "settings": its keys, "law", "notes"}. Raises UserError."""
    theirs = tool_module(tool)
    context = ImportContext(architecture, config.data.size)
    law = noise_law(config)
    check_flow_ends(law, context)
    settings = theirs.write(law, config.noise.offset, context) | weighting_settings(tool, config, context)
    return build_result(tool, context, settings, law)


def build_result(tool: str, s: ImportContext, settings: dict[str, Any], law: Law) -> dict[str, Any]:
    source = {"tool": tool, "source": tool_module(tool).SOURCE, "architecture": s.architecture}
    return source | {"settings": settings, "law": describe_law(law), "notes": s.notes}


def check_flow_ends(law: Law, s: ImportContext) -> None:
    """Raise UserError when nearly all of a flow's law lies beyond one end of its schedule."""
    if s.flow:
        check_ends(law, -FLOW_END, FLOW_END)


def weighting_settings(tool: str, config: TrainConfig, s: ImportContext) -> dict[str, Any]:
    """The tool's keys for the config's loss weighting; a note if it has none. Raises UserError on an unknown one."""
    from impasto.objectives import weighting

    name = getattr(config.objective, "weighting", "none")
    weighting.check(name)
    if name == "none":
        return {}
    if s.flow:
        s.notes.append(f"weighting {name} is left out: rectified flows are trained without weighting")
    elif name != "min-snr":
        s.notes.append(f"weighting {name} is not carried over: {tool} has an exact counterpart of min-snr only")
    else:
        return tool_module(tool).min_snr(config.objective.gamma)
    return {}


def architecture_of(base: str | None, stated: str | None) -> str:
    """The architecture of a base by its pipeline class, else `stated`. Raises UserError when the two differ, when both
    are unknown, and for an unsupported class (FLUX.2, ...)."""
    if base is not None:
        name = pipeline_class(base)
        families.check_class(base, name)
        if name and stated not in (None, PIPELINES[name]):
            raise UserError(
                f"base {base!r} is {PIPELINES[name]}, not {stated}: leave out --architecture, or give another base"
            )
        stated = PIPELINES[name] if name else stated
    if stated is None:
        why = "without a base it is not known" if base is None else f"it is not known here of base {base!r}"
        raise UserError(f"the settings depend on what is trained, and {why}: {ARCHITECTURE_HINT}")
    return stated


def pipeline_class(base: str) -> str:
    """The pipeline class of a base, from its configurations; "" if unknown. Raises UserError."""
    if Path(base).is_dir():
        return files.pipeline_class(Path(base))
    own = cards.card(base).get("pipeline")
    return own or hub.part_config(base, "model_index.json").get("_class_name", "")


def logit_normal_parameters(law: Law, tool: str) -> tuple[float, float]:
    """(M, S) of a law that is normal in the logit of t. Raises UserError for other laws."""
    if isinstance(law, StyleFriendly | LogitNormal):
        mean, std = (law.mean, law.std) if isinstance(law, StyleFriendly) else law.log_snr
        half = round(std / 2, 10)
        if not half:
            raise UserError(f"noise_std = {std:g} is 0 for {tool}: choose a larger one")
        return round(-mean / 2, 10), half
    raise UserError(f"{tool} has no counterpart of {law}")


def require_uniform_time(law: Law, tool: str) -> None:
    """Raise UserError unless the law is uniform in a U-Net's own time, the only one in these tools for SD 1.5, SDXL."""
    if law != Uniform():
        raise UserError(f"{tool} samples the timesteps of SD 1.5 and SDXL uniformly: no counterpart of {law}")


def no_counterpart_error(scheme: str) -> UserError:
    """The error for a weighting_scheme (diffusers' scripts, kohya) without a counterpart."""
    why = "samples by another curve" if scheme == "mode" else "weights the loss of a rectified flow"
    return UserError(f"weighting_scheme = {scheme} {why}, which has no counterpart here")


def describe_sigma_weighting(law: Law) -> str:
    """The effect of comparing x_0 instead of the velocity under `law`, in words: the loss has the weight sigma^2."""
    lam = law.quantile((torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000)
    t = torch.sigmoid(-lam / 2)
    share = t.square().cumsum(0) / t.square().sum()
    i, j = len(lam) // 2, int((share < 0.5).sum())
    return (
        f"weights the loss by sigma^2: in effect the median t is {t[j]:.2f}, log-SNR {lam[j]:.1f}, "
        f"instead of {t[i]:.2f}, {lam[i]:.1f}"
    )


def describe_law(law: Law) -> str:
    if isinstance(law, StyleFriendly | LogitNormal):
        m, s = logit_normal_parameters(law, "")
        return f"log-SNR ~ N({-2 * m:.4g}, {2 * s:.4g}^2), that is logit(t) ~ N({m:.4g}, {s:.4g}^2)"
    if isinstance(law, Uniform):
        return "t ~ U(0, 1)" + (f", then shift {law.shift:.4g}" if law.shift != 1 else ", in the base's own time")
    return str(law)


def stated_architecture(values: Mapping[str, Any], models: Mapping[str, Mapping[str, str]]) -> tuple[str, str] | None:
    """(architecture, evidence) of the first of a tool's settings that states one. models: see MODELS. Raises UserError
    for a model that is not supported."""
    for key, known in models.items():
        stated = str(values.get(key, "")).lower().partition(":")[0]  # ai-toolkit: "arch:tag"
        if stated not in ("", "false", "none", "null"):
            if stated not in known:
                raise UserError(f"{key} = {values[key]} states a model that impasto does not support")
            return known[stated], f"{key} is {values[key]}"
    return None


def detect_architecture(values: Mapping[str, Any]) -> tuple[str, str] | None:
    """(architecture, evidence) from the base named in the settings, by the last part of a path or hub id. None if there
    is none or it is ambiguous. Raises UserError for FLUX.2."""
    for key in BASES:
        stated = str(values.get(key, ""))
        name = re.split(r"[/\\]", stated.rstrip("/\\"))[-1].lower()
        if re.search(FLUX_2, name):
            raise UserError(
                f"{key} = {stated} is FLUX.2, which impasto does not support; "
                "for a FLUX.1 of that name give --architecture flux"
            )
        if kinds := [kind for kind, pattern in KINDS.items() if re.search(pattern, name)]:
            return (kinds[0], f"{key} is {stated}") if len(kinds) == 1 else None
    return None


def format_import(result: Mapping[str, Any]) -> str:
    """The text of an import: flags of `impasto train`, the law, the notes."""
    flags = " ".join(
        f"{flag_of(key)} {value:g}" if isinstance(value, float) else f"{flag_of(key)} {value}"
        for key, value in result["settings"].items()
    )
    return "\n".join(
        [
            flags,
            f"  {result['law']}",
            *(f"  note: {note}" for note in result["notes"]),
            *(f"  not taken over: {one}" for one in map(describe_dropped, result["dropped"])),
            f"  read from {result['source']}",
        ]
    )


def describe_dropped(one: Mapping[str, Any]) -> str:
    return f"{one['key']} = {one['value']}: " + (one["flag"] or "has no counterpart here")


def format_export(result: Mapping[str, Any]) -> str:
    """The text of an export: KEY = VALUE in TOML syntax, to be adapted to the tool's file format."""
    settings = [f"{key} = {json.dumps(value)}" for key, value in result["settings"].items()]
    return "\n".join(
        [f"# {result['architecture']}: {result['law']}", *settings, *(f"# note: {note}" for note in result["notes"])]
    )


def write_recipe(result: Mapping[str, Any], file: Path) -> None:
    """Write an import as a recipe."""
    head = [f"# Noise settings of {result['tool']}, by {result['source']}:", f"# {result['law']}"]
    body = [f"{key} = {json.dumps(value)}" for key, value in result["settings"].items()]
    notes = [*result["notes"], *(f"not taken over: {one}" for one in map(describe_dropped, result["dropped"]))]
    file.parent.mkdir(parents=True, exist_ok=True)
    with atomic(file) as temporary:
        temporary.write_text("\n".join([*head, *(f"# {note}" for note in notes), "", *body, ""]), encoding="utf-8")
