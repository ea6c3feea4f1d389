"""Texts with an image's settings below the prompt, as `png.parameters` and A1111 write them."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

NEGATIVE = re.compile(r"Negative prompt:\s*(.*)")
SETTINGS = re.compile(r"Steps: \d+\s*(,|$)")
PAIR = re.compile(r'\s*([A-Z][\w /-]*):\s*("(?:\\.|[^"\\])*"|[^,]*)(?:,|$)')
LORA = re.compile(r"\s*<lora:([^<>:]+):([^<>]*)>")
KEYS = {
    "Steps": ("steps", int),
    "CFG scale": ("guidance", float),
    "Style guidance": ("style_guidance", float),
    "Base guidance": ("base_guidance", float),
    "Seed": ("seed", int),
    "Size": ("size", str),
}
"""Of `png.parameters`: field of `GenerateConfig` and its type."""
UNSTATED = {"negative": "", "sampler": "default", "style_guidance": 0.0, "base_guidance": 0.0}
"""Values that `png.parameters` leaves out."""
NO_SETTINGS = ("Version", "Model", "Sampler", "Model hash", "VAE hash", "Lora hashes", "TI hashes")


@dataclass(frozen=True)
class Pasted:
    """A prompt with what stands below it. settings: by field of `GenerateConfig`. styles: (name, strength) of
    `<lora:...>`. unused: settings that `generate` does not have."""

    prompt: str
    settings: dict[str, Any]
    styles: tuple[tuple[str, str], ...] = ()
    unused: tuple[str, ...] = ()


def is_settings(line: str) -> bool:
    """Whether a line belongs to `parameters`, below the prompt."""
    return bool(NEGATIVE.match(line) or SETTINGS.match(line))


def read_parameters(lines: Sequence[str]) -> Pasted:
    """What `parameters`, or A1111, wrote: the prompt, "Negative prompt: ..." and "Steps: 20, ..."; the prompt alone
    where these are missing."""
    start = next((i for i, line in enumerate(lines) if is_settings(line)), None)
    if start is None:
        return Pasted("\n".join(lines), {})
    last = next((i for i, line in enumerate(lines) if i >= start and SETTINGS.match(line)), len(lines))
    pairs = {key: value.strip() for key, value in PAIR.findall(lines[last])} if last < len(lines) else {}
    own = pairs.get("Version", "").startswith("impasto")
    settings: dict[str, Any] = dict(UNSTATED) if own else {}
    unused = [f"{key} {value}" for key, value in pairs.items() if key not in KEYS and key not in NO_SETTINGS]
    if match := NEGATIVE.match(lines[start]):
        settings["negative"] = " ".join([match[1], *lines[start + 1 : last]]).strip()
    for key, (name, kind) in KEYS.items():
        if key in pairs:
            try:
                settings[name] = kind(pairs[key])
            except ValueError:
                unused.append(f"{key} {pairs[key]}")
    if label := pairs.get("Sampler"):
        from impasto.sampling.samplers import SAMPLERS  # torch is not imported before it is needed

        names = [name for name, sampler in SAMPLERS.items() if sampler.label == label]
        settings |= {"sampler": names[0]} if names else {}
        unused += [] if names else [f"Sampler {label}"]
    if own and "Model" in pairs:
        settings["base"] = pairs["Model"]
    prompt = "\n".join(lines[:start])
    return Pasted(LORA.sub("", prompt), settings, tuple(LORA.findall(prompt)), tuple(unused))
