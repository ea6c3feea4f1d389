"""`impasto noise calibrate`: the flags, and the table on the terminal."""

import time
from pathlib import Path
from typing import Any, Literal

from impasto.cli.checks import check_bases
from impasto.errors import UserError

Result = dict[str, Any]


def calibrate(args: list[str]) -> Result:
    """Measure where a base decides style, and propose a noise law; no training."""
    from impasto.cli.console import parse, progress_bar

    def calibrate(
        base: str = "mini-sd3",
        components: Path | None = None,
        out: Path | None = None,
        size: Literal["quick", "standard", "thorough"] = "standard",
        levels: int | None = None,
        prompts: int | None = None,
        low: float | None = None,
        high: float | None = None,
        minutes: float | None = None,
        by: Literal["judges", "text", "pictures"] | None = None,
        clip: str | None = None,
        styles: Path | None = None,
        subjects: Path | None = None,
        seed: int = 0,
        steps: int | None = None,
        guidance: float | None = None,
        resolution: int | None = None,
        batch: int | None = None,
        offset: float | None = None,
        scale: float | None = None,
        floor: float | None = None,
        device: str = "auto",
        precision: str = "auto",
        dry_run: bool = False,
    ) -> Result:
        """Where along the noise levels a base decides style, by switching prompts; docs/noise-calibration.md.

        Args:
            base: Base model: an embedded one, a diffusers folder, a .safetensors checkpoint, or a hub id.
            components: A diffusers folder for what a .safetensors checkpoint does not hold.
            out: Folder of calibration.json and calibration.svg; runs/calibration/<base> when not given.
            size: How much is drawn: quick (6 levels, 12 prompts), standard (10, 36), thorough (14, 192).
            levels: Log-SNRs at which the prompt is switched; the size's own when not given.
            prompts: Subjects in styles, each with its own seed; the size's own when not given.
            low: The noisiest level, a log-SNR; the noisiest of the sampling when not given.
            high: The cleanest level; 4 when not given.
            minutes: Time limit, loading included: fewer prompts, then fewer levels, as far as the time allows.
            by: What scores the style: the judges (embedded bases), an encoder's text, or its pictures.
            clip: The encoder: a transformers folder or hub id, such as openai/clip-vit-base-patch32.
            styles: A file with one style per line, for a base that is not embedded.
            subjects: A file with one subject per line, likewise.
            seed: Prompt i is drawn from seed + i.
            steps: Sampling steps; as the base's card says when not given.
            guidance: Guidance scale; likewise.
            resolution: Pixels, square; the base's own when not given.
            batch: Pictures per forward pass.
            offset: Of the proposed mean from the 50 % point; the fitted rule's when not given, as the next two.
            scale: Of the proposed standard deviation, from the 10-90 width.
            floor: Of the proposed standard deviation.
            device: cpu, cuda, mps or auto.
            precision: fp32, bf16 or auto (bf16 on CUDA).
            dry_run: Only print the plan: levels, prompts, images; no weights are read.
        """
        started = time.perf_counter()
        check_bases(base)
        for file in (styles, subjects):
            if file is not None and not file.is_file():
                raise UserError(f"{str(file)!r} does not exist: give a text file with one per line")
        from impasto.calibration.calibrate import calibrate
        from impasto.calibration.emergence import Rule
        from impasto.sampling.sample import Sampling

        if minutes is not None and minutes > 0:  # importing torch counts
            minutes = max(minutes - (time.perf_counter() - started) / 60, 1e-3)
        given = {"offset": offset, "scale": scale, "floor": floor}
        with progress_bar() as progress:
            result = calibrate(
                base,
                out,
                components=components,
                size=size,
                levels=levels,
                prompts=prompts,
                low=low,
                high=high,
                minutes=minutes,
                by=by,
                clip=clip,
                styles=styles,
                subjects=subjects,
                seed=seed,
                sampling=Sampling(steps, guidance, size=resolution, batch=batch),
                rule=Rule(**{key: value for key, value in given.items() if value is not None}),
                device=device,
                precision=precision,
                progress=progress,
                dry_run=dry_run,
            )
        if dry_run:
            show_plan(result)
            return result
        show_calibration(result)
        return result

    return parse(calibrate, args, "noise calibrate")


def show_plan(result: Result) -> None:
    """The plan of a calibration, one thing per line."""
    settings, levels = result["settings"], result["levels"]
    limit = f"at most {result['minutes']:g} minutes" if result["minutes"] else "not known before; --minutes limits it"
    print(f"base {result['base']}, {settings['size']} px, {settings['steps']} steps, guidance {settings['guidance']:g}")
    print(f"{len(levels)} levels, log-SNR {', '.join(f'{level:.2f}' for level in levels)}")
    print(f"{result['prompts']} prompts in {len(result['styles'])} styles, scored by {settings['by']}")
    print(f"{result['pictures']} images: 2 + 2 x {len(levels)} per prompt; time: {limit}")
    print(f"writes {result['out']}/calibration.json and calibration.svg")


def show_calibration(result: Result) -> None:
    """The curve as a table, its points, the law, and the published ones beside it."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{result['base']}: how much of the style is decided, {result['prompts']} prompts")
    for name in ("log-SNR", "share of steps", "words until here", "words from here", "decided", "95 %"):
        table.add_column(name, justify="right")
    for row in result["levels"]:
        interval = f"{row['low']:.2f} to {row['high']:.2f}"
        shares = (f"{row[key]:.2f}" for key in ("kept_until", "kept_since", "decided"))
        table.add_row(f"{row['log_snr']:.2f}", f"{row['share_of_steps']:.0%}", *shares, interval)
    console = Console()
    console.print(table)
    for share, point in result["points"].items():
        outside = f" ({point['outside']} the levels: no more is known)" if "outside" in point else ""
        low, high = point["interval"]
        console.print(f"{share} decided at log-SNR {point['log_snr']:.2f}, 95 % {low:.2f} to {high:.2f}{outside}")
    law = result["proposal"]
    console.print(f"proposed: --noise style-friendly --noise.mean {law['noise_mean']} --noise.std {law['noise_std']}")
    console.print("the rule that made it of the curve was fitted on two small bases: docs/noise-calibration.md")
    for name, known in result["published"].items():
        matched = f"matched to {result['latent_positions']} latents {known['matched_mean']}"
        console.print(f"published {name}: mean {known['noise_mean']} at 128 x 128 latents, {matched}")
    console.print(f"{result['out']}/calibration.svg  {result['out']}/calibration.json")
