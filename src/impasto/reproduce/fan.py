"""Cells one after another here, or side by side over Ray: one GPU or an equal share of the cores each.

A worker that dies costs its cell only: Ray gives the cell to another one, up to `RETRIES` times.
"""

import signal
import traceback
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from impasto.errors import UserError
from impasto.failures import catching, in_words
from impasto.reproduce.cells import Cell

RETRIES = 3
Run = Callable[..., dict[str, Any]]
"""run(cell, *shared) -> what the cell's file holds."""
Done = Iterator[tuple[Cell, dict[str, Any] | str]]
"""Cells with their results as they are done; a string says why a cell could not be run."""


def fan(run: Run, cells: Sequence[Cell], shared: tuple[Any, ...], workers: int = 1, cluster: str | None = None) -> Done:
    """Run the cells; an error of one stops that one only. UserError at once when Ray is needed and is not there."""
    if workers == 1 and cluster is None:
        yield from ((cell, attempt(run, cell, shared)) for cell in cells)
    elif cells:
        yield from over_ray(run, cells, shared, workers, cluster)


def attempt(run: Run, cell: Cell, shared: tuple[Any, ...]) -> dict[str, Any] | str:
    """The result, or why there is none. Ctrl-C goes through."""
    try:
        return run(cell, *shared)
    except Exception as error:
        return why(error)


def why(error: Exception) -> str:
    """One line: what a UserError says, a full disk, memory or a file in words, else the kind of error and its place."""
    if isinstance(error, UserError):
        return str(error)
    said = (str(error).strip() or "no message").splitlines()[0]
    places = traceback.extract_tb(error.__traceback__)
    place = f" ({Path(places[-1].filename).name}, line {places[-1].lineno})" if places else ""
    return in_words(error) or f"{type(error).__name__}: {said}{place}"


def over_ray(run: Run, cells: Sequence[Cell], shared: tuple[Any, ...], workers: int, cluster: str | None) -> Done:
    """As `fan`, over a Ray of our own, or over the cluster at an address ("auto": the one that this machine is in)."""
    ray = get_ray()
    started = start(ray, workers, cluster)
    try:
        with catching(interrupt, signal.SIGTERM):  # Ray's own handler ends the process at once
            yield from each(ray, run, cells, shared, workers, cluster)
    finally:
        if started:
            ray.shutdown()


def each(ray: Any, run: Run, cells: Sequence[Cell], shared: tuple[Any, ...], workers: int, cluster: str | None) -> Done:
    """As `fan`, over a Ray that runs."""
    gpu = {"num_gpus": 1} if ray.cluster_resources().get("GPU", 0) >= 1 else {}
    task = ray.remote(**share(workers, cluster), **gpu, max_retries=RETRIES)(attempt)
    common = [ray.put(value) for value in (run, shared)]
    waiting = {task.remote(common[0], cell, common[1]): cell for cell in cells}
    while waiting:
        ready, _ = ray.wait(list(waiting), num_returns=1)
        for one in ready:
            cell = waiting.pop(one)
            try:
                yield cell, ray.get(one)
            except ray.exceptions.RayTaskError as error:  # around `attempt`: what cannot be sent, for one
                yield cell, why(error.cause if isinstance(error.cause, Exception) else error)
            except ray.exceptions.RayError as error:
                yield cell, f"its worker died {RETRIES + 1} times ({type(error).__name__})"


def interrupt(number: int, frame: Any) -> None:
    """SIGTERM stops as Ctrl-C does."""
    raise KeyboardInterrupt


def get_ray() -> Any:
    """The module ray. Raises UserError that names the extra when it is not installed."""
    try:
        return import_module("ray")
    except ImportError:
        raise UserError("--workers and --cluster need Ray: pip install 'impasto[cluster]'") from None


def start(ray: Any, workers: int, cluster: str | None) -> bool:
    """Connect, or start a Ray of `workers` processes here; False when one was running in this process already."""
    if ray.is_initialized():
        return False
    quiet = {"log_to_driver": False, "logging_level": "ERROR"}
    try:
        if cluster is not None:
            ray.init(address=cluster, **quiet)
        else:
            # "local": not the cluster that this machine may be in, which would take no num_cpus
            ray.init(address="local", num_cpus=workers * share(workers)["num_cpus"], include_dashboard=False, **quiet)
    except Exception as error:  # Ray raises bare ones when its processes do not come up in time
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"no Ray cluster at {cluster!r}: {first}" if cluster else f"Ray does not start: {first}"
        ) from None
    return True


def share(workers: int, cluster: str | None = None) -> dict[str, int]:
    """The cores of a task: an equal share of those here, so that there are as many tasks as workers; on a cluster, one.
    Where there are GPUs a task takes one as well."""
    return {"num_cpus": 1 if cluster is not None else max(1, cores() // workers)}


def cores() -> int:
    """Cores that this process may use."""
    import os

    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
