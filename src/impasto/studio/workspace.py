"""The workspace folder of the studio: what is in it, and the check that no name leads out of it."""

import re
import shutil
from pathlib import Path

from impasto.bases.cards import cards
from impasto.bases.hub import HUB_ID
from impasto.config import recipes
from impasto.data.references import content, load
from impasto.errors import UserError, nearest

FOLDERS = ("references", "styles", "images", "concepts", "exports", "calibration", "comparisons", "votes", "bases")
PRIVATE = ".studio"
"""Queue, logs and gradio's temporary files."""
MAX_BYTES, MAX_SIDE = 32 << 20, 8192
"""Of an uploaded image: bytes, and pixels of its longer side."""
NAME = re.compile(r"[A-Za-z0-9][\w-]{0,63}", re.ASCII)
ABSOLUTE = re.compile(r"(?<![\w.:/<])(?:/[^/\s'\",;:()]+)+/([^/\s'\",;:()]*)")


class Workspace:
    """The folder `root`, created with its folders when it is not there."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        for name in (*FOLDERS, PRIVATE):
            (self.root / name).mkdir(parents=True, exist_ok=True)

    @property
    def private(self) -> Path:
        return self.root / PRIVATE

    def inside(self, name: str, kind: str | None = None) -> Path:
        """The path of a name relative to the workspace, "styles/ink". kind: which of FOLDERS it has to be in.

        Raises UserError for names that are absolute, hidden, or lead out of the workspace, through links as well.
        """
        text = str(name)
        parts = text.split("/")
        clean = all(part and not part.startswith((".", "~")) for part in parts)
        if not clean or "\\" in text or "\0" in text or ":" in text or text != text.strip():
            raise UserError(f"{shown(text)} is not a name in the workspace: choose one from the list")
        path = self.root / text
        if not path.resolve().is_relative_to(self.root) or (kind is not None and (parts[0] != kind or len(parts) < 2)):
            raise UserError(f"{shown(text)} is not in {kind or 'the workspace'}: choose one from the list")
        return path

    def existing(self, name: str | None, kind: str) -> Path:
        """As `inside`, of what is there. Raises UserError."""
        if not name:
            raise UserError(f"nothing is selected in {kind}: choose one from the list")
        path = self.inside(name, kind)
        if not path.exists():
            raise UserError(f"{shown(name)} is not there any more: reload the page")
        return path

    def relative(self, path: Path) -> str:
        """The name of a path in the workspace, as `inside` takes it."""
        return path.relative_to(self.root).as_posix()

    def new(self, kind: str, name: str) -> str:
        """The name of a folder to be written. Raises UserError for a bad name."""
        if not NAME.fullmatch(name or ""):
            raise UserError(f"{shown(name or '')} cannot be a name: use letters, digits, - and _, at most 64")
        return f"{kind}/{name}"

    def unused(self, kind: str, name: str) -> str:
        """A name that is not there yet: `name`, else `name`-2 and so on."""
        stem = slug(name)
        tried = (f"{kind}/{stem}{f'-{n}' if n > 1 else ''}" for n in range(1, 10_000))
        return next(one for one in tried if not (self.root / one).exists())

    def folders(self, kind: str) -> list[str]:
        """Names of the folders of a kind, the newest first."""
        found = [path for path in (self.root / kind).iterdir() if path.is_dir() and not path.name.startswith(".")]
        return [self.relative(path) for path in sorted(found, key=lambda path: (-path.stat().st_mtime, path.name))]

    def styles(self) -> list[str]:
        """Names of the style folders with weights, the newest first."""
        from impasto.styles.parts import has_weights

        return [name for name in self.folders("styles") if has_weights(self.root / name)]

    def bases(self) -> list[str]:
        """Base models: embedded ones, those with a card, and diffusers folders in `bases/` of the workspace."""
        local = sorted(path.parent.name for path in self.root.glob("bases/*/model_index.json"))
        return [*(f"bases/{name}" for name in local), *(name for name in cards() if "Pipeline" not in name)]

    def check_base(self, name: str | None) -> str:
        """The name, where it is a base of the list or a hub id. Raises UserError."""
        known = self.bases()
        if name in known:
            return str(name)
        parts = (name or "").split("/")
        hidden = any(part.startswith(".") for part in parts)
        if not name or hidden or not HUB_ID.fullmatch(name) or (self.root / parts[0]).exists():
            raise UserError(f"unknown base {shown(name or '')}: {nearest(name or '', known)}, or a hub id owner/name")
        return name

    def local_base(self, name: str) -> str:
        """The base as this process finds it; the jobs, which run in the workspace, take its name."""
        return str(self.root / name) if name.startswith("bases/") else name

    def check_recipe(self, name: str | None) -> str:
        """The name, where it is a recipe of the package. Raises UserError."""
        if name not in recipes():
            raise UserError(f"unknown recipe {shown(name or '')}: {nearest(name or '', list(recipes()))}")
        return str(name)

    def add_reference(self, upload: Path, name: str) -> str:
        """Copy an uploaded image into `references/`, when the reader of `train` can decode it; its name there. The
        upload is removed. Raises UserError for what is too large, damaged or not an image."""
        try:
            if upload.stat().st_size > MAX_BYTES:
                raise UserError(f"{shown(name)} is larger than {MAX_BYTES >> 20} MB: save it smaller")
            try:
                data, image = content(upload), load(upload).image
            except UserError as error:
                raise UserError(str(error).replace(repr(str(upload)), shown(name))) from None
            if max(image.size) > MAX_SIDE:
                raise UserError(f"{shown(name)} is larger than {MAX_SIDE} pixels a side: resize it")
        finally:
            upload.unlink(missing_ok=True)
        suffix = Path(name).suffix.lower()
        suffix = suffix if re.fullmatch(r"\.[a-z]{3,4}", suffix) else ".png"
        for file in (self.root / "references").glob(f"{slug(Path(name).stem)}*{suffix}"):
            if file.read_bytes() == data:  # dropped a second time
                return self.relative(file)
        target = self.unused_file("references", slug(Path(name).stem), suffix)
        target.write_bytes(data)
        return self.relative(target)

    def unused_file(self, kind: str, stem: str, suffix: str) -> Path:
        names = (f"{stem}{f'-{n}' if n > 1 else ''}{suffix}" for n in range(1, 10_000))
        return next(path for name in names if not (path := self.root / kind / name).exists())

    def remove(self, name: str, kind: str) -> None:
        """Delete a folder of the workspace with its content. Raises UserError."""
        shutil.rmtree(self.existing(name, kind))

    def scrub(self, message: str) -> str:
        """A message without paths of this machine: those in the workspace relative to it, of others the last part."""
        text = message.replace(f"{self.root}/", "").replace(str(self.root), "the workspace")
        return ABSOLUTE.sub(lambda match: match[1] or "...", text)


def slug(text: str) -> str:
    """A text as a file name: letters, digits, - and _."""
    found = re.sub(r"[^\w-]+", "-", text.strip(), flags=re.ASCII).strip("-_").lower()[:48]
    return found or "image"


def shown(name: str) -> str:
    """A name in a message: quoted, at most 60 characters."""
    return repr(name if len(name) <= 60 else f"{name[:57]}...")
