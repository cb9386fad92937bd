"""The destination's end of an eager dump: the pages and page maps that criu sends, straight into image files.

Speaks what `criu page-server` speaks (criu/page-xfer.c at v4.2) and leaves the files that it would leave. That program
takes 64 KB at a time, and behind the guards' TLS it needs every byte once more through a socket pair: 529 MB took it
0.54 s not encrypted, this 0.30 s (docs/benchmarks.md).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import struct
import threading
import time
import traceback
from collections.abc import Iterator
from typing import Any, BinaryIO, Callable

from . import lazymap, record
from .errors import LinkLost, MigrationError
from .held import Held, give_back, within
from .page_runs import ADD, HEADER, HERE, IN_PARENT, LAZY, OPEN, PAGE, PARENT, PRESENT, Runs, entry, head
from .secure import PIECE, Plain, Secure

CLOSES = (0x1023, 0x1024)  # the second is the one sent with --ps-socket
_NAMES = {1: "pagemap-{}.img", 2: "pagemap-shmem-{}.img"}  # lower byte of what they belong to; the rest is its number
_FIRST = 0x10001  # number of the first pages-N.img: `criu dump` counts its own from 1 on
_MAGIC = struct.pack("<II", 0x54564319, 0x56084025)  # criu/include/magic.h: an image; a page map
_SET_PIPE_SIZE = 1031  # linux/fcntl.h; in Python's module only from 3.10 on
_PIPE = 1 << 20
_CLOSED = "The source closed the link for pages."


class PageImages:
    """Page maps and the pages that belong to them, in a directory. OSError when a file cannot be written.

    With a parent, the images of an earlier dump of the same tree, pages that have not changed since stay there;
    `late`: the process is to be restored from this dump before they are read. `tight`: there is no room for pages in
    two versions, and the parent's go as soon as newer ones have come, which makes it no parent for any other dump.
    `last`: this one will be nobody's parent either.
    """

    def __init__(
        self, folder: str, parent: PageImages | None = None, late: bool = False, tight: bool = False, last: bool = False
    ) -> None:
        self._folder = folder
        self._parent = parent
        self._late = late
        self._tight = tight
        self._last = last
        self.spent = False  # some of it was given back for pages of a later dump
        self._next = _FIRST
        self._map: BinaryIO | None = None
        self._path = ""
        self._size = 0  # bytes of that file
        self._owner = 0
        self._runs: dict[int, Runs] = {}  # of each owner, what is in a parent included
        self.pages = -1  # descriptor of the file that pages are to be appended to
        self.count = 0

    def open(self, owner: int) -> str:
        """Begin the images of a process, or of shared memory; the name of the page map."""
        self.close()
        if owner & 0xFF not in _NAMES:
            raise MigrationError(f"criu sent pages of an unknown kind: {owner:#x}.", "Use CRIU 4.2 on both nodes.")
        name = _NAMES[owner & 0xFF].format(owner >> 8)
        self._map = open(os.path.join(self._folder, name), "wb")  # noqa: SIM115  closed with its pages
        self._map.write(_MAGIC + head(self._next))
        self._path, self._size = os.path.join(self._folder, f"pages-{self._next}.img"), 0
        self.pages = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        self._owner, self._runs[owner] = owner, Runs(owner, followed=not self._last)
        self._next += 1
        return name

    @property
    def follows(self) -> bool:
        """There is an earlier dump that this one leaves out what has not changed since."""
        return self._parent is not None

    def inherits(self, owner: int) -> bool:
        """An earlier dump has pages of this process, or of this shared memory."""
        return self._parent is not None and owner in self._parent._runs

    def add(self, vaddr: int, pages: int, flags: int) -> None:
        """An entry of the page map; whether pages are to be appended as well its flags say."""
        if self._map is None:
            raise MigrationError("criu sent pages before it said whose they are.", "Use CRIU 4.2 on both nodes.")
        if flags & IN_PARENT:
            self._inherit(vaddr, vaddr + pages * PAGE)
            return
        self._write(entry(vaddr, flags, pages))
        if flags & PRESENT:
            self._runs[self._owner].add(Held(vaddr, vaddr + pages * PAGE, flags & LAZY, self._path, self._size))
            self._size += pages * PAGE
            self.count += pages

    def came(self) -> None:
        """The pages of the last entry are in their file."""
        if self._tight and self._parent is not None:
            last = self._runs[self._owner].last()
            self._parent.supersede(self._owner, last.start, last.end)

    def supersede(self, owner: int, start: int, end: int) -> None:
        """Give back what is held between these addresses: a later dump has them. Whatever becomes of that one, nothing
        can be put on this one any more."""
        for item in within(self.held(owner), start, end):
            self.spent = True
            give_back(item)

    def size(self) -> int:
        """Bytes of all pages that are held, in a parent too."""
        return sum(runs.size() for runs in self._runs.values())

    def held(self, owner: int) -> list[Held]:
        """Pages of a dump that is complete, in order of address, what is in a parent included."""
        return self._runs[owner].all() if owner in self._runs else []

    def take_over(self, said: memoryview) -> int:
        """How many bytes of what criu says only tell what has not changed since the parent; it is noted."""
        if self._map is None:
            return 0
        size, entries = self._runs[self._owner].take_over(self._before(), said, self._late)
        self._map.write(entries)
        return size

    def _before(self) -> Runs:
        """What an earlier dump has of the process whose pages come."""
        return (self._parent._runs.get(self._owner) if self._parent else None) or Runs(self._owner)

    def _write(self, entries: bytes) -> None:
        if self._map is not None:
            self._map.write(entries)

    def _inherit(self, start: int, end: int) -> None:
        """Unchanged since the parent, where all of it has to be."""
        pieces, entries = self._before().between(start, end, self._late)
        self._write(entries)
        for piece in pieces:
            self._runs[self._owner].add(piece)

    def close(self) -> None:
        """Everything so far is in the files; once more it does nothing."""
        written, self._map = self._map, None
        fd, self.pages = self.pages, -1
        if fd >= 0:
            os.close(fd)
        if self._owner in self._runs:
            self._runs[self._owner].close()
        if written is not None:
            written.close()

    def forget_parent(self) -> None:
        """This dump is complete: give back what of earlier ones nobody needs any more, as `criu dedup` does."""
        parent, self._parent = self._parent, None
        if parent is None:
            return
        for owner, old in parent._runs.items():
            now = self._runs.get(owner) or Runs(owner)
            for item in old.not_in(now):
                kept = within(now.all(), item.start, item.end)
                give_back(item, (part for part in kept if part.path == item.path))

    def page_map(self, owner: int) -> bytes:
        """A page map of all that is there, wherever it lies, as if this dump had sent it all."""
        parts = [head(_FIRST)]
        for item in self.held(owner):
            pages = (item.end - item.start) // PAGE
            parts.append(entry(item.start, PRESENT | item.flags, pages))
        return _MAGIC + b"".join(parts)

    def rewritten(self, owner: int, one: lazymap.Entry) -> bytes:
        """The same entry of a later dump's page map, saying of what is here that it may come late."""
        if not one.flags & IN_PARENT:
            return entry(one.vaddr, one.flags, one.pages)
        return self._runs[owner].between(one.vaddr, one.vaddr + one.pages * PAGE, late=True)[1]

    def maps(self) -> dict[str, int]:
        """Names of its page maps, and whose they are."""
        return {_NAMES[owner & 0xFF].format(owner >> 8): owner for owner in self._runs}


def lie_late(folder: str, parent: PageImages, tight: Callable[[int], bool] = lambda _coming: False) -> None:
    """Say in the page maps of a dump that came as files which pages of its parent may come late.

    `tight`: whether there is no room beside the parent for so many bytes that come from the source; then what they
    replace is given back. MigrationError where the parent lacks some.
    """
    coming: list[tuple[int, int, int]] = []
    for name, owner in parent.maps().items():
        path = os.path.join(folder, name)
        if not os.path.exists(path):
            continue
        number, found = lazymap.page_map(path)
        parts = [_MAGIC, head(number)]
        for one in found:
            parts.append(parent.rewritten(owner, one))
        # In one step: a guard that is killed meanwhile leaves a map that is whole.
        record.write_file(path, b"".join(parts), sync=False)
        coming += [
            (owner, one.vaddr, one.vaddr + one.pages * PAGE) for one in found if not one.flags & (IN_PARENT | HERE)
        ]
    if tight(sum(end - start for _owner, start, end in coming)):
        for owner, start, end in coming:
            parent.supersede(owner, start, end)


@contextlib.contextmanager
def _talking() -> Iterator[None]:
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
            with _talking():
                self._rest = self._buffer[: self.link.recv_into(self._buffer)]
            if not self._rest:
                raise LinkLost(_CLOSED)

    def header(self) -> bytes:
        found = b""
        while len(found) < HEADER.size:
            self._fill()
            part = self._rest[: HEADER.size - len(found)]
            found += bytes(part)
            self._rest = self._rest[len(part) :]
        return found

    def here(self) -> memoryview:
        """What has come already and was not taken yet."""
        return self._rest

    def skip(self, size: int) -> None:
        """Take so many of these bytes."""
        self._rest = self._rest[size:]

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
        with _talking():
            found = self.link.sock.recv(HEADER.size, socket.MSG_WAITALL)
        if len(found) < HEADER.size:
            raise LinkLost(_CLOSED)
        return found

    def into(self, fd: int, size: int) -> None:
        while size:
            with _talking():
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
    # Scattered pages, which are what a dump on another brings, cost less by reading than by a call for each piece.
    splices = hasattr(os, "splice") and not images.follows
    stream = _Spliced(link) if splices and isinstance(link, Plain) else _Stream(link)
    while True:
        if images.follows:
            stream.skip(images.take_over(stream.here()))
        command, pages, vaddr, owner = HEADER.unpack(stream.header())
        kind, flags = command & 0xFFFF, command >> 16
        if command in CLOSES:
            images.close()
            _say_back(link, struct.pack("<i", 0))
            return
        if kind == OPEN:
            say(f"{images.open(owner)} begins")
            _say_back(link, b"\1" if images.inherits(owner) else b"\0")
        elif kind == PARENT:
            _say_back(link, struct.pack("<i", images.inherits(owner)))
        elif kind == ADD:
            images.add(vaddr, pages, flags)
            if flags & PRESENT:
                stream.into(images.pages, pages * PAGE)
                images.came()
        else:
            raise MigrationError(f"criu sent the page server command {command:#x}.", "Use CRIU 4.2 on both nodes.")


def _say_back(link: Secure, data: bytes) -> None:
    with _talking():
        link.sendall(data)


class Receiver:
    """One dump's pages, taken in by a thread; `log` gets what a person may want to know."""

    def __init__(self, link: Secure, images: PageImages, log: str) -> None:
        self._link, self._log = link, log
        self._images = images
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
            remedy = "Make space where the images lie: see image_dir."
            self._error = MigrationError(text, remedy, {"errno": error.errno})
        except Exception as error:  # no memory, say: nobody must take for whole what is not
            self._say(traceback.format_exc())
            text = f"The destination failed to take the pages in: {error!r}"
            self._error = MigrationError(text, "See criu-page-server.log of the destination.")
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
