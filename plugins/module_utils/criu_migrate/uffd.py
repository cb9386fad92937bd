"""userfaultfd(2): filling pages of another process, and what it does to its memory meanwhile."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import struct
from typing import NamedTuple, Union

from . import sockets

PAGE = mmap.PAGESIZE  # bytes
_LINK = "anon_inode:[userfaultfd]"
# linux/userfaultfd.h, as asm-generic/ioctl.h numbers them (x86_64 and aarch64 alike).
_WAKE, _COPY, _ZEROPAGE, _CONTINUE = 0x8010AA02, 0xC028AA03, 0xC020AA04, 0xC020AA07
_MESSAGE = struct.Struct("=B7xQQQ")
_PAGEFAULT, _FORK, _REMAP, _REMOVE, _UNMAP = 0x12, 0x13, 0x14, 0x15, 0x16
_BATCH = 16  # messages read at once
_LOWEST = 1 << 16  # bytes; nothing is mapped below (vm.mmap_min_addr)
_libc = ctypes.CDLL(None, use_errno=True)
_libc.ioctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p)


class Fault(NamedTuple):
    """A thread waits for the page at `address`."""

    address: int


class Fork(NamedTuple):
    """A child has come with the same missing pages; `fd` is its userfaultfd, non-blocking, close-on-exec."""

    fd: int


class Remap(NamedTuple):
    """mremap(2) has moved `length` bytes."""

    start: int
    to: int
    length: int


class Remove(NamedTuple):
    """What is in the memory from `start` to before `end` is given up: MADV_DONTNEED and the like."""

    start: int
    end: int


class Unmap(NamedTuple):
    """The memory from `start` to before `end` is gone: munmap(2), and after each Remap what that has left."""

    start: int
    end: int


Event = Union[Fault, Fork, Remap, Remove, Unmap]


class _CopyArgs(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in ("dst", "src", "len", "mode")] + [("copy", ctypes.c_int64)]


class _ZeroArgs(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in ("start", "len", "mode")] + [("zeropage", ctypes.c_int64)]


class _Range(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in ("start", "len")]


class Done(NamedTuple):
    """Bytes that are there now, and the errno that kept the rest out (0: all are there)."""

    size: int
    error: int


def listed(pid: int) -> list[int]:
    """Numbers of the descriptors of a process that are userfaultfds; [] when it is gone."""
    found: list[int] = []
    folder = f"/proc/{pid}/fd"
    try:
        for name in os.listdir(folder):
            try:
                if os.readlink(f"{folder}/{name}") == _LINK:
                    found.append(int(name))
            except FileNotFoundError:
                continue  # closed meanwhile
    except (FileNotFoundError, ProcessLookupError):
        return []
    return sorted(found)


def duplicate(pid: int, fd: int) -> int:
    """A duplicate of a process's userfaultfd, close-on-exec; as long as one is open, the memory stays guarded.

    OSError when the process or the descriptor is gone (ESRCH, EBADF) or the kernel forbids it (EPERM).
    """
    got = sockets.duplicate(pid, fd)
    if os.readlink(f"/proc/self/fd/{got}") != _LINK:
        os.close(got)
        raise OSError(errno.EBADF, f"descriptor {fd} of process {pid} has become something else")
    return got


class Uffd:
    """One userfaultfd. Owns the descriptor; close() releases the waiting threads when no duplicate is left."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        flags = fcntl.fcntl(fd, fcntl.F_GETFL)
        if not flags & os.O_NONBLOCK:  # poll(2) reports nothing but errors for one that blocks
            fcntl.fcntl(fd, fcntl.F_SETFL, flags | os.O_NONBLOCK)

    def fileno(self) -> int:
        return self.fd

    def close(self) -> None:
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def _ioctl(self, request: int, args: ctypes.Structure) -> int:
        if _libc.ioctl(self.fd, request, ctypes.byref(args)) == 0:
            return 0
        return ctypes.get_errno()

    def copy(self, address: int, data: bytes, offset: int, size: int) -> Done:
        """Fill `size` bytes (whole pages) from `address` on with those at data[offset], and wake who waits for them.

        Stops at the first page that cannot be filled. EEXIST: it is there. EAGAIN: events want to be read first.
        ENOENT: not all of it lies in one guarded area. ESRCH: the process is gone.
        """
        source = ctypes.cast(ctypes.c_char_p(data), ctypes.c_void_p).value or 0
        args = _CopyArgs(address, source + offset, size, 0, 0)
        error = self._ioctl(_COPY, args)
        # The kernel says EAGAIN for a part, whatever the reason: the next call tells that one.
        return Done(max(0, int(args.copy)), error)

    def zero(self, address: int, size: int = PAGE) -> Done:
        """Like copy, with zeros."""
        args = _ZeroArgs(address, size, 0, 0)
        error = self._ioctl(_ZEROPAGE, args)
        return Done(max(0, int(args.zeropage)), error)

    def busy(self) -> bool:
        """Whether events are outstanding: unread, or about to come."""
        return self.zero(0, 0).error == errno.EAGAIN  # it says so before it looks at the arguments

    def ended(self) -> bool:
        """Whether the process is gone."""
        # This does something only to memory that is shared and asks for it, which lazy memory never is.
        return self._ioctl(_CONTINUE, _ZeroArgs(_LOWEST, PAGE, 0, 0)) == errno.ESRCH

    def wake(self, address: int, size: int = PAGE) -> int:
        """Let threads that wait there try again: each either goes on or sends a new Fault. Returns 0 or an errno."""
        return self._ioctl(_WAKE, _Range(address, size))

    def wake_all(self) -> None:
        """wake() for the whole address space, for a Fault that somebody has read and not answered."""
        for bits in range(57, 30, -1):  # the kernel refuses what reaches beyond the process's own limit
            if self.wake(_LOWEST, (1 << bits) - PAGE - _LOWEST) != errno.EINVAL:
                return

    def events(self) -> list[Event]:
        """What has happened since, some of it, faults first; [] when there is nothing. Never blocks."""
        try:
            data = os.read(self.fd, _MESSAGE.size * _BATCH)
        except BlockingIOError:
            return []
        return [_event(*_MESSAGE.unpack_from(data, at)) for at in range(0, len(data), _MESSAGE.size)]


def _event(kind: int, first: int, second: int, third: int) -> Event:
    if kind == _PAGEFAULT:
        return Fault(second & -PAGE)
    if kind == _FORK:
        return Fork(first & 0xFFFFFFFF)
    if kind == _REMAP:
        return Remap(first, second, third)
    if kind in (_REMOVE, _UNMAP):
        return (Remove if kind == _REMOVE else Unmap)(first, second)
    raise OSError(errno.EPROTO, f"unknown event {kind:#x} of a userfaultfd")
