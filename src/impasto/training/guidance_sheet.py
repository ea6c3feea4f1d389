"""lambda1 x lambda2: the same prompts from the same seed at several weights of style and semantics, as one sheet
(FineStyle, figure 9), by the code of `generate`; the rule is that of `guidance.style_semantics`."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

from PIL import Image

from impasto.bases import loader
from impasto.coerce import check_seed
from impasto.config import flatten
from impasto.data import captions
from impasto.errors import UserError
from impasto.execution import apply as running
from impasto.files import writable_folder
from impasto.guidance import bind_all, merged, style_guidance
from impasto.guidance.config import StyleSemantics
from impasto.progress import Progress, ignore, part
from impasto.sampling.prompts import check_prompts
from impasto.sampling.sample import Sampling, encoder, sample
from impasto.styles import defaults as style_defaults
from impasto.styles.load import load_style
from impasto.styles.metadata import read_about
from impasto.training.sheet import check_out, own_prompts, read_run, write_sheet

LAMBDA1, LAMBDA2 = (0.0, 1.0, 3.0), (0.0, 2.0, 5.0)


def guidance_sheet(
    run: Path,
    prompts: Sequence[str] = (),
    lambda1: Sequence[float] = LAMBDA1,
    lambda2: Sequence[float] = LAMBDA2,
    *,
    lambda_base: float | None = None,
    strength: float | None = None,
    seed: int | None = None,
    steps: int | None = None,
    out: Path | None = None,
    device: str = "auto",
    precision: str = "auto",
    progress: Progress = ignore,
) -> dict[str, Any]:
    """Write `guidance.png` and `guidance.json` into the style folder (or `out`, its JSON beside it); returns what is in
    it.

    A row per lambda1 (and prompt), a column per lambda2. lambda_base, strength and null prompts are the style's own
    where they are None. Raises UserError on bad input, before anything is generated.
    """
    config, inputs = read_run(run)
    prompts = list(prompts) or own_prompts(run, config, inputs)[:1]
    check_prompts(prompts)
    seed, out = config.seed if seed is None else seed, out or run / "guidance.png"
    check_seed(seed)
    check_out(out)
    if not lambda1 or not lambda2:
        raise UserError("no weights: give some, as in --lambda1 0 1 3 --lambda2 0 2 5")
    asked = [StyleSemantics(style, semantics, lambda_base) for style, semantics in product(lambda1, lambda2)]
    writable_folder(out.parent, out)
    progress(f"loading {config.base}")
    family = loader.load(config.base, device=device, precision=precision, components=config.components)
    known = captions.of_run(flatten(config), inputs)
    defaults = style_defaults.with_presets(style_defaults.own_guidances(run), family)
    own = [one for one in defaults if isinstance(one, StyleSemantics)]
    cells = style_defaults.in_place_of_words([merged([one], own)[0] for one in asked], (known, run), family)
    given = Sampling(steps=steps, size=config.data.size)
    sampling = style_defaults.without_weights(given, family).on(family)
    with running.in_main_memory(family):
        pipe = family.pipeline()
    advised = style_defaults.of_style(run, read_about(run), family.card).strength
    strength = advised if strength is None else strength
    load_style(pipe, run, strength)
    if any(one.compares_with_base for one in cells):
        style_guidance.check_switchable(getattr(pipe, family.part))
    running.place_pipeline(pipe, family, (sampling.batch or 1) * config.data.size**2)
    encode, jobs = encoder(family, pipe), [(prompt, seed) for prompt in prompts]
    pictures: dict[tuple[float, float], list[Image.Image]] = {}
    for one in cells:
        bound = bind_all([one], family, sampling, encode)
        images = sample(
            *(family, pipe, jobs, encode, sampling, {}, bound), progress=part(progress, len(pictures), len(cells))
        )
        pictures[one.weights[:2]] = [image for image, _ in images]
    common = replace(cells[0], lambda1=None, lambda2=None)
    about = {"run": str(run), "base": config.base, "strengths": [strength], "prompts": prompts, "seed": seed}
    about |= {"sampling_steps": sampling.steps, "lambda1": list(lambda1), "lambda2": list(lambda2)}
    about |= {"lambda_base": common.weights[2], "n1": common.n1 or "", "n2": common.n2 or ""}
    rows, columns = ({x: f"{name} {x:g}" for x in own} for name, own in (("lambda1", lambda1), ("lambda2", lambda2)))
    write_sheet(out, pictures, rows, columns, prompts, config.data.size, about)
    return about | {"out": str(out)}
