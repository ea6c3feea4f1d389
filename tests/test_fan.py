"""Cells side by side over a local Ray: a worker that is killed costs its cell one more try, and nothing else."""

import os
import re
import signal
import sys
from types import SimpleNamespace

import pytest

from impasto import parallel as module
from impasto.errors import UserError
from impasto.parallel import fan
from impasto.reproduce.cells import Cell

CELLS = [Cell(f"arm {i}", "unit", {"i": i}) for i in range(4)]


def test_import_ray_missing_raises_naming_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    for flags in ({"workers": 2}, {"cluster": "auto"}):
        with pytest.raises(UserError, match=r"pip install 'impasto\[cluster\]'"):
            list(fan(lambda cell: {}, CELLS, (), **flags))
    assert len(list(fan(lambda cell: {}, CELLS, ()))) == 4  # one process needs none
    assert list(fan(lambda cell: {}, [], (), workers=2)) == []  # nor does nothing to do


def test_fan_local_continues_after_failed_cell():
    def run(cell, factor):
        if cell.spec["i"] == 1:
            raise UserError("no")
        return {"twice": factor * cell.spec["i"]}

    assert [result for _, result in fan(run, CELLS, (2,))] == [{"twice": 0}, "no", {"twice": 4}, {"twice": 6}]


def test_fan_any_error_is_one_line(tmp_path):
    def run(cell):
        if cell.spec["i"] == 1:
            raise ValueError("no\nand why")
        if cell.spec["i"] == 2:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")
        if cell.spec["i"] == 3:
            (tmp_path / "none" / "here").write_text("x")
        return {}

    result = [result for _, result in fan(run, CELLS, ())]
    assert result[0] == {} and result[2].startswith("out of memory: try a smaller")
    assert re.fullmatch(r"ValueError: no \(test_fan\.py, line \d+\)", result[1])
    assert result[3].endswith("here' cannot be used: No such file or directory")

    def stopped(cell):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(fan(stopped, CELLS, ()))


def test_fan_killed_worker_retries_cell(tmp_path):
    import ray

    def run(cell, folder):
        me = f"{cell.spec['i']}"
        with (folder / me).open("a") as result:
            result.write(f"{os.getpid()}\n")
        if me == "1":
            raise UserError("cell 1 cannot be run")
        if me == "3":
            raise ZeroDivisionError("cell 3 is broken")
        if me == "2" and len((folder / me).read_text().split()) == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return {"i": cell.spec["i"], "threads": os.environ.get("OMP_NUM_THREADS")}

    try:
        found = {cell.arm: result for cell, result in fan(run, CELLS, (tmp_path,), workers=2)}
    except UserError as error:  # Ray gives its own processes 30 s, which a machine under full load may not keep
        if "timed out" not in str(error):
            raise
        pytest.skip(f"Ray's processes did not start in its time: {error}")
    assert {arm: result["i"] for arm, result in found.items() if isinstance(result, dict)} == {
        "arm 0": 0,
        "arm 2": 2,
    }
    assert found["arm 1"] == "cell 1 cannot be run"
    assert re.fullmatch(r"ZeroDivisionError: cell 3 is broken \(test_fan\.py, line \d+\)", found["arm 3"])
    tries = {i: (tmp_path / f"{i}").read_text().split() for i in range(4)}
    assert [len(tries[i]) for i in range(4)] == [1, 1, 2, 1] and tries[2][0] != tries[2][1]
    assert all(os.getpid() != int(pid) for pids in tries.values() for pid in pids)
    assert not ray.is_initialized()  # what was started is stopped


def test_start_without_cluster_raises(monkeypatch):
    import ray

    def refuse(**more):
        raise ConnectionError("Could not find any running Ray instance.\nmore")

    monkeypatch.setattr(ray, "init", refuse)
    with pytest.raises(
        UserError, match=r"no Ray cluster at '10\.0\.0\.1:6379': Could not find any running Ray instance"
    ):
        list(fan(lambda cell: {}, CELLS, (), cluster="10.0.0.1:6379"))
    assert module.cores() >= 1


def test_over_ray_sigterm_interrupts(monkeypatch):
    """Ray's own handler would end the process before the page is written."""

    def killed(waiting, num_returns):
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("not stopped")

    task = SimpleNamespace(remote=lambda *args: object())
    ray = SimpleNamespace(is_initialized=lambda: True, cluster_resources=dict, put=id, wait=killed)
    ray.remote = lambda **options: lambda function: task
    monkeypatch.setattr(module, "import_ray", lambda: ray)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        list(module.over_ray(lambda cell: {}, ["cell"], (), 2, None))
    assert signal.getsignal(signal.SIGTERM) == before
