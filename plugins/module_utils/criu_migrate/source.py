"""The guard on the source: freezes, dumps, hands over, decides. Its record is the one truth about which copy runs."""

from __future__ import annotations

import contextlib
import os
import time
import traceback
from collections.abc import Callable
from typing import Any

from . import forecast, net, output, proc, sockets, stats, tracing
from .cli import PageServer, failed
from .errors import LinkLost, MigrationError, Refused
from .files import image_bytes, link_remaps
from .iterating import Iterating
from .record import Record
from .sending import LOOK, SendingGuard

STACK_TRIES = 5  # freezes until no stack pointer lies on the border of a page, which is one of 512 for a thread
BEFORE_COMMIT = ("armed", "iterating", "freezing", "frozen", "dumped", "detached", "restored")


class SourceGuard(SendingGuard):
    """One step a state; a guard that was killed goes on at the step that its record names."""

    def __init__(self, rec: Record, config: dict[str, Any]) -> None:
        super().__init__(rec, config)
        self.root = proc.Proc(int(config["pid"]), int(config["start"]))
        self.iterating = Iterating(self, self, self.root)
        self.steps: dict[str, Callable[[], None]] = {
            "armed": self.prepare,
            "iterating": self.iterate,
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
        held: str | None = None
        while held is None:  # its copy may be the only one: without its word nothing is decided
            try:
                held = self.held()
            except MigrationError as error:
                self.say(f"after a reboot of the source: {error.text()}")
                since = (self.rec.data.get("stalled") or {}).get("since", time.time())
                self.rec.note(stalled={**error.as_dict(), "since": since})
                time.sleep(1.0)
        if held in ("restored", "running", "done"):  # running: a person fenced this node
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
        self.look_ahead()
        if not self.precopy:
            self.open_transfer()
        self.observe("before", proc.tree(self.root.pid))
        if self.address:
            where = net.find_address(self.address)
            if where is None:
                raise MigrationError(
                    f"{self.address} is not on the source.", "Add it there, or leave service_address out."
                )
            self.rec.note(address_on=where)
            net.stand_by(net.IP)
        if self.precopy:
            self.enter("iterating")
        else:
            self.about_to_freeze()

    def look_ahead(self) -> None:
        """Whatever is wrong with a forecast hinders no move: where it is the link, the next request meets it."""
        if not self.config.get("forecast"):
            return
        try:
            forecast.look_ahead(self, self.iterating.peer, self.measure_bandwidth(), self.tries_pages())
        except Exception as error:  # as above
            self.say(f"whether the deadline will be met is not known: {error!r}")

    def iterate(self) -> None:
        """Rounds while the process runs; then the same steps as without them."""
        last = self.iterating.run()
        self.send_roots()
        try:
            if last and self.postcopy:
                self.fetch_page_maps(last)
            self.open_transfer(parent=last)
        except (LinkLost, Refused):
            raise
        except MigrationError as error:  # its guard was started again: nothing is frozen yet, all of it can be sent
            if not last:
                raise
            self.iterating.give_up(error)
            self.open_transfer()
        self.about_to_freeze()

    def about_to_freeze(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.log_path("stats-dump"))  # of a pre-dump: it is none of the dump's
        self.enter("freezing", procs=[item.as_dict() for item in proc.tree(self.root.pid)])

    # --- the freeze --------------------------------------------------------------------------------------------

    def freeze(self) -> None:
        channel = self.page_channel is not None or not self.takes_pages()
        known = self.iterating.rounds or not self.rec.data.get("parent")
        if not (channel and known) and self.job("dump") is None:
            if self.rec.data.get("parent"):
                self.iterating.give_up(MigrationError("The guard that made the rounds was killed.", ""))
            self.open_transfer()  # this guard was started again: the rounds, and what it knew of them, are lost
        tracing.end(self.folder, "pre_dump")  # CRIU cannot dump what strace traces
        self.rec.data["times"]["stopping"] = time.time()
        procs = proc.stop_tree(self.root, self.limits["freeze"], self.procs(), self.note_procs)
        for _ in range(STACK_TRIES if self.lazy else 0):
            if not proc.stack_ends_on_page(procs):
                break
            proc.continue_procs(procs)
            procs = proc.stop_tree(self.root, self.limits["freeze"], procs, self.note_procs)
        if self.rec.data.get("parent"):
            self.iterating.at_freeze(procs)
        self.rec.data["output"] = output.place(str(self.config["working_dir"]), self.root.pid)
        self.enter("frozen", procs=[item.as_dict() for item in procs], last_beat=self.heartbeat_mtime())

    def note_procs(self, procs: list[proc.Proc]) -> None:
        self.rec.note(procs=[item.as_dict() for item in procs])

    def dump(self) -> None:
        job = self.job("dump")
        if job is None and self.postcopy:
            if self.rec.data.get("parent") and self.rec.data.get("launching"):
                self.open_transfer()  # a dump was begun and is gone: it may have cleared the soft-dirty bits
            parent = str(self.rec.data.get("parent") or "")
            self.enter("dumped", dump=self.serving.dump(self.root.pid, parent).as_dict())
            return
        if job is None:
            if self.takes_pages() and self.page_channel is None:
                self.open_transfer()
            fd = self.page_channel.fileno() if self.page_channel else None
            pages = PageServer(fd=fd) if fd is not None else None
            parent = str(self.rec.data.get("parent") or "")
            cmd = self.criu.dump_argv(
                self.root.pid, self.images, self.folder, pages, track_mem=bool(parent), previous=parent
            )
            job = self.start_job("dump", cmd, self.log_path("criu-dump.log"), (fd,) if fd is not None else ())
            if self.page_channel is not None:
                sockets.uncork(self.page_channel, job.shell.alive)
                self.page_channel.close()  # criu has it; with ours open the page server would never see the end
                self.page_channel = None
        # Over a slow link it takes as long as it takes; one that brings nothing any more has an end.
        result = job.wait_on(self.pages_there, self.limits["dump"], LOOK)
        if result is None:
            job.kill()
            raise MigrationError(f"criu dump has brought nothing for {self.limits['dump']:g} s.", "Raise limits.dump.")
        if result.rc:
            error = failed("dump", result)
            raise self.cause_of(error, "pages_done") if self.takes_pages() else error
        self.enter("dumped", dump=result.as_dict())

    def detach_address(self) -> None:
        """The dump has locked the connections already; with the address gone the node does not answer for it at all."""
        if self.address:
            net.remove_address(self.address, self.rec.data.get("address_on"))
        self.enter("detached")

    def restore(self) -> None:
        self.serve_pages()
        if self.manifests or self.ask({"op": "state"}, self.limits["restore"] + 10.0)["state"] == "receiving":
            self.send_all()  # else this guard was started again, and the destination has it all
        answer = self.ask(self.restore_request(), self.limits["restore"] + 10.0)
        self.enter("restored", restore=answer["restore"])

    # --- the decision ------------------------------------------------------------------------------------------

    def commit(self) -> None:
        """From here on the copy on the destination is the process, even if this node dies now."""
        self.serve_pages()
        self.enter("committed", sync=True)

    def serve_pages(self) -> None:
        if self.postcopy and not self.rebooted():
            self.serving.start()

    def finish(self) -> None:
        if not self.rec.data.get("ending"):
            self.serve_pages()
            answer = self.ask({"op": "commit"}, self.limits["commit"])
            self.rec.data["times"]["acknowledged"] = time.time()
            self.rec.note(destination_times=answer["times"])
            self.await_filled()
            self.rec.note(ending=True)  # from here on nobody may let the copy here run: it may be dead already
        left = proc.kill_tree(self.procs(), self.limits["undo"])
        if left:
            raise MigrationError(
                f"PIDs {[p.pid for p in left]} of the old copy do not die.", "They stay stopped; reboot the source."
            )
        self.remove_lock_tables()
        self.remove_link_remaps()
        try:
            if self.precopy:
                self.iterating.remember()
            else:
                forecast.remember_link(self, self.iterating.peer)
        except Exception as error:  # a figure, which nobody has to wait for
            self.say(f"what it has cost is not remembered: {error!r}")
        self.rec.note(bytes=image_bytes(self.images))
        self.drop_images()
        self.enter("done", sync=True)

    def await_filled(self) -> None:
        """The copy here is the only whole one until every page of the other is there."""
        while self.lazy:
            found = self.ask({"op": "filled"}, self.limits["fill"] + 10.0)  # which takes `stalled` out of the record
            stalled = {"stalled": found.pop("stalled")} if "stalled" in found else {}
            if stalled or found != self.rec.data.get("lazy"):
                self.rec.note(lazy=found, **stalled)
            if found["done"]:
                break
            if self.postcopy and self.rebooted() and self.ask({"op": "state"}, self.limits["connect"])["incomplete"]:
                self.serving.check_memory()
        if self.postcopy:
            self.serving.stop()
            self.serving.end_dump()

    def undo(self) -> None:
        """First the destination, so that its copy can never run, then this side in the order that keeps clients."""
        self.drop_page_channel()
        self.iterating.end_dump()
        self.serving.stop()
        if self.postcopy:
            self.serving.end_dump()
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
