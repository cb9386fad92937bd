"""Directories from source to destination: once while the process runs, and only the changed blocks after the freeze.

CRIU wants every open file at the same path with the same size before it restores.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
import time
from collections.abc import Iterator
from typing import Any

from .errors import MigrationError

BLOCK = 1 << 20
TICK = 20_000_000  # nanoseconds: the kernel's clock for files stands still for up to 10 ms (HZ=100)
_ZERO = bytes(BLOCK)

Entry = dict[str, Any]
Manifest = dict[str, Entry]
Frame = tuple[dict[str, Any], bytes]


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def _walk(root: str) -> Iterator[str]:
    """Paths below root relative to it, folders before what is in them; root itself is ''."""
    yield ""
    for folder, folders, files in os.walk(root):
        base = os.path.relpath(folder, root)
        for name in sorted(folders) + sorted(files):
            yield name if base == "." else os.path.join(base, name)


def _kind(mode: int) -> str:
    kinds = ((stat.S_ISREG, "file"), (stat.S_ISDIR, "dir"), (stat.S_ISLNK, "link"), (stat.S_ISFIFO, "fifo"))
    return next((name for test, name in kinds if test(mode)), "")


def _entry(path: str) -> Entry | None:
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return None
    kind = _kind(found.st_mode)
    if not kind:
        return None  # sockets are bound again by CRIU, devices belong to the node
    entry: Entry = {
        "kind": kind,
        "mode": stat.S_IMODE(found.st_mode),
        "uid": found.st_uid,
        "gid": found.st_gid,
        "size": found.st_size,
        "mtime_ns": found.st_mtime_ns,
        "stamp": [found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns],
    }
    if kind == "link":
        entry["target"] = os.readlink(path)
    return entry


def frames(
    number: int, root: str, base: Manifest, new: Manifest, mapped: frozenset[str] = frozenset()
) -> Iterator[Frame]:
    """Frames that bring the other side from `base` to what is there now; fills `new` for the next round.

    `mapped` are files that the process maps shared and writable: their times do not tell whether they changed.
    """
    for name in _walk(root):
        path = os.path.join(root, name) if name else root
        entry = _entry(path)
        if entry is None:
            continue
        known = base.get(name)
        new[name] = entry
        if known and known["stamp"] == entry["stamp"] and path not in mapped:
            entry["blocks"] = known.get("blocks")
            continue
        head = {key: value for key, value in entry.items() if key != "stamp"}
        yield {"op": "entry", "root": number, "path": name, **head}, b""
        if entry["kind"] == "file":
            yield from _blocks(number, name, path, entry, (known or {}).get("blocks") or [])
    for name in sorted(set(base) - set(new), reverse=True):
        yield {"op": "gone", "root": number, "path": name}, b""


def _blocks(number: int, name: str, path: str, entry: Entry, known: list[str]) -> Iterator[Frame]:
    digests: list[str] = []
    fresh = entry["stamp"][3] > time.time_ns() - TICK
    try:
        # The workload's user could have put a link or a FIFO there since lstat; root reads neither.
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as handle:
            now = os.fstat(handle.fileno())
            if not stat.S_ISREG(now.st_mode) or [now.st_ino, entry["uid"]] != [entry["stamp"][0], now.st_uid]:
                raise FileNotFoundError(path)
            # A file that grows while it is read is caught by the round after the freeze.
            while len(digests) * BLOCK < entry["size"]:
                # No more than fits into the size that is told: the other side cuts it off there.
                data = handle.read(min(BLOCK, entry["size"] - len(digests) * BLOCK))
                if not data:
                    break
                digests.append(_digest(data))
                place = len(digests) - 1
                if place >= len(known) or known[place] != digests[-1]:
                    body = b"" if data == _ZERO[: len(data)] else data
                    yield (
                        {"op": "block", "root": number, "path": name, "offset": place * BLOCK, "zero": len(data)},
                        body,
                    )
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ELOOP, errno.ENXIO, None):
            raise
        entry["stamp"] = []  # replaced or gone meanwhile: the round after the freeze sees what it is
    if fresh:
        entry["stamp"] = []  # the next write may bear the same time: the round after the freeze looks again
    entry["blocks"] = digests
    yield {"op": "close", "root": number, "path": name, "size": entry["size"], "mtime_ns": entry["mtime_ns"]}, b""


class Receiver:
    """Applies frames below the roots that this node was told of, and nowhere else.

    The working directory belongs to the workload's user, who could put a link in the way of root's writes: every
    component below a root is opened on its own and must not be a link.
    """

    def __init__(self, roots: list[str]) -> None:
        self.roots = roots
        self.files = 0
        self.bytes = 0
        self._open: tuple[tuple[int, str], int] | None = None

    def apply(self, header: dict[str, Any], body: bytes) -> None:
        """Apply one frame; MigrationError for a path that leads out of the roots, OSError for what the disk refuses."""
        action = header["op"]
        if action == "block":
            os.pwrite(self._fd(header), body or _ZERO[: header["zero"]], header["offset"])
            self.bytes += len(body)
        elif action == "close":
            fd = self._fd(header)
            os.ftruncate(fd, header["size"])
            os.utime(fd, ns=(header["mtime_ns"], header["mtime_ns"]))
            self.finish()
        elif action == "entry":
            self.files += 1
            with self._parent(header) as (folder, name):
                self._entry(folder, name, header)
        elif action == "gone":
            with self._parent(header) as (folder, name):
                _remove(folder, name)

    def finish(self) -> None:
        if self._open:
            os.close(self._open[1])
            self._open = None

    @contextlib.contextmanager
    def _parent(self, header: dict[str, Any]) -> Iterator[tuple[int, str]]:
        """The folder that an entry lies in, as a descriptor, and the entry's name in it."""
        path = str(header["path"])
        parts = path.split("/") if path else []
        if path.startswith("/") or ".." in parts:
            raise MigrationError(
                f"Refused a path outside of the directories of this run: {path!r}.", "Update both nodes."
            )
        root = self.roots[int(header["root"])]
        if not parts:
            _make_parents(os.path.dirname(root))
        flags = os.O_RDONLY | os.O_DIRECTORY
        fd = os.open(root, flags | os.O_NOFOLLOW) if parts else os.open(os.path.dirname(root), flags)
        try:
            for part in parts[:-1]:
                deeper = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=fd)
                os.close(fd)
                fd = deeper
            yield fd, parts[-1] if parts else os.path.basename(root)
        finally:
            os.close(fd)

    def _fd(self, header: dict[str, Any]) -> int:
        key = (int(header["root"]), str(header["path"]))
        if not self._open or self._open[0] != key:
            self.finish()
            with self._parent(header) as (folder, name):
                flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
                self._open = (key, os.open(name, flags, 0o600, dir_fd=folder))
        return self._open[1]

    def _entry(self, folder: int, name: str, header: dict[str, Any]) -> None:
        kind = header["kind"]
        try:
            here = _kind(os.lstat(name, dir_fd=folder).st_mode)
        except FileNotFoundError:
            here = ""
        if here and (here != kind or kind == "link"):
            _remove(folder, name)
            here = ""
        if kind == "link":
            os.symlink(header["target"], name, dir_fd=folder)
            os.chown(name, header["uid"], header["gid"], dir_fd=folder, follow_symlinks=False)
            return
        if kind == "dir" and not here:
            os.mkdir(name, 0o700, dir_fd=folder)
        elif kind == "fifo" and not here:
            os.mkfifo(name, 0o600, dir_fd=folder)
        elif kind == "file":
            self._fd(header)
        fd = os.open(name, os.O_PATH | os.O_NOFOLLOW, dir_fd=folder)
        try:
            os.chown(f"/proc/self/fd/{fd}", header["uid"], header["gid"])
            os.chmod(f"/proc/self/fd/{fd}", header["mode"])
        finally:
            os.close(fd)


def _make_parents(path: str) -> None:
    """Folders above a root that are not there yet; the guard's umask would lock the workload's user out."""
    if path and not os.path.isdir(path):
        _make_parents(os.path.dirname(path))
        os.mkdir(path)
        os.chmod(path, 0o755)  # noqa: S103 - as every folder of the system that users pass through


def _remove(folder: int, name: str) -> None:
    try:
        found = os.lstat(name, dir_fd=folder)
    except FileNotFoundError:
        return
    if not stat.S_ISDIR(found.st_mode):
        os.unlink(name, dir_fd=folder)
        return
    with contextlib.suppress(OSError):  # holds files that did not come from the source
        os.rmdir(name, dir_fd=folder)
