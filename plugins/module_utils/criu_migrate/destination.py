"""The guard on the destination: takes pages and images, restores a stopped and mute copy, runs it on "commit" only."""

from __future__ import annotations

import os
import socket
import threading
import time
from typing import Any

from . import lazymap, net, polling, proc, sockets, wire
from .cli import failed, remedy, tail
from .errors import MigrationError, Refused
from .filling import OLDER, Filling
from .guard import died_unseen, incomplete
from .job import Job
from .listening import Answer
from .receiving import ReceivingGuard
from .record import Record
from .reserve import Reserve
from .secure import Plain, Secure

HOLDS_COPY = ("restored", "running")


class DestinationGuard(ReceivingGuard):
    """Serves one source. Every request may come twice: an answer can be lost on its way."""

    def __init__(self, rec: Record, config: dict[str, Any]) -> None:
        super().__init__(rec, config)
        self.watcher: threading.Thread | None = None
        self.reserve: Reserve | None = None
        self.filling = Filling(self, self.postcopy, self.lazily_held)
        self.handlers = {
            "hello": self.on_hello,
            "state": lambda _request: {"state": self.rec.state, "incomplete": incomplete(self.rec, self.config)},
            "ping": lambda _request: {"now": time.time(), "pages": self.pages_so_far()},
            "pages": self.on_pages,
            "pages_ready": self.on_pages_ready,
            "pages_done": self.on_pages_done,
            "images": self.on_images,
            "page_maps": self.on_page_maps,
            "page_map": self.on_page_map,
            "rsync_trouble": self.on_rsync_trouble,
            "restore": self.on_restore,
            "commit": self.on_commit,
            "filled": self.on_filled,
            "token": self.on_token,
            "undo": self.on_undo,
            "done": self.on_done,
        }

    # --- being there -------------------------------------------------------------------------------------------

    def take_up(self) -> None:
        """Go on where an earlier guard of this run was killed, or the node went down."""
        if self.lazy and self.rec.state in HOLDS_COPY and not self.rebooted() and not self.filling.done.is_set():
            self.filling.recover()
        if self.rec.data.get("fencing") and not self.rebooted():
            self.obey_fence()
        if self.rec.state == "undoing":
            self.undo()
        elif self.rec.state == "running" and not self.died_unseen() and not self.filling.lost():
            with self.busy:
                self.let_run()  # this guard was killed in between, and the record says that this copy is the process
            self.end_fenced()
        elif self.rebooted() and self.rec.state in ("receiving", "restoring", "restored"):
            self.undo("The destination was rebooted, its stopped copy died with it.")

    def obey_fence(self) -> None:
        """A person has said that the source is dead: the copy runs if it is or becomes whole, else it goes."""
        why = "The source died before there was a copy."
        if incomplete(self.rec, self.config):
            self.undo("The source died before all memory had left it.")
        elif self.rec.state == "restoring":  # everything for it is here
            try:
                self.on_restore({"procs": self.rec.data["expected"], "address_on": self.rec.data.get("address_on")})
            except MigrationError as error:
                why = f"The source died, and the copy could not be restored: {error.message}"
        if self.rec.state == "restored" and all(item.alive() for item in self.procs()) and not self.filling.lost():
            self.enter("running", sync=True, fenced=True)
        elif self.rec.state in ("armed", "receiving", "restoring", "restored"):
            self.undo(why)

    def end_fenced(self) -> None:
        """No source will say that all is done."""
        if not self.rec.data.get("fencing") or self.rec.state != "running":
            return
        if self.is_filling():
            self.rec.note(lazy=self.filling.progress())  # who waits for it is told by nobody else
            return
        with self.busy:
            self.on_done({})
        self.heard = time.monotonic()

    def run(self) -> None:
        self.take_up()
        listener = self.listen()
        if self.lazy:
            lazymap.prepare()
        if self.rec.state == "armed":
            self.reserve = Reserve(int(self.config.get("memory") or 0), self.limits["reserve"], self.say)
        context = wire.context(True, *(self.tls_path(name) for name in ("ca", "cert", "key")))
        self.say(f"listening on port {self.rec.data['port']}")
        while not self.finished.is_set():
            watched: list[Any] = [listener, self.wake_read]
            ready = polling.readable(watched, 1.0 if self.rec.data.get("fencing") else 5.0)
            if listener in ready:
                try:
                    sock, peer = listener.accept()
                except OSError as error:
                    self.say(f"accept: {error}")
                    time.sleep(0.1)
                    continue
                threading.Thread(target=self.serve, args=(sock, peer, context), daemon=True).start()
            elif self.given_up():
                break
        listener.close()
        if self.watcher is not None:
            self.watcher.join(6.0)  # what it notes is part of the metrics
        self.say("guard ends")

    def given_up(self) -> bool:
        """Nobody has called for too long: a guard that holds no stopped copy has nothing left to keep safe."""
        # While pages or rsync's files come there is no request, for as long as those may take.
        patience = max(self.limits["peer"], self.limits["dump"] + 60, self.limits["transfer"] + 60)
        self.end_fenced()
        if self.rec.final:
            patience = 2 * self.limits["connect"]  # only to repeat an answer that was lost
        if time.monotonic() - self.heard < patience or self.rec.state in ("restoring", "restored") or self.is_filling():
            return False
        if self.rec.state not in ("running", "done", "undone"):
            with self.busy:
                self.undo("The source's guard has not called.")
        self.drop_images()
        return True

    def is_filling(self) -> bool:
        return self.lazy and self.rec.state == "running" and not self.filling.done.is_set()

    # --- requests ----------------------------------------------------------------------------------------------

    def on_hello(self, request: Answer) -> Answer:
        if request["run_id"] != self.run_id:
            raise Refused(f"This guard belongs to {self.run_id}.", "Two runs share a port: run again.")
        self.say(f"source is here, its state is {request['state']}")
        return {"state": self.rec.state, "boot_id": self.rec.data["boot_id"]}

    def forget_images(self) -> None:
        self.filling.forget()

    def give_back_images(self) -> None:
        self.give_back("images")

    def set_aside(self) -> int:
        return self.reserve.holds("process") if self.reserve is not None else 0

    def take_plain(self, sock: socket.socket, token: str) -> None:
        if self.lazy_token:
            self.use_token(token)
            wire.tune(sock, wire.SILENCE)  # criu's own connection in place of this one has no successor: it is patient
            self.filling.connect(Plain(sock))
        else:
            self.receive_pages(Plain(sock), token)

    def images_came(self) -> None:
        with self.busy:
            if self.lazy and self.rec.state == "receiving":
                self.mark_late()
                self.filling.forget()  # the images may have come for the second time
                self.filling.expect()

    def give_back(self, share: str) -> None:
        if self.reserve is not None:
            self.reserve.give_back(share)

    def on_rsync_trouble(self, _request: Answer) -> Answer:
        """What rsync said at this end; the source's end knows only that the connection is gone."""
        said = tail(self.log_path("rsync.log"), 5)
        raise MigrationError(f"rsync on the destination: {said.splitlines()[0] if said else 'no word'}", remedy(said))

    def on_restore(self, request: Answer) -> Answer:
        if self.rec.state in HOLDS_COPY:
            return self.restored()
        self.refuse_unless("receiving", "restoring")
        expected = [proc.Proc.from_dict(item) for item in request["procs"]]
        job = self.job("restore") if self.rec.state == "restoring" else None
        if job is None:
            self.enter("restoring", expected=request["procs"], address_on=request.get("address_on"))
            job = self.begin_restore(request)
        result = job.wait(self.limits["restore"])
        if result is None:
            job.kill()
            raise MigrationError(
                f"criu restore did not end within {self.limits['restore']:g} s.", "Raise limits.restore."
            )
        if result.rc:
            raise failed("restore", result)
        self.check_copy(expected)
        if self.lazy:
            self.filling.secure()
            self.filling.watch()
        self.enter("restored", restore=result.as_dict())
        return self.restored()

    def begin_restore(self, request: Answer) -> Job:
        if self.address:
            where = self.rec.data.get("address_put") or self.place_for_address(request)
            self.rec.note(address_on=where, address_put=where)  # before it is: from here on it is ours to take off
            net.add_address(self.address, where["interface"], int(where["prefix"]))
        pidfile = os.path.join(self.folder, "restore.pid")
        if os.path.exists(pidfile):
            os.unlink(pidfile)
        self.give_back("process")
        if self.lazy:
            self.filling.begin([int(item["pid"]) for item in request["procs"]])
        cmd = self.criu.restore_argv(self.images, self.folder, pidfile, lazy=self.lazy)
        return self.start_job("restore", cmd, self.log_path("criu-restore.log"))

    def check_copy(self, expected: list[proc.Proc]) -> None:
        """Every process of the source is here under its PID, and none of them runs."""
        with open(os.path.join(self.folder, "restore.pid"), encoding="ascii") as handle:
            root = int(handle.read())
        copy = proc.tree(root)
        before = {item.pid: item.stopped_before for item in expected}
        for item in copy:
            item.stopped_before = before.get(item.pid, False)
        self.rec.note(procs=[item.as_dict() for item in copy])
        missing = sorted(set(before) - {item.pid for item in copy})
        # A thread may still wait for a lazy page that it touched on its way into the stop.
        running = [item.pid for item in proc.wait_stopped(copy, self.limits["freeze"])]
        if missing or running:
            raise MigrationError(
                f"The restored copy is not whole: missing PIDs {missing}, not stopped {running}.",
                "See criu-restore.log on the destination.",
            )

    def restored(self) -> Answer:
        return {"state": self.rec.state, "restore": self.rec.data.get("restore"), "times": self.rec.data["times"]}

    def on_commit(self, _request: Answer) -> Answer:
        if self.rec.state == "undone":
            raise Refused("The copy on the destination was undone and never ran.", "The source may go on.")
        if self.rec.state not in ("running", "done"):
            self.refuse_unless("restored")
        if self.rec.state == "restored" or self.never_ran():
            dead = [item.pid for item in self.procs() if not item.alive()]
            why = f"has lost PIDs {dead}" if dead or not self.procs() else self.filling.lost()
            if why:
                self.undo(f"The stopped copy {why}.")
                raise Refused(f"The stopped copy on the destination {why}; it never ran.", "The source may go on.")
        if self.died_unseen():  # no answer that lets the source kill the last copy there is
            raise MigrationError(
                "The destination went down after the commit, and its copy with it; the source's stopped copy is older.",
                "A person decides: playbooks/resolve.yml -e fence=destination-is-dead lets the source's copy run.",
            )
        if self.rec.state == "restored":
            self.enter("running", sync=True)
        self.let_run()
        return {"state": self.rec.state, "times": self.rec.data["times"]}

    def take_pages(self, sock: Secure) -> None:
        self.filling.connect(sock)

    def on_filled(self, _request: Answer) -> Answer:
        """Is every page there? Waits a while for it."""
        if self.lazy:
            self.filling.done.wait(self.limits["fill"])
        return {**self.filling.progress(), "done": self.filling.done.is_set() or not self.lazy}

    def never_ran(self) -> bool:
        """The record says "running", and yet it is certain that nobody has seen anything of the copy."""
        return self.rec.state == "running" and not self.rebooted() and not self.rec.data.get("resuming")

    def died_unseen(self) -> bool:
        """The record says "running", but the node went down since, or the copy is dead and nobody let it run."""
        if self.rec.state not in ("running", "done"):
            return False
        return self.rebooted() or died_unseen(self.rec, self.procs())

    def let_run(self, wait: bool = False) -> None:
        """Everything after the record says "running": each step may be done twice, after a restart of this guard."""
        if "resumed" in self.rec.data["times"]:
            return
        if why := self.filling.lost():
            raise MigrationError(f"The copy on the destination {why}.", OLDER)
        self.rec.note(resuming=True)  # of use while this node is up: no fsync
        if self.address:
            self.put_address_on()
            self.lift_drop()
            net.announce(self.address, self.rec.data["address_on"]["interface"])
        beat = self.heartbeat_mtime()
        self.filling.go()
        proc.continue_procs(self.procs())
        self.rec.data["times"]["resumed"] = time.time()
        self.rec.note()
        self.watcher = threading.Thread(target=self.after_resume, args=(beat,), daemon=True)
        self.watcher.start()
        if wait:
            self.watcher.join()

    def lift_drop(self) -> None:
        try:
            net.lift(self.run_id)
        except OSError as error:
            self.say(f"the slow way to lift the drop: {error}")
            net.unmute(self.run_id)

    def forget_drop(self) -> None:
        if self.address:
            try:
                net.unmute(self.run_id)
            except MigrationError as error:
                self.say(f"rules that drop nothing are left: {error.text()}")

    def after_resume(self, beat: float | None) -> None:
        """The first heartbeat after the freeze, as the kernel saw it; then how the tree looks."""
        limit = time.monotonic() + 5.0
        first = None
        while beat is not None and time.monotonic() < limit:
            now = self.heartbeat_mtime()
            if now is not None and now != beat:
                first = now
                break
            time.sleep(0.0005)  # this period is the witness's resolution
        self.forget_drop()
        with self.busy:
            self.rec.note(first_beat=first)
            self.observe("after", self.procs())

    def on_undo(self, request: Answer) -> Answer:
        if self.rec.state in ("running", "done") and not (self.died_unseen() or self.filling.damaged()):
            raise Refused("The copy on the destination runs already.", "The records decide: see playbooks/resolve.yml.")
        self.undo(str(request.get("why") or ""))
        return {"state": self.rec.state}

    def undo(self, why: str = "") -> None:
        """Kill the copy, wait until its sockets are gone, address off, lift the drop last; images go too."""
        if self.rec.state == "undone":
            return
        self.enter("undoing", why=why)
        self.stop_receiving()
        job = self.job("restore")
        if job:
            job.kill()
        left = proc.kill_tree(self.copy_procs(), self.limits["undo"])
        if self.lazy:
            self.filling.drop()
        if left:
            raise MigrationError(f"PIDs {[p.pid for p in left]} of the copy do not die.", "Reboot the destination.")
        if self.address and self.rec.data.get("address_put"):
            self.wait_for_sockets()
            net.remove_address(self.address)
        net.unmute(self.run_id)
        self.drop_images()
        self.enter("undone", sync=True)

    def copy_procs(self) -> list[proc.Proc]:
        """What the restore has made, whole or in part: the recorded copy, else processes under the expected PIDs
        that were born after the restore began, and what hangs below them."""
        found = self.procs()
        job = self.job("restore")
        if found or job is None:
            return found
        for item in self.rec.data.get("expected", []):
            seen = proc.stat(int(item["pid"]))
            if seen and seen[2] >= job.shell.start and seen[0] not in "ZX" and self.ours(int(item["pid"]), seen[1]):
                found.append(proc.Proc(int(item["pid"]), seen[2]))
        below = {(item.pid, item.start): item for root in found for item in proc.tree(root.pid)}
        return list({**{(item.pid, item.start): item for item in found}, **below}.values())

    def ours(self, pid: int, parent: int) -> bool:
        """A PID taken by a stranger is why some restores fail: its parent is no process of the copy and not PID 1."""
        expected = {int(item["pid"]) for item in self.rec.data.get("expected", [])}
        return parent in expected or (parent == 1 and pid == int(self.rec.data["expected"][0]["pid"]))

    def wait_for_sockets(self) -> None:
        net.destroy_sockets(self.address)
        deadline = time.monotonic() + 2.0
        while sockets.sockets_of_address(self.address) and time.monotonic() < deadline:
            time.sleep(
                0.01
            )  # closing sockets leave the table without an event; what stays is mute until the address is off

    def on_done(self, _request: Answer) -> Answer:
        if self.rec.state == "running" and not self.is_filling():
            self.forget_drop()  # a guard that was killed may have left it
            self.drop_images()
            self.enter("done")
        return {"state": self.rec.state}
