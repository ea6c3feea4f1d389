"""What a package index shows: addresses, and a README whose links work there."""

import re
import sys
import tomllib
from pathlib import Path

import pytest

import impasto

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools"))

import package_metadata  # noqa: E402

ADDRESS = "https://example.org/o/impasto"


@pytest.mark.parametrize(
    ("stated", "address"),
    [
        (ADDRESS, ADDRESS),
        ("git@example.org:o/impasto.git", ADDRESS),
        ("ssh://git@example.org/o/impasto.git", ADDRESS),
        ("/srv/git/impasto", None),
    ],
)
def test_repository_is_an_https_address(monkeypatch, tmp_path, stated, address):
    monkeypatch.setenv("IMPASTO_REPOSITORY", stated)
    assert package_metadata.repository(tmp_path) == address


def test_repository_of_an_sdist_is_that_of_its_metadata(monkeypatch, tmp_path):
    monkeypatch.delenv("IMPASTO_REPOSITORY", raising=False)
    assert package_metadata.repository(tmp_path) is None
    (tmp_path / "PKG-INFO").write_text(f"Name: impasto\nProject-URL: Repository, {ADDRESS}\n")
    assert package_metadata.repository(tmp_path) == ADDRESS


def test_readme_for_the_index_has_absolute_links_and_images():
    text = package_metadata.absolute((ROOT / "README.md").read_text(encoding="utf-8"), ADDRESS)
    assert (
        f"]({ADDRESS}/raw/main/docs/images/demo.png)" in text and f"]({ADDRESS}/blob/main/docs/instastyle.md)" in text
    )
    assert f'src="{ADDRESS}/raw/main/docs/images/studio-train.webp"' in text and 'src="docs' not in text
    targets = re.findall(r"\]\(([^)\s]+)\)", text)
    assert targets and all(target.startswith(("https://", "#")) for target in targets)
    nested = "[![a](docs/a.png)](docs/a.md) [b](#b) [c](https://c.d)"
    assert package_metadata.absolute(nested, ADDRESS) == (
        f"[![a]({ADDRESS}/raw/main/docs/a.png)]({ADDRESS}/blob/main/docs/a.md) [b](#b) [c](https://c.d)"
    )


def test_project_urls_and_citation():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert set(project["project"]["dynamic"]) == {"version", "readme", "urls"}
    assert (ROOT / project["tool"]["hatch"]["metadata"]["hooks"]["custom"]["path"]).is_file()
    assert package_metadata.urls(ADDRESS)["Repository"] == ADDRESS and "Repository" not in package_metadata.urls(None)
    assert all((ROOT / page).is_file() for page in package_metadata.PAGES.values())
    citation = (ROOT / "CITATION.cff").read_text()
    assert f"version: {impasto.__version__}\n" in citation
    assert f"license: {project['project']['license']}\n" in citation and package_metadata.PAPER in citation
