"""Training that watches its score: images of fixed prompts and seeds by the live model, scored every so many steps.

    style       mean cosine with the references, in the image tower of a CLIP (the small one, or one that is named)
    text        how much better the frozen base denoises an image with its own prompt than with all (`base_text`)
    leakage     share of images that the base takes for the references' caption rather than for their own prompt
    diversity   mean of 1 - cosine over pairs of images

The rule: of the checkpoints whose text is at most a share `margin` below the best text, the one with the highest style.
It chooses the checkpoint that becomes the style, when to stop, and, of a grid of strengths and weights of style
guidance, how the style is sampled by default. The judges are never asked.
"""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from impasto.adapters.base import adapter_of
from impasto.adapters.lora import disabled
from impasto.adapters.text_encoder import TextConditioning
from impasto.config import EvaluateConfig, TrainConfig, change
from impasto.data.prepare import stack, text
from impasto.data.references import to_tensor
from impasto.errors import UserError
from impasto.evaluation.base_text import text_by_base, text_score
from impasto.evaluation.diversity import pairwise_diversity
from impasto.evaluation.encoders import load_encoder
from impasto.evaluation.validity import is_embedded
from impasto.families.base import Family, quiet
from impasto.files import atomic
from impasto.progress import Progress, ignore
from impasto.sampling.sample import Sampling
from impasto.styles.defaults import own_sampling, prompts_of_others
from impasto.styles.parts import add_to_style_json
from impasto.training.previews import Previews

FILE = "evaluations.jsonl"
"""Of a style folder: a row of scores per evaluated step."""
CHOSEN = "chosen.safetensors"
"""In state/: the weights of the chosen step."""
PROMPTS = 8
STRENGTHS, GUIDANCE = (0.5, 0.7, 0.85, 1.0, 1.2), (0.0, 2.0)
"""Of the advice."""
Row = dict[str, Any]


def choose(rows: Sequence[Row], margin: float) -> Row:
    """Of the rows whose text is at most a share `margin` below the best, the one with the highest style; the first of
    equals."""
    best = max(row["text"] for row in rows)
    least = best - margin * abs(best) - 1e-9
    return max((row for row in rows if row["text"] >= least), key=lambda row: row["style"])


def stops(rows: Sequence[Row], config: EvaluateConfig) -> bool:
    """Whether `patience` evaluations in a row came after the chosen one; never with patience 0."""
    if not config.patience or not rows:
        return False
    return len(rows) - 1 - list(rows).index(choose(rows, config.margin)) >= config.patience


def check(config: TrainConfig) -> None:
    """Raise UserError where the scores cannot be measured: no prompts, a foreign base without an encoder, or an adapter
    that replaces the base."""
    own = config.evaluate
    if not own.every:
        return
    if not own.clip and not is_embedded(config.base):
        raise UserError(
            f"evaluate.every: the small CLIP was not made for images of {config.base!r}: name an encoder with "
            "--evaluate.clip openai/clip-vit-base-patch32"
        )
    if adapter_of(config.adapter).replaces_base:
        raise UserError("evaluate.every measures text by the base alone, which this adapter replaces: leave it out")
    if len(prompts_of(config)) < 2:
        raise UserError(
            "evaluate.every: the captions do not tell their style words: give two --evaluate.prompt or more"
        )


def prompts_of(config: TrainConfig) -> list[str]:
    """The fixed prompts: those given, else eight other things in the captions' form."""
    return list(config.evaluate.prompt) or prompts_of_others(list(config.data.caption), PROMPTS)


def read_rows(out: Path, upto: int | None = None) -> list[Row]:
    """The rows of a run, up to a step; [] where there are none. Half a row, of an interrupted write, is left out."""
    file, rows = out / FILE, []
    for line in file.read_text(encoding="utf-8").splitlines() if file.is_file() else ():
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return [row for row in rows if upto is None or row["step"] <= upto]


class Watch:
    """Built while the text encoders are there; evaluates the live model later. references: the images trained on."""

    def __init__(
        self, family: Family, config: TrainConfig, conditioning: TextConditioning, references: Sequence[Image.Image]
    ) -> None:
        self.family, self.config, self.references = family, config, list(references)
        prompts = prompts_of(config)
        self.previews = Previews(family, change(config, preview=True, preview_prompt=tuple(prompts)), conditioning)
        length = next(iter(family.text_lengths))
        asked = [*prompts, *config.data.caption[:1]]
        self.cond = stack([text(family, conditioning.spell(prompt), length) for prompt in asked])
        with quiet():
            self.encoder = load_encoder(config.evaluate.clip) if config.evaluate.clip else load_encoder()
        self.own = self.encoder.images(self.references)

    def score(self, strength: float | None = None, sampling: Sampling | None = None) -> Row:
        """Scores of the model as it is; at another strength or sampling than the style's defaults where given."""
        images = self.previews.images(strength, sampling)
        embedded, n = self.encoder.images(images), len(images)
        with torch.no_grad(), disabled(self.family.denoiser):
            x = torch.cat([self.family.encode_image(to_tensor(image)) for image in images])
            gains = text_by_base(self.family, x, self.cond)
        own = gains[:, :n]
        leaks = (gains[:, n] > own.diagonal()).float().mean().item() if gains.shape[1] > n else None
        return {
            "style": round((embedded @ self.own.T).mean().item(), 4),
            "text": round(text_score(own), 4),
            "leakage": leaks,
            "diversity": pairwise_diversity(embedded),
        }

    def evaluate(self, step: int) -> Row:
        """The scores of a step, appended to the style folder's evaluations.jsonl in place of later ones."""
        started = time.perf_counter()
        row = {"step": step, **self.score(), "seconds": round(time.perf_counter() - started, 1)}
        rows = [*read_rows(self.config.out, step - 1), row]
        with atomic(self.config.out / FILE) as file:
            file.write_text("".join(json.dumps(one) + "\n" for one in rows), encoding="utf-8")
        return row

    def chosen(self, upto: int) -> Row | None:
        """The rule's choice among the evaluated steps up to `upto`."""
        rows = read_rows(self.config.out, upto)
        return choose(rows, self.config.evaluate.margin) if rows else None

    def advise(self, progress: Progress = ignore) -> Row:
        """The best point of a grid of strengths and style guidance by the rule, written to the style's style.json; a
        style that is sampled by a guidance of its own keeps that, and only its strength is chosen."""
        weights: Sequence[float | None] = (None,) if self.previews.guidances else GUIDANCE
        rows: list[Row] = []
        grid = [(strength, weight) for weight in weights for strength in STRENGTHS]
        for n, (strength, weight) in enumerate(grid):
            sampling = None if weight is None else replace(self.previews.sampling, style_guidance=weight)
            point = {"strength": strength} | ({} if weight is None else {"style_guidance": weight})
            rows.append(point | self.score(strength, sampling))
            progress("choosing strength and style guidance", n + 1, len(grid))
        best = choose(rows, self.config.evaluate.margin)
        advised = {key: best[key] for key in ("strength", "style_guidance") if key in best}
        write_advice(self.config.out, advised, rows, self.config.evaluate.margin)
        self.previews.read_defaults()
        return advised


def write_advice(out: Path, advised: Mapping[str, float], rows: Sequence[Row], margin: float) -> None:
    """Set the sampling defaults in style.json, with the grid that they were chosen from."""
    advice = {"margin": margin, "grid": list(rows)}
    add_to_style_json(out, {"sampling": {**own_sampling(out), **advised}, "advice": advice})


def save_chosen(out: Path, step: int, tensors: Mapping[str, torch.Tensor]) -> None:
    """Keep the weights of the chosen step."""
    from safetensors.torch import save

    data = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with atomic(out / "state" / CHOSEN) as file:
        file.write_bytes(save(data, metadata={"step": str(step)}))


def load_chosen(out: Path, step: int, named: Mapping[str, torch.nn.Parameter]) -> bool:
    """Put the kept weights into the model; False where those of that step are not there."""
    from safetensors import safe_open

    try:
        with safe_open(out / "state" / CHOSEN, "pt") as kept:
            if kept.metadata().get("step") != str(step) or set(kept.keys()) != set(named):
                return False
            for name, p in named.items():
                p.data.copy_(kept.get_tensor(name))
    except OSError:
        return False
    return True
