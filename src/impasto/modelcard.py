"""The model card of a style: what the Hub and the tools read at the top, how to use it, how it was trained."""

import json
from pathlib import Path
from typing import Any

from impasto.config import TrainConfig
from impasto.families.base import Family
from impasto.noise.laws import within
from impasto.paths import atomic
from impasto.plan import bars, histogram, noise_law

TEXT = """---
{front}
---
# {name}

A style for `{base}`, learnt from {pictures}, trained with impasto {version}.
{gallery}
## Use

In plain diffusers:

```python
import torch
from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained("{folder}")
pipe.load_lora_weights("{path}")
image = pipe({prompt}, num_inference_steps={steps}, guidance_scale={guidance},
             height={size}, width={size}, {padding}generator=torch.Generator("cpu").manual_seed(0)).images[0]
```

The same picture from the command line:

```
impasto generate --base {base} --style {path} --prompt {prompt} --seed 0 --out pictures
```

A strength below 1 keeps more of the base: `--style {path}:0.7`, or `pipe.set_adapters(..., 0.7)`.

## How it was trained

Captions: {captions}. Noise law `{noise}`, {draws} draws of a noise level in {train_steps} steps; everything else in
`recipe.toml`, the loss of each step in `metrics.jsonl`.

```
{bars}
```
"""


def write_card(config: TrainConfig, family: Family, previews: list[str], version: str) -> Path:
    """Write `README.md` into the style folder. previews: files in it, by their names."""
    prompt = config.preview_prompt[0] if config.preview_prompt else config.caption[0]
    front: dict[str, Any] = {
        "base_model": config.base,
        "library_name": "diffusers",
        "pipeline_tag": "text-to-image",
        "license": family.card.get("license", "other"),
        "instance_prompt": config.caption[0],
        "tags": ["text-to-image", "diffusers", "diffusers-training", "lora", "style", "template:sd-lora"],
        "widget": [{"text": prompt, "output": {"url": name}} for name in previews],
    }
    text = TEXT.format(
        front="\n".join(f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in front.items() if value),
        name=config.out.resolve().name,
        base=config.base,
        folder=family.folder if family.card.get("embedded") else config.base,
        path=config.out,
        pictures="one picture" if len(config.image) == 1 else f"{len(config.image)} pictures",
        version=version,
        gallery="\n<Gallery />\n" if previews else "",
        prompt=json.dumps(prompt, ensure_ascii=False),
        steps=family.card["generate"]["steps"],
        guidance=family.card["generate"]["guidance"],
        size=family.card["size"],
        padding="".join(f"{key}={n}, " for key, n in family.padding(next(iter(family.text_lengths))).items()),
        captions="; ".join(json.dumps(caption, ensure_ascii=False) for caption in config.caption),
        noise=config.noise,
        draws=config.steps * config.batch * config.accumulate,
        train_steps=config.steps,
        bars=bars(histogram(within(noise_law(config), family.schedule))),
    )
    with atomic(config.out / "README.md") as file:
        file.write_text(text)
    return config.out / "README.md"
