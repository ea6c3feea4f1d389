"""Peak memory of a stretch of work: of the GPU where there is one, else the resident memory of this process."""

import re
from pathlib import Path

import psutil
import torch

GB = 1e9
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def reset_peak_memory() -> None:
    """Begin a new stretch. Without a GPU this resets the high-water mark of Linux (proc(5), clear_refs 5); elsewhere
    there is none to reset."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return
    try:
        CLEAR.write_text("5")
    except OSError:
        return


def peak_memory() -> float:
    """GB since `reset_peak_memory`: allocated on the GPU, else the most that this process had resident, with all
    that was loaded before; where the system keeps no such mark, what it has now."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / GB
    try:
        found = re.search(r"^VmHWM:\s+(\d+) kB", STATUS.read_text(), re.MULTILINE)
    except OSError:
        found = None
    return int(found[1]) * 1024 / GB if found else psutil.Process().memory_info().rss / GB
