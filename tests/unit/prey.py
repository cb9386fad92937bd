"""A child with memory behind a real userfaultfd, a store of its pages, and a Filler for it."""

from __future__ import annotations

import json
import os
import select
import socket
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate import fill, replay
from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate.lazymap import Range
from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate.uffd import PAGE

CHILD = Path(__file__).with_name("uffd_child.py")
COUNT = 512  # pages: eight chunks
PID = 77  # in the images


def page(number: int) -> bytes:
    return struct.pack("q", number) * (PAGE // 8)


class Far:
    """The test's end of a child: asks, and waits for the answer when it is wanted."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock

    def ask(self, *words: Any) -> None:
        self.sock.sendall(json.dumps(words).encode() + b"\n")

    def answer(self) -> Any:
        line = b""
        while not line.endswith(b"\n"):  # never beyond the line: a descriptor may come with what is behind it
            line += self.sock.recv(1) or b"\n"
        verdict, value = json.loads(line)
        assert verdict == "ok", value
        return value

    def answer_within(self, seconds: float) -> Any:
        return self.answer() if select.select([self.sock], [], [], seconds)[0] else None

    def __call__(self, *words: Any) -> Any:
        self.ask(*words)
        return self.answer()


class Prey(Far):
    """A child whose memory is guarded from the start; page i of it has to become page(i + 1)."""

    def __init__(self, pages: int = COUNT) -> None:
        near, far = socket.socketpair()
        words = [sys.executable, str(CHILD), str(far.fileno()), str(pages)]
        self.process = subprocess.Popen(words, pass_fds=(far.fileno(),))
        far.close()
        near.settimeout(20)
        data, fds, _flags, _address = socket.recv_fds(near, 4096, 1)
        super().__init__(near)
        verdict, value = json.loads(data)
        if verdict != "ok":
            self.close()
            pytest.skip(f"no userfaultfd here: {value}")
        self.start = int(value)
        self.fd = fds[0]
        self.pages = pages
        self.range = Range(self.start, self.start + pages * PAGE)

    def at(self, index: int) -> int:
        return self.start + index * PAGE

    def forked(self) -> Far:
        """The end of a new child; to be taken once the fork has been let through."""
        _data, fds, _flags, _address = socket.recv_fds(self.sock, 1, 1)
        sock = socket.socket(fileno=fds[0])
        sock.settimeout(20)
        self.answer()
        return Far(sock)

    def begin(self, *words: Any) -> None:
        """Something that goes on only when its event has been read."""
        self.ask(*words)
        self.event_pending()

    def event_pending(self) -> None:
        """Until it has done something that wants an answer."""
        poll = select.poll()
        poll.register(self.fd, select.POLLIN)
        assert poll.poll(10_000), "no event came"

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.sock.close()


class Memory:
    """A store that makes pages up, notes every read, and lets something happen before the answer to some of them."""

    arrivals = -1

    def __init__(self, prey: Prey, **happen: Callable[[], None]) -> None:
        self.prey = prey
        self.reads: list[tuple[int, int]] = []
        self.dropped: list[int] = []
        self.happen = {int(name[1:]): action for name, action in happen.items()}

    def there(self, pid: int, vaddr: int, pages: int, urgent: bool = False) -> int:
        assert pid == PID
        return pages

    def release(self, pid: int, vaddr: int, pages: int) -> None:
        self.dropped += [(vaddr - self.prey.start) // PAGE + index for index in range(pages)]

    def released(self, pid: int) -> list[tuple[int, int]]:
        return [(self.prey.at(index), self.prey.at(index + 1)) for index in self.dropped]

    def read(self, pid: int, vaddr: int, pages: int) -> bytes:
        first = (vaddr - self.prey.start) // PAGE
        self.reads.append((first, pages))
        self.happen.get(len(self.reads), lambda: None)()
        return b"".join(page(first + index + 1) for index in range(pages))


class Run:
    """A Filler for one child, and all that it has said and done."""

    def __init__(self, prey: Prey, store: Any, log: str = "", skip: int = 0, fds: dict[str, int] | None = None) -> None:
        self.lines: list[str] = []
        self.forked: dict[str, int] = {}
        text = f"(00.1) uffd: Received PID: {PID}, uffd: 5\n{log}"
        found = replay.Replay(text, lambda _pid: [prey.range._replace(start=prey.at(skip))])
        fds = fds or {f"{PID}-5": prey.fd}
        self.filler = fill.Filler(store, found, fds, self.said, self, self.lines.append)

    def said(self, text: str) -> None:
        assert text

    def shelve(self, parent: str, key: str, fd: int) -> None:
        assert parent in self.filler.fds
        self.forked[key] = fd

    def let_go(self, key: str) -> None:
        if key in self.forked:
            os.close(self.forked.pop(key))

    def __call__(self) -> fill.Filled:
        return self.filler.run()

    def close(self) -> None:
        for fd in self.filler.fds.values():
            os.close(fd)


def whole(first: int = 0, last: int = COUNT) -> list[int]:
    return [index + 1 for index in range(first, last)]
