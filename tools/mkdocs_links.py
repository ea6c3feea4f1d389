"""mkdocs hook: links that work both on the forge and on the site.

A link to a folder of docs/ leads to its README.md, else to its newest page. A link to a file outside docs/ becomes its
address in the repository; where that has no address (see `package_metadata.repository`), its text alone.
"""

import re
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from package_metadata import repository

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
LINK = re.compile(r"(?<!!)\[((?:[^\[\]]|\[[^\[\]]*\])*)\]\((?!https?://|#|mailto:)([^()\s#]+)(#[^()\s]*)?\)")


def replace_links(text: str, folder: Path, address: str | None) -> str:
    """A page's Markdown with such links replaced. folder: the page's own, absolute. address: of the repository."""

    def replaced(found: re.Match[str]) -> str:
        label, target, anchor = found[1], found[2], found[3] or ""
        file = (folder / target).resolve()
        if not file.is_relative_to(DOCS):
            kind = "tree" if file.is_dir() else "blob"
            path = file.relative_to(ROOT).as_posix()
            return f"[{label}]({address}/{kind}/main/{path}{anchor})" if address else label
        if not file.is_dir():
            return found[0]
        pages = sorted(file.glob("*.md"))
        page = file / "README.md" if (file / "README.md").is_file() else pages[-1] if pages else None
        return f"[{label}]({target.rstrip('/')}/{page.name}{anchor})" if page else label

    return LINK.sub(replaced, text)


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    return replace_links(markdown, Path(page.file.abs_src_path).parent, repository(ROOT))
