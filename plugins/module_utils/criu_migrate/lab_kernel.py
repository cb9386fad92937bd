"""The few system calls that Python 3.9 to 3.11 do not offer: namespaces, mounts, pivot_root."""

from __future__ import annotations

import ctypes
import os
import platform

from .errors import MigrationError

CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_BIND = 4096
MS_REC = 16384
MS_PRIVATE = 1 << 18
MNT_DETACH = 2

_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}

_libc = ctypes.CDLL(None, use_errno=True)


def _checked(result: int, what: str) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def unshare(flags: int) -> None:
    """unshare(2); OSError when the kernel or the privileges do not allow it."""
    _checked(_libc.unshare(flags), f"unshare 0x{flags:x}")


def setns(path: str, kind: int = 0) -> None:
    """Enter the namespace that `path` (a file of /proc/PID/ns or a pin of it) refers to."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _checked(_libc.setns(fd, kind), f"setns {path}")
    finally:
        os.close(fd)


def mount(source: str, target: str, fstype: str = "", flags: int = 0, options: str = "") -> None:
    """mount(2); OSError names the target."""
    done = _libc.mount(
        source.encode(), target.encode(), fstype.encode(), ctypes.c_ulong(flags), options.encode() or None
    )
    _checked(done, f"mount {fstype or source} on {target}")


def umount(target: str, flags: int = 0) -> None:
    """umount2(2)."""
    _checked(_libc.umount2(target.encode(), flags), f"umount {target}")


def pivot_into(root: str) -> None:
    """Make `root`, a mount point, the root directory, and forget the old one."""
    number = _PIVOT_ROOT.get(platform.machine())
    if number is None:
        raise MigrationError(f"The lab does not know the machine type {platform.machine()}.", "Use x86_64 or aarch64.")
    os.chdir(root)
    # pivot_root(".", ".") stacks the old root on the new one, so no directory for it is needed
    _checked(_libc.syscall(number, b".", b"."), f"pivot_root {root}")
    umount(".", MNT_DETACH)
    os.chdir("/")
