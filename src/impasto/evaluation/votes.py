"""Blind votes of people on pairs of images: which matches the style better, which the text, or a tie.

A vote set is a folder: `votes.sqlite` and `images/`, copies without metadata under names that say nothing. Which image
is on the left, and in which order a rater sees the pairs, is a function of (seed, rater, pair); pairs with fewest votes
come first. Several raters can vote at once (write-ahead log). The page to vote on calls `next_pair` and `record`.
"""

import csv
import hashlib
import json
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock
from PIL import Image

from impasto.data import references
from impasto.errors import UserError, nearest
from impasto.evaluation.samples import image_files, open_image
from impasto.evaluation.spread import wilson
from impasto.files import atomic, writable_folder

FILE, IMAGES, METADATA = "votes.sqlite", "images", "metadata.jsonl"
VERSION = 1
QUESTIONS = {"style": "Which matches the style of the reference better?", "text": "Which matches the text better?"}
CHOICES = ("left", "right", "tie")
SECONDS = 30.0  # how long a writer waits for another
SCHEMA = """
CREATE TABLE settings (seed INTEGER NOT NULL);
CREATE TABLE pairs (
    id INTEGER PRIMARY KEY, grouping TEXT NOT NULL, prompt TEXT NOT NULL, number INTEGER NOT NULL, reference TEXT,
    method_a TEXT NOT NULL, method_b TEXT NOT NULL, image_a TEXT NOT NULL, image_b TEXT NOT NULL,
    UNIQUE (grouping, prompt, number, method_a, method_b));
CREATE TABLE votes (
    pair INTEGER NOT NULL REFERENCES pairs (id), rater TEXT NOT NULL, question TEXT NOT NULL,
    choice TEXT NOT NULL CHECK (choice IN ('a', 'b', 'tie')), swapped INTEGER NOT NULL, time REAL NOT NULL,
    PRIMARY KEY (pair, rater, question));
"""


@dataclass(frozen=True)
class Pair:
    """What a rater sees. questions: those that this rater has not answered for it, in order."""

    id: int
    prompt: str
    reference: Path | None
    left: Path
    right: Path
    questions: tuple[str, ...]


def create_votes(
    folder: Path | str,
    methods: Mapping[str, Path | str],
    reference: Path | str | None = None,
    group: str = "",
    count: int | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Add the pairs of one reference's images to the vote set in `folder` (made where there is none).

    methods: {name: folder of images}, with a prompt in each PNG, or a metadata.jsonl of {file_name, text}; images are
    paired by prompt and, of several of one prompt, by order. reference: shown beside. group: name of the reference,
    by default the name of its file. count: at most so many pairs per two methods, spread evenly. Returns
    {"folder", "pairs": {"a vs b": number of new pairs}}. Raises UserError where two methods share no prompt.
    """
    if len(methods) < 2:
        raise UserError("votes compare methods: give two or more, NAME=FOLDER")
    found = {name: read_images(Path(path)) for name, path in methods.items()}
    image = None if reference is None else references.load(reference).image
    group = group or ("" if reference is None else Path(reference).stem)
    for a, b in combinations(methods, 2):
        if not found[a].keys() & found[b].keys():
            raise UserError(f"{a} and {b} have no prompt in common: give folders of images of the same prompts")
    keys = list(dict.fromkeys(key for images in found.values() for key in images))
    rows = [
        (prompt, n, {name: found[name][prompt, n] for name in methods if (prompt, n) in found[name]})
        for prompt, n in keys
    ]
    return add_pairs(folder, rows, image, group, count, seed)


def add_pairs(
    folder: Path | str,
    rows: Sequence[tuple[str, int, Mapping[str, Path]]],
    reference: Image.Image | None = None,
    group: str = "",
    count: int | None = None,
    seed: int = 0,
    only: str | None = None,
) -> dict[str, Any]:
    """As `create_votes`, from rows (prompt, its number, {method: image file}). only: pairs with this method alone.
    Pairs that are there already stay as they are."""
    folder = Path(folder)
    writable_folder(folder / IMAGES)
    with FileLock(folder / ".lock"):
        if not (folder / FILE).exists():
            _create(folder, seed)
    chosen: dict[tuple[str, str], list[tuple[str, int, Path, Path]]] = {}
    for prompt, number, images in rows:
        for a, b in combinations(sorted(images), 2):
            if only is None or only in (a, b):
                chosen.setdefault((a, b), []).append((prompt, number, images[a], images[b]))
    beside = None if reference is None else _store(folder, reference)
    columns, written = "grouping, prompt, number, reference, method_a, method_b, image_a, image_b", {}
    for (a, b), pairs in chosen.items():
        kept = pairs if count is None else [pairs[k * len(pairs) // count] for k in range(count)]
        kept = list(dict.fromkeys(kept))
        stored = [
            (group, prompt, number, beside, a, b, *(_store(folder, references.load(path).image) for path in two))
            for prompt, number, *two in kept
        ]
        with _connect(folder) as base:
            before = base.total_changes
            base.executemany(f"INSERT OR IGNORE INTO pairs ({columns}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)", stored)
            written[f"{a} vs {b}"] = base.total_changes - before
    return {"folder": str(folder), "pairs": written}


def next_pair(folder: Path | str, rater: str) -> Pair | None:
    """The next pair for a rater, None when all questions are answered. Raises UserError without a name."""
    folder = Path(folder)
    _check_rater(rater)
    with _connect(folder) as base:
        seed = base.execute("SELECT seed FROM settings").fetchone()[0]
        answered: dict[int, set[str]] = {}
        for pair, question in base.execute("SELECT pair, question FROM votes WHERE rater = ?", (rater,)):
            answered.setdefault(pair, set()).add(question)
        counts = dict(base.execute("SELECT pair, COUNT(*) FROM votes WHERE rater != ? GROUP BY pair", (rater,)))
        open_ = [
            (id not in answered, counts.get(id, 0), _digest(seed, rater, id), id)
            for (id,) in base.execute("SELECT id FROM pairs")
            if len(answered.get(id, ())) < len(QUESTIONS)
        ]
        if not open_:
            return None
        chosen = min(open_)[-1]
        columns = "prompt, reference, image_a, image_b"
        prompt, beside, a, b = base.execute(f"SELECT {columns} FROM pairs WHERE id = ?", (chosen,)).fetchone()
    left, right = (b, a) if _swapped(seed, rater, chosen) else (a, b)
    images = folder / IMAGES
    questions = tuple(name for name in QUESTIONS if name not in answered.get(chosen, ()))
    return Pair(chosen, prompt, images / beside if beside else None, images / left, images / right, questions)


def record(
    folder: Path | str, pair: int, rater: str, question: str, choice: Literal["left", "right", "tie"] | str
) -> None:
    """Store a rater's answer about a pair of `next_pair`; a second answer to the same question replaces the first.
    Raises UserError for unknown values."""
    _check_rater(rater)
    for value, known, what in ((question, tuple(QUESTIONS), "question"), (choice, CHOICES, "choice")):
        if value not in known:
            raise UserError(f"unknown {what} {value!r}: {nearest(str(value), known)}")
    with _connect(Path(folder)) as base:
        if base.execute("SELECT 1 FROM pairs WHERE id = ?", (pair,)).fetchone() is None:
            raise UserError(f"there is no pair {pair} in {folder}")
        swapped = _swapped(base.execute("SELECT seed FROM settings").fetchone()[0], rater, pair)
        side = "tie" if choice == "tie" else "ab"[(choice == "right") != swapped]
        row = (pair, rater, question, side, swapped, time.time())
        base.execute("INSERT OR REPLACE INTO votes VALUES (?, ?, ?, ?, ?, ?)", row)


def summary(folder: Path | str) -> dict[str, Any]:
    """{"raters", "votes", "pairs", "comparisons": [{"method", "other", "question", "win", "tie", "lose", "votes",
    "pairs"}]}, as Table 1 of Style-Friendly: shares of votes for `method` with 95 % intervals, {"share", "interval"}.

    Intervals are Wilson's with the number of pairs as n: several raters of one pair count as one.
    """
    rows = [row for row in export_rows(folder) if row["winner"]]
    with _connect(Path(folder)) as base:
        pairs = base.execute("SELECT COUNT(*) FROM pairs").fetchone()[0]
    found: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault((row["method_a"], row["method_b"], row["question"]), []).append(row)
    comparisons = []
    for (a, b, question), votes in sorted(found.items()):
        seen = len({row["pair"] for row in votes})
        shares = {
            name: _share(sum(row["winner"] == winner for row in votes), len(votes), seen)
            for name, winner in (("win", a), ("tie", "tie"), ("lose", b))
        }
        counts = {"votes": len(votes), "pairs": seen}
        comparisons.append({"method": a, "other": b, "question": question, **shares, **counts})
    raters = len({row["rater"] for row in rows})
    return {"folder": str(folder), "raters": raters, "votes": len(rows), "pairs": pairs, "comparisons": comparisons}


def export_rows(folder: Path | str) -> Iterator[dict[str, Any]]:
    """A row per vote: pair, group, prompt, number, method_a, method_b, rater, question, winner (a method, or "tie"),
    left (the method shown there), time (seconds since 1970)."""
    query = """SELECT p.id, p.grouping, p.prompt, p.number, p.method_a, p.method_b, v.rater, v.question, v.choice,
        v.swapped, v.time FROM votes v JOIN pairs p ON p.id = v.pair ORDER BY v.time, p.id, v.question"""
    with _connect(Path(folder)) as base:
        rows = base.execute(query).fetchall()
    for pair, group, prompt, number, a, b, rater, question, choice, swapped, when in rows:
        yield {
            "pair": pair,
            "group": group,
            "prompt": prompt,
            "number": number,
            "method_a": a,
            "method_b": b,
            "rater": rater,
            "question": question,
            "winner": {"a": a, "b": b, "tie": "tie"}[choice],
            "left": b if swapped else a,
            "time": when,
        }


def export(folder: Path | str, out: Path | str | None = None) -> dict[str, Any]:
    """Write all votes as CSV, by default `folder/votes.csv`; {"path", "votes"}."""
    target, rows = Path(out) if out is not None else Path(folder) / "votes.csv", list(export_rows(folder))
    columns = [
        "pair",
        "group",
        "prompt",
        "number",
        "method_a",
        "method_b",
        "rater",
        "question",
        "winner",
        "left",
        "time",
    ]
    with atomic(target) as path, path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
    return {"path": str(target), "votes": len(rows)}


def read_images(folder: Path) -> dict[tuple[str, int], Path]:
    """{(prompt, number among those of the prompt): file}, by metadata.jsonl, else by the prompts in the PNGs."""
    if (folder / METADATA).is_file():
        texts = []
        for line in (folder / METADATA).read_text(encoding="utf-8").splitlines():
            try:
                row = json.loads(line)
                texts.append((row["text"], folder / row["file_name"]))
            except (ValueError, TypeError, KeyError):
                raise UserError(f"{folder / METADATA}: {line[:60]!r} is not {{file_name, text}}") from None
    else:
        texts = [(open_image(path)[1].get("prompt"), path) for path in image_files(folder)]
    found: dict[tuple[str, int], Path] = {}
    for prompt, path in texts:
        if prompt:
            found[prompt, sum(known == prompt for known, _ in found)] = path
    if not found:
        raise UserError(
            f"the images of {folder} name no prompts: write a {METADATA} with {{file_name, text}} per image"
        )
    return found


def _share(hits: int, votes: int, pairs: int) -> dict[str, Any]:
    share = hits / votes
    return {"share": share, "interval": list(wilson(share * pairs, pairs))}


def _check_rater(rater: str) -> None:
    if not rater.strip():
        raise UserError("a rater needs a name, so that votes can be told apart")


def _digest(seed: int, rater: str, pair: int) -> str:
    return hashlib.sha256(f"{seed} {pair} {rater}".encode()).hexdigest()


def _swapped(seed: int, rater: str, pair: int) -> bool:
    """Whether a rater sees the pair's second image on the left."""
    return bool(int(_digest(seed, f"side of {rater}", pair), 16) % 2)


def _store(folder: Path, image: Image.Image) -> str:
    """Save pixels alone under the hash of them; the file's name."""
    image = image.convert("RGB")
    name = hashlib.sha256(repr(image.size).encode() + image.tobytes()).hexdigest()[:16] + ".png"
    if not (folder / IMAGES / name).exists():
        with atomic(folder / IMAGES / name) as path:
            Image.frombytes("RGB", image.size, image.tobytes()).save(path, "PNG")
    return name


def _create(folder: Path, seed: int) -> None:
    with atomic(folder / FILE) as path:
        path.unlink()  # sqlite makes its own
        with closing(sqlite3.connect(path)) as base, base:
            base.executescript(SCHEMA)
            base.execute("INSERT INTO settings VALUES (?)", (seed,))
            base.execute(f"PRAGMA user_version = {VERSION}")


@contextmanager
def _connect(folder: Path) -> Iterator[sqlite3.Connection]:
    """A connection that commits at the end. Raises UserError where there is no vote set, or one of another version."""
    file = folder / FILE
    if not file.is_file():
        raise UserError(f"{str(folder)!r} is no vote set: make one with impasto votes create {folder}")
    try:
        with closing(sqlite3.connect(file, timeout=SECONDS)) as base:
            base.execute("PRAGMA journal_mode = WAL")
            version = base.execute("PRAGMA user_version").fetchone()[0]
            if version != VERSION:
                raise UserError(
                    f"{file} has schema version {version}, this impasto reads {VERSION}: use the other release"
                )
            with base:
                yield base
    except sqlite3.DatabaseError as error:
        raise UserError(f"{file} cannot be used: {error}") from None
