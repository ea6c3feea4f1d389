"""Run cells sequentially in this process, or in parallel over Ray, each with one GPU or an equal share of the cores.

The cell of a worker that dies is given to another one, up to `RETRIES` times.
"""

import signal
import traceback
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

from impasto.errors import UserError
from impasto.failures import explain_failure, signal_handlers

Cell = TypeVar("Cell")
"""Any picklable description of work, such as a cell of `reproduce` or `compare`."""
RETRIES = 3
Run = Callable[..., dict[str, Any]]
"""run(cell, *shared) -> its result."""
Done = Iterator[tuple[Cell, dict[str, Any] | str]]
"""(cell, result) in order of completion; a string is the error message of a failed cell."""


def fan(
    run: Run, cells: Sequence[Cell], shared: tuple[Any, ...], workers: int = 1, cluster: str | None = None
) -> Done[Cell]:
    """Run the cells; an error stops only its cell. Raises UserError when Ray is needed and not installed."""
    if workers == 1 and cluster is None:
        yield from ((cell, run_safely(run, cell, shared)) for cell in cells)
    elif cells:
        yield from over_ray(run, cells, shared, workers, cluster)


def run_safely(run: Run, cell: Any, shared: tuple[Any, ...]) -> dict[str, Any] | str:
    """The result, or the error message. KeyboardInterrupt is not caught."""
    try:
        return run(cell, *shared)
    except Exception as error:
        return explain_error(error)


def explain_error(error: Exception) -> str:
    """The error in one line: a UserError's message, a common failure (disk, memory, file) explained, else type and
    place."""
    if isinstance(error, UserError):
        return str(error)
    message = (str(error).strip() or "no message").splitlines()[0]
    places = traceback.extract_tb(error.__traceback__)
    place = f" ({Path(places[-1].filename).name}, line {places[-1].lineno})" if places else ""
    return explain_failure(error) or f"{type(error).__name__}: {message}{place}"


def over_ray(run: Run, cells: Sequence[Cell], shared: tuple[Any, ...], workers: int, cluster: str | None) -> Done[Cell]:
    """`fan` over a local Ray, or over the cluster at an address ("auto": the one that this machine belongs to)."""
    ray = import_ray()
    started = start(ray, workers, cluster)
    try:
        with signal_handlers(interrupt, signal.SIGTERM):  # Ray's handler would end the process at once
            yield from run_tasks(ray, run, cells, shared, workers, cluster)
    finally:
        if started:
            ray.shutdown()


def run_tasks(
    ray: Any, run: Run, cells: Sequence[Cell], shared: tuple[Any, ...], workers: int, cluster: str | None
) -> Done[Cell]:
    """`fan` over an initialised Ray."""
    gpu = {"num_gpus": 1} if ray.cluster_resources().get("GPU", 0) >= 1 else {}
    task = ray.remote(**task_resources(workers, cluster), **gpu, max_retries=RETRIES)(run_safely)
    common = [ray.put(value) for value in (run, shared)]
    waiting = {task.remote(common[0], cell, common[1]): cell for cell in cells}
    while waiting:
        ready, _ = ray.wait(list(waiting), num_returns=1)
        for one in ready:
            cell = waiting.pop(one)
            try:
                yield cell, ray.get(one)
            except ray.exceptions.RayTaskError as error:  # around `run_safely`: e.g. a serialisation error
                yield cell, explain_error(error.cause if isinstance(error.cause, Exception) else error)
            except ray.exceptions.RayError as error:
                yield cell, f"its worker died {RETRIES + 1} times ({type(error).__name__})"


def interrupt(number: int, frame: Any) -> None:
    """Signal handler that raises KeyboardInterrupt."""
    raise KeyboardInterrupt


def import_ray() -> Any:
    """The module ray. Raises UserError naming the extra when it is not installed."""
    try:
        return import_module("ray")
    except ImportError:
        raise UserError("--workers and --cluster need Ray: pip install 'impasto[cluster]'") from None


def start(ray: Any, workers: int, cluster: str | None) -> bool:
    """Connect to a cluster, or start a local Ray; False if this process has initialised one already."""
    if ray.is_initialized():
        return False
    quiet = {"log_to_driver": False, "logging_level": "ERROR"}
    try:
        if cluster is not None:
            ray.init(address=cluster, **quiet)
        else:
            # "local": not a cluster that this machine belongs to, which would refuse num_cpus
            ray.init(
                address="local",
                num_cpus=workers * task_resources(workers)["num_cpus"],
                include_dashboard=False,
                **quiet,
            )
    except Exception as error:  # Ray raises plain Exceptions when its processes do not start in time
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"no Ray cluster at {cluster!r}: {first}" if cluster else f"Ray does not start: {first}"
        ) from None
    return True


def task_resources(workers: int, cluster: str | None = None) -> dict[str, int]:
    """num_cpus of a task: an equal share of the local cores per worker; 1 on a cluster."""
    return {"num_cpus": 1 if cluster is not None else max(1, cores() // workers)}


def cores() -> int:
    """The number of cores available to this process."""
    import os

    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
