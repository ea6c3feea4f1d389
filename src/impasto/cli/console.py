"""The terminal: flags, progress bars, results."""

import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tyro

from impasto.errors import UserError, nearest
from impasto.progress import Progress

Result = dict[str, Any]


def parse(target: Any, args: Sequence[str], command: str, default: Any = None) -> Any:
    """`tyro.cli`: a dataclass or a function from flags, with its help."""
    extra = {} if default is None else {"default": default}
    return tyro.cli(target, args=list(args), prog=f"impasto {command}", **extra)


def parse_action(actions: dict[str, Callable[..., Result]], args: Sequence[str], command: str) -> Result:
    """Call the function that the first argument names, with the other arguments as its flags. Raises UserError for an
    unknown name; without one the help is printed."""
    if args and not args[0].startswith("-") and args[0] not in actions:
        raise UserError(f"unknown action {args[0]!r} of {command}: {nearest(args[0], list(actions))}")
    prog = f"impasto {command}"
    return tyro.extras.subcommand_cli_from_dict(actions, args=list(args) or ["--help"], prog=prog)


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


LINE_SECONDS = float(os.environ.get("IMPASTO_PROGRESS_SECONDS", "10"))
"""Between two lines of progress where there is no terminal, as in a log file."""


def lines() -> Progress:
    """Progress as lines: "loading mini-sd15" when a phase without a count begins, else every LINE_SECONDS and after the
    last unit "training 40/150, loss 0.112, 95 s left"."""
    last, before = time.monotonic(), ""
    begun = (last, 0)

    def update(phase: str, done: int = 0, total: int | None = None, note: str = "") -> None:
        nonlocal last, before, begun
        now = time.monotonic()
        if phase != before:  # the steps of an earlier command do not count in the rate
            before, begun = phase, (now, done)
            last = last if total else -math.inf
        if not is_main_process() or (now - last < LINE_SECONDS and done != total):
            return
        last = now
        rate = (done - begun[1]) / (now - begun[0]) if now > begun[0] else 0
        left = f"{(total - done) / rate:.0f} s left" if total and rate and done < total else ""
        parts = [f"{phase} {done}/{total}" if total else phase, note, left]
        print(", ".join(part for part in parts if part), file=sys.stderr, flush=True)

    return update


@contextmanager
def progress_bar() -> Iterator[Progress]:
    """A bar per phase on stderr, without a terminal `lines`."""
    if not sys.stderr.isatty():
        yield lines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    bars = Bars(*columns, console=Console(stderr=True, quiet=not is_main_process()))
    task, before = None, ""

    def update(phase: str, done: int = 0, total: int | None = None, note: str = "") -> None:
        nonlocal task, before
        bars.start()  # seen from the first update on
        if task is None or phase != before:
            if task is not None and bars.tasks[-1].total is None:  # done, and nothing was counted
                bars.remove_task(task)
            task, before = bars.add_task(phase, total=total, completed=done, note=note), phase
        bars.update(task, completed=done, note=note, total=total)

    try:
        yield update
    finally:
        if bars.live.is_started:
            if task is not None and bars.tasks[-1].total is None:
                bars.remove_task(task)
            bars.stop()


def show(result: Result) -> None:
    """A result for a person: its plain values, one per line; numbers rounded to three digits."""
    for key, value in result.items():
        if isinstance(value, list | tuple):
            print(f"{key}: {len(value)}" if len(value) > 6 else f"{key}: {', '.join(map(as_text, value)) or 'none'}")
        elif not isinstance(value, dict):
            print(f"{key}: {as_text(value)}")


def as_text(value: Any) -> str:
    """A value as a person reads it: 0.0191, on, none."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.1f}" if abs(value) >= 100 else f"{value:.3g}"
    return "none" if value is None or value == "" else str(value)


def show_training(result: Result) -> None:
    """A finished training as `show` has it; a plan in a few lines, with the noise levels."""
    if "settings" not in result:
        return show(result)
    from impasto.noise.histogram import bars
    from impasto.training.plan import plan_lines

    print(plan_lines(result))
    print(bars(result["noise"], short=True))
    if weighted := result.get("noise_times_weighting"):
        print(bars(weighted, what="what counts: log-SNR times the weight of the loss", short=True))
    others = ("settings", "changed", "data", "draws", "noise", "noise_times_weighting", "running", "cost")
    return show({key: value for key, value in result.items() if key not in others})


def show_scores(result: Result) -> None:
    """The scores as a table, beside those of the true pictures and of the base."""
    from rich.console import Console

    from impasto.evaluation import encoders_table, range_columns, scores_table

    columns = {"images": result, "base": result["base"], "true": result["true"]} | range_columns(result)
    Console().print(scores_table({name: scores for name, scores in columns.items() if scores}, result["folder"]))
    if result["encoders"]:
        Console().print(encoders_table(result["encoders"]))
    if result["reference_style"] is not None:
        print(f"style of the reference: {result['reference_style']:.0%} (0 %: unrelated images, 100 %: its own crops)")
    if result["scene_leak"] is not None:
        print(result["scene_leak"]["text"])
    for note in result["notes"]:
        print(note)
    if "next" in result:
        print(f"next: {result['next']}")


def show_sheet(result: Result) -> None:
    """The result, and of checkpoints for each row the command that generates with it."""
    show(result)
    for row, command in result.get("commands", {}).items():
        print(f"  {row}: {command}")


def show_verdicts(result: Result) -> None:
    """Counts, what failed, and each claim's verdict."""
    show(result)
    for name, verdict in (*result.get("arms", {}).items(), *result.get("verdicts", {}).items()):
        print(f"  {name}: {verdict}")
    for line in result.get("failed", []):
        print(f"  failed: {line}")


def is_main_process() -> bool:
    """Whether this process tells what happens: of several under `accelerate launch` the first one does."""
    return os.environ.get("RANK", "0") == "0"


def warn(message: Warning | str, category: type[Warning], filename: str, *rest: Any, **more: Any) -> None:
    """Our own warnings as one line; those of libraries are not for users."""
    if is_main_process() and Path(filename).is_relative_to(Path(__file__).parents[1]):
        print(f"impasto: warning: {message}", file=sys.stderr)
