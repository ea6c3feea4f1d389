"""`impasto <command>`: each command is a few lines over one public function, imported when it is asked for.

With `--json` the last line of stdout is one JSON object and everything else goes to stderr. Exit codes: 0 done, 1 done
but for some cells of `reproduce` (named), 2 bad input (one line on stderr says what), 130 interrupted.
"""

import json
import logging
import math
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from impasto import __version__
from impasto.errors import UserError, nearest

Result = dict[str, Any]


def train(args: list[str]) -> Result:
    """Train a style on one or a few reference pictures."""
    from impasto.config import TrainCommand, recipe_note, resolve

    given = {name: last_value(args, name) for name in ("recipe", "base", "noise", "optimizer")}
    default = resolve(**{name: value for name, value in given.items() if value is not None})
    command = parse(TrainCommand, args, "train", cleared(TrainCommand(**vars(default)), args))
    config = command.config()
    if note := recipe_note(config):
        warnings.warn(note, stacklevel=1)
    if command.dry_run:
        from impasto.plan import plan

        return plan(config)
    from impasto.train import train

    with bar("preparing") as preparing, bar("training", config.steps) as progress:
        return train(
            config,
            lambda step, loss: progress(step, f"loss {loss:.3f}"),
            lambda done, total: preparing(done, "", total),
        )


def generate(args: list[str]) -> Result:
    """Draw pictures from prompts, with or without styles."""
    from impasto.config import GenerateConfig

    config = parse(GenerateConfig, args, "generate")
    from impasto.generate import generate_folder

    with bar("drawing") as progress:
        return generate_folder(config, lambda done, total: progress(done, "", total))


def evaluate(args: list[str]) -> Result:
    """Score a folder of generated pictures by the independent judges."""

    def evaluate(
        folder: Annotated[Path, tyro.conf.Positional],
        style_of: str | None = None,
        concepts: Path | None = None,
        reference: Path | None = None,
        reference_concept: str | None = None,
        base_images: Path | None = None,
        out: Path | None = None,
    ) -> Result:
        """Score a folder of generated pictures.

        Args:
            folder: The pictures, as `impasto generate` writes them.
            style_of: The style of the art world that they should be in.
            concepts: A file with the concept of each picture, one per line; their prompts say it when not given.
            reference: The picture that the style was learnt from, for styles that the judges do not know.
            reference_concept: What that picture shows, for leakage; by default what its caption names.
            base_images: The same prompts drawn by the base alone, scored beside them.
            out: Where the scores are written; scores.json in the folder when not given.
        """
        from impasto.evaluate import evaluate

        return evaluate(folder, style_of, concepts, reference, reference_concept, base_images, out=out)

    return parse(evaluate, args, "evaluate")


def report(args: list[str]) -> Result:
    """One HTML page about a style: pictures, scores, curves."""

    def report(
        run: Annotated[Path, tyro.conf.Positional],
        generated: Path | None = None,
        title: str | None = None,
        out: Path | None = None,
    ) -> Result:
        """Write the report of a style folder.

        Args:
            run: The style folder, as `impasto train` writes it.
            generated: Its pictures; its own images or previews when not given.
            title: The heading; the name of the folder when not given.
            out: The HTML file; report.html in the folder when not given.
        """
        from impasto.report import report

        return report(run, generated, title=title, out=out)

    return parse(report, args, "report")


def sheet(args: list[str]) -> Result:
    """The saved states of a run, side by side at several strengths."""

    def sheet(
        run: Annotated[Path, tyro.conf.Positional],
        prompt: tyro.conf.UseAppendAction[tuple[str, ...]] = (),
        strength: tuple[float, ...] = (0.25, 0.5, 0.75, 1.0),
        seed: int | None = None,
        steps: int | None = None,
        guidance: float | None = None,
        style_guidance: float | None = None,
        negative: str | None = None,
        out: Path | None = None,
        device: str = "auto",
        precision: str = "auto",
    ) -> Result:
        """Draw the same prompts from the same seed by every saved state (train with --keep 0 to keep all of them).

        Args:
            run: The style folder, as `impasto train` writes it.
            prompt: A prompt; may be given several times. The run's own previews' or captions when not given.
            strength: Strengths of the style.
            seed: Of every picture; the run's own when not given.
            steps: Sampling steps; as the base's card says when not given.
            guidance: Guidance scale, as in `impasto generate`.
            style_guidance: Weight of the style against the base, as in `impasto generate`.
            negative: Negative prompt, as in `impasto generate`.
            out: The PNG, its JSON beside it; sheet.png in the folder when not given.
            device: cpu, cuda, mps or auto.
            precision: fp32, bf16 or auto (bf16 on CUDA).
        """
        from impasto.checkpoints import checkpoint_sheet

        with bar("drawing") as progress:
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
                progress=lambda done, total: progress(done, "", total),
            )

    return parse(sheet, args, "sheet")


def demo(args: list[str]) -> Result:
    """One reference image, three methods at equal text: about three minutes on two cores."""

    def demo(
        out: Path = Path("runs/demo"),
        style: str = "unifont",
        concept: str | None = None,
        base: str = "mini-sd3",
        seed: int = 0,
        steps: int | None = None,
        also: tyro.conf.UseAppendAction[tuple[str, ...]] = (),
    ) -> Result:
        """Run the demo.

        Args:
            out: Folder for everything that it makes.
            style: A style that the base never saw.
            concept: What the reference shows.
            base: Base model.
            seed: Of training and pictures.
            steps: Training steps of every recipe; the base's own when not given.
            also: A further recipe, such as keep-content; may be given several times.
        """
        from impasto.demo import demo

        return demo(out, style, concept, base, seed, steps, also=also)

    return parse(demo, args, "demo")


def reproduce(args: list[str]) -> Result:
    """Claims put to the test, a paper's or our own: runs, scores, verdicts, a page."""

    def reproduce(
        group: Annotated[str, tyro.conf.Positional] = "style-friendly",
        cells: str = "smoke",
        claim: tyro.conf.UseAppendAction[tuple[str, ...]] = (),
        base: str = "mini-sd3",
        out: Path | None = None,
        workers: int = 1,
        cluster: str | None = None,
        calibration: Path | None = None,
        protocol: Literal["small-world", "paper"] = "small-world",
        references: Path | None = None,
        clip: str | None = None,
        dino: str | None = None,
        device: str = "auto",
        precision: str = "auto",
        dry_run: bool = False,
    ) -> Result:
        """Run what the claims need and is not there yet; write claims.json and the page. See docs/reproduce.md.

        Args:
            group: The claims: style-friendly, or calibration (docs/noise-calibration.md).
            cells: smoke (3 styles x 1 reference x 1 seed, decides nothing) or full (3 x 3 x 3).
            claim: A claim by its id, S1; may be given several times. All when not given.
            base: Base model.
            out: Folder of cells, claims.json and page; docs/results/GROUP, for other bases than mini-sd3 GROUP-BASE.
            workers: Processes on this machine (more than 1: the extra cluster).
            cluster: The address of a Ray cluster; auto is the one that this machine is in.
            protocol: small-world (the art world and its judges), or paper (StyleDrop's references, DINO and CLIP).
            references: Of the paper's protocol: the folder of the 18 pictures.
            clip: Of the paper's protocol: a folder or hub id; openai/clip-vit-base-patch32 when not given.
            dino: Of the paper's protocol: likewise; facebook/dino-vits16 when not given.
            calibration: The file of `impasto noise calibrate`, for the arms with a calibrated law.
            device: cpu, cuda, mps or auto.
            precision: fp32, bf16 or auto (bf16 on CUDA).
            dry_run: Only count the cells and estimate the time.
        """
        from impasto.reproduce import reproduce

        with bar("cells") as progress:
            return reproduce(
                group,
                cells,
                claim,
                base,
                out,
                workers,
                cluster,
                calibration,
                protocol,
                references,
                clip,
                dino,
                device,
                precision,
                dry_run=dry_run,
                progress=lambda done, total, note: progress(done, note, total),
            )

    return parse(reproduce, args, "reproduce")


def artworld(args: list[str]) -> Result:
    """The paired art data set: `impasto artworld build`."""

    def build(
        action: Annotated[Literal["build"], tyro.conf.Positional], out: Path | None = None, sharealike: bool = True
    ) -> Result:
        """Fetch the pinned packages and render the art world into the cache.

        Args:
            action: build.
            out: Another folder than the cache.
            sharealike: Include the sets under share-alike licences.
        """
        from impasto.artworld.build import build

        return build(out, sharealike)

    return parse(build, args, "artworld")


def pretrain(args: list[str]) -> Result:
    """Pretrain an embedded base model on the art world."""

    def pretrain(
        base: Annotated[str, tyro.conf.Positional],
        minutes: float | None = None,
        resume: bool = False,
        device: str = "auto",
        concepts: str | None = None,
        size: str | None = None,
        batch: int = 96,
        lr: float = 2e-3,
        threads: int | None = None,
        compile: bool = False,
        text: str | None = None,
        plain: float | None = None,
        teacher: str | None = None,
        teacher_share: float = 0.75,
        offset: float = 0.0,
        export: bool = False,
    ) -> Result:
        """Pretrain an embedded base model, draw its grid, score it.

        Args:
            base: mini-sd3, mini-sd15, or a part that bases share: tokenizer, clip, autoencoder.
            minutes: Stop after so many minutes; 0 only scores and exports what is there.
            resume: Go on from the last checkpoint.
            device: cpu, cuda or auto.
            concepts: What it learns: core_everywhere, core_concepts or all; by default what the packaged weights know.
            size: small, medium, or written out (7x4: layers x heads); that of the packaged weights when not given.
            batch: Pictures of a step.
            lr: Learning rate of the matrices (Muon), half of it of the rest (AdamW); lower to go on with what has
                learnt much already, 5e-4 for mini-sd15.
            threads: CPU threads.
            compile: torch.compile the training step: a minute at the start, then about 15 % faster on CPU.
            text: The text tower: frozen, along (it is trained too) or new (begun anew); as before when not given.
            plain: Share of single things on white among the pictures; .55 when not given, .85 to begin with.
            teacher: A packaged base that has learnt (mini-sd3) and teaches this one; for the first sessions.
            teacher_share: Share of its predictions in what is learnt, the rest is the pictures themselves.
            offset: Scale of offset noise, for mini-sd15: .15 gives white grounds; not with a teacher.
            export: Write weights and card into the package.
        """
        from impasto.pretrain import pretrain

        return pretrain(
            base,
            minutes,
            resume,
            device,
            concepts,
            batch=batch,
            lr=lr,
            size=size,
            threads=threads,
            compiled=compile,
            text=text,
            plain=plain,
            teacher=teacher,
            teacher_share=teacher_share,
            offset=offset,
            export=export,
        )

    return parse(pretrain, args, "pretrain")


def export(args: list[str]) -> Result:
    """Write a style as one file for diffusers, kohya's tools or ComfyUI, or put it on the Hub."""

    def export(
        style: Annotated[Path, tyro.conf.Positional],
        format: Literal["diffusers", "kohya", "comfyui"] = "diffusers",
        out: Path | None = None,
        private: bool = False,
        base: str | None = None,
        overwrite: bool = False,
        push_to_hub: str | None = None,
        hub_private: bool = False,
    ) -> Result:
        """Write a style as one safetensors file that another tool loads, with its metadata.

        Args:
            style: The style folder, or a LoRA file in any layout.
            format: The layout, see docs/files.md.
            out: The file; NAME-FORMAT.safetensors beside the style folder when not given.
            private: Leave out of the metadata whatever names a path of this machine.
            base: The base model, for a file that does not tell it.
            overwrite: Replace the file when it is there.
            push_to_hub: Write no file, but put it with its card and pictures into the Hub's repository owner/name.
            hub_private: Make that repository a private one, where it is new.
        """
        if (out and push_to_hub) or (hub_private and not push_to_hub):
            raise UserError("--out and --push-to-hub exclude each other; --hub-private goes with --push-to-hub")
        if push_to_hub:
            from impasto.hub import publish

            return publish(style, push_to_hub, format, base=base, private=hub_private)
        from impasto.adapters.files import export_style

        return export_style(style, format, out, private=private, base=base, overwrite=overwrite)

    return parse(export, args, "export")


def import_(args: list[str]) -> Result:
    """Turn a LoRA file of another tool into a style folder."""

    def import_(
        file: Annotated[Path, tyro.conf.Positional],
        out: Path,
        base: str | None = None,
        architecture: Literal["flux", "sd3", "sdxl", "sd15"] | None = None,
        denoiser_only: bool = False,
        overwrite: bool = False,
    ) -> Result:
        """Turn a LoRA file of kohya's tools, ComfyUI or diffusers into a style folder.

        Args:
            file: The safetensors file.
            out: The style folder.
            base: The base model that it is for; every layer is looked up in it when it is a folder here.
            architecture: Where neither the file nor the base tells, or the file tells another.
            denoiser_only: Leave out the LoRAs of the text encoders.
            overwrite: Replace the folder when it is there.
        """
        from impasto.adapters.files import import_style

        options = {"base": base, "architecture": architecture, "denoiser_only": denoiser_only}
        return import_style(file, out, **options, overwrite=overwrite)

    return parse(import_, args, "import")


def merge(args: list[str]) -> Result:
    """Add styles up, each with a weight."""

    def merge(
        styles: Annotated[tuple[str, ...], tyro.conf.Positional],
        out: Path,
        rank: int | None = None,
        base: str | None = None,
        overwrite: bool = False,
    ) -> Result:
        """Add styles up: exact, the ranks add up.

        Args:
            styles: Style folders or files, each with its weight after a colon: runs/neon:0.7 runs/ink:0.5.
            out: The style folder of the sum.
            rank: Resize the sum to this rank; the error is shown.
            base: The base model, for files that do not tell it.
            overwrite: Replace the folder when it is there.
        """
        from impasto.adapters.files import merge_styles

        return merge_styles(styles, out, rank=rank, base=base, overwrite=overwrite)

    return parse(merge, args, "merge")


def resize(args: list[str]) -> Result:
    """Cut a style down to a lower rank."""

    def resize(
        style: Annotated[Path, tyro.conf.Positional],
        rank: int,
        out: Path,
        base: str | None = None,
        overwrite: bool = False,
    ) -> Result:
        """The best approximation of a style at a lower rank, and the error that it costs.

        Args:
            style: The style folder, or a LoRA file in any layout.
            rank: The new rank; layers that have less keep it.
            out: The style folder of the result.
            base: The base model, for a file that does not tell it.
            overwrite: Replace the folder when it is there.
        """
        from impasto.adapters.files import resize_style

        return resize_style(style, rank, out, base=base, overwrite=overwrite)

    return parse(resize, args, "resize")


def noise(args: list[str]) -> Result:
    """Noise laws: show one, take one over from another tool, or find one for a base."""
    from impasto.noise.commands import action

    return action(args)


COMMANDS: dict[str, Callable[[list[str]], Result]] = {
    command.__name__.strip("_"): command
    for command in (
        *(train, generate, evaluate, report, sheet),
        *(export, import_, merge, resize),
        *(demo, noise, reproduce, artworld, pretrain),
    )
}


def parse(target: Any, args: Sequence[str], command: str, default: Any = None) -> Any:
    """`tyro.cli`: a dataclass or a function from flags, with its help."""
    extra = {} if default is None else {"default": default}
    return tyro.cli(target, args=list(args), prog=f"impasto {command}", **extra)


END = """impasto <command> --help shows the flags of a command. With --json every command
prints its result as one JSON object, on the last line of standard output."""


def plain(value: Any) -> Any:
    """A result as strict JSON has it: infinite numbers as the text "inf" or "-inf", what is no number as null."""
    if isinstance(value, dict):
        return {name: plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value


def flag(args: Sequence[str], name: str) -> tuple[bool, list[str]]:
    """Whether `name` is among the arguments, and the others."""
    return name in args, [arg for arg in args if arg != name]


def last_value(args: Sequence[str], name: str) -> str | None:
    """The value of `--name value` or `--name=value`, None when it is not given."""
    value = None
    for i, arg in enumerate(args):
        flag, equals, given = arg.partition("=")
        if flag.replace("_", "-") != f"--{name}":  # tyro takes both spellings
            continue
        if equals:
            value = given
        elif i + 1 < len(args):
            value = args[i + 1]
    return value


def cleared(default: Any, args: Sequence[str]) -> Any:
    """`default` without the repeatable values that are given again: flags replace a recipe's list, not add to it."""
    from dataclasses import replace

    for name in ("image", "caption", "repeats", "prior_prompt", "preview_prompt"):
        if last_value(args, name.replace("_", "-")) is not None:
            default = replace(default, **{name: ()})
    return default


@contextmanager
def bar(title: str, total: int | None = None) -> Iterator[Callable[..., None]]:
    """A progress bar on stderr; yields `update(done, note, total)`."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    progress = Progress(*columns, console=Console(stderr=True, quiet=not speaks()))
    task = progress.add_task(title, total=total, note="")

    def update(done: int, note: str = "", total: int | None = total) -> None:
        progress.start()  # seen from the first update on
        progress.update(task, completed=done, note=note, total=total)
        if done == total:  # one bar at a time
            progress.stop()

    try:
        yield update
    finally:
        if progress.live.is_started:
            progress.stop()


def show(result: Result) -> None:
    """A result for a person: its plain values, one per line; a noise histogram as bars."""
    for key, value in result.items():
        if key == "noise" and isinstance(value, dict):
            from impasto.plan import bars

            print(bars(value))
        elif key == "data" and isinstance(value, dict):
            from impasto.plan import data_lines

            print(data_lines(value))
        elif key == "noise_times_weighting":
            from impasto.plan import bars

            print(bars(value, what="what counts: log-SNR times the weight of the loss"))
        elif key == "settings":
            show(value)
        elif isinstance(value, list) and len(value) > 6:
            print(f"{key}: {len(value)}")
        elif not isinstance(value, dict):
            print(f"{key}: {value}")


def show_scores(result: Result) -> None:
    """The scores as a table, beside those of the true pictures and of the base."""
    from rich.console import Console

    from impasto.evaluate import scores_table

    columns = {"pictures": result, "base": result["base"], "true": result["true"]}
    Console().print(scores_table({name: scores for name, scores in columns.items() if scores}, result["folder"]))
    for note in result["notes"]:
        print(note)


def show_verdicts(result: Result) -> None:
    """Counts, what failed, and each claim's verdict."""
    show(result)
    for name, told in (*result.get("arms", {}).items(), *result.get("verdicts", {}).items()):
        print(f"  {name}: {told}")
    for line in result.get("failed", []):
        print(f"  failed: {line}")


SHOW: dict[str, Callable[[Result], None]] = {
    "evaluate": show_scores,
    "demo": lambda result: None,
    "noise": lambda result: None,
    "reproduce": show_verdicts,
}
"""How a command's result is shown, where `show` would not do; the demo and the actions of noise show themselves."""


def usage() -> str:
    lines = [f"impasto {__version__}: one picture becomes a style", "", "usage: impasto <command> [--json] ...", ""]
    lines += [f"  {name:<10}{(command.__doc__ or '').splitlines()[0]}" for name, command in COMMANDS.items()]
    return "\n".join([*lines, "", END])


def run(args: list[str], as_json: bool) -> Result | None:
    """The command's result; None when only help was asked for."""
    if not args or args[0] in ("-h", "--help", "help"):
        print(usage())
        return None
    if args[0] == "--version":
        print(f"impasto {__version__}")
        return None
    if args[0] not in COMMANDS:
        raise UserError(f"unknown command {args[0]!r}: {nearest(args[0], list(COMMANDS))}")
    if not as_json:
        return COMMANDS[args[0]](args[1:])
    with redirect_stdout(sys.stderr):
        return COMMANDS[args[0]](args[1:])


def check_arguments(args: list[str]) -> None:
    """Raise UserError where one is no UTF-8: it could be written neither into a file's texts nor as JSON."""
    for arg in args:
        try:
            arg.encode()
        except UnicodeEncodeError:
            raise UserError(f"{arg!r} is no UTF-8: write, or rename, it as such") from None


def speaks() -> bool:
    """Whether this process tells what happens: of several under `accelerate launch` the first one does."""
    return os.environ.get("RANK", "0") == "0"


def warn(message: Warning | str, category: type[Warning], filename: str, *rest: Any, **more: Any) -> None:
    """Our own warnings as one line; those of libraries are not for users."""
    if speaks() and Path(filename).is_relative_to(Path(__file__).parent):
        print(f"impasto: warning: {message}", file=sys.stderr)


def main() -> None:
    """The entry point of the command `impasto`."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    for library in ("torchao", "bitsandbytes", "torch.utils._pytree"):  # what they say when they are imported
        logging.getLogger(library).setLevel(logging.ERROR)
    warnings.showwarning = warn
    as_json, args = flag(sys.argv[1:], "--json")
    try:
        check_arguments(args)
        result = run(args, as_json)
    except UserError as error:
        print(f"impasto: error: {error}", file=sys.stderr)
        result, code = {"error": str(error)}, 2
    except SystemExit as stop:  # tyro has said what is wrong with the flags, or shown their help
        result, code = {"error": "bad flags, see stderr"} if stop.code else None, int(stop.code or 0)
    except KeyboardInterrupt as stop:
        print(f"impasto: interrupted: {stop}" if str(stop) else "impasto: interrupted", file=sys.stderr)
        result, code = {"error": "interrupted"}, 130
    except BrokenPipeError:
        if not {"-h", "--help"} & set(args):
            raise
        result, code = None, 1  # tyro was showing its help
    except Exception as error:
        from impasto.trouble import in_words

        if (said := in_words(error)) is None:
            raise
        print(f"impasto: error: {said}", file=sys.stderr)
        result, code = {"error": said}, 2
    else:
        code = 1 if result and result.get("failed") else 0
    try:
        if result is not None and as_json and speaks():
            print(json.dumps(plain(result), allow_nan=False))
        elif result is not None and code in (0, 1) and speaks():
            SHOW.get(args[0], show)(result)
        sys.stdout.flush()
    except BrokenPipeError:  # who reads it has seen enough, as `head` has; the work is done
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for Python's own last flush
    sys.exit(code)
