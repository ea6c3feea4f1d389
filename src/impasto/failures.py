"""External failures of a run: Ctrl-C, a full disk, a device out of memory."""

import errno
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def interruptible() -> Iterator[list[int]]:
    """Yield a list that Ctrl-C or SIGTERM appends to, so that a loop can stop after its step; a second one
    interrupts."""
    caught: list[int] = []

    def catch(number: int, frame: Any) -> None:
        if caught:
            raise KeyboardInterrupt
        caught.append(number)

    with signal_handlers(catch, signal.SIGINT, signal.SIGTERM):
        yield caught


@contextmanager
def signal_handlers(handler: Callable[[int, Any], None], *numbers: int) -> Iterator[None]:
    """Install `handler` for these signals, and restore the previous ones; no effect outside the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, own in before.items():
            signal.signal(number, own or signal.SIG_DFL)  # None: not set from Python


def out_of_memory(error: BaseException) -> bool:
    """Whether an error means out of memory: a class on CUDA, a message on MPS and CPU."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    message = str(error)
    return isinstance(error, RuntimeError) and ("out of memory" in message or "can't allocate memory" in message)


def disk_full(error: BaseException) -> bool:
    """Whether an error means a full disk or an exceeded quota (safetensors has only a message)."""
    return getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left on device" in str(error)


def explain_failure(error: BaseException) -> str | None:
    """One line about a full disk, a device out of memory or an unusable file, for commands without checkpoints; None
    for other errors."""
    if disk_full(error):
        return "the disk is full: free space and repeat the command; complete files are kept"
    if out_of_memory(error):
        return "out of memory: try a smaller --batch or --size, or --precision bf16, if the command has them"
    if isinstance(error, OSError) and error.filename is not None:
        return f"{str(error.filename2 or error.filename)!r} cannot be used: {error.strerror}"
    return None
