"""A model card as HTML: Markdown without raw HTML, and texts without the paths of the machine that wrote them."""

import re
from collections.abc import Sequence
from typing import Any

from impasto.report.html import Html, clean

FRONT = re.compile(r"\A---\n.*?\n---\n", re.DOTALL)
ABSOLUTE = r"(?:~?/(?!/)|[A-Za-z]:[\\/]|\\\\)"
QUOTED = re.compile(rf"([\"'`])({ABSOLUTE}[^\"'`\n]*)\1")
BARE = re.compile(rf"(^|[\s(\[=:,])({ABSOLUTE}[^\s\"'`)\],]+)", re.MULTILINE)


def last_part(path: str) -> str:
    return re.split(r"[\\/]", path.rstrip("\\/"))[-1] or path


def shorten_paths(text: str) -> str:
    """Every absolute path in a text (POSIX, ~, Windows) as its last part; URLs and relative paths stay."""
    text = QUOTED.sub(lambda found: f"{found[1]}{last_part(found[2])}{found[1]}", text)
    return BARE.sub(lambda found: found[1] + last_part(found[2]), text)


def render(card: str) -> Html:
    """The HTML of a model card: without its front matter, headings two levels down, raw HTML as text; images as their
    alternative text, and links to other files without the link, since the page holds all that it shows."""
    from markdown_it import MarkdownIt

    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    parser.add_render_rule("image", lambda self, tokens, i, options, env: escaped(tokens[i].content))
    tokens = parser.parse(clean(FRONT.sub("", card)))
    for token in tokens:
        if token.type in ("heading_open", "heading_close"):
            token.tag = f"h{min(6, int(token.tag[1]) + 2)}"
        drop_local_links(token.children or [])
    return Html(parser.renderer.render(tokens, parser.options, {}))


def drop_local_links(tokens: Sequence[Any]) -> None:
    """Turn links that do not lead to the web into spans."""
    local: list[bool] = []
    for token in tokens:
        if token.type == "link_open":
            local.append(not str(token.attrs.get("href", "")).startswith(("https://", "http://")))
        if token.type in ("link_open", "link_close") and local[-1]:
            token.tag, token.attrs = "span", {}
        if token.type == "link_close":
            local.pop()


def escaped(text: str) -> str:
    from markdown_it.common.utils import escapeHtml

    return escapeHtml(text)
