"""Waiting for a file in one or more directories or for the end of a process, whichever comes first, without polling."""

from __future__ import annotations

import ctypes
import os
import select
import time
from types import TracebackType
from typing import Callable

IN_CLOSE_WRITE = 0x8
IN_MOVED_TO = 0x80


class Watch:
    """Wakes when a file in one of the directories has been written or renamed into place."""

    def __init__(self, *directories: str) -> None:
        """Watch `directories`; raises OSError where the kernel refuses."""
        libc = ctypes.CDLL(None, use_errno=True)
        self.descriptor = int(libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))
        if self.descriptor < 0:
            raise OSError(ctypes.get_errno(), "inotify_init1")
        mask = IN_CLOSE_WRITE | IN_MOVED_TO
        for directory in directories:
            if libc.inotify_add_watch(self.descriptor, os.fsencode(directory), mask) < 0:
                error = OSError(ctypes.get_errno(), f"inotify_add_watch {directory}")
                os.close(self.descriptor)
                raise error

    def __enter__(self) -> Watch:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.close(self.descriptor)

    def until(self, true: Callable[[], bool], limit: float, process: int | None = None) -> bool:
        """Return whether `true()` became so within `limit` seconds and before the pidfd `process` reported an end.

        It is asked once at the start, once after each change in the directory, and once more at the end.
        """
        deadline = time.monotonic() + limit
        watched = [self.descriptor] + ([] if process is None else [process])
        while not true():
            woken = select.select(watched, [], [], max(0.0, deadline - time.monotonic()))[0]
            if self.descriptor in woken:
                os.read(self.descriptor, 65536)
            elif not woken or process in woken:
                return true()
        return True
