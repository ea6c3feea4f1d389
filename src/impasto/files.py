"""Where things live on disk, and how a file is written so that it is never half there."""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from impasto.errors import UserError

PACKAGE = Path(__file__).parent
MODELS = PACKAGE / "models"  # the embedded weights, fp16 safetensors
UMASK = os.umask(0o077)  # can only be read by setting it: once, before there are threads
os.umask(UMASK)


def cache_dir(*parts: str) -> Path:
    """`$IMPASTO_CACHE` or `~/.cache/impasto`, joined with `parts`. Not created."""
    root = os.environ.get("IMPASTO_CACHE") or Path.home() / ".cache" / "impasto"
    return Path(root).expanduser().joinpath(*parts)


@contextmanager
def atomic(path: Path | str) -> Iterator[Path]:
    """Yield a temporary name beside `path`; on a clean exit it is fsynced and renamed to `path`, else removed.

    Who may read the file is what the process's umask says, as of any new file.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~UMASK)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(folder: Path, whole: Callable[[Path], bool]) -> Iterator[Path]:
    """Yield the name of a folder to be made beside `folder`; on a clean exit it is renamed to that, else removed.

    One that is there and not `whole` makes room; where another process was first with a whole one, that stays.
    """
    scratch = folder.with_name(f".{folder.name}.{os.getpid()}")
    broken = scratch.with_name(f"{scratch.name}.broken")
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        yield scratch
        try:
            if folder.exists() and not whole(folder):
                folder.rename(broken)
            scratch.rename(folder)
        except OSError:
            if not whole(folder):
                raise
    finally:
        for left in (scratch, broken):
            shutil.rmtree(left, ignore_errors=True)


def read_object(file: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises ValueError when there is anything else in it."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError(f"{file} is nested too deeply") from None
    if not isinstance(found, dict):
        raise ValueError(f"{file} holds no object")
    return found


def json_of(file: Path) -> dict[str, Any]:
    """The JSON object in a file, {} where there is none."""
    try:
        return read_object(file)
    except (OSError, ValueError):
        return {}


def no_folder(out: Path) -> UserError:
    return UserError(f"--out {str(out)!r} is a file, or lies in one: give a folder")


def writable_folder(folder: Path, asked: Path | None = None) -> None:
    """Make `folder`, and see that files can be made in it. Raises UserError that names what was `asked` for."""
    with writing(asked or folder):
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()


def check_writable(folder: Path, asked: Path) -> None:
    """Raise UserError that names what was `asked` for, unless files can be made where `folder` is or will be: in it, or
    in the nearest one above it that is there. Nothing is left there."""
    place = next(place for place in (folder, *folder.parents) if place.exists())
    with writing(asked):
        tempfile.TemporaryFile(dir=place).close()


@contextmanager
def writing(asked: Path) -> Iterator[None]:
    """What keeps a file from being made is told as a UserError that names what was `asked` for."""
    try:
        yield
    except (FileExistsError, NotADirectoryError):
        raise no_folder(asked) from None
    except OSError as error:
        raise UserError(f"--out {str(asked)!r} cannot be written: {error.strerror}") from None
