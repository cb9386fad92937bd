"""QEMU's control socket: one command, one answer."""

from __future__ import annotations

import json
import socket
import time
from typing import Any, Callable

from .errors import MigrationError


def connected(path: str, limit: float, alive: Callable[[], bool]) -> socket.socket:
    """A connection to a Unix socket that QEMU is about to make, within `limit` seconds.

    MigrationError when QEMU ends or the time is over.
    """
    deadline = time.monotonic() + limit
    while True:
        client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            client.settimeout(limit)
            client.connect(path)
            return client
        except OSError as exc:
            client.close()
            if not alive():
                raise MigrationError("QEMU ended at once.", "Its words are in the machine's console log.") from exc
            if time.monotonic() > deadline:
                raise MigrationError(f"QEMU does not answer at {path} within {limit:g} s.", "Is it stopped?") from exc
            time.sleep(0.01)  # the socket's name appears before QEMU listens: no event for that


class Qmp:
    """A session with one QEMU."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._lines = connection.makefile("rb")
        self._line()
        self.do("qmp_capabilities")

    def __enter__(self) -> Qmp:
        return self

    def __exit__(self, *_: object) -> None:
        self._lines.close()
        self._connection.close()

    def _line(self) -> dict[str, Any]:
        try:
            text = self._lines.readline()
        except OSError as exc:
            raise MigrationError(f"QEMU does not answer: {exc}.", "See the machine's console log.") from exc
        if not text:
            raise MigrationError("QEMU ended.", "See the machine's console log.")
        found: dict[str, Any] = json.loads(text)
        return found

    def do(self, command: str, **arguments: Any) -> dict[str, Any]:
        """Run a command; its answer, events left out. MigrationError when QEMU refuses."""
        text = json.dumps({"execute": command, "arguments": arguments})
        try:
            self._connection.sendall(text.encode() + b"\n")
        except OSError as exc:
            raise MigrationError(f"QEMU ended: {exc}.", "See the machine's console log.") from exc
        while True:
            found = self._line()
            if "error" in found:
                raise MigrationError(f"QEMU refuses {command}: {found['error'].get('desc')}.", "")
            if "return" in found:
                answer: dict[str, Any] = found["return"]
                return answer

    def until(self, command: str, states: tuple[str, ...], limit: float) -> str:
        """Ask until `status` is one of these; MigrationError after `limit` seconds or on an internal error."""
        deadline = time.monotonic() + limit
        while True:
            state = str(self.do(command).get("status", ""))
            if state in states:
                return state
            if state in ("internal-error", "guest-panicked", "failed") or time.monotonic() > deadline:
                raise MigrationError(f"QEMU is in state {state!r}, not {' or '.join(states)}.", "")
            time.sleep(0.02)  # QEMU 7 has an event for some of these states only
