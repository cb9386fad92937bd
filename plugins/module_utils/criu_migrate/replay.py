"""What a dead `criu lazy-pages`, and the guards that took over from it, had still to do: replayed from their log."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Sequence
from typing import Callable

from .layout import Layout, count
from .lazymap import Range

TAKEN_OVER = "uffd: taken over"  # a line of the log: whoever wrote before it is dead

# criu/uffd.c; lengths of REMAP and uffd_copy are decimal, all else is hexadecimal.
_LINE = re.compile(
    r"uffd: (?:Received PID: (?P<pid>\d+), uffd: (?P<fd>\d+)$"
    r"|(?P<taken>taken over)$"
    r"|(?P<who>\d+-\d+): (?:"
    r"uffd_copy: 0x(?P<copy>[0-9a-f]+)/(?P<length>\d+)$"
    r"|copy: mcopy_rc:(?P<copied>-?\d+)"
    r"|REMAP: (?P<old>[0-9a-f]+) -> (?P<new>[0-9a-f]+) \((?P<moved>\d+)\)$"
    r"|(?P<how>REMOVE|UNMAP): (?P<start>[0-9a-f]+)\((?P<size>[0-9a-f]+)\)$"
    r"|FORK: child with ufd=(?P<child>\d+)$"
    r"|(?P<settled>SETTLED)$"
    r"|(?P<end>EXIT)$))",
    re.MULTILINE,
)


class Replay:
    """Lazy memory of every process as the log of `criu lazy-pages` (-v4) leaves it.

    `pieces` has the key "P-F": P is the PID in the images, F the daemon's number of the userfaultfd; a child has the P
    of its parent. Pages that the daemon has filled are left out, and processes that have ended.
    """

    def __init__(self, text: str, ranges: Callable[[int], Sequence[Range]]) -> None:
        """`ranges` gives the lazy pages of a PID. ValueError for a log that does not start at the beginning."""
        self.pieces: dict[str, Layout] = {}
        self.known: set[str] = set()  # all keys, also of processes that have ended
        self.pages_total = 0  # with those that children have inherited, which are needed once more
        self.pages_inherited = 0
        self.pages_brought = 0  # by the daemon
        self.pages_gone = 0  # with processes that have ended
        self._copy = ("", 0, 0)  # what the daemon was about to fill: done if it has said anything else after that
        seen = 0
        for line in _LINE.finditer(text):
            if line["taken"]:
                self._copy = ("", 0, 0)
            elif line["pid"]:
                self._begin(f"{line['pid']}-{line['fd']}", Layout(ranges(int(line["pid"]))))
            elif line["who"] in self.pieces:
                self._apply(line)
            else:
                raise ValueError(f"the log of criu lazy-pages does not say where this comes from: {line[0]}")
            seen = line.end()
        if text.count("\n", seen) > 1:
            self._filled()

    def _begin(self, key: str, layout: Layout) -> None:
        self.pieces[key] = layout
        self.known.add(key)
        self.pages_total += layout.pages()

    def adopt(self, parent: str, key: str) -> bool:
        """A child whose fork was not logged any more, though nothing has happened after it; False: it is known."""
        if key in self.known or parent not in self.pieces:
            return False
        self._inherit(parent, key)
        return True

    def _inherit(self, parent: str, key: str) -> None:
        layout = self.pieces[parent].inherited()
        self.pages_inherited += layout.pages()
        self._begin(key, layout)

    def _filled(self) -> None:
        key, start, size = self._copy
        if key in self.pieces:
            self.pages_brought += count(self.pieces[key].pieces.take(start, start + size))
        self._copy = ("", 0, 0)

    def _apply(self, line: re.Match[str]) -> None:
        key = line["who"]
        if line["copied"]:  # less than it was about to fill, or nothing
            self._copy = (key, self._copy[1], max(0, int(line["copied"])))
        self._filled()
        layout = self.pieces[key]
        if line["copy"]:
            self._copy = (key, int(line["copy"], 16), int(line["length"]))
        elif line["old"]:
            layout.remap(int(line["old"], 16), int(line["new"], 16), int(line["moved"]))
        elif line["how"]:
            start = int(line["start"], 16)
            (layout.unmap if line["how"] == "UNMAP" else layout.remove)(start, start + int(line["size"], 16))
        elif line["settled"]:
            layout.settle()
        elif line["child"]:
            self._inherit(key, f"{key.split('-')[0]}-{line['child']}")
        elif line["end"]:
            self.pages_gone += layout.pages() + layout.given_up
            del self.pieces[key]


def fork_line(parent: str, key: str) -> str:
    return f"uffd: {parent}: FORK: child with ufd={key.split('-')[1]}"


class Journal:
    """Lines behind the daemon's own, in its words. OSError where one could not be written: it is to be given again."""

    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        # The daemon may have died within a line, or between a line and what that says: nothing after it counts as
        # its own, or a page that it never brought would be taken for there.
        self._write(f"\n{TAKEN_OVER}\n")

    def __call__(self, line: str) -> None:
        self._write(line + "\n")

    def _write(self, text: str) -> None:
        data = text.encode()
        if os.write(self._fd, data) < len(data):  # the next try comes behind half a line, which is no line
            raise OSError(errno.ENOSPC, "The log of criu lazy-pages cannot be written")

    def close(self) -> None:
        os.close(self._fd)
