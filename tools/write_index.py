"""Write docs/results/README.md: the verdicts of all claims on top, then every page and file of results.

    python tools/write_index.py

Verdicts come from the claims.json of each campaign (`impasto reproduce` writes them); run it after a campaign.
"""

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

from impasto.files import atomic

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
HEAD = """# Results

Written by `python tools/write_index.py` from the claims.json of each campaign; do not edit. What a verdict means, and
the rule behind it: [reproduce.md](../reproduce.md). The verdict is that of a claim's first reading.
"""


def claims_of(folder: Path) -> list[dict[str, Any]]:
    return json.loads((folder / "claims.json").read_text(encoding="utf-8"))


def other_readings(claim: dict[str, Any]) -> str:
    """The verdicts of the readings after the first one."""
    return "; ".join(f"{one['reading']}: {one['verdict']}" for one in claim["readings"][1:])


def table(folder: Path) -> list[str]:
    """The claims of a campaign, a row each."""
    claims = claims_of(folder)
    counts = ", ".join(f"{n} {verdict}" for verdict, n in Counter(claim["verdict"] for claim in claims).most_common())
    base = claims[0]["base"]
    lines = [f"## {folder.name}, on {base['name']}", "", f"{counts}: [the page]({folder.name}/README.md).", ""]
    lines += ["| | claim | verdict | other readings | cells |", "|---|---|---|---|---|"]
    for claim in claims:
        cells = ", ".join(f"{size} {done} of {total}" for size, (done, total) in claim["progress"].items())
        row = (claim["id"], claim["claim"], f"**{claim['verdict']}**", other_readings(claim) or "–", cells)
        lines.append(f"| {' | '.join(row)} |")
    return lines


def first_line(page: Path) -> str:
    """The heading of a page, else its first sentence."""
    line = page.read_text(encoding="utf-8").splitlines()[0].lstrip("# ")
    return re.split(r"(?<=[.:])\s", line)[0].rstrip(".:")


def cited_in(name: str) -> list[Path]:
    """The pages of docs/, results aside, that name a file of results."""
    return [page for page in sorted(DOCS.glob("*.md")) if name in page.read_text(encoding="utf-8")]


def index(results: Path = DOCS / "results") -> str:
    """The text of docs/results/README.md."""
    campaigns = sorted(file.parent for file in results.glob("*/claims.json"))
    lines = [HEAD]
    for folder in campaigns:
        lines += [*table(folder), ""]
    lines += ["## Pages", ""]
    pages = [*results.glob("*.md"), *(page for page in results.glob("*/*.md") if page.parent not in campaigns)]
    for page in sorted(page for page in pages if page != results / "README.md"):
        lines.append(
            f"- [{page.relative_to(results).as_posix()}]({page.relative_to(results).as_posix()}): {first_line(page)}"
        )
    lines += ["", "## Figures as JSON", ""]
    for file in sorted([*results.glob("*.json"), *(results / "finestyle").glob("*.json")]):
        name = file.relative_to(results).as_posix()
        pages = ", ".join(f"[{page.name}](../{page.name})" for page in cited_in(name))
        lines.append(f"- [{name}]({name})" + (f": {pages}" if pages else ""))
    return "\n".join(lines) + "\n"


def main() -> None:
    text = index()
    with atomic(DOCS / "results" / "README.md") as file:
        file.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
