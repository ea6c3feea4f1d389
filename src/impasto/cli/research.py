"""`impasto demo`, `reproduce`, `artworld` and `pretrain`."""

from pathlib import Path
from typing import Annotated, Literal

import tyro

from impasto.cli.console import Result, parse, parse_action, progress_bar


def demo(args: list[str]) -> Result:
    """One reference image, three methods at equal text: about three minutes on two cores."""

    def demo(
        out: Path = Path("runs/demo"),
        style: str = "streamline-emojis",
        concept: str | None = None,
        base: str = "mini-sd15",
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
            also: A further recipe, such as prior-preservation; may be given several times.
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
        base: str | None = None,
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
        curves: bool = False,
        dry_run: bool = False,
    ) -> Result:
        """Run what the claims need and is not there yet; write claims.json and the page. See docs/reproduce.md.

        Args:
            group: The claims: style-friendly, calibration, styleinject, instastyle or finestyle (docs/reproduce.md).
            cells: smoke (3 styles x 1 reference x 1 seed, decides nothing) or full (3 x 3 x 3).
            claim: A claim by its id, S1; may be given several times. All when not given.
            base: Base model; mini-sd3 when not given, for styleinject and instastyle mini-sd15.
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
            curves: Also sample the cells of claims at equal text at strengths .5, .75, 1.25 and 1.5, by cached styles.
            dry_run: Only count the cells and estimate the time.
        """
        from impasto.reproduce import reproduce

        with progress_bar() as progress:
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
                curves=curves,
                dry_run=dry_run,
                progress=progress,
            )

    return parse(reproduce, args, "reproduce")


def artworld(args: list[str]) -> Result:
    """The paired art data set: `impasto artworld build`, and folders of one style to train on."""

    def build(out: Path | None = None, sharealike: bool = True) -> Result:
        """Fetch the pinned packages and render the art world into the cache.

        Args:
            out: Another folder than the cache.
            sharealike: Include the sets under share-alike licences.
        """
        from impasto.artworld.build import build

        return build(out, sharealike)

    def folder(
        style: tyro.conf.UseAppendAction[tuple[str, ...]],
        out: Path,
        count: int | None = None,
        style_words: bool = True,
    ) -> Result:
        """Write images of a style with captions as a folder to train on, without the concepts that scores use.

        Args:
            style: A style of the art world; may be given several times.
            out: The new folder.
            count: Images per style; all when not given.
            style_words: Name the style in the captions.
        """
        from impasto.artworld.folder import write_folder

        return write_folder(style, out, count, style_words)

    return parse_action({"build": build, "folder": folder}, args, "artworld")


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
        ema: float = 0.999,
        score: int = 500,
        export: bool = False,
        workers: int = 0,
    ) -> Result:
        """Pretrain an embedded base model, draw its grid, score it.

        Args:
            base: mini-sd3, mini-sd15, mini-muse, or a part of theirs: tokenizer, clip, autoencoder, image-tokenizer.
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
            ema: Decay of the average of the weights, which is what is scored and exported; .995 for a session of a few
                thousand steps.
            score: Prompts of the score at the end, 0 for none.
            export: Write weights and card into the package.
            workers: Processes that render the pool while the base trains, for a GPU (12); 0 renders it before.
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
            ema=ema,
            score=score,
            export=export,
            workers=workers,
        )

    return parse(pretrain, args, "pretrain")
