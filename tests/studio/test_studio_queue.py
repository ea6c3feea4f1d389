"""The queue and the worker: pure Python, with processes that pretend."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from workspace_files import FAKE

from impasto.studio.queue import (
    DONE,
    FAILED,
    IMAGES,
    INTERRUPTED,
    RUNNING,
    RUNS,
    STOPPED,
    WAITING,
    Queue,
)
from impasto.studio.worker import Worker


@pytest.fixture
def queue(tmp_path):
    return Queue(tmp_path / "queue.sqlite")


@pytest.fixture
def worker(queue, tmp_path):
    return Worker(queue, tmp_path, tmp_path / "jobs", FAKE)


def run_until(worker, number, *states, seconds=60):
    """The job, once it is in one of these states."""
    ends = time.monotonic() + seconds
    while (job := worker.queue.job(number)).state not in states:
        assert time.monotonic() < ends, job
        worker.tick()
        time.sleep(0.02)
    return job


def wait_for(file: Path, seconds=60):
    ends = time.monotonic() + seconds
    while not file.exists():
        assert time.monotonic() < ends, file
        time.sleep(0.02)


def test_queue_start_next_takes_one_of_each_lane_in_order(queue):
    first, second = (queue.add(["train"], f"styles/{name}", name) for name in "ab")
    image = queue.add(["generate"], "images/c", "c", IMAGES)
    assert queue.start_next(RUNS).id == first
    assert queue.start_next(RUNS) is None
    assert queue.start_next(IMAGES).id == image
    queue.finish(first, DONE, {"loss": 0.5})
    assert queue.start_next(RUNS).id == second
    assert Queue(queue.file).job(first).result == {"loss": 0.5}  # as another process reads it


def test_queue_requeue_and_delete_refuse_running_jobs(queue):
    first, second = (queue.add(["train"], f"styles/{name}", name) for name in "ab")
    queue.start_next(RUNS)
    assert not queue.requeue(first) and not queue.delete(first)
    queue.finish(first, FAILED, {"error": "no memory"})
    assert queue.requeue(first)
    assert [job.id for job in queue.jobs()] == [second, first]  # behind what waits already
    assert queue.delete(first) and queue.job(first) is None


def test_worker_outcome_of_done_failed_and_crashed_commands(worker, queue):
    numbers = [queue.add([name], "styles/x", name) for name in ("other", "fail", "crash")]
    jobs = [run_until(worker, number, DONE, FAILED, INTERRUPTED) for number in numbers]
    assert [job.state for job in jobs] == [DONE, FAILED, INTERRUPTED]
    assert jobs[0].result == {"args": ["other"]}
    assert jobs[1].error == "no base at /opt/models/base" and jobs[2].error == "killed"


def test_worker_stop_ends_a_run_and_requeue_starts_the_same_command(worker, queue, tmp_path):
    number = queue.add(["wait"], "styles/x", "x")
    run_until(worker, number, RUNNING)
    wait_for(tmp_path / "started")
    status = worker.status(queue.job(number))
    assert (status.phase, status.done, status.total, status.note) == ("training", 3, 10, "loss 0.500")
    worker.stop(number)
    assert run_until(worker, number, STOPPED).pid is None
    (tmp_path / "release").touch()
    assert queue.requeue(number)
    assert run_until(worker, number, DONE).result == {"args": ["wait"]}


def test_worker_stop_of_a_waiting_job_never_starts_it(worker, queue):
    first, second = queue.add(["wait"], "a", "a"), queue.add(["other"], "b", "b")
    run_until(worker, first, RUNNING)
    worker.stop(second)
    assert queue.job(second).state == STOPPED
    worker.stop(first)
    run_until(worker, first, STOPPED)
    worker.tick()
    assert queue.job(second).state == STOPPED


def test_worker_started_again_finds_a_run_in_flight(worker, queue, tmp_path):
    number = queue.add(["wait"], "styles/x", "x")
    pid = run_until(worker, number, RUNNING).pid
    wait_for(tmp_path / "started")
    again = Worker(Queue(queue.file), tmp_path, tmp_path / "jobs", FAKE)
    again.tick()
    assert (queue.job(number).state, queue.job(number).pid) == (RUNNING, pid)
    (tmp_path / "release").touch()
    worker.children[number].wait(timeout=60)  # as init would; this process started it
    assert run_until(again, number, DONE).result == {"args": ["wait"]}


def test_worker_started_again_marks_a_lost_run_as_interrupted(worker, queue, tmp_path):
    number = queue.add(["wait"], "styles/x", "x")
    pid = run_until(worker, number, RUNNING).pid
    wait_for(tmp_path / "started")
    os.kill(pid, signal.SIGKILL)
    worker.children[number].wait(timeout=60)
    again = Worker(Queue(queue.file), tmp_path, tmp_path / "jobs", FAKE)
    again.tick()
    assert queue.job(number).state == INTERRUPTED
    assert queue.requeue(number) and queue.job(number).state == WAITING


def test_worker_does_not_take_another_process_for_the_run(worker, queue):
    other = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        number = queue.add(["wait"], "styles/x", "x")
        queue.start_next(RUNS)
        queue.set_process(number, other.pid, 1.0)  # its pid, of an earlier process
        worker.tick()
        assert queue.job(number).state == INTERRUPTED
        worker.stop(number)
        assert other.poll() is None
    finally:
        other.communicate(b"\n", timeout=60)
