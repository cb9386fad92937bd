"""What a workload and its starter agree on: files in one working directory.

checkpoint_ready     made by the program when it serves: ``ready:<pid>``
checkpoint_flag      made by the starter; the program ends when it is gone
heartbeat.bin        ring of 65536 little-endian float64, CLOCK_REALTIME seconds, zero = unused
verify_request       a token, written by whoever wants a proof
verify_result.json   the program's answer to that token

This file is copied beside the program: standard library only, Python 3.9 or newer.
"""

from __future__ import annotations

import argparse
import json
import os
import struct
import time
from typing import Any

SLOTS = 65536
SLOT = struct.Struct("<d")
HEARTBEAT_INTERVAL = 0.005


def write_atomically(path: str, text: str) -> None:
    """Replace `path` by `text`, so that a reader sees the old or the new content, never a part.

    :raises OSError: when the directory cannot be written
    """
    temporary = f"{path}.{os.getpid()}.tmp"
    with open(temporary, "w", encoding="utf-8") as stream:
        stream.write(text)
    os.replace(temporary, path)


class Heartbeat:
    """A ring file of the moments (seconds, CLOCK_REALTIME) at which service was done.

    The file has its full size from the start: a restored file must have the size that was dumped.
    """

    def __init__(self, path: str, interval: float = HEARTBEAT_INTERVAL) -> None:
        """Make the ring at `path`; `interval` is the least distance of two stamps in seconds.

        :raises OSError: when the file cannot be made
        """
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        os.ftruncate(self._file, SLOTS * SLOT.size)
        self._interval = interval
        self._next = 0
        self._last = 0.0

    def beat(self) -> None:
        """Stamp one unit of service that has been done, unless the last stamp is too young."""
        now = time.time()
        # A negative distance is the other machine's clock, not a reason to be silent.
        if 0.0 <= now - self._last < self._interval:
            return
        os.pwrite(self._file, SLOT.pack(now), self._next % SLOTS * SLOT.size)
        self._next += 1
        self._last = now


class Contract:
    """One program's side of the contract."""

    def __init__(self, working_dir: str, heartbeat_interval: float = HEARTBEAT_INTERVAL) -> None:
        """Open the heartbeat in `working_dir`; `heartbeat_interval` in seconds.

        :raises OSError: when the directory cannot be written
        """
        self.working_dir = working_dir
        self.heartbeat = Heartbeat(self.path("heartbeat.bin"), heartbeat_interval)
        self.beat = self.heartbeat.beat

    def path(self, name: str) -> str:
        """Return the path of `name` in the working directory."""
        return os.path.join(self.working_dir, name)

    def ready(self) -> None:
        """Say that the program serves and may be checkpointed."""
        write_atomically(self.path("checkpoint_ready"), f"ready:{os.getpid()}\n")

    def ended(self) -> bool:
        """Return whether the program has been asked to end (the flag is gone)."""
        return not os.path.exists(self.path("checkpoint_flag"))

    def requested_proof(self) -> str | None:
        """Return the token of a waiting proof request, None where nobody asked."""
        try:
            with open(self.path("verify_request"), encoding="utf-8") as stream:
                return stream.read().strip()
        except FileNotFoundError:
            return None

    def answer(self, token: str, verified: bool, method: str, details: dict[str, Any]) -> None:
        """Answer the request `token`: is the state whole, how was it checked, what was seen."""
        proof = {"token": token, "verified": verified, "method": method, "details": details}
        write_atomically(self.path("verify_result.json"), json.dumps(proof) + "\n")
        os.unlink(self.path("verify_request"))


class Pace:
    """Keeps a rate without trying to catch up a pause such as a migration."""

    def __init__(self, per_second: float) -> None:
        """Aim at `per_second` units of work a second."""
        self._step = 1.0 / per_second
        self._due = time.monotonic()

    def wait(self) -> None:
        """Sleep until the next unit is due."""
        self._due += self._step
        delay = self._due - time.monotonic()
        if delay > 0:
            time.sleep(delay)
        elif delay < -0.1:
            self._due = time.monotonic()


def argument_parser(description: str) -> argparse.ArgumentParser:
    """Return a parser that knows the options which every workload has."""
    parser = argparse.ArgumentParser(description=description, allow_abbrev=False)
    parser.add_argument("--working_dir", required=True, help="directory of this run")
    parser.add_argument(
        "--heartbeat_interval", type=float, default=HEARTBEAT_INTERVAL, help="seconds, default %(default)s"
    )
    return parser


def say(text: str) -> None:
    """Print one line to the output that travels with the process."""
    print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}", flush=True)
