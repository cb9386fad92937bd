"""Directories from source to destination: once while the process runs, and only the changed blocks after the freeze.

CRIU wants every open file at the same path with the same size before it restores.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from typing import Any

from .errors import MigrationError

BLOCK = 1 << 20
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


def _entry(path: str) -> Entry | None:
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return None
    kinds = ((stat.S_ISREG, "file"), (stat.S_ISDIR, "dir"), (stat.S_ISLNK, "link"), (stat.S_ISFIFO, "fifo"))
    kind = next((name for test, name in kinds if test(found.st_mode)), "")
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
    try:
        with open(path, "rb") as handle:
            # A file that grows while it is read is caught by the round after the freeze.
            while len(digests) * BLOCK < entry["size"]:
                data = handle.read(BLOCK)
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
    except FileNotFoundError:
        entry["stamp"] = []
    entry["blocks"] = digests
    yield {"op": "close", "root": number, "path": name, "size": entry["size"], "mtime_ns": entry["mtime_ns"]}, b""


class Receiver:
    """Applies frames below the roots that this node was told of, and nowhere else."""

    def __init__(self, roots: list[str]) -> None:
        self.roots = roots
        self.files = 0
        self.bytes = 0
        self._open: tuple[str, int] | None = None

    def _path(self, header: dict[str, Any]) -> str:
        name = str(header["path"])
        if name.startswith("/") or ".." in name.split("/"):
            raise MigrationError(
                f"Refused a path outside of the directories of this run: {name!r}.", "Update both nodes."
            )
        root = self.roots[int(header["root"])]
        return os.path.join(root, name) if name else root

    def apply(self, header: dict[str, Any], body: bytes) -> None:
        path = self._path(header)
        action = header["op"]
        if action == "entry":
            self._entry(path, header)
        elif action == "block":
            fd = self._fd(path)
            if body:
                os.pwrite(fd, body, header["offset"])
            else:
                os.pwrite(fd, _ZERO[: header["zero"]], header["offset"])
            self.bytes += len(body)
        elif action == "close":
            fd = self._fd(path)
            os.ftruncate(fd, header["size"])
            self.finish()
            os.utime(path, ns=(header["mtime_ns"], header["mtime_ns"]), follow_symlinks=False)
        elif action == "gone":
            self._remove(path)

    def finish(self) -> None:
        if self._open:
            os.close(self._open[1])
            self._open = None

    def _fd(self, path: str) -> int:
        if not self._open or self._open[0] != path:
            self.finish()
            self._open = (path, os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o600))
        return self._open[1]

    def _remove(self, path: str) -> None:
        try:
            found = os.lstat(path)
        except FileNotFoundError:
            return
        if stat.S_ISDIR(found.st_mode):
            try:
                os.rmdir(path)
            except OSError:
                return  # holds files that did not come from the source
        else:
            os.unlink(path)

    def _entry(self, path: str, header: dict[str, Any]) -> None:
        kind = header["kind"]
        self.files += 1
        here = _entry(path)
        if (here and here["kind"] != kind) or kind == "link":
            self._remove(path)
            here = None
        if not header["path"]:
            os.makedirs(os.path.dirname(path), exist_ok=True)
        if kind == "dir":
            os.makedirs(path, exist_ok=True)
        elif kind == "link":
            os.symlink(header["target"], path)
        elif kind == "fifo" and here is None:
            os.mkfifo(path)
        elif kind == "file":
            self._fd(path)
        os.chown(path, header["uid"], header["gid"], follow_symlinks=False)
        if kind != "link":
            os.chmod(path, header["mode"])
