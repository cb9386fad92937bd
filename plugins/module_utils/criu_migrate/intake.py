"""One round of files on one connection at the destination: images and working directories."""

from __future__ import annotations

import errno
import os
from typing import Any

from . import sync
from .errors import MigrationError

FRAMES = ("entry", "block", "close", "gone", "image")


class Images:
    """Image files, into a directory that is root's alone."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.files = 0
        self.bytes = 0

    def take(self, name: str, offset: int, body: bytes) -> None:
        """The part of one file from `offset` on; MigrationError for a name that leads elsewhere."""
        if name != os.path.basename(name) or name in ("", ".", ".."):
            raise MigrationError(f"Refused {name!r} as the name of an image.", "Update both nodes.")
        flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | (0 if offset else os.O_TRUNC)
        fd = os.open(os.path.join(self.folder, name), flags, 0o600)
        try:
            while body:
                count = os.pwrite(fd, body, offset)
                body, offset = body[count:], offset + count
                self.bytes += count
        finally:
            os.close(fd)
        self.files += 1


class Intake:
    """Applies frames. They have no answer of their own: what went wrong is said at the end of the round."""

    def __init__(self, roots: list[str], images: str) -> None:
        self.roots = sync.Receiver(roots)
        self.images = Images(images)
        self.problem: MigrationError | None = None

    def take(self, header: dict[str, Any], body: bytes) -> None:
        """Apply one frame, unless one before it failed."""
        if self.problem is not None:
            return
        try:
            if header["op"] == "image":
                self.images.take(str(header["name"]), int(header["offset"]), body)
            else:
                self.roots.apply(header, body)
        except (OSError, MigrationError) as error:
            self.problem = in_words(error)

    def end(self) -> dict[str, Any]:
        """The answer to the round: files and bytes, or the first thing that went wrong."""
        self.roots.finish()
        if self.problem:
            return {"error": self.problem.as_dict()}
        return {"files": self.roots.files + self.images.files, "bytes": self.roots.bytes + self.images.bytes}


def in_words(error: Exception) -> MigrationError:
    """An exception as a message with a remedy; a full disk is the usual one."""
    if isinstance(error, MigrationError):
        return error
    details = {"errno": error.errno} if isinstance(error, OSError) else {}
    if details.get("errno") == errno.ENOSPC:
        remedy = "Free space there, or image_storage=disk."
        return MigrationError(f"No space left on the destination: {error}", remedy, details)
    return MigrationError(f"The destination could not do it: {error!r}", "See guard.log of the destination.", details)
