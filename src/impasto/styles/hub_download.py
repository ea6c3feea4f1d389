"""Styles of the Hub by name: "owner/name", or one file of several, "owner/name/file.safetensors"."""

import re
from pathlib import Path

from impasto.errors import UserError

NAME = re.compile(r"(?P<repo>\w[\w.-]*/\w[\w.-]*)(?:/(?P<file>[^:]+\.safetensors))?(?P<strength>:[^:/\\]*)?", re.ASCII)
DOWNLOADED = ("*.safetensors", "*.json", "recipe.toml", "README.md", "reference*.png")
"""Files of a repository that are downloaded: weights and what describes them."""


def hub_name(style: str) -> re.Match[str] | None:
    """The parts of a style's name on the Hub: repo, file, strength (":0.8"), the last two maybe None. None for a style
    that is here, and where the first part of its name is a folder here."""
    match = NAME.fullmatch(style)
    here = match is None or match["repo"].endswith(".safetensors") or Path(match["repo"]).parent.is_dir()
    return None if here else match


def resolve_hub(style: str) -> str:
    """A style of the Hub as its folder or file in the Hub's cache, with its strength, downloaded where it is not there;
    any other style as it is.

    Raises UserError where it cannot be had, and where the repository holds no LoRA file, or several and none is named.
    """
    match = hub_name(style)
    if match is None:
        return style
    from huggingface_hub import snapshot_download

    from impasto.styles.parts import STYLE_JSON, has_weights

    repo, file = match["repo"], match["file"]
    try:
        folder = Path(snapshot_download(repo, allow_patterns=list(DOWNLOADED)))
    except Exception as error:  # hub, http and file system errors have no common class
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"style {style!r} cannot be loaded: no such file or folder, and it cannot be had from the Hub ({reason})"
        ) from None
    files = {found.relative_to(folder).as_posix(): found for found in sorted(folder.rglob("*.safetensors"))}
    found = files.get(file) if file else None
    if not file:
        whole = (folder / STYLE_JSON).is_file() or has_weights(folder)
        found = folder if whole else next(iter(files.values())) if len(files) == 1 else None
    if found is None:
        listed = f"holds {', '.join(files)}: name one, as in {repo}/{next(iter(files))}" if files else "holds no LoRA"
        raise UserError(f"style {style!r}: {repo} on the Hub {listed}")
    return f"{found}{match['strength'] or ''}"
