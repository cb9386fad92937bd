"""Memory that is fetched before the freeze, so that images and restore need not wait for it.

A virtual machine's free memory is often not there: its host hands a page out at the first touch and takes it back when
it is freed (free page reporting, balloons). Measured in such a guest, Linux 6.18: 8.6 us for a cold page, 2.1 to 2.9 us
for one that had just been freed; a restore of 529 MB took 1.1 to 1.2 s cold, 0.4 s warm.
"""

from __future__ import annotations

import contextlib
import mmap
import threading
import time
from typing import Callable

_STEP = 8 << 20  # bytes filled at once: the interpreter does nothing else meanwhile
_SPARE = 1 << 28  # bytes of the available memory that are left to everybody else
_ADVICE = (14, 10)  # MADV_HUGEPAGE: quicker to fill and to free; MADV_DONTFORK: no page tables to copy for criu


class Reserve:
    """Two shares of memory, each of `size` bytes: one for the images, one for the restored process.

    Fills them in a thread, for `seconds` at most; less than asked for where not as much is available. Each share is
    given back at once just before it is needed: freed pages are the first to be handed out again.
    """

    def __init__(self, size: int, seconds: float, say: Callable[[str], None]) -> None:
        self._end = time.monotonic() + seconds
        self._say = say
        size = min(size, max(0, available() - _SPARE) // 2)
        self._shares: dict[str, mmap.mmap] = {}
        self._filled: dict[str, int] = {}
        if size >= _STEP:
            flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
            self._shares = {name: mmap.mmap(-1, size, flags) for name in ("images", "process")}
        self._thread = threading.Thread(target=self._fill, daemon=True)
        self._thread.start()

    def _fill(self) -> None:
        began, filled = time.monotonic(), 0
        for name, share in list(self._shares.items()):
            for advice in _ADVICE:
                with contextlib.suppress(OSError):  # a kernel without transparent huge pages
                    share.madvise(advice)
            for start in range(0, len(share), _STEP):
                if time.monotonic() > self._end:
                    break
                piece = range(start, min(start + _STEP, len(share)), mmap.PAGESIZE)
                share[piece.start : piece.stop : mmap.PAGESIZE] = b"\1" * len(piece)
                self._filled[name] = min(start + _STEP, len(share))
                filled += len(piece) * mmap.PAGESIZE
        self._say(f"reserved {filled >> 20} MB of memory in {time.monotonic() - began:.2f} s")

    def wait(self) -> None:
        """Until it is filled, or its time is over."""
        self._thread.join()

    def holds(self, name: str) -> int:
        """Bytes of that share that were fetched and not given back."""
        return self._filled.get(name, 0) if name in self._shares else 0

    def give_back(self, name: str) -> None:
        """The share `images` or `process`; a second time nothing happens."""
        self.wait()
        share = self._shares.pop(name, None)
        if share is not None:
            share.close()


def available() -> int:
    """Bytes that can be had without swapping (MemAvailable, proc(5))."""
    with open("/proc/meminfo", encoding="ascii") as handle:
        for line in handle:
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) << 10
    return 0
