"""The control node's wait for a node's notice, which outlives every connection to it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

Answer = dict[str, Any]
FIRST, LONGEST = 0.5, 5.0  # seconds between two tries to reach the node


class Lost(Exception):
    """No answer came from the node."""


class Wait:
    """Asks a node again and again. ask: what the module criu_watch says within so many seconds, Lost where nothing
    comes. say: a line for a person. rest: waits so many seconds."""

    def __init__(
        self, node: str, ask: Callable[[float], Answer], say: Callable[[str], None],
        rest: Callable[[float], None] = time.sleep,
    ) -> None:  # fmt: skip
        self.node = node
        self.ask = ask
        self.say = say
        self.rest = rest
        self.said = ""
        self.pause = FIRST

    def until(self, seconds: float, at_most: float, every: float, registered: str, once: bool) -> Answer:
        """Return {notice, registered, stale} or a failure of the module.

        seconds: after which it returns without a notice; 0: never. A node that cannot be reached then is waited for,
        at_most so many seconds from the beginning; 0: without end. every: seconds of one question. registered: what was
        registered before, '' where that does not matter; stale: it is not so any more. once: look and return.
        """
        began = time.monotonic()
        while True:
            left = max(0.0, began + seconds - time.monotonic()) if seconds else every
            # The first answer comes at once, so that a person sees whether anybody is heard
            wait = 0.0 if once or not self.said else min(every, left)
            try:
                found = self.ask(wait)
            except Lost as error:
                given_up = once or (at_most and time.monotonic() > began + at_most)
                if given_up:
                    return {"failed": True, "msg": f"{self.node} cannot be reached: {error}"}
                self.lost(error)
                continue
            self.pause = FIRST
            if found.get("failed"):
                return found
            self.tell(found)
            now = str(found.get("registered") or "")
            stale = registered not in ("", now)
            if found["notice"] or once or stale or (seconds and left == 0.0):
                return {"notice": found["notice"], "registered": now, "stale": stale}

    def lost(self, error: Lost) -> None:
        self.tell_once(f"{self.node} cannot be reached, it is tried again and again: {error}")
        self.rest(self.pause)  # a node that comes back gives no event here
        self.pause = min(self.pause * 2, LONGEST)

    def tell(self, found: Answer) -> None:
        if found.get("trouble"):
            self.tell_once(f"{self.node}: no word from the metadata service: {found['trouble']}")
        else:
            provider = found.get("provider") or "nobody yet"
            self.tell_once(f"{self.node}: watching, the metadata service of {provider} answers")

    def tell_once(self, text: str) -> None:
        """A line for a person, when it differs from the one before."""
        if text != self.said:
            self.said = text
            self.say(text)
