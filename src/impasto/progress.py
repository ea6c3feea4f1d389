"""Progress of long work: one kind of callback for commands and Python functions."""

from typing import Protocol


class Progress(Protocol):
    """A function that is called as work goes on."""

    def __call__(self, phase: str, done: int = 0, total: int | None = None, note: str = "") -> None:
        """Report progress.

        Args:
            phase: What is done, in words: "loading mini-sd15", "training".
            done: Units (steps, images) that are done.
            total: Of these; None where it is not known.
            note: What else is worth a look, such as the loss.
        """
        ...


def ignore(phase: str, done: int = 0, total: int | None = None, note: str = "") -> None:
    """The `Progress` of a caller that does not ask for it."""


def part(progress: Progress, index: int, parts: int) -> Progress:
    """The `Progress` of part `index` (from 0) of `parts` of equal size, as a share of the whole."""

    def report(phase: str, done: int = 0, total: int | None = None, note: str = "") -> None:
        whole = None if total is None else parts * total
        progress(phase, done + index * (total or 0), whole, note)

    return report
