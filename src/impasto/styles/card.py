"""The model card of a style: what the Hub and the tools read at the top, how to use it, how it was trained."""

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from impasto.adapters.base import adapter_of
from impasto.bases import embedded as mini
from impasto.bases.style_defaults import PLAIN, STYLE_WORDS
from impasto.config import TrainConfig
from impasto.families.base import Family
from impasto.families.files import VARIANT, pipeline_class, variant
from impasto.files import atomic
from impasto.interop.lora.layouts import ARCHITECTURES, PIPELINES
from impasto.noise import NOISE_LAWS
from impasto.noise.histogram import bars, histogram
from impasto.noise.laws import noise_law, truncate_to_schedule
from impasto.registry import name_of
from impasto.sampling.sample import Sampling
from impasto.styles.defaults import of_adapter, own_guidances, own_sampling, replaces_weights, with_presets
from impasto.styles.metadata import About, called_by, is_local
from impasto.styles.parts import NOISE, TOKEN, part_files, read_parts
from impasto.styles.weights import WEIGHTS

CARD = "README.md"  # in a style folder
ELSEWHERE = "; everything else in\n`recipe.toml`, the loss of each step in `metrics.jsonl`"
"""Of a style folder: the Hub has neither file."""
TEXT = """---
{front}
---
# {name}

A style for `{base}`, learnt from {pictures}, trained with impasto {version}.
{gallery}
## Use

{in_full}{how}:

```python
import torch
from {module} import {pipeline}
{imports}
pipe = {pipeline}.from_pretrained({folder}{precision})
{loading}{device}{call}
```

{same} from the command line:

```
{command}
```

{advice}

## Trigger words

Name the style as its captions did: {captions}.

## How it was trained

Noise law `{noise}`, {draws} draws of a noise level in {train_steps} steps{elsewhere}.

```
{bars}
```
"""

CALL = """image = pipe({prompt}, num_inference_steps={steps}, guidance_scale={guidance},
             height={size}, width={size}, {arguments}generator=torch.Generator("cpu").manual_seed(0)).images[0]"""
CALL_FROM_NOISE = "image = pipe({prompt}, {arguments}**call).images[0]"
"""Of a style that keeps inversion noise."""

COMMAND = "impasto generate --base {base}{components} --style {style} --prompt {words}{flags} --seed 0 --out pictures"

SLIDER = "A strength below 1 keeps more of the base: `--style {style}:0.7`, or `pipe.set_adapters(..., 0.7)`."

FROM_NOISE = """The noise is not scaled.
`--noise-random 0.1`, the default, draws a tenth of its positions anew from the seed; 0 makes all seeds alike."""

ADVICE = """Strength {plain} is advised where a tool has no style guidance; less keeps more of the base. By default
impasto samples this style at strength {strength} with style guidance {guidance}{negative}: as
much of the style, and more of what the prompt asks for.

```
{command}
```"""

GUIDED = """By default impasto samples this style with weights of style and semantics ({weights}; FineStyle), which
plain diffusers does not have:

```
{command}
```"""

IN_FULL = """Trained on the base in {kind}, on which its previews are drawn too. The code below reads the base in
full: its pictures differ a little.

"""

TAGS = {
    "flux": ("flux", "flux-diffusers"),
    "sd3": ("sd3", "sd3-diffusers"),
    "sdxl": ("stable-diffusion-xl", "stable-diffusion-xl-diffusers"),
    "sd15": ("stable-diffusion", "stable-diffusion-diffusers"),
}
"""What diffusers' own training scripts tag their cards with."""

BESIDE_T5 = ("flux", "sd3")
"""Architectures whose whole pipeline is large in bf16: 16 GB (SD3.5 medium) to 34 GB (FLUX.1), 9.5 GB of them T5. SDXL
has 7 GB, SD1.5 2 GB."""

MADE_TEXT = """---
{front}
---
# {name}

{how}

```python
import torch
from diffusers import {opener}

pipe = {opener}.{opening}
pipe.load_lora_weights({path}, weight_name="{weights}")
{device}image = pipe({prompt}{sides}, generator=torch.Generator("cpu").manual_seed(0)).images[0]
```

or `impasto generate --base {shell_base} --style {style} --prompt ...{size_flag}`
"""


def quoted(text: str) -> str:
    """As Python reads it."""
    return json.dumps(text, ensure_ascii=False)


def placing(architecture: str | None, embedded: bool, folder: Path | None = None) -> tuple[str, str]:
    """What the card's code says of precision and device: (arguments of the opening, a line after the loading).

    Embedded bases stay in float32 on the CPU. All others are bf16 on CUDA as a whole, those BESIDE_T5 part by part.
    folder: the base's; where it holds a component's weights as a variant alone, diffusers must be told to read that.
    """
    if embedded:
        return "", ""
    line = 'pipe.to("cuda")\n'
    if architecture in BESIDE_T5:
        line = 'pipe.enable_model_cpu_offload()  # pipe.to("cuda") is faster where the GPU holds all of it\n'
    half = folder is not None and any(map(variant, folder.iterdir()))
    return ", torch_dtype=torch.bfloat16" + (f', variant="{VARIANT}"' if half else ""), line


def size_flag(size: int | None, known: Mapping[str, Any]) -> str:
    """What `impasto generate` must be told to draw at `size`: nothing where that is the base's own. known: its card."""
    return f" --size {size}" if size and size != known.get("size") else ""


def trained_size(told: About) -> int | None:
    """The size in pixels that a style says it was trained at, square; None when it says none."""
    stated = told.metadata.get("ss_resolution") or told.metadata.get("modelspec.resolution") or ""
    sides = {int(side) for side in re.findall(r"\d+", stated)}
    return told.recipe.get("size") or (sides.pop() if len(sides) == 1 else None)


def front_matter(
    base: str | None,
    known: Mapping[str, Any],
    architecture: str | None,
    trigger: str | None,
    widget: Sequence[tuple[str, str]] = (),
    kind: str = "lora",
) -> str:
    """The lines between the dashes. known: the base's card; widget: (prompt, picture's file name); kind: of adapter."""
    front = {
        "base_model": Path(base).name if base and is_local(base) else base,
        "library_name": "diffusers",
        "pipeline_tag": "text-to-image",
        "license": known.get("license", "other"),
        "license_name": known.get("license_name"),
        "license_link": known.get("license_link"),
        "instance_prompt": trigger,
        "tags": [
            *("text-to-image", "diffusers", "diffusers-training", kind, "style"),
            *(("template:sd-lora",) if kind == "lora" else ()),
            *TAGS.get(architecture or "", ()),
        ],
        "widget": [{"text": prompt, "output": {"url": picture}} for prompt, picture in widget],
    }
    return "\n".join(f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in front.items() if value)


def made_card(
    name: str,
    how: str,
    path: str,
    base: str | None,
    known: Mapping[str, Any],
    architecture: str,
    trigger: str | None,
    size: int | None = None,
    prompt: str | None = None,
) -> str:
    """The card of a style that was imported, merged or resized. how: one sentence on where it comes from.

    size: what it was trained at, see `trained_size`; the base's own when not given. prompt: of the code; the trigger
    when not given.
    """
    folder = Path(base) if base and Path(base).is_dir() else None
    precision, device = placing(architecture, base in mini.names() or bool(known.get("embedded")), folder)
    size = size or known.get("size")
    opener, method, where = "DiffusionPipeline", "from_pretrained", base or "its base model"
    if base in mini.names():
        where = str(mini.ensure(base))
    elif Path(where).is_file():  # what it does not hold is not known here; diffusers says it
        opener, method = PIPELINES[architecture], "from_single_file"
    return MADE_TEXT.format(
        front=front_matter(base, known, architecture, trigger),
        name=name,
        how=how,
        opener=opener,
        opening=f"{method}({quoted(where)}{precision})",
        device=device,
        prompt=quoted(prompt or trigger or "..."),
        sides=f", height={size}, width={size}" if size else "",
        size_flag=size_flag(size, known),
        shell_base=shlex.quote(base or "BASE"),
        path=quoted(path),
        style=shlex.quote(path),
        weights=WEIGHTS,
    )


def loading(config: TrainConfig, family: Family, strength: float) -> dict[str, str]:
    """The card's Python code that opens the base and puts the style into it, by the kind of its adapter."""
    adapter, path = adapter_of(config.adapter), quoted(str(config.out))
    kinds = {part.kind for part in read_parts(config.out)}
    local = family.card.get("embedded") or Path(config.base).is_file()
    module = family.pipeline_type.__module__.split(".")
    own = module[0] != "diffusers"  # a pipeline of impasto's
    code = {
        "how": "In diffusers, with impasto installed" if own else "In plain diffusers",
        "module": ".".join(module) if own else "diffusers",
        "pipeline": family.pipeline_type.__name__ if own else "DiffusionPipeline",
        "imports": "",
        "folder": quoted(str(family.folder) if local else config.base),
        "loading": "",
    }
    if adapter.write_base is not None:
        return code | {"folder": path}
    if NOISE in kinds:
        line = f"call = impasto.load_style(pipe, {path}, strength={strength:g})\n"
        return code | {"how": "In diffusers, with impasto installed", "imports": "\nimport impasto\n", "loading": line}
    if adapter.state is not None or TOKEN in kinds:
        line = f"impasto.load_style(pipe, {path}, strength={strength:g})\n"
        return code | {"how": "In diffusers, with impasto installed", "imports": "\nimport impasto\n", "loading": line}
    line = f'pipe.load_lora_weights({path}, weight_name="{WEIGHTS}"'
    line += ")" if strength == 1 else f', adapter_name="style")\npipe.set_adapters("style", {strength:g})'
    return code | {"loading": line + "\n"}


def commands(config: TrainConfig, family: Family, prompt: str, in_bits: bool) -> dict[str, Any]:
    """What the card says of strength: the command that makes the image of the Python code, the strength there, and how
    impasto samples by default, where that is another way."""
    own = replace(of_adapter(config, family), **own_sampling(config.out))
    in_fewer_bits = f" --quantize {config.execution.quantize}" if in_bits else ""
    known = {
        "base": shlex.quote(config.base),
        "components": f" --components {shlex.quote(str(config.components))}" if config.components else "",
        "words": shlex.quote(prompt),
        "flags": size_flag(config.data.size, family.card) + in_fewer_bits,
    }
    style = shlex.quote(str(config.out))
    if part_files(config.out, NOISE):
        known["flags"] += " --noise-random 0"
        advice = SLIDER.format(style=style) + " " + FROM_NOISE
        return {"command": COMMAND.format(**known, style=style), "strength": own.strength, "advice": advice}
    guided = [one for one in with_presets(own_guidances(config.out), family) if replaces_weights([one])]
    if guided:
        style_weight, semantics, base_weight = guided[0].weights
        weights = f"lambda1 {style_weight:g}, lambda2 {semantics:g}, lambda_base {base_weight:g}"
        advice = GUIDED.format(weights=weights, command=COMMAND.format(**known, style=style))
        scale = family.card["generate"]["guidance"] - 1 if family.guided_by == "negative" else 0.0
        known["flags"] += f" --lambda1 0 --lambda2 {max(scale, 0.0):g} --lambda-base 0 --semantics-null ''"
        return {"command": COMMAND.format(**known, style=style), "strength": 1.0, "advice": advice}
    if own == PLAIN:
        command = COMMAND.format(**known, style=style)
        return {"command": command, "strength": 1.0, "advice": SLIDER.format(style=style)}
    strength = own.plain_strength or (1.0 if own.style_guidance or own.base_guidance else own.strength)
    words = " and its style words as the negative prompt" if own.negative == STYLE_WORDS else ""
    advice = ADVICE.format(
        plain=f"{strength:g}",
        strength=f"{own.strength:g}",
        guidance=f"{own.style_guidance:g}",
        negative=words,
        command=COMMAND.format(**known, style=style),
    )
    known["flags"] += " --style-guidance 0 --base-guidance 0 --negative ''"
    return {
        "command": COMMAND.format(**known, style=f"{style}:{strength:g}"),
        "strength": strength,
        "advice": advice,
    }


def write_card(config: TrainConfig, family: Family, previews: Sequence[tuple[str, str]], version: str) -> Path:
    """Write `README.md` into the style folder. previews: (prompt, name of the file in it)."""
    prompt = previews[0][0] if previews else (*config.log.preview_prompt, config.data.caption[0])[0]
    architecture = ARCHITECTURES.get(pipeline_class(family.folder))
    precision, device = placing(architecture, bool(family.card.get("embedded")), family.folder)
    trigger = called_by(config.data.trigger, config.data.caption)
    in_bits = config.execution.quantize not in ("auto", "none")
    use = commands(config, family, prompt, in_bits)
    arguments = family.padding(next(iter(family.text_lengths))) | Sampling().on(family).token_arguments
    text = TEXT.format(
        in_full=IN_FULL.format(kind=config.execution.quantize) if in_bits else "",
        same="The picture on the base that it was trained on" if in_bits else "The same picture",
        front=front_matter(config.base, family.card, architecture, trigger, previews, adapter_of(config.adapter).kind),
        name=config.out.resolve().name,
        base=config.base,
        **use | loading(config, family, use["strength"]),
        pictures="one picture" if len(config.data.image) == 1 else f"{len(config.data.image)} pictures",
        version=version,
        gallery="\n<Gallery />\n" if previews else "",
        call=(CALL_FROM_NOISE if part_files(config.out, NOISE) else CALL).format(
            prompt=quoted(prompt),
            steps=family.card["generate"]["steps"],
            guidance=family.card["generate"]["guidance"],
            size=config.data.size,
            arguments="".join(f"{key}={value}, " for key, value in arguments.items()),
        ),
        precision=precision,
        device=device,
        captions="; ".join(map(quoted, config.data.caption)),
        noise=name_of(NOISE_LAWS, config.noise),
        draws=config.optim.steps * config.optim.batch * config.optim.accumulate,
        train_steps=config.optim.steps,
        elsewhere=ELSEWHERE,
        bars=bars(histogram(truncate_to_schedule(noise_law(config), family.schedule))),
    )
    with atomic(config.out / CARD) as file:
        file.write_text(text, encoding="utf-8")
    return config.out / CARD
