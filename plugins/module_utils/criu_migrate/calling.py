"""The source's end of the link: requests to the destination's guard, asked again for as long as it takes."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

from . import relay, wire
from .errors import LinkLost, MigrationError, Refused
from .guard import Guard
from .record import Record

Answer = dict[str, Any]
PROBES = (1 << 20, 1 << 23, 1 << 25)  # bytes
ENOUGH = 0.05  # seconds that tell how fast a link is


class CallingGuard(Guard):
    """A guard that dials the other one. Every request may be asked twice."""

    def __init__(self, rec: Record, config: dict[str, Any]) -> None:
        super().__init__(rec, config)
        self.link: wire.Link | None = None
        self.lost_since: float | None = None

    def connected(self) -> wire.Link:
        if self.link is None:
            link = wire.Link(relay.dial(self.config, self.folder, self.limits["connect"]))
            try:
                hello = {"op": "hello", "run_id": self.run_id, "state": self.rec.state}
                self.exchange(link, hello, self.limits["connect"])
            except MigrationError:
                link.close()
                raise
            self.link = link
        return self.link

    def exchange(self, link: wire.Link, request: Answer, limit: float) -> Answer:
        link.send(request)
        answer, _body = link.receive(limit)
        if "error" in answer:
            problem = answer["error"]
            kind = Refused if answer.get("refused") else MigrationError
            raise kind(problem["message"], problem["remedy"], problem["details"])
        return answer

    def drop_link(self) -> None:
        if self.link is not None:
            self.link.close()
            self.link = None

    def ask(
        self,
        request: Answer,
        limit: float,
        patience: float | None = None,
        frames: Callable[[], Any] | None = None,
    ) -> Answer:
        """One request, redialled and asked again while the link is down, for `patience` seconds (default: the
        limit "link"; after the commit without end). Every request may be asked twice."""
        pause = 0.1
        while True:
            try:
                link = self.connected()
                if frames is not None:
                    link.send_all(frames())
                answer = self.exchange(link, request, limit)
                self.lost_since = None
                self.rec.data.pop("stalled", None)
                return answer
            except LinkLost as error:
                self.drop_link()
                now = time.monotonic()
                self.lost_since = self.lost_since if self.lost_since is not None else now
                endless = self.rec.state == "committed"
                self.say(f"{request['op']}: {error}")
                if endless and now - self.lost_since > self.limits["link"] and not self.rec.data.get("stalled"):
                    self.rec.note(stalled={**error.as_dict(), "since": time.time()})
                if not endless and now - self.lost_since > (self.limits["link"] if patience is None else patience):
                    raise LinkLost(
                        f"No word from the destination's guard for {now - self.lost_since:.0f} s.", str(error)
                    ) from error
                time.sleep(pause)  # a cut link gives no event when it heals
                pause = min(pause * 2, 1.0)

    def restore_request(self) -> Answer:
        return {"op": "restore", "procs": self.rec.data["procs"], "address_on": self.rec.data.get("address_on")}

    def held(self) -> str:
        """The destination's state; where nobody has waited for the end of a restore, after that. '' where its copy
        lacks memory that was here only."""
        found = self.ask({"op": "state"}, self.limits["connect"])
        state = "" if found["incomplete"] else str(found["state"])
        if state != "restoring":
            return state
        try:
            self.ask(self.restore_request(), self.limits["restore"] + 10.0)
        except LinkLost:
            raise
        except MigrationError as error:
            self.say(error.text())
            return state
        return "restored"

    def insist(self, step: Callable[[], object]) -> None:
        """Do what needs a connection of its own; again while the link is down, for the limit "link"."""
        deadline = time.monotonic() + self.limits["link"]
        while True:
            try:
                step()
                return
            except LinkLost as error:
                if time.monotonic() > deadline:
                    raise
                self.say(str(error))
                time.sleep(0.1)  # a guard that is started again gives no event here

    def measure_bandwidth(self) -> float:
        """Bytes/s of the link to the destination's guard, by how long some take; by more where that is a moment."""
        speed = 0.0
        for size in PROBES:
            began = time.monotonic()
            self.ask({"op": "ping"}, self.limits["connect"], frames=partial(_filler, size))
            seconds = time.monotonic() - began
            speed = size / max(seconds, 1e-6)
            if seconds > ENOUGH:
                break
        return speed

    def measure_clock(self) -> dict[str, float]:
        """Offset of the destination's clock (seconds to add to the source's), by Cristian's algorithm (1989) as NTP
        uses it (RFC 5905 section 8): the sample with the least round trip, its half is the bound."""
        best: dict[str, float] | None = None
        for _ in range(16):
            sent = time.time()
            far = float(self.ask({"op": "ping"}, self.limits["connect"])["now"])
            got = time.time()
            if got >= sent and (best is None or got - sent < 2 * best["bound"]):
                best = {"offset": far - (sent + got) / 2, "bound": (got - sent) / 2}
        return best or {"offset": 0.0, "bound": float("inf")}


def _filler(size: int) -> list[tuple[Answer, bytes]]:
    """A frame whose body is of no use, in pieces that the other side takes at once."""
    return [({"op": "filler"}, bytes(wire.CHUNK))] * max(1, size // wire.CHUNK)
