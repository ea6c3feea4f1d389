"""`impasto votes create`, `summary` and `export`."""

from pathlib import Path
from typing import Annotated

import tyro

from impasto.cli.console import Result, parse_action
from impasto.errors import UserError

Folder = Annotated[Path, tyro.conf.Positional]


def votes(args: list[str]) -> Result:
    """Blind votes of people on pairs of images: create a set, summarise, export as CSV."""
    return parse_action({"create": create, "summary": summarise, "export": export}, args, "votes")


def create(
    folder: Folder,
    methods: tuple[str, ...],
    reference: Path | None = None,
    group: str = "",
    count: int | None = None,
    seed: int = 0,
) -> Result:
    """Create a vote set, or add the images of another reference to it.

    Args:
        folder: Of the vote set.
        methods: NAME=FOLDER of images for each method, two or more, of the same prompts.
        reference: The reference image, shown beside each pair.
        group: A name for this reference; by default that of its file.
        count: At most so many pairs of two methods; all when not given.
        seed: Of the order and of the sides.
    """
    from impasto.evaluation.votes import create_votes

    named: dict[str, Path | str] = {}
    for method in methods:
        name, _, path = method.partition("=")
        if not name or not path or not Path(path).is_dir():
            raise UserError(f"--methods {method}: give NAME=FOLDER, a folder of images")
        named[name] = path
    found = create_votes(folder, named, reference, group, count, seed)
    return found | {"next": f"impasto votes summary {folder}"}


def summarise(folder: Folder) -> Result:
    """Win, tie and lose per pair of methods, by style and by text, with 95 % intervals.

    Args:
        folder: Of the vote set.
    """
    from impasto.evaluation.votes import summary

    return summary(folder)


def export(folder: Folder, out: Annotated[Path | None, tyro.conf.Positional] = None) -> Result:
    """Write all votes as CSV.

    Args:
        folder: Of the vote set.
        out: The file; votes.csv in the folder when not given.
    """
    from impasto.evaluation.votes import export

    return export(folder, out)


def show_votes(result: Result) -> None:
    """A line for each comparison and question."""
    from impasto.cli.console import show

    show({key: value for key, value in result.items() if key != "comparisons"})
    for name, number in result["pairs"].items() if isinstance(result.get("pairs"), dict) else ():
        print(f"  {name}: {number} new pairs")
    for row in result.get("comparisons", ()):
        shares = ", ".join(
            f"{name} {row[name]['share']:.0%} ({row[name]['interval'][0]:.0%}-{row[name]['interval'][1]:.0%})"
            for name in ("win", "tie", "lose")
        )
        print(f"  {row['method']} against {row['other']}, {row['question']}: {shares}, {row['votes']} votes")
