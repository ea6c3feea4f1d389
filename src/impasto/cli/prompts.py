"""`impasto prompts list` and `impasto prompts show`."""

from dataclasses import asdict
from typing import Annotated

import tyro

from impasto.cli.console import Result, parse_action


def prompts(args: list[str]) -> Result:
    """Prompt sets of the papers and of our evaluation: list them, or show one."""
    return parse_action({"list": list_sets, "show": show_set}, args, "prompts")


def list_sets() -> Result:
    """List the prompt sets."""
    from impasto.data.prompt_sets import all_prompts

    return {"sets": {one.name: {"title": one.title, "prompts": len(one.items)} for one in all_prompts()}}


def show_set(name: Annotated[str, tyro.conf.Positional], style: str | None = None) -> Result:
    """Show a prompt set, a prompt per line: what `impasto generate --prompts FILE` reads.

    Args:
        name: Its name, as `impasto prompts list` shows it.
        style: The style phrase for prompts without their own, "watercolor painting style".
    """
    from impasto.data.prompt_sets import read_prompts

    found = read_prompts(name)
    return asdict(found) | {"items": [asdict(item) for item in found.items], "prompts": found.texts(style)}


def show_prompts(result: Result) -> None:
    """A line per set; or the prompts on stdout, and where they are from on stderr."""
    import sys

    if "sets" in result:
        for name, row in result["sets"].items():
            print(f"{name:<26}{row['prompts']:>4}  {row['title']}")
        return
    for key in ("title", "source", "licence"):
        print(f"{key}: {result[key]}", file=sys.stderr)
    print("\n".join(result["prompts"]))
