"""A process with memory behind a userfaultfd, which does what it is told over a socket (argv: descriptor, pages).

Requests and answers are lines of JSON; the userfaultfd goes along with the first one, which names the address.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import platform
import random
import socket
import struct
import sys
import threading
from typing import Any

PAGE = mmap.PAGESIZE
EVENTS = 1 << 1 | 1 << 2 | 1 << 3 | 1 << 6  # UFFD_FEATURE_EVENT_FORK, _REMAP, _REMOVE, _UNMAP
USERFAULTFD = {"x86_64": 323, "aarch64": 282}[platform.machine()]
DONTNEED, FIXED = 4, 0x10
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = libc.mremap.restype = ctypes.c_void_p
libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long)
libc.mremap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p)
libc.madvise.argtypes = libc.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
libc.memcpy.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
libc.ioctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p)


def checked(result: int | None) -> int:
    if result is None or result < 0 or result == 2**64 - 1:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def anonymous(size: int) -> int:
    return checked(libc.mmap(None, size, 3, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0))


def guarded(start: int, size: int) -> int:
    """A userfaultfd as criu's restore makes it: the area is registered for missing pages."""
    fd = checked(libc.syscall(USERFAULTFD, os.O_CLOEXEC | os.O_NONBLOCK))
    checked(libc.ioctl(fd, 0xC018AA3F, ctypes.create_string_buffer(struct.pack("QQQ", 0xAA, EVENTS, 0))))
    checked(libc.ioctl(fd, 0xC020AA00, ctypes.create_string_buffer(struct.pack("QQQQ", start, size, 1, 0))))
    return fd


def number(address: int) -> int:
    """What test_fill.page() has made the page from: 0 for zeros, -1 for anything else."""
    buffer = ctypes.create_string_buffer(PAGE)
    libc.memcpy(buffer, address, PAGE)  # other threads run meanwhile
    data = buffer.raw
    return struct.unpack_from("q", data)[0] if data == data[:8] * (PAGE // 8) else -1


def write(address: int, value: int) -> None:
    libc.memcpy(address, struct.pack("q", value) * (PAGE // 8), PAGE)


class Wild:
    """Random changes of the memory map, while it knows what every page has to hold."""

    def __init__(self, start: int, numbers: range, seed: int, forks: bool) -> None:
        self.random = random.Random(seed)  # noqa: S311
        self.areas = [(start, [index + 1 for index in numbers])]
        self.count = 0
        self.forks = forks
        self.error = ""

    def run(self, steps: int) -> None:
        try:
            for _turn in range(steps):
                self.step()
            self.check_all()
        except (OSError, AssertionError) as error:
            self.error = str(error)

    def part(self) -> tuple[int, int, list[int]]:
        """An area, taken out of the list: part of it, up to 40 pages; what is left of it goes back."""
        start, pages = self.areas.pop(self.random.randrange(len(self.areas)))
        low = self.random.randrange(len(pages))
        high = min(len(pages), low + self.random.randint(1, 40))
        for first, last in ((0, low), (high, len(pages))):
            if first < last:
                self.areas.append((start + first * PAGE, pages[first:last]))
        return start + low * PAGE, (high - low) * PAGE, pages[low:high]

    def step(self) -> None:
        start, size, pages = self.part()
        kind = self.random.choice(["read", "read", "write", "move", "dontneed", "unmap", "protect", "fork"])
        if kind == "read":
            self.check(start, pages)
        elif kind == "write":
            pages = [-1000 - self.count] * len(pages)
            for index, value in enumerate(pages):
                write(start + index * PAGE, value)
        elif kind == "move":
            start = self.move(start, size)
        elif kind == "dontneed":
            checked(libc.madvise(start, size, DONTNEED))
            pages = [0] * len(pages)
        elif kind == "protect":
            checked(libc.mprotect(start, size, 1))
            checked(libc.mprotect(start, size, 3) if self.random.random() < 0.5 else 0)
            self.check(start, pages)
            checked(libc.mprotect(start, size, 3))
        elif kind == "fork" and self.forks and self.count % 4 == 0:
            self.areas.append((start, pages))
            self.fork()
            self.areas.pop()
        if kind == "unmap" and self.random.random() < 0.3:
            checked(libc.munmap(start, size))
        else:
            self.areas.append((start, pages))
        self.count += 1

    def move(self, start: int, size: int) -> int:
        """To a place that nothing else can take meanwhile."""
        to = anonymous(size)
        return checked(libc.mremap(start, size, size, 3, to))

    def fork(self) -> None:
        pid = os.fork()
        if pid == 0:
            try:
                self.check_all()
                os._exit(0)
            finally:
                os._exit(1)
        if os.waitpid(pid, 0)[1]:
            raise AssertionError("a child has seen wrong memory")

    def check(self, start: int, pages: list[int]) -> None:
        for index, value in enumerate(pages):
            found = number(start + index * PAGE)
            if found != value:
                raise AssertionError(f"page {start + index * PAGE:#x}: {found}, not {value}")

    def check_all(self) -> None:
        for start, pages in self.areas:
            self.check(start, pages)


def go_wild(start: int, pages: int, seed: int, steps: int, threads: int) -> int:
    """Steps done; each thread has a part of the memory. Only one thread alone forks, too."""
    part = pages // threads
    every = [
        Wild(start + index * part * PAGE, range(index * part, (index + 1) * part), seed + 100 * index, threads == 1)
        for index in range(threads)
    ]
    running = [threading.Thread(target=wild.run, args=(steps,)) for wild in every]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    errors = [wild.error for wild in every if wild.error]
    if errors:
        raise AssertionError("; ".join(errors))
    return sum(wild.count for wild in every)


def obey(sock: socket.socket, wish: list[Any], start: int, pages: int) -> Any:
    """Do one thing; the answer."""
    what, *args = wish
    if what == "look":
        return [number(args[0] + index * PAGE) for index in range(args[1])]
    if what == "write":
        return write(*args)
    if what == "move":
        return checked(libc.mremap(args[0], args[1], args[1], 3, anonymous(args[1])))
    if what == "wild":
        return go_wild(start, pages, *args)
    if what == "brood":
        return brood(*args)
    if what == "fork":
        mine, other = socket.socketpair()
        if os.fork() == 0:
            sock.close()
            other.close()
            serve(mine, start, pages)
            os._exit(0)
        socket.send_fds(sock, [b"\n"], [other.fileno()])
        return None
    return checked(getattr(libc, what)(*args))


def brood(count: int) -> int:
    """So many children, one after another, each of which ends at once."""
    for _turn in range(count):
        pid = os.fork()
        if pid == 0:
            os._exit(0)
        os.waitpid(pid, 0)
    return count


def serve(sock: socket.socket, start: int, pages: int) -> None:
    stream = sock.makefile("r")
    for line in stream:
        try:
            answer = ["ok", obey(sock, json.loads(line), start, pages)]
        except (OSError, AssertionError) as error:
            answer = ["failed", str(error)]
        sock.sendall(json.dumps(answer).encode() + b"\n")


def main() -> None:
    sock = socket.socket(fileno=int(sys.argv[1]))
    pages = int(sys.argv[2])
    start = anonymous(pages * PAGE)
    try:
        fd = guarded(start, pages * PAGE)
    except OSError as error:
        sock.sendall(json.dumps(["failed", str(error)]).encode() + b"\n")
        return
    socket.send_fds(sock, [json.dumps(["ok", start]).encode() + b"\n"], [fd])
    os.close(fd)
    serve(sock, start, pages)


if __name__ == "__main__":
    main()
