"""What stops a run from outside: Ctrl-C, a full disk, a device out of memory. Each ends with a state to go on from."""

import errno
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def interruptible() -> Iterator[list[int]]:
    """Ctrl-C and SIGTERM fill the list, for the loop to stop after its step; a second one stops at once."""
    caught: list[int] = []

    def catch(number: int, frame: Any) -> None:
        if caught:
            raise KeyboardInterrupt
        caught.append(number)

    with catching(catch, signal.SIGINT, signal.SIGTERM):
        yield caught


@contextmanager
def catching(handler: Callable[[int, Any], None], *numbers: int) -> Iterator[None]:
    """`handler` for these signals, then as before. Nothing outside of the main thread, where none come."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, own in before.items():
            signal.signal(number, own or signal.SIG_DFL)  # None: one that Python did not set


def out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory is out: CUDA has a class for it, MPS and the CPU a sentence."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    said = str(error)
    return isinstance(error, RuntimeError) and ("out of memory" in said or "can't allocate memory" in said)


def disk_full(error: BaseException) -> bool:
    """Whether an exception says that the disk is full, or a quota; safetensors only says it in words."""
    return getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left on device" in str(error)


def in_words(error: BaseException) -> str | None:
    """A full disk, a device out of memory or a file that cannot be used in one line, for commands that have no state to
    go on from; else None."""
    if disk_full(error):
        return "the disk is full: make room and give the same command again; what is whole on it stays"
    if out_of_memory(error):
        return "out of memory: try a smaller --batch or --size, or --precision bf16, where the command has them"
    if isinstance(error, OSError) and error.filename is not None:
        return f"{str(error.filename2 or error.filename)!r} cannot be used: {error.strerror}"
    return None
