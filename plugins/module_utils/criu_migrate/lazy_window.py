"""How much is asked for ahead of demands: enough to keep the link busy, so little that no demand waits behind it."""

from __future__ import annotations

import time

from .lazy_source import PIECE

GAP = 0.005  # seconds without a demand until anything is asked for ahead, while a process comes back to life
_START = 0.3  # seconds that this takes
_CALM = 0.02  # seconds without a demand until much is asked for ahead
_BUSY = 1 << 17  # bytes asked for ahead before that: a quarter of a millisecond at 4 Gbit/s


class Window:
    """Bytes that may be on their way: as many as the link takes before a demand would wait behind them.

    An answer that takes 10 ms longer than the quickest one has stood in a queue.
    """

    LEAST, FIRST, MOST = 1 << 17, 1 << 20, 1 << 22
    PATIENCE = 0.01  # seconds

    def __init__(self) -> None:
        self.size = self.FIRST
        self._quickest = float("inf")
        self._demand = 0.0  # when a thread has last waited for a page
        self._opened = 0.0

    def answered(self, seconds: float) -> None:
        """A request was answered after so long."""
        self._quickest = min(self._quickest, seconds)
        if seconds > self._quickest + self.PATIENCE:
            self.size = max(self.LEAST, self.size * 7 // 8)
        else:
            self.size = min(self.MOST, self.size + PIECE // 8)

    def demanded(self) -> None:
        """A thread waits for a page."""
        self._demand = time.monotonic()

    def open(self) -> None:
        """The process runs from now on."""
        self._opened = time.monotonic()

    def now(self) -> int:
        """Bytes that may be on their way now; -1: nothing ahead of demands."""
        now = time.monotonic()
        if now - self._demand < GAP and now - self._opened < _START:
            return -1
        return min(self.size, _BUSY) if now - self._demand < _CALM else self.size
