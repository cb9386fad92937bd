"""The destination's end of an eager dump: the pages and page maps that criu sends, straight into image files.

Speaks what `criu page-server` speaks (criu/page-xfer.c at v4.2) and leaves the files that it would leave. That program
takes 64 KB at a time, and behind the guards' TLS it needs every byte once more through a socket pair: 529 MB took it
0.54 s not encrypted, this 0.30 s (docs/benchmarks.md).
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import socket
import struct
import threading
import time
from collections.abc import Iterator
from typing import Any, BinaryIO, Callable

from .errors import LinkLost, MigrationError
from .secure import PIECE, Plain, Secure

PAGE = mmap.PAGESIZE
_HEADER = struct.Struct("<I4xQQQ")  # command, with flags in the upper half; pages, address, what they belong to
_OPEN, _PARENT, _ADD = 4, 5, 6
_CLOSES = (0x1023, 0x1024)  # the second is the one sent with --ps-socket
_PRESENT = 4  # criu/include/pagemap.h: the pages follow
_NAMES = {1: "pagemap-{}.img", 2: "pagemap-shmem-{}.img"}  # lower byte of what they belong to; the rest is its number
_FIRST = 0x10001  # number of the first pages-N.img: `criu dump` counts its own from 1 on
_MAGIC = struct.pack("<II", 0x54564319, 0x56084025)  # criu/include/magic.h: an image; a page map
_SET_PIPE_SIZE = 1031  # linux/fcntl.h; in Python's module only from 3.10 on
_PIPE = 1 << 20
_CLOSED = "The source closed the link for pages."


class PageImages:
    """Page maps and the pages that belong to them, in a directory. OSError when a file cannot be written."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._next = _FIRST
        self._map: BinaryIO | None = None
        self.pages = -1  # descriptor of the file that pages are to be appended to
        self.count = 0

    def open(self, owner: int) -> str:
        """Begin the images of a process, or of shared memory; the name of the page map."""
        self.close()
        if owner & 0xFF not in _NAMES:
            raise MigrationError(f"criu sent pages of an unknown kind: {owner:#x}.", "Use CRIU 4.2 on both nodes.")
        name = _NAMES[owner & 0xFF].format(owner >> 8)
        self._map = open(os.path.join(self._folder, name), "wb")  # noqa: SIM115  closed with its pages
        self._map.write(_MAGIC + _message((1, self._next)))
        path = os.path.join(self._folder, f"pages-{self._next}.img")
        self.pages = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        self._next += 1
        return name

    def add(self, vaddr: int, pages: int, flags: int) -> None:
        """An entry of the page map; whether pages are to be appended as well its flags say."""
        if self._map is None:
            raise MigrationError("criu sent pages before it said whose they are.", "Use CRIU 4.2 on both nodes.")
        # images/pagemap.proto: vaddr, compat_nr_pages, flags, nr_pages
        self._map.write(_message((1, vaddr), (2, 0), (4, flags), (5, pages)))
        self.count += pages if flags & _PRESENT else 0

    def close(self) -> None:
        """Everything so far is in the files; once more it does nothing."""
        written, self._map = self._map, None
        fd, self.pages = self.pages, -1
        if fd >= 0:
            os.close(fd)
        if written is not None:
            written.close()


def _message(*fields: tuple[int, int]) -> bytes:
    """A protobuf message of whole numbers, each with the number of its field, behind its length as criu writes it."""
    body = bytearray()
    for number, value in fields:
        for left in (number << 3, value):
            body += bytes(left >> shift & 0x7F | 0x80 for shift in range(0, left.bit_length() - 7, 7))
            body.append(left >> max(0, (left.bit_length() - 1) // 7 * 7))
    return struct.pack("<I", len(body)) + bytes(body)


@contextlib.contextmanager
def _reading() -> Iterator[None]:
    """An error in here is the link's, not that of a file."""
    try:
        yield
    except OSError as error:
        raise LinkLost(f"The link for pages broke: {error}") from error


class _Stream:
    """What the link brings, cut up as it is wanted."""

    def __init__(self, link: Secure) -> None:
        self.link = link
        self._buffer = memoryview(bytearray(PIECE))
        self._rest = self._buffer[:0]

    def _fill(self) -> None:
        if not self._rest:
            with _reading():
                self._rest = self._buffer[: self.link.recv_into(self._buffer)]
            if not self._rest:
                raise LinkLost(_CLOSED)

    def header(self) -> bytes:
        found = b""
        while len(found) < _HEADER.size:
            self._fill()
            part = self._rest[: _HEADER.size - len(found)]
            found += bytes(part)
            self._rest = self._rest[len(part) :]
        return found

    def into(self, fd: int, size: int) -> None:
        """The next `size` bytes to the end of a file."""
        while size:
            self._fill()
            count = os.write(fd, self._rest[:size])
            self._rest = self._rest[count:]
            size -= count


class _Spliced(_Stream):
    """The same from a socket without encryption, without a copy into this process."""

    def __init__(self, link: Plain) -> None:
        super().__init__(link)
        self._read, self._write = os.pipe()
        with contextlib.suppress(OSError):  # past fs.pipe-user-pages-soft it stays small
            fcntl.fcntl(self._write, _SET_PIPE_SIZE, _PIPE)

    def header(self) -> bytes:
        with _reading():
            found = self.link.sock.recv(_HEADER.size, socket.MSG_WAITALL)
        if len(found) < _HEADER.size:
            raise LinkLost(_CLOSED)
        return found

    def into(self, fd: int, size: int) -> None:
        while size:
            with _reading():
                held = os.splice(self.link.fileno(), self._write, min(size, _PIPE))
            if not held:
                raise LinkLost(_CLOSED)
            size -= held
            while held:
                held -= os.splice(self._read, fd, held)

    def __del__(self) -> None:
        for end in (self._read, self._write):
            os.close(end)


def receive(link: Secure, images: PageImages, say: Callable[[str], None]) -> None:
    """Take one dump in, to criu's word that it is the end, which is answered when everything is in the files.

    LinkLost when the link breaks before that; OSError when a file cannot be written; MigrationError for what is no
    word of criu's.
    """
    stream = _Spliced(link) if isinstance(link, Plain) and hasattr(os, "splice") else _Stream(link)
    while True:
        command, pages, vaddr, owner = _HEADER.unpack(stream.header())
        kind, flags = command & 0xFFFF, command >> 16
        if command in _CLOSES:
            images.close()
            link.sendall(struct.pack("<i", 0))
            return
        if kind == _OPEN:
            say(f"{images.open(owner)} begins")
            link.sendall(b"\0")  # no images of an earlier dump here
        elif kind == _PARENT:
            link.sendall(struct.pack("<i", 0))
        elif kind == _ADD:
            images.add(vaddr, pages, flags)
            if flags & _PRESENT:
                stream.into(images.pages, pages * PAGE)
        else:
            raise MigrationError(f"criu sent the page server command {command:#x}.", "Use CRIU 4.2 on both nodes.")


class Receiver:
    """One dump's pages, taken in by a thread; `log` gets what a person may want to know."""

    def __init__(self, link: Secure, folder: str, log: str) -> None:
        self._link, self._log = link, log
        self._images = PageImages(folder)
        self._began = time.monotonic()
        self._ended = threading.Event()
        self._error: MigrationError | None = None
        self._seconds = 0.0
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        try:
            receive(self._link, self._images, self._say)
        except LinkLost as error:
            self._error = error
        except MigrationError as error:
            self._error = error
        except OSError as error:
            text = f"The destination cannot store the pages: {error.strerror or error}"
            self._error = MigrationError(text, "Make space where the images lie: see image_dir.")
        finally:
            with contextlib.suppress(OSError):  # a full disk, which has been told of
                self._images.close()
            self._seconds = time.monotonic() - self._began
            self._say(self._error.text() if self._error else f"all {self._images.count} pages are here")
            self._link.close()
            self._ended.set()

    def _say(self, text: str) -> None:
        with contextlib.suppress(OSError), open(self._log, "a", encoding="utf-8") as log:
            log.write(f"({time.monotonic() - self._began:09.6f}) {text}\n")

    def result(self, limit: float) -> dict[str, Any]:
        """pages, bytes, seconds; MigrationError where it failed, or has not ended within `limit` seconds."""
        if not self._ended.wait(limit):
            raise MigrationError("The pages of the dump did not come to their end.", "See criu-page-server.log.")
        if self._error is not None:
            raise self._error
        count = self._images.count
        return {"pages": count, "bytes": count * PAGE, "seconds": self._seconds}

    def stop(self) -> None:
        """Take nothing more; returns when no file is written any more."""
        self._link.close()
        self._ended.wait()
