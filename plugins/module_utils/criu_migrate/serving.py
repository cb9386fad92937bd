"""Post-copy at the source: the dump that leaves the memory where it is, and the pages that the destination asks for."""

from __future__ import annotations

import socket
import threading
import time

from . import lazy_source, relay, wire
from .cli import PageServer, Result, failed
from .errors import LinkLost, MigrationError
from .guard import Guard
from .secure import Plain, Secure

END = 10.0  # seconds for a criu that has nothing left to do


class Serving:
    """Serves the stopped tree's memory from /proc/PID/mem.

    CRIU's own page server would die with its guard; it only waits here, so that it writes its statistics at the end.
    """

    def __init__(self, guard: Guard) -> None:
        self.guard = guard
        self.waiting: socket.socket | None = None  # the end at which criu dump waits
        self.link: Secure | None = None
        self.thread: threading.Thread | None = None
        self.ended = False

    def dump(self, pid: int, parent: str = "") -> Result:
        """Until everything but memory is written. Raises CriuError, or MigrationError past the limit.

        `parent`: the pre-dump whose pages the destination has; only what has changed since is left for later.
        """
        guard = self.guard
        near, far = socket.socketpair()
        self.waiting = near

        def argv(status: int) -> list[str]:
            pages = PageServer(fd=far.fileno())
            return guard.criu.dump_argv(
                pid, guard.images, guard.folder, pages, track_mem=bool(parent), previous=parent, lazy_fd=status
            )

        log = guard.log_path("criu-dump.log")
        with far:
            job, heard = guard.start_and_hear("dump", argv, log, (far.fileno(),), guard.limits["dump"])
        if heard:
            return Result(job.cmd, 0, time.time() - job.began, log, "")
        result = None if heard is None else job.wait(END)
        if result is None:
            job.kill()
            raise MigrationError(f"criu dump did not end within {guard.limits['dump']:g} s.", "Raise limits.dump.")
        raise failed("dump", result)

    def check_memory(self) -> None:
        """MigrationError after a reboot: it has taken what the destination has not fetched."""
        if self.guard.rebooted():
            raise MigrationError(
                "The source was rebooted before all memory had left it: the copy on the destination is lost.",
                "playbooks/resolve.yml -e fence=source-is-dead removes it.",
            )

    def end_dump(self) -> None:
        """Let criu go: it leaves the tree stopped, as it found it."""
        if self.waiting is not None:
            self.waiting.close()
            self.waiting = None
        job = self.guard.job("dump")
        if job is not None and job.wait(END) is None:
            job.kill()

    def open(self) -> Secure:
        """The connection for pages, made before the freeze."""
        link = self.dial()
        if self.guard.encrypted:
            wire.Link(link).send({"op": "lazy_channel"})
            self.link = link
            return link
        try:
            wire.Link(link).send({"op": "token"})
            token = str(wire.Link(link).receive(self.guard.limits["connect"])[0]["token"])
        finally:
            link.close()
        plain = self.link = self.dial(secure=False)
        plain.sendall(wire.PAGE_MAGIC + token.encode())
        return plain

    def dial(self, secure: bool = True) -> Secure:
        guard = self.guard
        sock = relay.dial(guard.config, guard.folder, guard.limits["connect"], secure)
        return sock if isinstance(sock, Secure) else Plain(sock)

    def start(self) -> None:
        """Serve in a thread, and dial again when the link breaks."""
        if self.thread is None:
            self.thread = threading.Thread(target=self.serve, daemon=True)
            self.thread.start()

    def serve(self) -> None:
        pids = {item.pid for item in self.guard.procs()}
        while not self.ended:
            try:
                counts = lazy_source.serve(self.link or self.open(), lambda: pids)
                self.guard.say(f"all pages are at the destination: {counts}")
                return
            except (LinkLost, OSError, MigrationError) as error:
                if self.ended:
                    return
                self.guard.say(f"pages: {error}")
                self.close_link()
                time.sleep(0.2)  # a cut link gives no event when it heals

    def close_link(self) -> None:
        link, self.link = self.link, None
        if link is not None:
            link.close()

    def stop(self) -> None:
        self.ended = True
        self.close_link()
