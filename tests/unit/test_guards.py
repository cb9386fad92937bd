"""What guards do, without nodes: a plain connection, a copy that lost its memory, a source that waits for pages."""

from __future__ import annotations

import socket
import ssl
from types import SimpleNamespace
from typing import Any, cast

import pytest

from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate import proc, wire
from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate.destination import DestinationGuard
from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate.errors import MigrationError, Refused
from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate.filling import Filling
from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate.record import Record
from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate.secure import Secure
from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate.source import SourceGuard


class Plainly(DestinationGuard):
    """Takes one connection for the pages of a post-copy."""

    def __init__(self) -> None:
        self.limits = {"connect": 5.0}
        self.encrypted, self.lazy_token = False, True
        self.taken: list[tuple[int, int]] = []
        self.filling = cast(Filling, SimpleNamespace(connect=self.connect))

    def say(self, text: str) -> None:
        raise AssertionError(text)

    def use_token(self, token: str) -> None:
        assert token == "t" * wire.TOKEN

    def connect(self, link: Secure) -> None:
        assert link.sock.gettimeout() is None
        options = (socket.SO_KEEPALIVE, socket.SOL_SOCKET), (socket.TCP_USER_TIMEOUT, socket.IPPROTO_TCP)
        self.taken += [(name, link.sock.getsockopt(level, name)) for name, level in options]


def test_a_dead_link_is_noticed_without_encryption_too() -> None:
    """Whoever waits for pages only reads: without keepalive it would never hear of the end."""
    guard = Plainly()
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as dialled:
        dialled.sendall(wire.PAGE_MAGIC + b"t" * wire.TOKEN)
        with server.accept()[0] as sock:
            guard.serve(sock, None, cast(ssl.SSLContext, None))
    assert guard.taken == [(socket.SO_KEEPALIVE, 1), (socket.TCP_USER_TIMEOUT, int(wire.SILENCE * 1000))]


class Holds(DestinationGuard):
    """A stopped copy, which is not whole, unless `lost` is empty."""

    def __init__(self, state: str, lost: str) -> None:
        data: dict[str, Any] = {"state": state, "times": {}}
        self.rec = cast(Record, SimpleNamespace(state=state, final=False, data=data))
        self.config = {"strategy": "full"}
        self.filling = cast(Filling, SimpleNamespace(lost=lambda: lost, damaged=lambda: bool(lost)))
        self.undone: list[str] = []

    def rebooted(self) -> bool:
        return False

    def procs(self) -> list[proc.Proc]:
        return [cast(proc.Proc, SimpleNamespace(pid=7, alive=lambda: True))]

    def undo(self, why: str = "") -> None:
        self.undone.append(why)


def test_a_copy_that_has_lost_memory_is_undone_before_it_runs_and_stands_still_after() -> None:
    holds = Holds("restored", "has lost 3 pages of 7-5")
    with pytest.raises(Refused, match="has lost 3 pages"):
        holds.on_commit({})
    assert holds.undone == ["The stopped copy has lost 3 pages of 7-5."]
    holds = Holds("restored", "has lost 3 pages of 7-5")
    holds.obey_fence()
    assert len(holds.undone) == 1, "a person's word makes it no more whole"
    holds = Holds("running", "has lost 3 pages of 7-5")
    with pytest.raises(Refused, match="it never ran"):
        holds.on_commit({})
    holds = Holds("running", "has lost 3 pages of 7-5")
    holds.rec.data["resuming"] = True
    with pytest.raises(MigrationError, match="has lost 3 pages") as caught:
        holds.on_commit({})
    assert not isinstance(caught.value, Refused) and not holds.undone, "the source would take that for its own"
    holds.on_undo({"why": "a person has said so"})
    assert holds.undone == ["a person has said so"]
    with pytest.raises(Refused, match="runs already"):
        Holds("running", "").on_undo({})


class Waits(SourceGuard):
    """A source whose destination gives these answers."""

    def __init__(self, answers: list[dict[str, Any]]) -> None:
        self.answers = answers
        self.lazy, self.postcopy = True, False
        self.limits = {"fill": 1.0}
        self.noted: list[Any] = []
        self.rec = cast(Record, SimpleNamespace(data={}, note=self.note))

    def note(self, **more: Any) -> None:
        self.rec.data.update(more)
        self.noted.append(self.rec.data.get("stalled"))

    def ask(self, request: dict[str, Any], *_limits: Any, **_more: Any) -> dict[str, Any]:
        assert request == {"op": "filled"}
        self.rec.data.pop("stalled", None)
        return self.answers.pop(0)


def test_the_source_shows_what_keeps_pages_from_coming_and_takes_it_back() -> None:
    stalled = {"message": "no memory", "since": 5.0}
    waiting = {"done": False, "pages_transferred": 3}
    waits = Waits([waiting, {**waiting, "stalled": stalled}, {**waiting, "stalled": stalled}, {"done": True}])
    waits.await_filled()
    assert waits.noted == [None, stalled, stalled, None]
    assert waits.rec.data["lazy"] == {"done": True}
