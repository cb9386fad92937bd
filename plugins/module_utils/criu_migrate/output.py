"""Where a workload writes what it says, and reading that before and after the freeze."""

from __future__ import annotations

import os
import stat
from typing import Any

NAME = "output.log"


def place(working_dir: str, pid: int = 0) -> dict[str, Any]:
    """{path, size} of the file that takes the program's stdout: that of the contract, else what the process `pid` has
    open as stdout. {} where there is no such file. Sizes in bytes."""
    path = os.path.join(working_dir, NAME)
    if not working_dir or not os.path.isfile(path):
        try:
            path = os.readlink(f"/proc/{pid}/fd/1") if pid else ""
        except OSError:
            path = ""
    return again({"path": path})


def again(found: dict[str, Any]) -> dict[str, Any]:
    """The same file as it is now; {} where it is gone, or no file."""
    path = str(found.get("path") or "")
    if not path.startswith("/"):
        return {}
    try:
        seen = os.lstat(path)
    except OSError:
        return {}
    return {"path": path, "size": seen.st_size} if stat.S_ISREG(seen.st_mode) else {}


def read(path: str, first: int, last: int, most: int) -> tuple[str, bool]:
    """Text from byte `first` to `last`, of that the last `most` bytes; and whether something was left out.

    Links are not followed: an ordinary user owns the directory, and root reads.
    """
    begin = max(first, last - most)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return "", False
    try:
        data = os.pread(fd, max(0, last - begin), begin) if stat.S_ISREG(os.fstat(fd).st_mode) else b""
    finally:
        os.close(fd)
    return data.decode("utf-8", "replace"), begin > first


def around_freeze(found: dict[str, Any], frozen: int | None, most: int) -> dict[str, Any]:
    """{path, size, before, after, frozen, cut_off}: what was said up to byte `frozen` and from there on.

    frozen None: the process was not frozen, as far as is known, and all of it is `before`.
    """
    if not found:
        return {}
    size = int(found["size"])
    border = size if frozen is None or frozen > size else frozen
    before, cut_before = read(found["path"], 0, border, most)
    after, cut_after = read(found["path"], border, size, most)
    return {**found, "before": before, "after": after, "frozen": frozen, "cut_off": cut_before or cut_after}
