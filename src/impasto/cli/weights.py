"""`impasto weights convert` and `impasto weights list`."""

from pathlib import Path
from typing import Annotated

import tyro

from impasto.cli.console import Result, parse_action


def weights(args: list[str]) -> Result:
    """Weights of encoders: convert a published pickle to safetensors, or list the encoders."""
    return parse_action({"convert": convert, "list": list_encoders}, args, "weights")


def convert(
    file: Annotated[Path, tyro.conf.Positional], out: Annotated[Path | None, tyro.conf.Positional] = None
) -> Result:
    """Convert a pickle of tensors (.pt, .pth, .bin, .ckpt) to safetensors, in a process of its own.

    Args:
        file: The published file.
        out: The safetensors file; FILE with the suffix .safetensors when not given.
    """
    from impasto.interop.pickles import convert

    return convert(file, out)


def list_encoders() -> Result:
    """List the encoders of `impasto evaluate --encoders`: where from, what they score, what they need."""
    from impasto.evaluation.encoders import ENCODERS

    return {
        "encoders": {
            name: {
                "about": row.about,
                "source": "packaged" if row.packaged else row.source,
                "scores": list(row.scores),
                "needs": row.needs,
            }
            for name, row in ENCODERS.items()
        }
    }


def show_weights(result: Result) -> None:
    """The converted file, or a line for each encoder."""
    from impasto.cli.console import show

    if "encoders" not in result:
        return show(result)
    for name, row in result["encoders"].items():
        print(f"{name:<14}{row['about']}; {row['needs'] or row['source']}; scores: {', '.join(row['scores'])}")
    return None
