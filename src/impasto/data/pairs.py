"""Pairs files: the caption of a distillation's teacher for each caption of the student.

    {"text": "a rocket, [trigger]", "teacher_text": "a rocket in the teacher's words"}      one object per line

The two differ where teacher and student do not share a text encoder (StyleInject, section V-B).
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from impasto.data.folder import Entry, json_lines, json_texts
from impasto.errors import UserError


def read_pairs(file: Path, fill: Callable[[str], str] = str) -> dict[str, str]:
    """Teacher captions by caption. fill: completes a caption as those of the images are (prefix, trigger).

    Raises UserError naming the file, or the line that is wrong or contradicts an earlier one.
    """
    if not file.is_file():
        raise UserError(f"--pairs {str(file)!r} is not a file: a JSONL file of objects with text and teacher_text")
    found: dict[str, str] = {}
    for number, line in json_lines(file):
        problem, texts = json_texts(line, ("text", "teacher_text"))
        if not problem and found.setdefault(fill(texts["text"]), texts["teacher_text"]) != texts["teacher_text"]:
            problem = f"{texts['text']!r} has another teacher_text in an earlier line: remove one"
        if problem:
            raise UserError(f"{str(file)!r}, line {number}: {problem}")
    return found


def with_teacher_captions(entries: Sequence[Entry], pairs: dict[str, str], file: Path) -> list[Entry]:
    """The entries with the teacher captions of `pairs`, read from `file`; an entry's own one is kept. Raises UserError
    naming the first caption that is missing there."""
    result = [e if e.teacher_caption else replace(e, teacher_caption=pairs.get(e.caption or "")) for e in entries]
    missing = list(dict.fromkeys(e.caption for e in result if e.teacher_caption is None))
    if missing:
        many = len({e.caption for e in entries})
        raise UserError(
            f"--pairs {str(file)!r} lacks {len(missing)} of {many} captions, first {missing[0]!r}: add a line for each"
        )
    return result
