"""Stages of a method that runs in several: each leaves its files and a record, and is skipped while both are whole.

`state/<stage>.json` in the style folder is written last: {"inputs": what the stage was made from, "files": {name:
sha256}, and its results}. Killed anywhere, the same command goes on with the first stage whose record is missing, whose
inputs have changed or whose files are damaged.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from impasto.files import atomic, read_json_or_empty


@dataclass(frozen=True)
class Stages:
    """The stages of the run in `folder`."""

    folder: Path

    def file(self, stage: str) -> Path:
        return self.folder / "state" / f"{stage}.json"

    def read(self, stage: str, inputs: Mapping[str, Any] | None = None) -> dict[str, Any] | None:
        """The record of a finished stage; None where it has to be run (again). inputs: what it has to be made from;
        not compared when None."""
        record = read_json_or_empty(self.file(stage))
        if "files" not in record or (inputs is not None and record.get("inputs") != plain(inputs)):
            return None
        return None if self.damaged(stage) else record

    def damaged(self, stage: str) -> set[str]:
        """Files of a finished stage that are not as it left them."""
        files = read_json_or_empty(self.file(stage)).get("files", {})
        return {name for name, known in files.items() if digest(self.folder / name) != known}

    def write(self, stage: str, inputs: Mapping[str, Any], files: Sequence[str], **results: Any) -> dict[str, Any]:
        """Record a stage as finished; returns the record."""
        record = plain({"inputs": inputs, "files": {name: digest(self.folder / name) for name in files}, **results})
        with atomic(self.file(stage)) as file:
            file.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        return record


def digest(file: Path) -> str | None:
    """sha256 of a file, None where there is none."""
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError:
        return None


def plain(value: Mapping[str, Any]) -> dict[str, Any]:
    """As it is read back from JSON."""
    return json.loads(json.dumps(value, ensure_ascii=False))
