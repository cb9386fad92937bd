"""Files that a process tree has open or mapped, and whether another node has the same. Looks only."""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Iterable
from typing import Any

from . import inspect_node, proc

Facts = dict[str, Any]
_DELETED = " (deleted)"
# No files, or files of the kernel that are the same by nature on the other node.
_NO_FILE = ("/dev/zero", "/memfd:", "/SYSV", "/[aio]", "/anon_hugepage", "/secretmem", "/i915", "/drm")
_KERNEL = ("/proc/", "/sys/", "/dev/")


def look(procs: Iterable[proc.Proc], roots: list[str]) -> list[Facts]:
    """Every file, folder and FIFO that the tree has open, mapped, or as its cwd or root, each path once.

    Each: path, kind, mode, size (bytes), pid, mapped, build_id, deleted, links, travels, fstype, locked, fragile (a
    POSIX lock, which a process loses as soon as it closes any descriptor of the file), sqlite (such a database, open
    for writing).
    """
    found: dict[str, Facts] = {}
    mounts = inspect_node.mounts()
    for item in procs:
        base = f"/proc/{item.pid}"
        for name in ("cwd", "root"):
            _add(found, item.pid, f"{base}/{name}", roots, mounts)
        for fd in _names(f"{base}/fd"):
            entry = _add(found, item.pid, f"{base}/fd/{fd}", roots, mounts)
            if entry is not None and entry["kind"] == "file":
                locks = _locks(f"{base}/fdinfo/{fd}")
                entry["locked"] = entry["locked"] or bool(locks)
                entry["fragile"] = entry["fragile"] or "POSIX" in locks
                entry["sqlite"] = entry["sqlite"] or _is_sqlite(base, fd)
        for name in _names(f"{base}/map_files"):
            entry = _add(found, item.pid, f"{base}/map_files/{name}", roots, mounts)
            if entry is not None and not entry["mapped"]:
                entry["mapped"] = True
                entry["build_id"] = "" if entry["deleted"] else build_id(entry["path"])
    return sorted(found.values(), key=lambda entry: str(entry["path"]))


def _is_sqlite(base: str, fd: str) -> bool:
    """Open for writing, and beginning as https://sqlite.org/fileformat.html has it."""
    try:
        with open(f"{base}/fdinfo/{fd}", encoding="ascii") as info:
            flags = next((line.split()[1] for line in info if line.startswith("flags:")), "0")
        if int(flags, 8) & os.O_ACCMODE == os.O_RDONLY:
            return False
        with open(f"{base}/fd/{fd}", "rb") as file:
            return file.read(16) == b"SQLite format 3\0"
    except (OSError, ValueError):
        return False


def _names(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []


def _add(found: dict[str, Facts], pid: int, link: str, roots: list[str], mounts: list[dict[str, str]]) -> Facts | None:
    """Take up what a link of /proc points to; None where it is no path of a file system."""
    try:
        target, seen = os.readlink(link), os.stat(link)
    except OSError:
        return None
    if not target.startswith("/") or target.startswith(_NO_FILE):
        return None
    # The kernel's own mark; inodes do not tell, as overlayfs shows another one through a mapping.
    deleted = target.endswith(_DELETED) and not os.path.lexists(target)
    path = target[: -len(_DELETED)] if deleted else target
    what = kind(seen.st_mode)
    if not what or (path.startswith(_KERNEL) and (what != "file" or not path.startswith("/dev/"))):
        return None
    if path not in found:
        found[path] = {
            "path": path, "kind": what, "mode": stat.S_IMODE(seen.st_mode), "size": seen.st_size, "pid": pid,
            "mapped": False, "build_id": "", "deleted": deleted, "links": seen.st_nlink,
            "locked": False, "fragile": False, "sqlite": False, "travels": below(path, roots),
            "fstype": inspect_node.mount_of(path, mounts)["fstype"],
        }  # fmt: skip
    return found[path]


def kind(mode: int) -> str:
    """file, dir or fifo; '' for anything else."""
    tests = ((stat.S_ISREG, "file"), (stat.S_ISDIR, "dir"), (stat.S_ISFIFO, "fifo"))
    return next((name for test, name in tests if test(mode)), "")


def below(path: str, roots: Iterable[str]) -> bool:
    return any(path == root.rstrip("/") or path.startswith(root.rstrip("/") + "/") for root in roots)


def _locks(path: str) -> set[str]:
    """The kinds of locks (POSIX, FLOCK, OFDLCK, LEASE) that proc_pid_fdinfo(5) names."""
    try:
        with open(path, encoding="ascii", errors="replace") as handle:
            return {line.split()[2] for line in handle if line.startswith("lock:")}
    except OSError:
        return set()


def tree_bytes(root: str) -> int:
    """Bytes of the files below a directory, or of a file."""
    total = 0
    for folder, _folders, files in os.walk(root):
        for name in files:
            try:
                total += os.lstat(os.path.join(folder, name)).st_size
            except OSError:
                continue
    if os.path.isfile(root):
        total = os.path.getsize(root)
    return total


def differences(files: Iterable[Facts]) -> list[Facts]:
    """What this node lacks or has otherwise: {path, problem: missing|kind|mode|size|build_id, here, there}."""
    found = []
    for entry in files:
        problem = _difference(entry)
        if problem:
            found.append({"path": entry["path"], "mapped": entry["mapped"], "fstype": entry["fstype"], **problem})
    return found


def _difference(entry: Facts) -> Facts:
    try:
        here = os.stat(entry["path"])
    except OSError:
        return {"problem": "missing"}
    if kind(here.st_mode) != entry["kind"]:
        return {"problem": "kind", "here": kind(here.st_mode) or "something else", "there": entry["kind"]}
    if entry["kind"] != "file":
        return {}
    if here.st_size != entry["size"]:
        return {"problem": "size", "here": here.st_size, "there": entry["size"]}
    if stat.S_IMODE(here.st_mode) != entry["mode"]:
        return {"problem": "mode", "here": oct(stat.S_IMODE(here.st_mode)), "there": oct(entry["mode"])}
    if entry["build_id"] and build_id(entry["path"]) != entry["build_id"]:
        return {"problem": "build_id", "here": build_id(entry["path"]), "there": entry["build_id"]}
    return {}


def build_id(path: str) -> str:
    """The GNU build id of an ELF file, which CRIU compares; '' where it has none (elf(5), PT_NOTE)."""
    try:
        with open(path, "rb") as handle:
            head = handle.read(64)
            if head[:4] != b"\x7fELF" or len(head) < 64 or head[4] != 2:
                return ""
            order = "<" if head[5] == 1 else ">"
            (offset,) = struct.unpack_from(order + "Q", head, 32)
            size, count = struct.unpack_from(order + "HH", head, 54)
            handle.seek(offset)
            table = handle.read(size * count)
            for place in range(0, len(table) - 55, size):
                (form,) = struct.unpack_from(order + "I", table, place)
                start, length = struct.unpack_from(order + "Q16xQ", table, place + 8)
                if form == 4 and length < 1 << 16:
                    handle.seek(start)
                    found = _note(handle.read(length), order)
                    if found:
                        return found
    except (OSError, struct.error):
        pass
    return ""


def _note(notes: bytes, order: str) -> str:
    place = 0
    while place + 12 <= len(notes):
        name, size, form = struct.unpack_from(order + "III", notes, place)
        content = place + 12 + (name + 3 & ~3)
        if form == 3 and notes[place + 12 : place + 12 + name] == b"GNU\0":
            return notes[content : content + size].hex()
        place = content + (size + 3 & ~3)
    return ""
