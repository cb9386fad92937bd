"""The program that waits on a node for its cloud's notice: the unit criu-migrate-watch, or a daemon without systemd.

It needs the standard library only and no network but the metadata service. When the end is announced it writes the
notice and ends; a mere hint (rebalance) it writes and goes on.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any, Union

from . import notices, record
from .detaching import detach, keep
from .metadata import Trouble
from .metadata_aws import Aws
from .metadata_gcp import Gcp
from .notices import REBALANCE, Notice

FOLDER = "/var/lib/criu-migrate-watch"
CONFIG, STATUS, LOCK, LOG, PROGRAM = "config.json", "status.json", "lock", "watch.log", "watch.pyz"
FIRST, LONGEST = 0.2, 2.0  # seconds between two tries of a service that does not answer: of 30 s few are to be lost
Provider = Union[Aws, Gcp]
DEFAULTS: dict[str, Any] = {
    "provider": "auto", "aws_url": "", "gcp_url": "", "interval": 2.0, "limit": 2.0, "wait": 60.0,
    "token_seconds": 21600, "runs": record.RUNS,
}  # fmt: skip


def place(name: str, folder: str = "") -> str:
    return os.path.join(folder or FOLDER, name)


def providers(config: dict[str, Any]) -> list[Provider]:
    """Those that are asked for, or all."""
    limit = float(config["limit"])
    known: list[Provider] = [
        Aws(str(config["aws_url"]), limit, int(config["token_seconds"])),
        Gcp(str(config["gcp_url"]), limit, float(config["wait"])),
    ]
    return [item for item in known if config["provider"] in ("auto", item.name)]


class Watcher:
    """Looks until the end is announced. `say` gets a line for a person whenever something changes."""

    def __init__(self, config: dict[str, Any], say: Callable[[str], None], folder: str = "") -> None:
        self.status = place(STATUS, folder)
        self.interval = float(config["interval"])
        self.candidates = providers(config)
        self.found: Provider | None = self.candidates[0] if len(self.candidates) == 1 else None
        self.say = say
        self.trouble = ""
        self.hinted = notices.read() is not None
        self.answers = ""  # the provider that has answered
        self.pause = FIRST

    def run(self) -> Notice:
        """Until the end is announced; returns that notice."""
        self.note()
        while True:
            notice, seconds = self.step()
            if notice is not None:
                return notice
            time.sleep(seconds)  # nothing tells when the service has something new to say

    def step(self) -> tuple[Notice | None, float]:
        """One look; returns the notice of the end, or None and the seconds until the next look."""
        try:
            provider = self.provider()
            notice = provider.look()
        except Trouble as error:
            return None, self.troubled(str(error))
        self.answered(provider)
        if notice is not None and notice.kind != REBALANCE:
            self.tell(notice)
            return notice, 0.0
        if notice is not None and not self.hinted:
            self.hinted = True
            self.tell(notice)
        return None, provider.pause(self.interval)

    def provider(self) -> Provider:
        """The one that answers here. Trouble, with what each has said, where none does."""
        if self.found is not None:
            return self.found
        said = []
        for item in self.candidates:
            try:
                if item.here():
                    self.found = item
                    return item
            except Trouble as error:
                said.append(f"{item.name}: {error}")
        raise Trouble("; ".join(said))

    def troubled(self, text: str) -> float:
        if not self.trouble:
            self.trouble = text
            self.say(f"no word from the metadata service, it is asked again and again: {text}")
            self.note()
        pause, self.pause = self.pause, min(self.pause * 2, LONGEST)
        return pause

    def answered(self, provider: Provider) -> None:
        self.pause = FIRST
        if self.trouble or not self.answers:
            self.say(f"the metadata service of {provider.name} answers")
            self.trouble = ""
            self.answers = provider.name
            self.note()

    def tell(self, notice: Notice) -> None:
        data = notices.write(notice)
        end = "no end is known" if notice.seconds is None else f"{notice.seconds:.0f} s are left"
        self.say(f"notice of {notice.provider}: {notice.kind} {notice.action}".rstrip() + f", {end}")
        self.note(notice=data["kind"])

    def note(self, **more: Any) -> None:
        """Who watches and what it sees, for the module criu_watch."""
        with contextlib.suppress(OSError):  # a full disk must not end the watch
            status = {"pid": os.getpid(), "provider": self.answers, "trouble": self.trouble, **more}
            record.write_file(self.status, json.dumps(status, sort_keys=True).encode(), sync=False)


def say(text: str) -> None:
    """A line on stdout: the journal, or watch.log."""
    stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    with contextlib.suppress(OSError):
        os.write(1, f"{stamp} {text}\n".encode(errors="replace"))


def main(argv: list[str]) -> int:
    """`watch.pyz` stays in the foreground, as systemd wants it; `watch.pyz daemon` detaches and restarts itself.

    Everything that it reads and writes lies beside it, but the notice.
    """
    folder = os.path.dirname(os.path.abspath(argv[0]))
    if len(argv) > 1 and argv[1] == "daemon":
        if not detach(place(LOG, folder)):
            return 0
        keep()
    if record.lock_file(place(LOCK, folder), patience=1.0) is None:
        say("another watcher runs already")
        return 3
    with open(place(CONFIG, folder), encoding="utf-8") as handle:
        config = {**DEFAULTS, **json.load(handle)}
    record.RUNS = str(config["runs"])
    known = notices.read()
    if known is None or known["kind"] == REBALANCE:
        Watcher(config, say, folder).run()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
