"""`impasto train` and `impasto sheet`."""

import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from impasto.cli.checks import check_folder, check_images
from impasto.cli.console import Result, last_value, parse, progress_bar
from impasto.errors import UserError

if TYPE_CHECKING:
    from impasto.config import TrainConfig

DRY_RUN = Annotated[
    bool,
    tyro.conf.arg(
        help="Only print the plan: what differs from the defaults, images, noise, memory and time. Of a small base "
        "a step is timed; of others no weights are read."
    ),
]

STYLE_FOLDER = "the --out folder of `impasto train`, resize, merge or import"
STRENGTHS = (0.25, 0.5, 0.75, 1.0)
"""Columns of `impasto sheet`."""
TEACHER = re.compile(r"--teacher(=.*)?$")
SAMPLES = Annotated[
    int | None, tyro.conf.arg(help="Distil on this many images that the teacher generates first, instead of --image.")
]
PROMPTS = Annotated[
    Path | None,
    tyro.conf.arg(help="A file with a caption per line for --samples; --caption and --pairs count as well."),
]
DISTILL = """Distil a tuned base into an adapter on another base.

--teacher names the tuned base (a folder or hub id), or a style folder, which is put on its own base; --unshared gives
it its own text encoder (captions with a second form: teacher_text in metadata.jsonl, or --pairs). All other flags are
those of `impasto train`."""


def train(args: list[str]) -> Result:
    """Train a style on one or a few reference images."""
    from impasto.cli.settings import parse_config
    from impasto.config import recipe_note

    doc = "Train a style on one or a few reference images."
    config, command = parse_config(args, "train", {"dry_run": (DRY_RUN, False)}, doc)
    if note := recipe_note(config):
        warnings.warn(note, stacklevel=1)
    return run_training(config, command.dry_run)


def distill(args: list[str]) -> Result:
    """Distil a tuned base, the teacher, into an adapter on another base."""
    from impasto.cli.settings import parse_config
    from impasto.config import change

    args = ["--objective.teacher" + arg.removeprefix("--teacher") if TEACHER.match(arg) else arg for arg in args]
    args = ["--objective.no-shared" if arg == "--unshared" else arg for arg in args]
    if last_value(args, "recipe") is None:
        args = ["--recipe", "distill", *args]
    extra = {"dry_run": (DRY_RUN, False), "samples": (SAMPLES, None), "prompts": (PROMPTS, None)}
    config, command = parse_config(args, "distill", extra, DISTILL)
    teacher = getattr(config.objective, "teacher", None)
    if not teacher:
        raise UserError("no teacher: name a tuned base with --teacher FOLDER_OR_ID")
    config = change(config, **split_teacher(teacher))
    if command.samples is not None and config.data.image:
        raise UserError("--samples and --image exclude each other: the teacher's images, or those of a folder")
    if command.samples is None and command.prompts:
        raise UserError("--prompts are for --samples: say how many images the teacher generates")
    if command.samples is not None:
        if command.dry_run and not (config.out / "samples").is_dir():
            raise UserError("--dry-run needs the images: leave it out, and --samples generates them; or give --image")
        config = change(
            config, image=(generate_samples(config, command.samples, command.prompts),), caption=(), pairs=None
        )
    return run_training(config, command.dry_run)


def generate_samples(config: "TrainConfig", count: int, file: Path | None) -> Path:
    """The folder of the teacher's images, generated as far as they are not there. file: of prompts."""
    from impasto.data.pairs import read_pairs
    from impasto.sampling.prompts import lines
    from impasto.training.teacher_samples import write_samples

    captions = [*config.data.caption, *(lines(file, "prompts") if file else ())]
    prompts = [(caption, None) for caption in captions]
    prompts += list(read_pairs(config.data.pairs).items()) if config.data.pairs else []
    style = config.objective.teacher_style
    with progress_bar() as progress:
        return write_samples(
            config.objective.teacher,
            prompts,
            count,
            config.out / "samples",
            styles=[f"{style}:1"] if style else [],
            seed=config.seed,
            device=config.device,
            precision=config.precision,
            progress=progress,
        )


def split_teacher(teacher: str) -> dict[str, Any]:
    """The settings of a teacher: a base as it is; of a style folder its base, and the style on that. Raises UserError
    where the style does not state its base."""
    folder = Path(teacher)
    if not folder.is_dir() or (folder / "model_index.json").is_file():
        return {"objective.teacher": teacher}
    from impasto.styles.metadata import read_about

    if not (base := read_about(folder).base):
        raise UserError(f"the style {teacher!r} does not state its base: give --teacher a base model")
    return {"objective.teacher": base, "objective.teacher_style": folder}


def run_training(config: "TrainConfig", dry: bool) -> Result:
    """Train, or print the plan."""
    if not config.data.image:
        raise UserError("no reference picture: give one with --image")
    check_images(config.data.image)
    from impasto.training.train import dry_run, train

    if dry:
        return dry_run(config) | {"next": "the same command without --dry-run"}

    with progress_bar() as progress:
        result = train(config, progress)
    return result if "next" in result else result | {"next": next_command(config)}


def next_command(config: "TrainConfig") -> str:
    """The command that generates with the finished style: another thing in the captions' style words, into the style
    folder, where `impasto report` finds it."""
    from impasto.config import read_recipe_file
    from impasto.data.captions import of_run
    from impasto.generation import generate_command
    from impasto.styles.defaults import prompts_of_others

    captions = of_run(*read_recipe_file(config.out / "recipe.toml"))
    prompt = next(iter([*prompts_of_others(captions, 1), *captions]), "a cat")
    return generate_command(config.base, str(config.out), prompt, str(config.out / "images"))


def select(args: list[str]) -> Result:
    """Select candidates of a run of InstaStyle or StyleDrop by their numbers, and go on."""

    def select(
        run: Annotated[Path, tyro.conf.Positional], numbers: Annotated[tuple[int, ...], tyro.conf.Positional]
    ) -> Result:
        """Select candidates of a run with --select human (instastyle, styledrop), and go on with its training.

        Args:
            run: The style folder.
            numbers: Numbers of candidates, as on candidates/sheet.png.
        """
        from impasto.methods.selection import select

        with progress_bar() as progress:
            return select(run, numbers, progress)

    return parse(select, args, "select")


def mix(args: list[str]) -> Result:
    """Train the styles of several InstaStyle runs together, to be mixed while sampling."""

    def mix(
        styles: Annotated[tuple[Path, ...], tyro.conf.Positional],
        out: Path,
        steps: int | None = None,
        lr: float | None = None,
        seed: int | None = None,
        device: str = "auto",
        precision: str = "auto",
    ) -> Result:
        """Train the styles of several runs of --recipe instastyle together, with a token for each.

        Args:
            styles: Their style folders.
            out: The style folder of the mix.
            steps: Optimiser steps; the first run's when not given.
            lr: Learning rate; the first run's when not given.
            seed: Of the training; the first run's when not given.
            device: cpu, cuda, mps or auto.
            precision: fp32, bf16 or auto (bf16 on CUDA).
        """
        from impasto.methods.style_mix import mix_styles

        changes = {"steps": steps, "lr": lr, "seed": seed, "device": device, "precision": precision}
        given = {key: value for key, value in changes.items() if value is not None}
        with progress_bar() as progress:
            return mix_styles(styles, out, progress, **given)

    return parse(mix, args, "mix")


def recipes(args: list[str]) -> Result:
    """The recipes that `impasto train --recipe` knows."""

    def recipes(
        show: Annotated[str | None, tyro.conf.arg(name="show")] = None,
    ) -> Result:
        """List the recipes, one line each; `impasto recipes show NAME` prints one.

        Args:
            show: Print this recipe.
        """
        from impasto.bases.style_defaults import current_recipe
        from impasto.config import first_sentence, read_recipe
        from impasto.config import recipes as known

        if show is not None:
            show = current_recipe(show)
            read_recipe(show)
            text = (known().get(show) or Path(show)).read_text(encoding="utf-8")
            print(text.rstrip())
            return {"recipe": show, "text": text}
        found = {name: first_sentence(file.read_text(encoding="utf-8")) for name, file in known().items()}
        for name, about in found.items():
            print(f"{name:28} {about}")
        return {"recipes": found}

    if args[:1] == ["show"]:
        args = ["--show", *args[1:]]
    return parse(recipes, args, "recipes")


def sheet(args: list[str]) -> Result:
    """The saved states of a run, side by side at several strengths."""

    def sheet(
        run: Annotated[Path, tyro.conf.Positional],
        prompt: tyro.conf.UseAppendAction[tuple[str, ...]] = (),
        strength: tuple[float, ...] = STRENGTHS,
        seed: int | None = None,
        steps: int | None = None,
        guidance: float | None = None,
        style_guidance: float | None = None,
        negative: str | None = None,
        lambda1: tuple[float, ...] = (),
        lambda2: tuple[float, ...] = (),
        lambda_base: float | None = None,
        out: Path | None = None,
        device: str = "auto",
        precision: str = "auto",
    ) -> Result:
        """Draw the same prompts from the same seed by every saved state (train with --keep 0 to keep all of them), or
        with --lambda1 or --lambda2 by the finished style at several weights of style and semantics.

        Args:
            run: The style folder, as `impasto train` writes it.
            prompt: A prompt; may be given several times. The run's own previews' or captions when not given.
            strength: Strengths of the style.
            seed: Of every picture; the run's own when not given.
            steps: Sampling steps; as the base's card says when not given.
            guidance: Guidance scale, as in `impasto generate`.
            style_guidance: Weight of the style against the base, as in `impasto generate`.
            negative: Negative prompt, as in `impasto generate`.
            lambda1: Weights of the style, a row each, as in `impasto generate`; 0 1 3 when not given.
            lambda2: Weights of the semantics, a column each, as in `impasto generate`; 0 2 5 when not given.
            lambda_base: Weight of the base's guidance beside them; the style's own when not given.
            out: The PNG, its JSON beside it; sheet.png, or guidance.png, in the folder when not given.
            device: cpu, cuda, mps or auto.
            precision: fp32, bf16 or auto (bf16 on CUDA).
        """
        check_folder(run, STYLE_FOLDER)
        if lambda1 or lambda2 or lambda_base is not None:
            from impasto.training.guidance_sheet import LAMBDA1, LAMBDA2, guidance_sheet

            if len(strength) > 1 and strength != STRENGTHS:
                raise UserError("--lambda1 and --lambda2 go with one --strength")
            if guidance is not None or style_guidance is not None or negative is not None:
                raise UserError("--lambda1 and --lambda2 are in place of --guidance, --style-guidance and --negative")
            with progress_bar() as progress:
                return guidance_sheet(
                    run,
                    prompt,
                    lambda1 or LAMBDA1,
                    lambda2 or LAMBDA2,
                    lambda_base=lambda_base,
                    strength=strength[0] if len(strength) == 1 else None,
                    seed=seed,
                    steps=steps,
                    out=out,
                    device=device,
                    precision=precision,
                    progress=progress,
                )
        from impasto.training.sheet import checkpoint_sheet

        with progress_bar() as progress:
            return checkpoint_sheet(
                run,
                prompt,
                strength,
                seed=seed,
                steps=steps,
                guidance=guidance,
                style_guidance=style_guidance,
                negative=negative,
                out=out,
                device=device,
                precision=precision,
                progress=progress,
            )

    return parse(sheet, args, "sheet")
