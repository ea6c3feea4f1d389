"""Several styles in one (InstaStyle, section 3.4): joint refinement with a token for each, and the noise of each.

    D = D_1 + D_2 + ..., captions with <style1>, <style2>, ...           the candidates that the runs selected
    z_k = invert(I_k, C(o_k, <stylek>)) by the jointly tuned model

They are mixed while sampling: `inversion.mix` (eq. 11) and `guidance.composed` (eq. 12).
"""

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from impasto.config import TrainConfig, change
from impasto.data import references
from impasto.errors import UserError
from impasto.methods.config import InstaStyle, StyleMix
from impasto.methods.instastyle import (
    CANDIDATES,
    Source,
    fill,
    keep_style,
    load_family,
    provenance,
    refine,
    refinement,
)
from impasto.methods.stages import Stages
from impasto.progress import Progress, ignore
from impasto.styles.start import reference_file
from impasto.training.plan import describe, make_plan
from impasto.training.run_folder import RunFolder
from impasto.training.sheet import read_run


def mix_config(styles: Sequence[Path], out: Path, **changes: Any) -> TrainConfig:
    """The config of a joint training of runs of `instastyle`: the first one's, with other settings by `changes`.

    Raises UserError for fewer than two runs, runs of different bases or sizes, and runs without selected candidates.
    """
    if len(styles) < 2:
        raise UserError("a mix needs two styles or more: impasto mix runs/a runs/b --out runs/ab")
    configs = [read_run(folder)[0] for folder in styles]
    hashes = [read_run(folder)[1].get("base_sha256") for folder in styles]
    first, method = configs[0], configs[0].method
    for folder, config, base in zip(styles, configs, hashes, strict=True):
        if not isinstance(config.method, InstaStyle) or isinstance(config.method, StyleMix):
            raise UserError(f"{str(folder)!r} is not a run of the recipe instastyle: only its styles can be mixed")
        if base != hashes[0]:
            raise UserError(
                f"styles of two bases cannot be mixed: {str(styles[0])!r} is of {first.base}, {str(folder)!r} of "
                f"{config.base}"
            )
        if config.data.size != first.data.size:
            raise UserError(
                f"styles of two sizes cannot be mixed: {str(folder)!r} is of {config.data.size} px, not "
                f"{first.data.size}"
            )
    own = {key: getattr(method, key) for key in ("steps", "guidance", "fixed_point", "until")}
    config = replace(
        first, out=out, method=StyleMix(styles=tuple(map(str, styles)), objects=method.objects, n=method.n, **own)
    )
    config = change(config, **changes)
    sources = sources_of(config)
    images, captions = (tuple(getattr(source, name) for source in sources) for name in ("image", "prompt"))
    tokens, words = (tuple(getattr(source, name) for source in sources) for name in ("token", "words"))
    return replace(
        config,
        data=replace(config.data, image=images, caption=captions, trigger=""),
        text=replace(config.text, tokens=tokens, words=words),
    )


def sources_of(config: TrainConfig) -> list[Source]:
    """The reference and the selected candidates of each run, with the tokens <style1>, <style2>, ... UserError."""
    found = []
    for i, folder in enumerate(map(Path, config.method.styles)):
        own, stages = read_run(folder)[0], Stages(folder)
        made, selected = stages.read("candidates"), stages.read("selection")
        if not made or not selected or not reference_file(folder).is_file():
            raise UserError(f"{str(folder)!r} has no selected candidates: finish its training first, impasto train")
        caption, token = own.method.caption(own), f"<style{i + 1}>"
        files = [folder / CANDIDATES / f"{number:02d}.png" for number in selected["selected"]]
        things = [made["objects"][number - 1] for number in selected["selected"]]
        items = tuple((file, caption.prompt(thing, token)) for file, thing in zip(files, things, strict=True))
        found.append(Source(reference_file(folder), caption, token, caption.text[caption.words], items))
    return found


def mix_styles(
    styles: Sequence[Path],
    out: Path,
    progress: Progress = ignore,
    **changes: Any,
) -> dict[str, Any]:
    """Train the styles of several runs of `instastyle` jointly into `out`; see `mix_config`."""
    return run(mix_config(styles, out, **changes), progress)


def run(config: TrainConfig, progress: Progress = ignore, dry_run: bool = False) -> dict[str, Any]:
    """The joint refinement into `config.out`; resumes. See `training.train.train`."""
    started = time.perf_counter()
    sources = sources_of(config)
    plan = make_plan(config)
    if dry_run:
        return describe(plan)
    progress(f"loading {config.base}")
    family = load_family(config)
    config = change(config, quantize=plan.config.execution.quantize, precision=family.precision)
    config = replace(config, method=fill(config.method, family))
    hashes = [references.load(source.image).sha256 for source in sources]
    folder = RunFolder(config, provenance(family, sources, hashes))
    try:
        del family
        trained = refine(config, sources, progress)
        progress("inverting with the learned tokens")
        kept = keep_style(Stages(config.out), config, sources)
    finally:
        folder.close()
    images = len(refinement(config, sources).data.image)
    seconds = round(time.perf_counter() - started, 2)
    return (
        trained
        | {"out": str(config.out), "styles": list(config.method.styles), "images": images}
        | kept
        | {"seconds": seconds}
    )
