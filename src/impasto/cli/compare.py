"""`impasto compare`."""

from pathlib import Path
from typing import Annotated, Literal

import tyro

from impasto.cli.checks import check_bases, check_images
from impasto.cli.console import Result, parse, progress_bar


def compare(args: list[str]) -> Result:
    """Methods side by side on the same references: scores, cost, style at equal text, a page."""

    def compare(
        methods: Annotated[tuple[str, ...], tyro.conf.Positional],
        base: str | None = None,
        image: tyro.conf.UseAppendAction[tuple[Path, ...]] = (),
        caption: tyro.conf.UseAppendAction[tuple[str, ...]] = (),
        references: Path | None = None,
        art_style: tyro.conf.UseAppendAction[tuple[str, ...]] = (),
        per_style: int = 1,
        style_of: str | None = None,
        prompt: tyro.conf.UseAppendAction[tuple[str, ...]] = (),
        count: int = 24,
        seeds: int = 1,
        steps: int | None = None,
        equal: Literal["steps", "seconds", "own"] = "steps",
        seconds: float | None = None,
        reference_row: str | None = None,
        sampling_steps: int | None = None,
        clip: str = "clip",
        dino: str | None = None,
        skip: bool = False,
        out: Path = Path("runs/compare"),
        workers: int = 1,
        cluster: str | None = None,
        device: str = "auto",
        precision: str = "auto",
        dry_run: bool = False,
    ) -> Result:
        """Run what is missing of methods x references x seeds; write table.json and index.html. See docs/compare.md.

        Args:
            methods: Recipes (`impasto recipes`), style folders, prompt (the base alone), style-aligned.
            base: Base model; mini-sd3 when not given.
            image: A reference; may be given several times, each with a --caption.
            caption: Its caption.
            references: JSON or TOML with a list of references: image and caption, or style and concept; prompts.
            art_style: A held-out style of the art world whose references are used; may be given several times.
            per_style: References of each --art-style.
            style_of: The style of the art world that the --image are in, so that the judges score it.
            prompt: A prompt, {style} in it the caption's style words; may be given several times.
            count: Prompts of each reference when no --prompt is given (for other styles at most 8).
            seeds: Seeds of training and images.
            steps: Training steps of every recipe; the base's own when not given.
            equal: What all trainings have the same of: steps, seconds, or nothing (own: each recipe's own steps).
            seconds: Of each training, with --equal seconds; what the reference row takes when not given.
            reference_row: The method at whose text the others are read; style-friendly when not given.
            sampling_steps: Sampling steps of images; as the base's card says when not given.
            clip: A CLIP, a folder or hub id, in place of the small packaged one ("clip").
            dino: An encoder of images, a folder or hub id, for one more similarity with the reference.
            skip: Leave out methods that cannot be used with this base or reference.
            out: Folder of cells, table.json and index.html. The same command again resumes.
            workers: Processes on this machine (more than 1: the extra cluster).
            cluster: The address of a Ray cluster; auto is the one that this machine is in.
            device: cpu, cuda, mps or auto.
            precision: fp32, bf16 or auto (bf16 on CUDA).
            dry_run: Only list the cells and estimate the time.
        """
        check_bases(base)
        check_images(image)
        from impasto.compare import compare

        with progress_bar() as progress:
            return compare(
                methods,
                out,
                base,
                image,
                caption,
                references,
                art_style,
                per_style,
                style_of,
                prompt,
                count,
                seeds,
                steps,
                equal,
                seconds,
                reference_row,
                sampling_steps,
                clip,
                dino,
                skip,
                workers,
                cluster,
                device,
                precision,
                dry_run,
                args,
                progress,
            )

    return parse(compare, args, "compare")


def show_comparison(result: Result) -> None:
    """Counts, the ranking, what was left out and what failed."""
    from impasto.cli.console import show

    show({key: value for key, value in result.items() if key not in ("failed", "to_run", "command")})
    for name, style in (result.get("style_at_equal_text") or {}).items():
        text = "does not reach that text" if style is None else f"{style:.3f}"
        print(f"  {name}: {text}")
    for line in result.get("to_run", ()):
        print(f"  to run: {line}")
    for line in result.get("failed", ()):
        print(f"  failed: {line}")
