"""The source's end of the transfer: working directories, images, and the channel for pages."""

from __future__ import annotations

import base64
import os
import socket
import subprocess
import sys
import time
from typing import Any

from . import probing, relay, sync, wire
from .calling import Answer, CallingGuard
from .cli import UNKNOWN, Result, remedy, tail
from .errors import LinkLost, MigrationError
from .files import image_frames, mapped_files
from .record import Record
from .secure import Secure
from .serving import Serving

LOOK = 10.0  # seconds between two looks how far a dump is: none at all while a usual one keeps the process waiting


class SendingGuard(CallingGuard):
    """A guard that sends what a dump makes."""

    def __init__(self, rec: Record, config: dict[str, Any]) -> None:
        super().__init__(rec, config)
        self.page_channel: socket.socket | None = None
        self.serving = Serving(self)
        self.manifests: list[sync.Manifest] = []

    def send_roots(self, mapped: frozenset[str] = frozenset()) -> Answer:
        """Working directories to the destination; the second time only what has changed."""
        fresh: list[sync.Manifest] = []

        def frames() -> Any:
            fresh[:] = [{} for _ in self.roots]
            for number, root in enumerate(self.roots):
                base = self.manifests[number] if self.manifests else {}
                yield from sync.frames(number, root, base, fresh[number], mapped)

        answer = self.ask({"op": "synced"}, self.limits["transfer"], frames=frames)
        self.manifests = fresh
        return answer

    def open_transfer(self, dump: str = "", parent: str = "") -> None:
        """Everything slow about the transfer is done before the freeze: directories, connection, page server.

        `dump`: the name of a pre-dump, '' for the dump itself. Without a `parent` (the last one) all begins anew.
        """
        self.drop_page_channel()
        if not parent:
            self.make_images_dir()
        self.rec.note(parent=parent)
        if not dump and (self.postcopy or self.transfer != "page_server"):
            self.ask({"op": "images", "parent": parent}, self.limits["connect"])
            if self.postcopy:
                self.insist(self.serving.open)
            return
        self.insist(lambda: self.open_page_channel(dump, parent))
        self.ask({"op": "pages_ready"}, self.limits["connect"])

    def fetch_page_maps(self, dump: str) -> None:
        """What the destination has of the last pre-dump, into the images here: criu looks for pages of a lazy dump's
        parent on its own node, and takes all memory for missing where it finds none."""
        for name in self.ask({"op": "page_maps"}, self.limits["connect"])["names"]:
            found = self.ask({"op": "page_map", "name": name}, self.limits["transfer"])
            if name != os.path.basename(name):
                raise MigrationError(f"Refused {name!r} as the name of an image.", "Update both nodes.")
            with open(os.path.join(self.images, dump, name), "wb") as image:
                image.write(base64.b64decode(found["content"]))

    def open_page_channel(self, dump: str, parent: str) -> None:
        request = {"op": "pages", "dump": dump, "parent": parent}
        token = str(self.ask(request, self.limits["connect"])["token"])
        # A dump waits for a link that is cut. A pre-dump can begin anew, and the process may stand still for it.
        patient = 0.0 if dump else self.limits["link"]
        sock = relay.dial(self.config, self.folder, self.limits["connect"], self.encrypted, patient)
        if isinstance(sock, Secure):
            wire.Link(sock).send({"op": "page_channel", "token": token})
            self.page_channel = relay.attach(sock)
        else:
            sock.sendall(wire.PAGE_MAGIC + token.encode())
            self.page_channel = sock

    def drop_page_channel(self) -> None:
        if self.page_channel is not None:
            self.page_channel.close()
            self.page_channel = None

    def tries_pages(self) -> bool:
        """Memory goes, or begins to go, to a page server on the destination; else over the guards' own link."""
        return self.precopy or self.takes_pages()

    def measure_bandwidth(self) -> float:
        """Bytes/s with which memory will cross. Nothing was stopped, and what was sent is forgotten with the first
        dump."""
        if self.tries_pages():
            try:
                self.open_transfer(probing.NAME)
                if self.page_channel is not None:
                    return probing.speed(self.page_channel, self.limits["connect"])
            except MigrationError as error:  # a dump that is no dump; the link will show what it can
                self.say(error.text())
            finally:
                self.drop_page_channel()
        return super().measure_bandwidth()

    def takes_pages(self) -> bool:
        """The dump's pages go to a page server on the destination."""
        return self.transfer == "page_server" and not self.postcopy

    def cause_of(self, error: MigrationError, request: str) -> MigrationError:
        """A dump or rsync also fails when its other end does, which knows why: here it was a broken pipe."""
        if error.remedy != UNKNOWN:
            return error
        try:
            self.ask({"op": request}, 3.0, 0.0)  # the process may stand still meanwhile
        except LinkLost:
            return error
        except MigrationError as far:
            # without a remedy it is only the end of the connection, as seen from there
            return far if far.remedy not in ("", UNKNOWN) else error
        return error

    def send_all(self) -> None:
        """What the pages server has not taken: small images (rsync: all of them), changed blocks of the directories."""
        began = time.time()
        if self.transfer == "page_server":
            if not self.postcopy:
                self.rec.data["page_server"] = self.pages_taken()
            self.ask({"op": "synced"}, self.limits["transfer"], frames=lambda: image_frames(self.images))
        else:
            self.rec.data["rsync"] = self.rsync()
        delta = self.send_roots(frozenset(mapped_files(self.procs())))
        self.rec.data["times"]["sent"] = time.time()
        self.rec.data["sending"] = {"seconds": time.time() - began, **delta}

    def pages_taken(self) -> dict[str, Any]:
        """What the destination has of the dump that has just ended: pages, bytes, seconds."""
        result: dict[str, Any] = self.ask({"op": "pages_done"}, self.limits["dump"])["result"]
        return result

    def ping(self, limit: float | None = None, patience: float | None = None) -> int:
        """A sign of life for a destination that would give up; how many pages of a dump on its way have come there."""
        return int(self.ask({"op": "ping"}, limit or self.limits["connect"], patience).get("pages") or 0)

    def pages_there(self) -> int:
        """The same of a dump that waits for a link that is cut: nothing is known then."""
        try:
            return self.ping(LOOK, 0.0)
        except LinkLost:
            return 0

    def rsync(self) -> dict[str, Any]:
        """All image directories, as the seed framework's transfer does, through the guards' TLS."""
        words = ["rsync", "-a", "--whole-file", "--delete", "--stats"]
        words += ["-e", f"{sys.executable} -I {self.log_path('guard.pyz')} rsh {self.run_id}"]
        words += [self.images + "/", f"destination:{relay.RSYNC_TARGET}"]
        began = time.monotonic()
        try:
            done = subprocess.run(
                words, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=self.limits["transfer"],
                check=False,
            )  # fmt: skip
        except (subprocess.TimeoutExpired, FileNotFoundError) as error:
            raise MigrationError(f"rsync: {error}", "Raise limits.transfer, or install rsync on both nodes.") from error
        with open(self.log_path("rsync.log"), "a", encoding="utf-8") as log:
            log.write(done.stdout + done.stderr)
        result = Result(words, done.returncode, time.monotonic() - began, "rsync.log", tail(self.log_path("rsync.log")))
        if done.returncode:
            text = f"rsync ended with {done.returncode}: {done.stderr.strip()[-300:]}"
            raise self.cause_of(MigrationError(text, remedy(done.stderr), result.as_dict()), "rsync_trouble")
        return {"seconds": result.seconds}
