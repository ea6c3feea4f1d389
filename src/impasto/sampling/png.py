"""The settings of an image in its PNG: written by `generate`, read by everything else."""

import json
from pathlib import Path
from typing import Any

from PIL import Image, PngImagePlugin

from impasto.files import atomic
from impasto.sampling.samplers import SAMPLERS


def read_png_metadata(file: Path) -> dict[str, Any]:
    """The metadata in a PNG's `impasto` chunk, see `metadata`; {} where the file is not an image, or missing."""
    try:
        with Image.open(file) as image:
            return metadata(image.info.get("impasto"))
    except (OSError, ValueError, SyntaxError):  # also texts that Pillow refuses, such as another tool's of above 1 MB
        return {}


def metadata(text: Any) -> dict[str, Any]:
    """What a PNG's `impasto` chunk tells; {} where it is none that `impasto generate` could have written.

    The prompt is then a text that UTF-8 can hold, or None, and the styles are a list of objects, or None.
    """
    try:
        meta = json.loads(text)
        prompt, styles = meta.get("prompt"), meta.get("styles")
        if prompt is not None:
            prompt.encode()
    except (TypeError, AttributeError, ValueError, RecursionError):
        return {}  # cut, or some other tool's chunk of that name: as good as none, and `evaluate` says so
    listed = styles is None or (isinstance(styles, list) and all(isinstance(style, dict) for style in styles))
    return meta if listed else {}


Info = dict[str, Any]
"""What a picture tells: prompt, negative_prompt, seed, steps, guidance, width, height, base, base_hash, styles; sampler
where it is not the base's own; where the prompt was switched, `PromptSwitch.info`."""


def save_png(image: Image.Image, info: Info, path: Path) -> None:
    """Write a PNG that says how it was made: `impasto` (JSON) and `parameters` (as A1111 writes it)."""
    text = PngImagePlugin.PngInfo()
    text.add_text("impasto", json.dumps(info))
    text.add_text("parameters", parameters(info))
    with atomic(path) as file:
        image.save(file, "PNG", pnginfo=text)


def parameters(info: Info) -> str:
    """The settings as a person, and many a tool, reads them."""
    negative = f"\nNegative prompt: {info['negative_prompt']}" if info["negative_prompt"] else ""
    styles = "".join(f" <lora:{Path(s['path']).name}:{s['strength']:g}>" for s in info["styles"])
    settings = {
        "Steps": info["steps"],
        **({"Sampler": SAMPLERS[info["sampler"]].label} if "sampler" in info else {}),
        "CFG scale": f"{info['guidance']:g}",
        **({"Style guidance": f"{info['style_guidance']:g}"} if info.get("style_guidance") else {}),
        **({"Base guidance": f"{info['base_guidance']:g}"} if info.get("base_guidance") else {}),
        "Seed": info["seed"],
        "Size": f"{info['width']}x{info['height']}",
        "Model": info["base"],
        "Model hash": info["base_hash"][:10],
        **({"StyleAligned to": info["aligned"]["hash"][:10]} if "aligned" in info else {}),
        "Version": f"impasto {info['version']}",
    }
    if "switch_to" in info:
        first = info["prompt_of_step"].count(0)
        settings |= {"Switch to": json.dumps(info["switch_to"], ensure_ascii=False), "Switch after steps": first}
    return f"{info['prompt']}{styles}{negative}\n" + ", ".join(f"{key}: {value}" for key, value in settings.items())
