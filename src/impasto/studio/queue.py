"""The queue of the studio: an SQLite file with a row per job, a command line of impasto."""

import json
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RUNS, IMAGES = "runs", "images"
"""Lanes: what trains or measures for minutes to hours, and what generates images in between. One job of each at a
time."""
WAITING, RUNNING, DONE, FAILED, STOPPED, INTERRUPTED = (
    *("waiting", "running", "done", "failed"),
    *("stopped", "interrupted"),
)
"""States. stopped: by a person; interrupted: its process ended without a result. Both are resumed by `requeue`."""

TABLE = """
CREATE TABLE IF NOT EXISTS jobs (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    args TEXT NOT NULL,          -- JSON: the command line without "impasto"
    out TEXT NOT NULL,           -- the folder that it writes, relative to the workspace
    title TEXT NOT NULL,
    lane TEXT NOT NULL,
    state TEXT NOT NULL,
    stopping INTEGER NOT NULL DEFAULT 0,
    position REAL NOT NULL,      -- order of waiting jobs
    pid INTEGER,
    pid_started REAL,            -- creation time of the process: a pid is used again
    created REAL NOT NULL,
    started REAL,
    finished REAL,
    result TEXT                  -- JSON: what the command printed
)
"""


@dataclass(frozen=True)
class Job:
    """A row. Times are seconds since 1970; result: of a finished one, {"error": ...} where it failed."""

    id: int
    args: tuple[str, ...]
    out: str
    title: str
    lane: str
    state: str
    stopping: bool
    position: float
    pid: int | None
    pid_started: float | None
    created: float
    started: float | None
    finished: float | None
    result: dict[str, Any]

    @property
    def ended(self) -> bool:
        return self.state not in (WAITING, RUNNING)

    @property
    def error(self) -> str:
        return str(self.result.get("error", ""))


class Queue:
    """The jobs in an SQLite file. Each call is a transaction: threads and processes may share it."""

    def __init__(self, file: Path) -> None:
        self.file = file
        with self.open() as database:
            database.execute("PRAGMA journal_mode = WAL")
            database.execute(TABLE)

    @contextmanager
    def open(self) -> Iterator[sqlite3.Connection]:
        with closing(sqlite3.connect(self.file, timeout=30)) as database, database:
            database.row_factory = sqlite3.Row
            yield database

    def add(self, args: Sequence[str], out: str, title: str, lane: str = RUNS) -> int:
        """Add a waiting job; its number."""
        now = time.time()
        with self.open() as database:
            row = database.execute(
                "INSERT INTO jobs (args, out, title, lane, state, position, created) VALUES (?, ?, ?, ?, ?, ?, ?)",
                (json.dumps(list(args)), out, title, lane, WAITING, now, now),
            )
            assert row.lastrowid is not None
            return row.lastrowid

    def jobs(self, lane: str | None = None) -> list[Job]:
        """All jobs: running ones, then waiting ones in their order, then ended ones, the last first."""
        where, values = ("WHERE lane = ?", (lane,)) if lane else ("", ())
        with self.open() as database:
            found = [job_of(row) for row in database.execute(f"SELECT * FROM jobs {where}", values)]
        order = {RUNNING: 0, WAITING: 1}
        return sorted(found, key=lambda job: (order.get(job.state, 2), -(job.finished or 0), job.position, job.id))

    def job(self, number: int | None) -> Job | None:
        with self.open() as database:
            row = database.execute("SELECT * FROM jobs WHERE id = ?", (number,)).fetchone()
        return job_of(row) if row else None

    def start_next(self, lane: str) -> Job | None:
        """Mark the first waiting job of a lane as running, unless one is running there."""
        with self.open() as database:
            database.execute("BEGIN IMMEDIATE")
            if database.execute("SELECT 1 FROM jobs WHERE lane = ? AND state = ?", (lane, RUNNING)).fetchone():
                return None
            query = "SELECT * FROM jobs WHERE lane = ? AND state = ? ORDER BY position, id LIMIT 1"
            row = database.execute(query, (lane, WAITING)).fetchone()
            if row is None:
                return None
            values = (RUNNING, time.time(), row["id"])
            database.execute(
                "UPDATE jobs SET state = ?, started = ?, finished = NULL, pid = NULL, pid_started = NULL, "
                "stopping = 0, result = NULL WHERE id = ?",
                values,
            )
        return self.job(row["id"])

    def set_process(self, number: int, pid: int, pid_started: float) -> None:
        with self.open() as database:
            database.execute("UPDATE jobs SET pid = ?, pid_started = ? WHERE id = ?", (pid, pid_started, number))

    def mark_stopping(self, number: int) -> None:
        """A running job is about to be stopped; a waiting one is stopped by this."""
        with self.open() as database:
            database.execute("UPDATE jobs SET stopping = 1 WHERE id = ? AND state = ?", (number, RUNNING))
            values = (STOPPED, time.time(), number, WAITING)
            database.execute("UPDATE jobs SET state = ?, finished = ? WHERE id = ? AND state = ?", values)

    def finish(self, number: int, state: str, result: dict[str, Any]) -> None:
        with self.open() as database:
            values = (state, time.time(), json.dumps(result), number)
            database.execute(
                "UPDATE jobs SET state = ?, finished = ?, result = ?, pid = NULL, pid_started = NULL, stopping = 0 "
                "WHERE id = ?",
                values,
            )

    def requeue(self, number: int) -> bool:
        """Let an ended job wait again, with the same command: a run goes on where it stopped. False for others."""
        with self.open() as database:
            values = (WAITING, time.time(), number, WAITING, RUNNING)
            found = database.execute(
                "UPDATE jobs SET state = ?, position = ?, finished = NULL, result = NULL WHERE id = ? "
                "AND state NOT IN (?, ?)",
                values,
            )
            return found.rowcount == 1

    def delete(self, number: int) -> bool:
        """Remove a job that is not running; its files stay. False for others."""
        with self.open() as database:
            return database.execute("DELETE FROM jobs WHERE id = ? AND state != ?", (number, RUNNING)).rowcount == 1


def job_of(row: sqlite3.Row) -> Job:
    values = {name: row[name] for name in row.keys()}  # noqa: SIM118
    values |= {"args": tuple(json.loads(row["args"])), "stopping": bool(row["stopping"])}
    return Job(**values | {"result": json.loads(row["result"] or "{}")})
