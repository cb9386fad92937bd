"""Google's metadata server: a request that is answered when the instance is preempted, or after a while.

Compute Engine documentation: "View and query VM metadata" (wait_for_change, timeout_sec, last_etag; 503 is to be tried
again) and "Spot VMs", "Preemption process" (instance/preempted is TRUE, 30 s later the instance ends).
"""

from __future__ import annotations

import time
from urllib.parse import urlencode

from .metadata import Reply, Trouble, ask
from .notices import PREEMPTED, USUAL, Notice

BASE = "http://metadata.google.internal"
FLAVOR = "Metadata-Flavor"
PATH = "/computeMetadata/v1/instance/"
SLACK = 5.0  # seconds that an answer may come later than was asked for
AT_ONCE = 0.5  # seconds; who answers within them did not wait for a change


class Gcp:
    """One instance's server at `base`; a look waits up to `wait` seconds, other requests up to `limit`."""

    name = "gcp"

    def __init__(self, base: str = "", limit: float = 2.0, wait: float = 60.0) -> None:
        self.base = (base or BASE).rstrip("/")
        self.limit = limit
        self.wait = wait
        self._etag = "0"  # which no value has: the first answer comes at once
        self._hurried = False

    def here(self) -> bool:
        """Whether this server answers here. Trouble where nobody does."""
        self._get("id", self.limit)
        return True

    def _get(self, name: str, limit: float) -> Reply:
        reply = ask("GET", self.base + PATH + name, {FLAVOR: "Google"}, limit)
        if reply.status != 200:
            raise Trouble(f"{self.base}{PATH}{name}: HTTP {reply.status}")
        if reply.headers.get(FLAVOR.lower()) != "Google":
            raise Trouble(f"{self.base}: whoever answers there is not Google's metadata server")
        return reply

    def look(self) -> Notice | None:
        """The notice, as soon as there is one; None after `wait` seconds without a change."""
        query = {"wait_for_change": "true", "timeout_sec": f"{self.wait:.0f}", "last_etag": self._etag}
        began = time.monotonic()
        reply = self._get(f"preempted?{urlencode(query)}", self.wait + SLACK)
        value, etag = reply.body.strip(), reply.headers.get("etag", "")
        if value == "TRUE":
            return Notice(self.name, PREEMPTED, "", USUAL["gcp"])
        if value != "FALSE" or not etag:
            raise Trouble(f"{self.base}: neither TRUE nor FALSE with an ETag: {value[:80]!r}")
        self._hurried = etag == self._etag and time.monotonic() - began < AT_ONCE
        self._etag = etag
        return None

    def pause(self, interval: float) -> float:
        """Seconds until the next look: none, as the look itself waits, unless the server does not let it."""
        return interval if self._hurried else 0.0
