"""Hatchling's metadata hook: the project's addresses, and the README with absolute links and images, as a package index
needs them.

The repository's address is that of $IMPASTO_REPOSITORY, else of the sdist's PKG-INFO, else of the git remote `origin`;
without one the README stays as it is, and only the paper's address is stated.
"""

import os
import re
import subprocess
from pathlib import Path
from typing import Any

try:
    from hatchling.metadata.plugin.interface import MetadataHookInterface
except ImportError:  # the functions are tested without hatchling
    MetadataHookInterface = object

PAPER = "https://arxiv.org/abs/2411.14793"
LINK = re.compile(r"(!?)\[((?:[^\[\]]|!?\[[^\[\]]*\]\([^()]*\))*)\]\((?!https?://|#|mailto:)([^()\s]+)\)")
IMAGE = re.compile(r'(<img [^>]*?src=")(?!https?://)')
PAGES = {"Documentation": "docs/README.md", "Results": "docs/results/README.md", "Changelog": "CHANGELOG.md"}


def repository(root: Path) -> str | None:
    """The repository's https address without a slash at its end."""
    found = os.environ.get("IMPASTO_REPOSITORY", "")
    if not found and (root / "PKG-INFO").is_file():
        stated = re.search(r"^Project-URL: Repository, (\S+)$", (root / "PKG-INFO").read_text("utf-8"), re.MULTILINE)
        found = stated[1] if stated else ""
    if not found and (root / ".git").exists():
        command = ["git", "-C", str(root), "remote", "get-url", "origin"]
        found = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    found = re.sub(r"^(?:ssh://)?git@([^:/]+)[:/]", r"https://\1/", found).removesuffix("/").removesuffix(".git")
    return found if found.startswith("https://") else None


def absolute(readme: str, address: str) -> str:
    """The README with links to files of the repository, and images, by their addresses in its branch main."""

    def replaced(found: re.Match[str]) -> str:
        mark, text, target = found.groups()
        kind = "raw" if mark else "blob"
        return f"{mark}[{LINK.sub(replaced, text)}]({address}/{kind}/main/{target})"

    return IMAGE.sub(rf"\1{address}/raw/main/", LINK.sub(replaced, readme))


def urls(address: str | None) -> dict[str, str]:
    """[project.urls]."""
    pages = {name: f"{address}/blob/main/{page}" for name, page in PAGES.items()}
    own = {"Repository": address, "Issues": f"{address}/issues", **pages} if address else {}
    return own | {"Paper": PAPER}


class PackageMetadata(MetadataHookInterface):
    def update(self, metadata: dict[str, Any]) -> None:
        root = Path(self.root)
        address, text = repository(root), (root / "README.md").read_text(encoding="utf-8")
        text = absolute(text, address) if address else text
        metadata["readme"] = {"content-type": "text/markdown", "text": text}
        metadata["urls"] = urls(address)
