"""A workload that works in steps: a product, a batch, an operation, each at once and undivided.

Between two steps it answers who wants a proof; while it waits for the next one it shows that it is there. During a
step it is silent, so the heartbeat's usual gap is the time of the longest step.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from contract import Contract, Pace, say

CLOCKS_APART = 0.05  # seconds
BOOT = "/proc/sys/kernel/random/boot_id"


class Proof(NamedTuple):
    """What a program found out about its own state."""

    verified: bool
    method: str
    details: dict[str, Any]


class Work(Protocol):
    """What `run` needs to know of the work."""

    @property
    def done(self) -> int:
        """How many steps have been done."""

    def step(self) -> None:
        """Do one more step."""

    def prove(self, beat: Callable[[], None]) -> Proof:
        """Check everything; call `beat` after each piece."""

    def line(self) -> str:
        """Say in a few words how far it is."""


class Moves:
    """Notices that the process was frozen and restored.

    Another node has another boot_id. Back on its own node, CLOCK_MONOTONIC goes on where it was when it was frozen, and
    CLOCK_REALTIME does not: what they differ by changes. The clocks alone would not do: a destination's that is behind
    by the downtime hides the move. Somebody setting the clock looks like a move, and does no harm.
    """

    def __init__(self) -> None:
        """Begin with no move."""
        self.count = 0
        self._apart = self._difference()
        self._boot = self._node()

    @staticmethod
    def _node() -> str:
        """Return the name that the kernel gave to this boot of this machine."""
        with open(BOOT, encoding="ascii") as stream:
            return stream.read()

    @staticmethod
    def _difference() -> float:
        return time.time() - time.monotonic()

    def happened(self) -> bool:
        """Return whether there was a move since the last call."""
        now, boot = self._difference(), self._node()
        moved = boot != self._boot or abs(now - self._apart) > CLOCKS_APART
        self._apart, self._boot = now, boot
        self.count += moved
        return moved


def run(contract: Contract, work: Work, limit: int = 0, period: float = 0.0, pause: float = 0.0) -> None:
    """Step until asked to end; ready after the first step.

    After `limit` steps (0: no limit) what there is is kept. From the start of a step to the next at least `period`
    seconds go by, and `pause` seconds from its end.
    """
    pace = Pace(1.0 / 0.005)
    due = next_line = time.monotonic()
    last = 0
    while not contract.ended():
        started = time.monotonic()
        if started >= due and (not limit or work.done < limit):
            work.step()
            due = max(started + period, time.monotonic() + pause)
            if work.done == 1:
                contract.ready()
        else:
            pace.wait()
        contract.beat()
        token = contract.requested_proof()
        if token is not None:
            proof = work.prove(contract.beat)
            contract.answer(token, *proof)
            say(f"verified {proof.verified}: {proof.details}")
        if work.done != last and (started >= next_line or work.done == limit):
            last, next_line = work.done, started + 1.0
            say(work.line())
    say("asked to end")
