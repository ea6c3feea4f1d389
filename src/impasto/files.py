"""Paths and atomic writing of files."""

import gzip
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from impasto.errors import UserError

PACKAGE = Path(__file__).parent
MODELS = PACKAGE / "models"  # the embedded weights, fp16 safetensors
UMASK = os.umask(0o077)  # reading requires setting it: once, before threads start
os.umask(UMASK)


def cache_dir(*parts: str) -> Path:
    """`$IMPASTO_CACHE`, else `$XDG_CACHE_HOME/impasto`, else `~/.cache/impasto`, joined with `parts`. Not created."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    root = os.environ.get("IMPASTO_CACHE") or Path(home) / "impasto"
    return Path(root).expanduser().joinpath(*parts)


@contextmanager
def atomic(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on a clean exit it is fsynced and renamed to `path`, else removed.

    The file mode follows the process's umask.
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
def atomic_folder(folder: Path, is_complete: Callable[[Path], bool]) -> Iterator[Path]:
    """Yield the path of a folder to create beside `folder`; on a clean exit it is renamed to `folder`, else removed.

    An existing folder is replaced unless it `is_complete` (another process may have been first).
    """
    scratch = folder.with_name(f".{folder.name}.{os.getpid()}")
    broken = scratch.with_name(f"{scratch.name}.broken")
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        yield scratch
        try:
            if folder.exists() and not is_complete(folder):
                folder.rename(broken)
            scratch.rename(folder)
        except OSError:
            if not is_complete(folder):
                raise
    finally:
        for left in (scratch, broken):
            shutil.rmtree(left, ignore_errors=True)


def read_object(file: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises ValueError for any other content."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError(f"{file} is nested too deeply") from None
    if not isinstance(found, dict):
        raise ValueError(f"{file} is not a JSON object")
    return found


def read_json_or_empty(file: Path) -> dict[str, Any]:
    """The JSON object in a file, {} if there is none."""
    try:
        return read_object(file)
    except (OSError, ValueError):
        return {}


def write_json_lines(file: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """A line of JSON per row, compressed by gzip, atomically: the same rows give the same bytes."""
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    with atomic(file) as temporary:
        temporary.write_bytes(gzip.compress(lines.encode(), mtime=0))


def not_a_folder_error(out: Path) -> UserError:
    return UserError(f"--out {str(out)!r} is a file, or lies in one: give a folder")


def writable_folder(folder: Path, named: Path | None = None) -> None:
    """Create `folder` and check that it is writable. Raises UserError naming `named`, by default `folder`."""
    with writing(named or folder):
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()


def check_writable(folder: Path, named: Path) -> None:
    """Raise UserError naming `named` unless files can be created in `folder` or its nearest existing parent; leaves no
    file behind."""
    existing = next(existing for existing in (folder, *folder.parents) if existing.exists())
    with writing(named):
        tempfile.TemporaryFile(dir=existing).close()


@contextmanager
def writing(named: Path) -> Iterator[None]:
    """Turn errors of creating files into a UserError naming `named`."""
    try:
        yield
    except (FileExistsError, NotADirectoryError):
        raise not_a_folder_error(named) from None
    except OSError as error:
        raise UserError(f"--out {str(named)!r} cannot be written: {error.strerror}") from None
