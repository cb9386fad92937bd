"""Waiting for descriptors, also for those past 1023, which select(2) cannot take."""

from __future__ import annotations

import math
import select
from collections.abc import Iterable
from typing import Protocol, TypeVar, Union


class Open(Protocol):
    """What has a descriptor."""

    def fileno(self) -> int: ...


T = TypeVar("T", bound=Union[int, Open])


def readable(watched: Iterable[T], seconds: float | None = None) -> list[T]:
    """Those of them that can be read, or have broken, within so many seconds (None: as long as it takes).

    ValueError for one that is closed.
    """
    poll = select.poll()
    known: dict[int, T] = {}
    for item in watched:
        number = item if isinstance(item, int) else item.fileno()
        known[number] = item
        poll.register(number, select.POLLIN)
    return [known[number] for number, _flags in poll.poll(None if seconds is None else math.ceil(seconds * 1000))]
