"""Pre-copy at the source: rounds of pre-dump straight into the destination's memory while the process runs."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any, Protocol

from . import costs, dirty, iteration, proc, sockets, stats, tracing
from .cli import PageServer, failed
from .errors import MigrationError, out_of_space
from .guard import Guard
from .job import Job
from .moved import Moved

JOB = "pre-dump"
END = 10.0  # seconds for a criu whose pages nobody takes any more
TRIES = 2  # then everything moves in one go; at once where it was for lack of space
TOUCH = 30.0  # seconds between two signs of life while nothing is to be done
LONGEST = 1.0  # seconds for which a process is watched at most before the first round


class Channel(Protocol):
    """What the rounds need of the source's guard."""

    page_channel: Any

    def open_transfer(self, dump: str = "", parent: str = "") -> None: ...
    def drop_page_channel(self) -> None: ...
    def pages_taken(self) -> dict[str, Any]: ...
    def cause_of(self, error: MigrationError, request: str) -> MigrationError: ...
    def ping(self) -> int: ...
    def measure_bandwidth(self) -> float: ...


class Iterating:
    """Of one tree. What a round has brought is of use only to the guard that made it: after a restart of either guard
    soft-dirty bits and images might not belong together any more, and the rounds begin anew."""

    def __init__(self, guard: Guard, channel: Channel, root: proc.Proc) -> None:
        self.guard = guard
        self.channel = channel
        self.root = root
        self.pid = root.pid
        asked = guard.config.get("pre_copy") or {}
        self.phaul = asked.get("rule") == "phaul"
        self.interval = asked.get("interval")  # seconds; None: the next round begins at once
        self.most = int(asked.get("iterations", iteration.MOST))
        self.target = float(asked.get("target", iteration.TARGET))
        self.left = asked.get("left")  # seconds of a deadline when the guard was armed; None: there is none
        self.whole = max(int(asked.get("memory") or 0), iteration.PAGE)
        self.peer = str((guard.config.get("peer") or {}).get("host", ""))
        self.known = costs.Known(costs.UNKNOWN, None, 0.0, 0.0)
        self.rounds: list[iteration.Round] = []
        self.probes: list[iteration.Sample] = []
        self.moved = Moved()
        self.lead = 0.0  # seconds of a round in which nothing moves

    def run(self) -> str:
        """Make rounds until a rule ends them; the name of the last dump, '' where the final one has to take everything.

        MigrationError where the other guard is gone for longer than the limit "link".
        """
        self.end_dump()  # of a guard before this one: CRIU cannot dump what another traces
        tracing.end(self.guard.folder, "pre_dump")
        speed = self.channel.measure_bandwidth()
        self.guard.say(f"pages cross at {speed / 1e6:.1f} MB/s")
        self.known = costs.recall(self.peer, self.guard.lazy, self.whole)._replace(bandwidth=speed)
        for attempt in range(TRIES):
            self.rounds.clear()
            self.guard.rec.note(pre_dumps=[], stop_reason=None)
            try:
                return self.make_rounds()
            except MigrationError as error:
                self.end_dump()
                self.give_up(error)
                if attempt + 1 == TRIES or out_of_space(error) or not self.root.alive():
                    break
        return ""

    def give_up(self, error: MigrationError) -> None:
        """What the rounds have brought is of no use."""
        self.guard.say(f"pre-dump: {error.text()}")
        self.guard.rec.note(pre_dumps=[], stop_reason=f"failed: {error.message}")

    def make_rounds(self) -> str:
        self.probe()
        name = ""
        while True:
            reason, predicted = self.judge()
            if self.rounds:
                done = self.guard.rec.data["pre_dumps"]
                done[-1]["predicted_downtime"] = round(predicted, 6)
                self.guard.rec.note(pre_dumps=done)
            if reason:
                self.guard.rec.note(stop_reason=reason, predicted={"downtime": round(predicted, 6), "at": time.time()})
                self.guard.say(f"no further pre-dump ({reason}), {predicted:.3f} s of downtime predicted")
                return name
            if self.rounds:
                self.wait()
            name = self.make_round(name)

    def judge(self) -> tuple[str | None, float]:
        """The rule of iteration.py, or where an interval is given a fixed number of rounds."""
        speed = iteration.bandwidth(self.rounds, self.lead) or self.known.bandwidth
        left = None
        if self.left is not None:
            left = float(self.left) - (time.time() - self.guard.rec.data["times"]["armed"])
            left -= float(self.interval or 0.0) if self.rounds else 0.0  # waited before the next one
        fixed = self.interval is not None
        terms = iteration.Terms(
            bandwidth=speed,
            fixed=self.known.fixed_after(self.lead),
            whole=float(self.whole),
            lead=self.lead,
            target=-1.0 if fixed else self.target,
            most=self.most,
            left=left,
            after=self.known.after,
            gain=None if fixed else iteration.GAIN,
        )
        reason, predicted = iteration.stop_reason(self.rounds, terms, [] if fixed else self.probes)
        if self.phaul and not fixed and reason != "deadline":
            reason = iteration.phaul_reason(self.rounds)
        return reason, predicted

    def probe(self) -> None:
        """How quickly is memory written to? A process that does so faster than the link would be moved twice."""
        self.probes = []
        self.insist_alive()
        if self.interval is None and self.most and not self.phaul:
            round_ = min(self.whole / self.known.bandwidth, LONGEST / max(iteration.PROBES))
            windows = [part * round_ for part in iteration.PROBES]
            self.probes = [iteration.Sample(*found) for found in dirty.watch(self.pid, windows)]
            told = ", ".join(f"{one.dirtied / 1e6:.1f} MB in {one.seconds:.2f} s" for one in self.probes)
            self.guard.say(f"it has written to {told}")

    def insist_alive(self) -> None:
        """Another process may have its PID by now."""
        if not self.root.alive():
            raise MigrationError(f"The process {self.pid} has ended.", "Start it, then migrate.")

    def make_round(self, parent: str) -> str:
        """One pre-dump, on the last one where there is one; its name."""
        self.insist_alive()
        guard, number = self.guard, len(self.rounds) + 1
        self.moved = self.moved if parent else Moved()
        self.look(lambda pids: self.moved.before_round(pids, first=not parent))
        name = f"pre-{number}"
        began = time.monotonic()
        self.channel.open_transfer(name, parent)
        folder = os.path.join(guard.images, name)
        os.makedirs(folder, mode=0o700, exist_ok=True)
        previous = os.path.join("..", parent) if parent else ""
        fd = self.channel.page_channel.fileno()
        log = f"criu-{JOB}-{number}.log"
        cmd = guard.criu.pre_dump_argv(self.pid, folder, guard.folder, PageServer(fd=fd), previous, log)
        job = guard.start_job(JOB, cmd, guard.log_path(log), (fd,))
        sockets.uncork(self.channel.page_channel, job.shell.alive)
        self.channel.drop_page_channel()  # criu has it; with ours open the page server would never see the end
        self.finish(job)
        self.look(self.moved.after_round)
        taken = self.channel.pages_taken()
        seconds = time.monotonic() - began
        self.add(stats.read(guard.folder).get("dump") or {}, int(taken["bytes"]), seconds)
        return name

    def look(self, at: Callable[[list[int]], object]) -> None:
        """MigrationError where a process has ended meanwhile: what is known of the others may be out of date then."""
        try:
            at([item.pid for item in proc.tree(self.pid)])
        except OSError as error:
            text = f"The tree could not be looked at: {error}"
            raise MigrationError(text, "It may have changed just then: the rounds begin anew.") from error

    def at_freeze(self, procs: list[proc.Proc]) -> None:
        """With the tree standing still and before its dump: no page may look unchanged that is not."""
        count = self.moved.at_freeze([item.pid for item in procs])
        if count:
            self.guard.say(f"{count} pages may have moved: they are sent again")

    def finish(self, job: Job) -> None:
        limit = self.guard.limits["dump"]
        result = job.wait_on(self.channel.ping, limit, TOUCH)
        if result is None:
            raise MigrationError(f"criu pre-dump has brought nothing for {limit:g} s.", "Raise limits.dump.")
        if result.rc:
            raise self.channel.cause_of(failed(JOB, result), "pages_done")

    def add(self, seen: dict[str, Any], size: int, seconds: float) -> None:
        """Note what a round was like; seconds from its channel to its last byte."""
        written = size // iteration.PAGE  # CRIU's own count leaves shared memory out
        self.lead = max(0.0, seconds - float(seen.get("memwrite", seconds)))
        self.rounds.append(iteration.Round(seconds, size, written))
        one = {
            "seconds": round(seconds, 6),
            "frozen": seen.get("frozen"),
            "pages_scanned": seen.get("pages_scanned"),
            "pages_written": written,
            "pages_skipped": seen.get("pages_skipped_parent"),
            "bytes": size,
            "predicted_downtime": None,
        }
        self.guard.rec.note(pre_dumps=[*self.guard.rec.data["pre_dumps"], one])

    def wait(self) -> None:
        """Until the next round, where an interval is asked for."""
        until = time.monotonic() + float(self.interval or 0.0)
        began = time.monotonic()
        while (left := until - time.monotonic()) > 0:
            time.sleep(min(left, TOUCH))  # the interval is what was asked for
            self.channel.ping()
        self.rounds[-1] = self.rounds[-1]._replace(waited=time.monotonic() - began)

    def remember(self) -> None:
        """What the move has cost that has just ended, for the next one's predictions."""
        data = self.guard.rec.data
        there, offset = data.get("destination_times") or {}, float((data.get("clock") or {}).get("offset", 0.0))
        speed = iteration.bandwidth(self.rounds, self.lead)
        if not self.rounds or speed is None or "resumed" not in there or not data.get("parent"):
            return  # another guard made the rounds, or they were of no use
        frozen = float(there["resumed"]) - offset - float(data["times"]["stopping"])
        moved = float((data.get("page_server") or {}).get("bytes", 0))
        costs.remember(self.peer, self.guard.lazy, self.whole, max(0.0, frozen - moved / speed), speed)

    def end_dump(self) -> None:
        """No pre-dump is at work any more. criu gives up by itself when nobody takes its pages, and lets the process
        go as it found it; killed, it might do so in the middle of something."""
        self.channel.drop_page_channel()
        job = self.guard.job(JOB)
        if job is not None and job.wait(END) is None:
            job.kill()
