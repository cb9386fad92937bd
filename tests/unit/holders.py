"""What of a guard it takes to hold userfaultfds and to fill a process, and what lets that go wrong."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate import filling, proc
from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate.guard import Guard
from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate.holding import Holding
from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate.lazymap import Range
from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate.store import ImageStore
from tests.unit.prey import PID, Memory, Prey

KEY = f"{PID}-5"


class Record:
    def __init__(self) -> None:
        self.data: dict[str, Any] = {"times": {}}
        self.state = "restored"
        self.full = False

    def note(self, **more: Any) -> None:
        if self.full:
            raise OSError(errno.ENOSPC, "full")
        self.data.update(more)


class Node:
    """What of a guard is needed here; its record outlives it."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)
        self.images = str(folder)
        self.rec = Record()
        self.limits = {"connect": 5.0}
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)

    def rebooted(self) -> bool:
        return False

    def job(self, name: str) -> None:
        """Dead and forgotten."""

    def log_path(self, name: str) -> str:
        return f"{self.folder}/{name}"

    def holding(self) -> Holding:
        return Holding(cast(Guard, self))

    def holders(self) -> list[proc.Proc]:
        return self.holding().holders()


def standing(folder: Path) -> Iterator[Node]:
    """A node, and no holder of it in the end."""
    made = Node(folder)
    yield made
    made.rec.full = False
    proc.kill_tree(made.holders(), 5.0)


def leave(holding: Holding) -> None:
    """What the kernel does with the descriptors of a guard that is killed."""
    for fd in holding.fds.values():
        os.close(fd)
    holding.fds.clear()
    if holding.shelf is not None:
        holding.shelf.close()


class Images(Memory):
    """The pages of a child as the images' store gives them, and what has to go wrong."""

    def __init__(self, prey: Prey, **happen: Callable[[], None]) -> None:
        super().__init__(prey, **happen)
        self.trouble: list[OSError] = []

    def ranges(self, _pid: int) -> list[Range]:
        return [self.prey.range]

    def read(self, pid: int, vaddr: int, pages: int) -> bytes:
        if self.trouble:
            raise self.trouble.pop()
        return super().read(pid, vaddr, pages)


def begin(node: Node, images: Images, log: str | None = "", remote: bool = False) -> filling.Filling:
    """A guard's fill after the restore, the daemon being dead; without `log` it is as it was left."""
    if log is not None:
        text = f"(00.1) uffd: Received PID: {PID}, uffd: 5\n{log}"
        Path(node.log_path("criu-lazy-pages.log")).write_text(text)
    made = filling.Filling(cast(Guard, node), remote=remote)
    made.local = cast(ImageStore, images)
    return made
