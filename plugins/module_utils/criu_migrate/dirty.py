"""How quickly a process writes to its memory, by the kernel's soft-dirty bits, without stopping it.

Documentation/admin-guide/mm/soft-dirty.rst: "4" into clear_refs takes the bits away, the next write to a page sets its
bit again. Only for a process that nobody else tracks: a pre-dump before this would miss what was written since.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence

from . import proc
from .uffd import PAGE

ENTRY = 8  # bytes for each page in /proc/PID/pagemap
_KERNELS = ("[vvar]", "[vvar_vclock]", "[vdso]", "[vsyscall]", "[uprobes]")
_PIECE = 1 << 20  # bytes of it read at once


def watch(pid: int, windows: Sequence[float]) -> list[tuple[float, int]]:
    """(seconds, bytes written to in them) for each window, all from one beginning; [] where a process is gone or the
    kernel does not track."""
    procs = proc.tree(pid)
    found = []
    try:
        # Bits that nobody has cleared are all set in memory that was written to, as this program's was.
        if not procs or not written(os.getpid()):
            return []
        began = time.monotonic()
        for item in procs:
            _clear(item.pid)
        for window in windows:
            time.sleep(max(0.0, began + window - time.monotonic()))  # the window is what is measured
            at = time.monotonic()
            size = sum(map(written, (item.pid for item in procs)))
            found.append(((at + time.monotonic()) / 2 - began, size))
    except OSError:
        return []
    return found


def written(pid: int) -> int:
    """Bytes of a process's own memory that were written to since its bits were cleared. OSError where it is gone."""
    pages = 0
    with open(f"/proc/{pid}/pagemap", "rb", buffering=0) as pagemap:
        for start, end in areas(pid):
            place, last = start // PAGE * ENTRY, end // PAGE * ENTRY
            while place < last:
                data = os.pread(pagemap.fileno(), min(_PIECE, last - place), place)
                if not data:
                    break
                pages += _dirty(data)
                place += len(data)
    return pages * PAGE


def _clear(pid: int) -> None:
    with open(f"/proc/{pid}/clear_refs", "wb", buffering=0) as handle:
        handle.write(b"4")


def areas(pid: int, written_only: bool = True) -> Iterator[tuple[int, int]]:
    """Memory that a dump holds, start and end in order of address; `written_only`: that may be written to."""
    with open(f"/proc/{pid}/maps", encoding="utf-8", errors="replace") as handle:
        for line in handle:
            words = line.split(maxsplit=5)
            if (written_only and words[1][1] != "w") or line.rstrip().endswith(_KERNELS):
                continue
            if words[1][3] == "p" or words[4] == "0" or "/dev/zero" in line:
                start, end = (int(word, 16) for word in words[0].split("-"))
                if start < 1 << 63:  # not the kernel's own
                    yield start, end


def _dirty(entries: bytes) -> int:
    """Pages that are there (bit 63, or swapped out: 62) and soft-dirty (55), counted byte by byte."""
    tops, nexts = entries[7::8], entries[6::8]
    mask = int.from_bytes(b"\x80" * len(tops), "little")
    top = int.from_bytes(tops, "little")
    return bin((top | top << 1) & int.from_bytes(nexts, "little") & mask).count("1")
