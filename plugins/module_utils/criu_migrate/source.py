"""The guard on the source: freezes, dumps, hands over, decides. Its record is the one truth about which copy runs."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

from . import net, proc, relay, sockets, stats, sync, wire
from .calling import Answer, CallingGuard
from .cli import UNKNOWN, PageServer, Result, failed, remedy, tail
from .errors import LinkLost, MigrationError, Refused
from .files import image_bytes, image_frames, link_remaps, mapped_files
from .record import Record
from .secure import Secure

BEFORE_COMMIT = ("armed", "freezing", "frozen", "dumped", "detached", "restored")


class SourceGuard(CallingGuard):
    """One step a state; a guard that was killed goes on at the step that its record names."""

    def __init__(self, rec: Record, config: dict[str, Any]) -> None:
        super().__init__(rec, config)
        self.root = proc.Proc(int(config["pid"]), int(config["start"]))
        self.page_channel: socket.socket | None = None
        self.manifests: list[sync.Manifest] = []
        self.steps: dict[str, Callable[[], None]] = {
            "armed": self.prepare,
            "freezing": self.freeze,
            "frozen": self.dump,
            "dumped": self.detach_address,
            "detached": self.restore,
            "restored": self.commit,
            "committed": self.finish,
            "undoing": self.undo,
        }

    def run(self) -> None:
        if self.rebooted() and self.rec.state in BEFORE_COMMIT:
            self.after_reboot()
        while not self.rec.final:
            try:
                self.steps[self.rec.state]()
            except Exception as error:  # whatever it is, a frozen process must not wait for a person to read about it
                self.survive(error)
        if self.rec.state == "undone" and not self.rec.data.get("destination_undone"):
            self.tell_later()
        self.say_goodbye()

    def survive(self, error: Exception) -> None:
        """Take the failure in; where not even the record can be written (disk full), try the same step again."""
        if not isinstance(error, MigrationError):
            self.say(traceback.format_exc())
            error = MigrationError(f"On the source: {error!r}", "See guard.log of the source.")
        try:
            self.failed(error)
        except OSError as problem:
            self.say(f"the record cannot be written: {problem}")
            time.sleep(1.0)

    def failed(self, error: MigrationError) -> None:
        """Before the commit everything is undone; after it only on the destination's own word that it never ran."""
        self.say(error.text())
        refused = isinstance(error, Refused)
        if self.rec.state in BEFORE_COMMIT or (self.rec.state == "committed" and refused):
            self.enter("undoing", sync=True, error={**error.as_dict(), "phase": self.rec.state})
        else:
            since = (self.rec.data.get("stalled") or {}).get("since", time.time())
            self.rec.note(stalled={**error.as_dict(), "since": since})
            time.sleep(1.0)  # try again: nothing to wait for but the other node

    def after_reboot(self) -> None:
        """The process died with this node: proof enough to let a copy run that the destination holds, if any."""
        held = ""
        while held in ("", "restoring"):  # its copy may be the only one: without its word nothing is decided
            try:
                held = str(self.ask({"op": "state"}, self.limits["connect"])["state"])
            except MigrationError as error:
                self.say(f"after a reboot of the source: {error.text()}")
                since = (self.rec.data.get("stalled") or {}).get("since", time.time())
                self.rec.note(stalled={**error.as_dict(), "since": since})
            time.sleep(1.0 if held in ("", "restoring") else 0.0)
        if held in ("restored", "running", "done"):  # running: a person has fenced this node meanwhile
            self.commit()
        else:
            lost = MigrationError("The source was rebooted, and the process died with it.", "Start the process again.")
            self.failed(lost)

    # --- before the freeze -------------------------------------------------------------------------------------

    def prepare(self) -> None:
        if not self.root.alive():
            raise MigrationError(f"The process {self.root.pid} is not running.", "Start it, then migrate.")
        self.rec.note(clock=self.measure_clock())
        self.send_roots()
        self.open_transfer()
        procs = proc.tree(self.root.pid)
        self.observe("before", procs)
        if self.address:
            where = net.find_address(self.address)
            if where is None:
                raise MigrationError(
                    f"{self.address} is not on the source.", "Add it there, or leave service_address out."
                )
            self.rec.note(address_on=where)
        self.enter("freezing", procs=[item.as_dict() for item in procs])

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

    def open_transfer(self) -> None:
        """Everything slow about the transfer is done before the freeze: directories, connection, page server."""
        if self.page_channel is not None:
            self.page_channel.close()
            self.page_channel = None
        self.make_images_dir()
        if self.transfer != "page_server":
            self.ask({"op": "images"}, self.limits["connect"])
            return
        token = str(self.ask({"op": "pages"}, self.limits["connect"])["token"])
        sock = relay.dial(self.config, self.folder, self.limits["connect"], self.encrypted, self.limits["link"])
        if isinstance(sock, Secure):
            wire.Link(sock).send({"op": "page_channel", "token": token})
            self.page_channel = relay.attach(sock)
        else:
            sock.sendall(wire.PAGE_MAGIC + token.encode())
            self.page_channel = sock
        self.ask({"op": "pages_ready"}, self.limits["connect"])

    # --- the freeze --------------------------------------------------------------------------------------------

    def freeze(self) -> None:
        if self.transfer == "page_server" and self.page_channel is None and self.job("dump") is None:
            self.open_transfer()  # this guard was started again
        self.rec.data["times"]["stopping"] = time.time()
        procs = proc.stop_tree(self.root, self.limits["freeze"], self.procs(), self.note_procs)
        self.enter("frozen", procs=[item.as_dict() for item in procs], last_beat=self.heartbeat_mtime())

    def note_procs(self, procs: list[proc.Proc]) -> None:
        self.rec.note(procs=[item.as_dict() for item in procs])

    def dump(self) -> None:
        job = self.job("dump")
        if job is None:
            if self.transfer == "page_server" and self.page_channel is None:
                self.open_transfer()
            fd = self.page_channel.fileno() if self.page_channel else None
            pages = PageServer(fd=fd) if fd is not None else None
            cmd = self.criu.dump_argv(self.root.pid, self.images, self.folder, pages)
            job = self.start_job("dump", cmd, self.log_path("criu-dump.log"), (fd,) if fd is not None else ())
            if self.page_channel is not None:
                self.page_channel.close()  # criu has it; with ours open the page server would never see the end
                self.page_channel = None
        result = job.wait(self.limits["dump"])
        if result is None:
            job.kill()
            raise MigrationError(f"criu dump did not end within {self.limits['dump']:g} s.", "Raise limits.dump.")
        if result.rc:
            error = failed("dump", result)
            raise self.cause_of(error, "pages_done") if self.transfer == "page_server" else error
        self.enter("dumped", dump=result.as_dict())

    def cause_of(self, error: MigrationError, request: str) -> MigrationError:
        """A dump or rsync also fails when its other end does, which knows why: here it was a broken pipe."""
        if error.remedy != UNKNOWN:
            return error
        try:
            self.ask({"op": request}, 3.0, 0.0)  # the process stands still meanwhile
        except LinkLost:
            return error
        except MigrationError as far:
            return far if far.remedy != UNKNOWN else error
        return error

    def detach_address(self) -> None:
        """The dump has locked the connections already; with the address gone the node does not answer for it at all."""
        if self.address:
            net.remove_address(self.address, self.rec.data.get("address_on"))
        self.enter("detached")

    def restore(self) -> None:
        if self.manifests or self.ask({"op": "state"}, self.limits["restore"] + 10.0)["state"] == "receiving":
            self.send_all()  # else this guard was started again, and the destination has it all
        request = {"op": "restore", "procs": self.rec.data["procs"], "address_on": self.rec.data.get("address_on")}
        answer = self.ask(request, self.limits["restore"] + 10.0)
        self.enter("restored", restore=answer["restore"])

    def send_all(self) -> None:
        """What the pages server has not taken: small images (rsync: all of them), changed blocks of the directories."""
        began = time.time()
        if self.transfer == "page_server":
            done = self.ask({"op": "pages_done"}, self.limits["dump"])
            self.rec.data["page_server"] = done["result"]
            images: sync.Manifest = {}
            self.ask({"op": "synced"}, self.limits["transfer"], frames=lambda: image_frames(self.images, images))
        else:
            self.rec.data["rsync"] = self.rsync()
        delta = self.send_roots(frozenset(mapped_files(self.procs())))
        self.rec.data["times"]["sent"] = time.time()
        self.rec.data["sending"] = {"seconds": time.time() - began, **delta}

    def rsync(self) -> dict[str, Any]:
        """All image directories, as the seed framework's transfer does, through the guards' TLS."""
        words = ["rsync", "-a", "--whole-file", "--delete", "--stats"]
        words += ["-e", f"{sys.executable} -I {self.log_path('guard.pyz')} rsh {self.run_id}"]
        words += [self.images + "/", f"destination:{relay.RSYNC_TARGET}"]
        began = time.monotonic()
        try:
            done = subprocess.run(
                words,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=self.limits["transfer"],
                check=False,
            )
        except (subprocess.TimeoutExpired, FileNotFoundError) as error:
            raise MigrationError(f"rsync: {error}", "Raise limits.transfer, or install rsync on both nodes.") from error
        with open(self.log_path("rsync.log"), "a", encoding="utf-8") as log:
            log.write(done.stdout + done.stderr)
        result = Result(words, done.returncode, time.monotonic() - began, "rsync.log", tail(self.log_path("rsync.log")))
        if done.returncode:
            text = f"rsync ended with {done.returncode}: {done.stderr.strip()[-300:]}"
            raise self.cause_of(MigrationError(text, remedy(done.stderr), result.as_dict()), "rsync_trouble")
        return {"seconds": result.seconds}

    # --- the decision ------------------------------------------------------------------------------------------

    def commit(self) -> None:
        """From here on the copy on the destination is the process, even if this node dies now."""
        self.enter("committed", sync=True)

    def finish(self) -> None:
        answer = self.ask({"op": "commit"}, self.limits["commit"])
        self.rec.data["times"]["acknowledged"] = time.time()
        self.rec.note(destination_times=answer["times"])
        left = proc.kill_tree(self.procs(), self.limits["undo"])
        if left:
            raise MigrationError(
                f"PIDs {[p.pid for p in left]} of the old copy do not die.", "They stay stopped; reboot the source."
            )
        self.remove_lock_tables()
        self.remove_link_remaps()
        self.rec.note(bytes=image_bytes(self.images))
        self.drop_images()
        self.enter("done", sync=True)

    def undo(self) -> None:
        """First the destination, so that its copy can never run, then this side in the order that keeps clients."""
        self.drop_page_channel()
        job = self.job("dump")
        if job is not None:
            job.kill()
        frozen = "freezing" in self.rec.data["times"]
        patience = 0.0 if self.lost_since is not None else self.limits["undo"]
        try:
            self.ask(
                {"op": "undo", "why": (self.rec.data.get("error") or {}).get("message", "")},
                self.limits["undo"],
                patience,
            )
            self.rec.data["destination_undone"] = True
        except Refused as error:  # its copy runs (a person fenced this node): this one must not
            self.say(f"undo: {error.text()}")
            self.enter("committed", sync=True)
            return
        except MigrationError as error:
            self.say(f"undo: the destination does not answer, its copy stays stopped and mute: {error}")
            self.rec.data["destination_undone"] = False
        if frozen:
            self.resume()
        self.drop_images()
        self.enter("undone", sync=True)

    def drop_page_channel(self) -> None:
        if self.page_channel is not None:
            self.page_channel.close()
            self.page_channel = None

    def resume(self) -> None:
        """Address back, TCP_REPAIR off, CRIU's nft table away, announce, SIGCONT: each may be done twice."""
        procs = self.procs()
        has_address = bool(self.address and self.rec.data.get("address_on") and not self.rebooted())
        patience = self.rec.data["times"]["undoing"] + self.limits["undo"]
        for step in (
            self.put_address_on if has_address else lambda: None,
            lambda: sockets.in_repair(procs, off=True),
            self.remove_lock_tables,
        ):
            try:
                step()
            except (MigrationError, OSError) as error:
                if time.time() < patience:
                    raise  # tried again in a second; a process without its address is still better than none
                self.say(f"undo, left undone: {error}")
        if has_address:
            try:
                net.announce(self.address, self.rec.data["address_on"]["interface"])
            except OSError as error:
                self.say(f"undo: not announced: {error}")
        proc.continue_procs(procs)
        self.rec.data["times"].setdefault("resumed", time.time())
        self.remove_link_remaps()
        self.observe("after", procs)

    def remove_lock_tables(self) -> None:
        names = stats.lock_tables(self.images, self.log_path("criu-dump.log"))
        gone = net.delete_tables(names)
        if gone:
            self.say(f"removed nft table {', '.join(gone)}")

    def remove_link_remaps(self) -> None:
        """Walks whole directories: never while the process stands still."""
        for path in link_remaps(self.roots, float(self.rec.data["times"].get("stopping", time.time()))):
            with contextlib.suppress(OSError):
                os.unlink(path)
                self.say(f"removed {path}")

    def tell_later(self) -> None:
        try:
            self.ask({"op": "undo", "why": "The source has undone."}, self.limits["undo"], self.limits["peer"])
            self.rec.note(destination_undone=True)
        except MigrationError as error:
            self.say(f"the destination was never reached again: {error}")

    def say_goodbye(self) -> None:
        """The destination's guard may go; when the word is lost, it goes by itself later."""
        try:
            self.ask({"op": "done"}, self.limits["connect"], 5.0)
        except MigrationError as error:
            self.say(f"goodbye: {error}")
        self.drop_link()
        self.say("guard ends")
