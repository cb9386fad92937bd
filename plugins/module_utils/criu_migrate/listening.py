"""The destination's end of the link: connections, frames of files, and requests for the guard to answer."""

from __future__ import annotations

import abc
import os
import socket
import ssl
import threading
import time
from collections.abc import Callable
from typing import Any

from . import relay, wire
from .errors import LinkLost, MigrationError, Refused
from .guard import Guard
from .intake import FRAMES, Intake, in_words
from .record import Record
from .secure import Secure

Answer = dict[str, Any]


class ListeningGuard(Guard, abc.ABC):
    """A guard that serves the other one. One request at a time holds `busy`; each connection has a thread."""

    def __init__(self, rec: Record, config: dict[str, Any]) -> None:
        super().__init__(rec, config)
        self.busy = threading.RLock()
        self.current: wire.Link | None = None
        self.heard = time.monotonic()
        self.finished = threading.Event()
        self.wake_read, self.wake_write = os.pipe()
        self.handlers: dict[str, Callable[[Answer], Answer]] = {}

    @abc.abstractmethod
    def receive_pages(self, link: Secure, token: str) -> None:
        """Take a dump's pages in, once the token proves that they belong to it."""

    @abc.abstractmethod
    def images_came(self) -> None:
        """All images but pages are here."""

    @abc.abstractmethod
    def stop_receiving(self) -> None:
        """Take no more of a dump's pages."""

    @abc.abstractmethod
    def take_plain(self, sock: socket.socket, token: str) -> None:
        """A connection for pages without TLS, by a token that came over TLS."""

    @abc.abstractmethod
    def take_pages(self, sock: Secure) -> None:
        """A connection over which the source serves pages of a process that is restored already."""

    def listen(self) -> socket.socket:
        """Bind within the range of the run, from a place that its name decides; the same port again after a restart."""
        low, high = self.config["ports"]
        if self.rec.data.get("port"):  # the source knows no other
            low = high = int(self.rec.data["port"])
        first = int(self.rec.data.get("port") or low + hash_of(self.run_id) % (high - low + 1))
        for step in range(high - low + 1):
            port = low + (first - low + step) % (high - low + 1)
            sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                sock.bind((str(self.config.get("listen") or ""), port))
                sock.listen(8)
            except OSError:
                sock.close()
                continue
            self.rec.note(port=port)
            return sock
        raise MigrationError(f"No port of {low}-{high} is free on the destination.", "Widen guard_port_range.")

    def finish(self) -> None:
        self.finished.set()
        os.write(self.wake_write, b"x")

    def serve(self, sock: socket.socket, peer: Any, context: ssl.SSLContext) -> None:
        """One connection: a raw channel for pages, or the TLS link with requests."""
        handed_over = False
        try:
            sock.settimeout(self.limits["connect"])
            token = wire.read_preamble(sock)
            if token:
                if self.encrypted:
                    raise MigrationError("Pages have to come encrypted.", "Same version on both nodes?")
                sock.settimeout(None)
                self.take_plain(sock, token)
                handed_over = True
                return
            wire.tune(sock, wire.SILENCE)
            secure = Secure(sock, context, server=True)
            secure.settimeout(None)
            handed_over = self.converse(wire.Link(secure), secure)
        except LinkLost as error:
            self.say(str(error))
        except (OSError, MigrationError) as error:
            self.say(f"connection from {peer}: {error}")
        finally:
            if not handed_over:
                sock.close()

    def converse(self, link: wire.Link, sock: Secure) -> bool:
        """Answer requests until the link breaks; True when the connection now belongs to a relay."""
        intake = Intake(self.roots, self.images)
        while True:
            header, body = link.receive()
            self.heard = time.monotonic()
            name = str(header.get("op"))
            if name == "filler":  # only how long it takes is of interest
                continue
            if name in FRAMES:
                self.take_in(link, intake, header, body)
            elif name == "synced":
                link.send(intake.end())
                if intake.images.files:
                    with self.busy:
                        self.insist_current(link)  # or they are coming once more
                        self.images_came()
                intake = Intake(self.roots, self.images)
            elif name in ("rsync", "page_channel", "lazy_channel"):
                self.hand_over_channel(name, header, sock)
                return True
            else:
                self.current = link if name == "hello" else self.current
                link.send(self.answer(name, header, link))
                if name == "done" and self.rec.final:  # a stopped copy is never left alone
                    self.finish()

    def hand_over_channel(self, name: str, header: Answer, sock: Secure) -> None:
        """This connection is not for requests: it carries pages, or rsync's files."""
        if name != "lazy_channel":  # which the source dials again
            wire.tune(sock.sock, self.limits["link"])
        if name == "rsync":
            self.refuse_unless("receiving")
            relay.serve_rsync(sock, header["argv"], self.images, self.log_path("rsync.log"))
        elif name == "lazy_channel":
            self.take_pages(sock)
        else:
            self.receive_pages(sock, str(header["token"]))

    def take_in(self, link: wire.Link, intake: Intake, header: Answer, body: bytes) -> None:
        """One frame, while the directories are being filled; what an older connection still holds comes too late."""
        with self.busy:
            self.insist_current(link)
            if self.rec.state in ("armed", "receiving"):
                intake.take(header, body)

    def insist_current(self, link: wire.Link | None) -> None:
        """LinkLost where the source has dialled again since: what it has asked for here it asks for there."""
        if link is not None and link is not self.current:
            raise LinkLost("The source has called again: this connection is an old one.")

    def answer(self, name: str, request: Answer, link: wire.Link | None = None) -> Answer:
        if (
            name in ("ping", "filled")
            or (name == "hello" and request.get("run_id") == self.run_id)
            or (name == "state" and self.rec.state == "restoring")  # of post-copy that waits for a source that is gone
        ):
            return self.handlers[name](request)  # never behind a request that takes its time
        if name == "undo":
            self.cut_short()
        with self.busy:
            if name != "token":  # of a connection that says nothing else
                # It may have waited for the lock, or for a link that was cut, and begin anew what goes on since.
                self.insist_current(link)
            try:
                return self.handlers[name](request)
            except Refused as error:
                return {"error": error.as_dict(), "refused": True}
            except MigrationError as error:
                self.say(error.text())
                return {"error": error.as_dict()}
            except (OSError, ValueError, KeyError) as error:
                self.say(f"{name}: {error!r}")
                return {"error": in_words(error).as_dict()}

    def cut_short(self) -> None:
        """An undo does not wait for what it takes back: without its criu the request that holds the lock ends."""
        if self.rec.state in ("receiving", "restoring"):
            self.stop_receiving()
            for job in filter(None, map(self.job, ("restore", "lazy-pages"))):
                job.kill()

    def refuse_unless(self, *states: str) -> None:
        if self.rec.state not in states:
            raise Refused(
                f"The destination is {self.rec.state}, not {' or '.join(states)}.", "See playbooks/resolve.yml."
            )


def hash_of(text: str) -> int:
    return int.from_bytes(text.encode()[-8:], "big")
