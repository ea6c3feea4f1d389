"""Runs the jobs of a queue: each is `python -m impasto.cli.main ... --json` in a process of its own.

A process survives the studio: its pid and creation time are in the queue, its output in files, so that a studio that
is started again finds it. How a job ended is read from the JSON on the last line of its output; without one it was
interrupted.
"""

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from impasto.errors import UserError
from impasto.files import PACKAGE
from impasto.report.run import read_metrics
from impasto.studio.queue import DONE, FAILED, IMAGES, INTERRUPTED, RUNNING, RUNS, STOPPED, Job, Queue

COMMAND = (sys.executable, "-P", "-m", "impasto.cli.main")  # -P: nothing is imported from the workspace
LINE = re.compile(r"(?P<phase>[^\n]+?) (?P<done>\d+)/(?P<total>\d+)(?:, (?P<note>.*))?")
NOTE_LINE = re.compile(r"impasto: (?:warning|note): (.*)")
TAIL = 20_000  # bytes of a log that are read


@dataclass(frozen=True)
class Status:
    """How far a job is. total: None where it is not counted; notes: its warnings."""

    phase: str = ""
    done: int = 0
    total: int | None = None
    note: str = ""
    notes: tuple[str, ...] = ()

    @property
    def share(self) -> float:
        return self.done / self.total if self.total else 0.0


class Worker:
    """Runs the jobs of `queue` in `folder`, one of each lane at a time, once `start`ed. logs: folder of outputs."""

    def __init__(self, queue: Queue, folder: Path, logs: Path, command: Sequence[str] = COMMAND) -> None:
        self.queue, self.folder, self.logs, self.command = queue, folder, logs, tuple(command)
        self.children: dict[int, subprocess.Popen[bytes]] = {}
        self.ending, self.lock = threading.Event(), threading.Lock()
        self.thread = threading.Thread(target=self.loop, daemon=True)
        logs.mkdir(parents=True, exist_ok=True)

    def start(self) -> None:
        self.thread.start()

    def close(self) -> None:
        """Start no further job. Running ones go on."""
        self.ending.set()
        if self.thread.is_alive():
            self.thread.join()

    def loop(self) -> None:
        while not self.ending.wait(0.3):
            self.tick()

    def tick(self) -> None:
        """Record the jobs that have ended, and start the next ones."""
        with self.lock:
            for job in self.queue.jobs():
                if job.state == RUNNING and not self.is_alive(job):
                    self.children.pop(job.id, None)
                    self.queue.finish(job.id, *self.outcome(job))
            for lane in (RUNS, IMAGES):
                if job := self.queue.start_next(lane):
                    self.run(job)

    def run(self, job: Job) -> None:
        with self.output(job.id).open("wb") as out, self.log(job.id).open("wb") as log:
            child = subprocess.Popen(
                [*self.command, *job.args, "--json"],
                cwd=self.folder,
                env=environment(),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=log,
                start_new_session=True,
            )
        self.children[job.id] = child
        self.queue.set_process(job.id, child.pid, created(child.pid) or 0.0)

    def is_alive(self, job: Job) -> bool:
        if child := self.children.get(job.id):
            return child.poll() is None
        return job.pid is not None and created(job.pid) == job.pid_started

    def outcome(self, job: Job) -> tuple[str, dict[str, Any]]:
        """(state, result) of a job whose process has ended."""
        result = last_json(self.output(job.id))
        if job.stopping and (result is None or result.get("error") == "interrupted"):
            return STOPPED, {}
        if result is None:
            return INTERRUPTED, {"error": self.last_line(job.id) or "its process ended without a result"}
        if result.get("error") == "interrupted":
            return INTERRUPTED, {}
        return (FAILED if "error" in result else DONE), result

    def stop(self, number: int) -> None:
        """Ask a job to end: a run saves a checkpoint first. Asked again, the process is killed."""
        with self.lock:
            before = self.queue.job(number)
            if before is None or before.ended:
                return
            self.queue.mark_stopping(number)
            if before.pid is not None and self.is_alive(before):
                try:
                    os.killpg(before.pid, signal.SIGKILL if before.stopping else signal.SIGTERM)
                except ProcessLookupError:
                    return  # it has ended by itself: `tick` records that

    def delete(self, number: int) -> bool:
        """Remove a job that is not running, and its logs. Its folder stays."""
        if deleted := self.queue.delete(number):
            self.output(number).unlink(missing_ok=True)
            self.log(number).unlink(missing_ok=True)
        return deleted

    def output(self, number: int) -> Path:
        return self.logs / f"{number}.json"

    def log(self, number: int) -> Path:
        return self.logs / f"{number}.log"

    def last_line(self, number: int) -> str:
        lines = [line for line in tail(self.log(number)).splitlines() if line.strip()]
        return lines[-1] if lines else ""

    def status(self, job: Job) -> Status:
        """How far a job is: from its log, and of a training from the metrics of its run."""
        lines = tail(self.log(job.id)).splitlines()
        notes = tuple(dict.fromkeys(match[1] for line in lines if (match := NOTE_LINE.fullmatch(line))))
        written = [line for line in lines if line.strip() and not line.startswith("impasto: ")]
        phase, done, total, note = "starting", 0, None, ""
        if written:
            match = LINE.fullmatch(written[-1])
            phase = match["phase"] if match else written[-1][:100]
            done, total = (int(match["done"]), int(match["total"])) if match else (0, None)
            note = (match["note"] or "") if match else ""
        if phase == "training" and (rows := read_metrics(self.folder / job.out / "metrics.jsonl")) and total:
            done = max(done, min(rows[-1]["step"], total))
        return Status(phase, done, total, note, notes)

    def call(self, args: Sequence[str], seconds: float = 180.0) -> dict[str, Any]:
        """The result of a short command. Raises UserError with its error."""
        command = [*self.command, *args, "--json"]
        try:
            ended = subprocess.run(
                command, cwd=self.folder, env=environment(), stdin=subprocess.DEVNULL, capture_output=True,
                timeout=seconds, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise UserError(f"the command took longer than {seconds:.0f} s: start it in the queue") from None
        result = parse_json(ended.stdout.decode(errors="replace"))
        if result is None or "error" in result:
            lines = ended.stderr.decode(errors="replace").strip().splitlines()
            errors = [line.removeprefix("impasto: error: ") for line in lines if line.startswith("impasto: error: ")]
            raise UserError((errors or [str((result or {}).get("error") or (lines or ["no result"])[-1])])[-1])
        warnings = [
            match[1]
            for line in ended.stderr.decode(errors="replace").splitlines()
            if (match := NOTE_LINE.fullmatch(line))
        ]
        return result | {"warnings": list(dict.fromkeys(warnings))}


def environment() -> dict[str, str]:
    """Of the processes: this impasto, whatever it was started from, and frequent lines of progress."""
    paths = [str(PACKAGE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths), "IMPASTO_PROGRESS_SECONDS": "1"}


def created(pid: int) -> float | None:
    """The creation time of a running process, None where there is none."""
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
    except psutil.Error:
        return None


def tail(file: Path) -> str:
    """The end of a text file, "" where there is none."""
    try:
        with file.open("rb") as opened:
            opened.seek(max(0, file.stat().st_size - TAIL))
            return opened.read().decode(errors="replace")
    except OSError:
        return ""


def last_json(file: Path) -> dict[str, Any] | None:
    return parse_json(file.read_text(encoding="utf-8", errors="replace")) if file.is_file() else None


def parse_json(text: str) -> dict[str, Any] | None:
    """The JSON object on the last line of a command's output."""
    lines = text.strip().splitlines()
    try:
        found = json.loads(lines[-1]) if lines else None
    except ValueError:
        return None
    return found if isinstance(found, dict) else None
