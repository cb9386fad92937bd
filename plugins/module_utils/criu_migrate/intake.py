"""One round of files on one connection at the destination: images and working directories."""

from __future__ import annotations

from typing import Any

from . import sync
from .errors import MigrationError

FRAMES = ("entry", "block", "close", "gone")


class Intake:
    """Applies frames. They have no answer of their own: what went wrong is said at the end of the round."""

    def __init__(self, roots: list[str], images: str) -> None:
        self.roots = sync.Receiver(roots)
        self.images = sync.Receiver([images])
        self.problem: MigrationError | None = None

    def take(self, header: dict[str, Any], body: bytes) -> None:
        """Apply one frame, unless one before it failed."""
        if self.problem is not None:
            return
        try:
            (self.images if header.get("images") else self.roots).apply(header, body)
        except (OSError, MigrationError) as error:
            self.problem = in_words(error)

    def end(self) -> dict[str, Any]:
        """The answer to the round: files and bytes, or the first thing that went wrong."""
        self.roots.finish()
        self.images.finish()
        if self.problem:
            return {"error": self.problem.as_dict()}
        return {"files": self.roots.files + self.images.files, "bytes": self.roots.bytes + self.images.bytes}


def in_words(error: Exception) -> MigrationError:
    """An exception as a message with a remedy; a full disk is the usual one."""
    if isinstance(error, MigrationError):
        return error
    if isinstance(error, OSError) and error.errno == 28:
        return MigrationError(f"No space left on the destination: {error}", "Free space there, or image_storage=disk.")
    return MigrationError(f"The destination could not do it: {error!r}", "See guard.log of the destination.")
