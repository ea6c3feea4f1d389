"""Regions that are given: one box for each thing of the caption, in its order."""

from impasto.errors import UserError
from impasto.regions import Region, Search


def find(search: Search) -> list[Region]:
    """Raises UserError where there is not one box for each thing."""
    if len(search.boxes) != len(search.things):
        named = ", ".join(search.things)
        raise UserError(
            f"{len(search.boxes)} boxes for {len(search.things)} things ({named}): give one for each, in order"
        )
    return [Region(box) for box in search.boxes]
