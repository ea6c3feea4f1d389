"""The index of docs/, and the one of docs/results/ with the verdicts of all claims."""

import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools"))

import write_index  # noqa: E402


def test_index_of_results_is_that_of_the_claims():
    text = (ROOT / "docs" / "results" / "README.md").read_text(encoding="utf-8")
    assert text == write_index.index(), "run python tools/write_index.py"
    for file in (ROOT / "docs" / "results").glob("*/claims.json"):
        for claim in json.loads(file.read_text()):
            assert f"| {claim['id']} | {claim['claim']} | **{claim['verdict']}** |" in text


def test_index_of_docs_lists_every_page_and_all_links_lead_somewhere():
    listed = set()
    for index in (ROOT / "docs" / "README.md", ROOT / "docs" / "results" / "README.md"):
        targets = re.findall(r"\]\(([^)#]+)\)", index.read_text(encoding="utf-8"))
        assert all((index.parent / target).exists() for target in targets)
        listed |= {(index.parent / target).resolve() for target in targets}
    assert {page.resolve() for page in (ROOT / "docs").glob("*.md") if page.name != "README.md"} <= listed
