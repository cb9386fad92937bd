"""The one family of exceptions; main() of each module turns it into fail_json, once."""

from __future__ import annotations

import errno
from typing import Any


class MigrationError(Exception):
    """Something went wrong and a person has to read about it.

    message names the cause, remedy what to do about it, details what was measured so far
    (for a criu command: cmd, rc, log, log_tail; for one of the system: errno).
    """

    def __init__(self, message: str, remedy: str = "", details: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy
        self.details: dict[str, Any] = details or {}

    def as_dict(self) -> dict[str, Any]:
        return {"message": self.message, "remedy": self.remedy, "details": self.details}

    def text(self) -> str:
        """The message with its remedy, as shown to a person."""
        return f"{self.message} Remedy: {self.remedy}" if self.remedy else self.message


class CriuError(MigrationError):
    """A criu command failed."""


class LinkLost(MigrationError):
    """The other guard cannot be reached; it may be alive all the same."""


class Refused(MigrationError):
    """The other guard answered, and its answer is no."""


def out_of_space(error: MigrationError) -> bool:
    """A file system is full, or a quota: the same once more would end in the same way."""
    return error.details.get("errno") in (errno.ENOSPC, errno.EDQUOT)
