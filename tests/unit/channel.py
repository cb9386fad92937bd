"""Memory of a stopped process, and how tests of the lazy channel look at it from both of its ends."""

from __future__ import annotations

import ctypes
import mmap
import os
import signal
import threading
from collections.abc import Callable
from typing import Any

from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate.uffd import PAGE

PAGES = 1500


def content(page: int) -> bytes:
    return page.to_bytes(8, "little") * (PAGE // 8)


class Child:
    """A stopped process with PAGES pages that differ, and an unreadable one behind them."""

    def __init__(self) -> None:
        reading, writing = os.pipe()
        self.pid = os.fork()
        if not self.pid:
            self._live(writing)
        os.close(writing)
        self.start = int(os.read(reading, 32))
        os.close(reading)
        os.kill(self.pid, signal.SIGSTOP)
        os.waitpid(self.pid, os.WUNTRACED)

    def _live(self, writing: int) -> None:
        try:
            memory = mmap.mmap(-1, (PAGES + 1) * PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            for page in range(PAGES):
                memory[page * PAGE : (page + 1) * PAGE] = content(page)
            start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
            ctypes.CDLL(None).munmap(ctypes.c_void_p(start + PAGES * PAGE), PAGE)
            os.write(writing, str(start).encode())
            signal.pause()
        finally:
            os._exit(1)

    def ranges(self) -> dict[int, list[tuple[int, int]]]:
        """With gaps, with two that touch, and with one so long that it takes several requests."""
        pieces = [(0, 1), (2, 5), (5, 9), (20, 21), (30, PAGES)]
        return {self.pid: [(self.start + a * PAGE, self.start + b * PAGE) for a, b in pieces]}

    def address(self, page: int) -> int:
        return self.start + page * PAGE


def background(call: Callable[[], Any]) -> tuple[threading.Thread, list[Any]]:
    """The call in a thread, and the list that its result, or its exception, comes into."""
    outcome: list[Any] = []

    def run() -> None:
        try:
            outcome.append(call())
        except Exception as error:
            outcome.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread, outcome
