"""Amazon's instance metadata service, version 2 (IMDSv2): a token first, then the notices of a spot instance.

Amazon EC2 User Guide: "Use the Instance Metadata Service", "Spot Instance interruption notices", "EC2 instance
rebalance recommendations". Both notices answer 404 until there is one.
"""

from __future__ import annotations

import json
import time
from typing import Any

from . import notices
from .metadata import Reply, Trouble, ask
from .notices import INTERRUPTION, REBALANCE, Notice

BASE = "http://169.254.169.254"
TOKEN, TTL = "X-aws-ec2-metadata-token", "X-aws-ec2-metadata-token-ttl-seconds"
TOKEN_SECONDS = 21600  # the longest that the service grants
ACTION = "/latest/meta-data/spot/instance-action"
RECOMMENDATION = "/latest/meta-data/events/recommendations/rebalance"


class Aws:
    """One instance's service at `base`; each request takes at most `limit` seconds."""

    name = "aws"

    def __init__(self, base: str = "", limit: float = 2.0, token_seconds: int = TOKEN_SECONDS) -> None:
        self.base = (base or BASE).rstrip("/")
        self.limit = limit
        self.token_seconds = token_seconds
        self._token = ""
        self._renew_at = 0.0

    def here(self) -> bool:
        """Whether this service answers here. Trouble where nobody does."""
        self._renew()
        return True

    def _renew(self) -> None:
        reply = ask("PUT", self.base + "/latest/api/token", {TTL: str(self.token_seconds)}, self.limit)
        if reply.status != 200 or not reply.body.strip():
            raise Trouble(f"{self.base} gives no token (HTTP {reply.status}): is IMDSv2 switched on?")
        self._token = reply.body.strip()
        try:
            granted = float(reply.headers.get(TTL.lower(), self.token_seconds))
        except ValueError:
            granted = float(self.token_seconds)
        self._renew_at = time.monotonic() + 0.9 * granted

    def get(self, path: str) -> Reply | None:
        """What lies there, None where nothing does (404). A token that is refused or nearly over is renewed."""
        for attempt in (1, 2):
            if not self._token or time.monotonic() >= self._renew_at:
                self._renew()
            reply = ask("GET", self.base + path, {TOKEN: self._token}, self.limit)
            if reply.status == 404:
                return None
            if reply.status == 200:
                return reply
            if reply.status != 401 or attempt == 2:
                break
            self._token = ""
        raise Trouble(f"{self.base}{path}: HTTP {reply.status}")

    def look(self) -> Notice | None:
        """The notice that there is: of the end, else the hint that it may come."""
        reply = self.get(ACTION)
        if reply is not None:
            return interruption(reply, time.time())
        reply = self.get(RECOMMENDATION)
        if reply is None:
            return None
        _fields(reply, "noticeTime")
        return Notice(self.name, REBALANCE)

    def pause(self, interval: float) -> float:
        """Seconds until the next look: the service answers at once."""
        return interval


def _fields(reply: Reply, needed: str) -> dict[str, Any]:
    try:
        found = json.loads(reply.body)
    except ValueError:
        found = None
    if not isinstance(found, dict) or needed not in found:
        raise Trouble(f"the answer is no notice: {reply.body[:80]!r}")
    return found


def interruption(reply: Reply, now: float) -> Notice:
    """What {"action": ..., "time": ...} says; `now` is the node's clock. Where the time cannot be read it is the usual
    one. hibernate begins at once, whatever is left."""
    found = _fields(reply, "action")
    try:
        end = notices.parse_time(str(found.get("time")))
    except ValueError:
        seconds = notices.USUAL["aws"]
    else:
        seconds = notices.seconds_until(end, reply.headers.get("date", ""), now)
    return Notice("aws", INTERRUPTION, str(found["action"]), seconds)
