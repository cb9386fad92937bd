"""Many migrations of one node at once: their guards laid out ahead of time, started in order, watched to the end.

A guard that is laid out is a directory with a record that says `armed`: no process, no port, no memory. Nothing of the
process is touched before it is started.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from . import control, guard, record
from .errors import MigrationError
from .inotify import Watch

STANDBY = "standby"  # in config.json: laid out for a notice that may never come
SENDING = ("armed", "iterating", "freezing", "frozen")  # a run's share of the link is not through yet
FOLLOWS = ("postcopy", "hybrid")  # the link is needed until every page has come
PATIENCE = 5.0  # seconds after which a run that has not begun to freeze does not keep others waiting
STALL = 15.0  # seconds for which one that has lost its destination after the commit is waited for: the others are to be
# collected before their node ends
RESTARTS = 20
LOOK = 1.0  # seconds between two looks whether a guard lives, whose death writes no file; it starts in less
Found = dict[str, Any]


class Run(NamedTuple):
    """One migration of the batch."""

    run_id: str
    name: str


def arm(configs: Sequence[Found], tls: dict[str, dict[str, str]]) -> bool:
    """Lay out these guards in place of all that stood by before; True where something changed."""
    wanted = {str(config["run_id"]) for config in configs}
    changed = discard(keep=wanted) > 0
    for config in configs:
        changed = control.arm({**config, STANDBY: True}, tls[str(config["run_id"])]) or changed
    return changed


def discard(keep: set[str] | None = None) -> int:
    """Forget guards that stood by and never began, but those to keep; how many there were."""
    count = 0
    for run_id in record.runs():
        if run_id in (keep or ()) or not stands_by(run_id):
            continue
        count += forget(run_id)
    return count


def forget(run_id: str) -> bool:
    """Remove a run that was laid out and never began; False where it has begun meanwhile."""
    with control.arming():
        if not control.never_began(control.load(run_id)):
            return False
        shutil.rmtree(record.run_dir(run_id))
    return True


def stands_by(run_id: str) -> bool:
    """Laid out by `arm` and never started."""
    try:
        rec = record.Record.load(run_id)
        return rec is not None and control.never_began(rec) and bool(guard.read_config(run_id).get(STANDBY))
    except (MigrationError, OSError, ValueError):
        return False


def begin(run_id: str, python: str) -> None:
    """Start a guard that was laid out, perhaps in an earlier boot, when it had touched nothing; one that was killed
    goes on. MigrationError where it cannot be started."""
    rec = control.load(run_id)
    if rec.final:  # of an evacuation that nobody has collected
        return
    if control.never_began(rec) and rec.data["boot_id"] != record.boot_id():
        rec.note(boot_id=record.boot_id())
    control.start(run_id, python)


def tell_time(run_id: str, left: float) -> None:
    """A guard that makes rounds before the freeze learns how many seconds are left, which it counts from when it was
    armed: nobody knew them then."""
    config = guard.read_config(run_id)
    if config.get("pre_copy"):
        armed = float(control.load(run_id).data["times"]["armed"])
        config["pre_copy"]["left"] = left + time.time() - armed
        path = os.path.join(record.run_dir(run_id), "config.json")
        record.write_file(path, json.dumps(config, indent=1, sort_keys=True).encode())


def listen(run_ids: Sequence[str], python: str, limit: float) -> dict[str, Found]:
    """Start the destination's guards; when this returns they listen, or have said why not. By run: {port}, {error}."""
    found: dict[str, Found] = {}
    for run_id in run_ids:
        found[run_id] = _trying(lambda run_id=run_id: begin(run_id, python))  # type: ignore[misc]
    deadline = time.monotonic() + limit
    for run_id in [name for name, item in found.items() if not item]:
        left = max(0.05, deadline - time.monotonic())  # one look at least: it may have said long ago
        found[run_id] = _trying(lambda run_id=run_id, left=left: {"port": listening(run_id, left)})  # type: ignore[misc]
    return found


def listening(run_id: str, limit: float) -> int:
    """The port of a guard as soon as it listens. While ten are started the first may have done its work and ended."""
    rec = control.load(run_id)
    if rec.final or (rec.state != "armed" and rec.data.get("port")):
        return int(rec.data.get("port") or 0)
    return control.wait_for_port(run_id, limit)


def _trying(step: Callable[[], Found | None]) -> Found:
    try:
        return step() or {}
    except MigrationError as error:
        return {"error": error.as_dict()}


class Batch:
    """The source's guards of one evacuation: `at_once` of them send, the others wait for their turn in this order.

    One that is through with the dump makes room, while its copy is restored. One that cannot begin (its destination
    does not answer) makes room after PATIENCE seconds.
    """

    def __init__(self, runs: Sequence[Run], at_once: int, python: str, left: float | None = None) -> None:
        """`left`: seconds until the node ends, None where that is not known."""
        self.ends = None if left is None else time.monotonic() + left
        self.waiting = list(runs)
        self.at_once = max(1, at_once)
        self.python = python
        self.started: dict[str, float] = {}  # run: when, last (monotonic seconds)
        self.follows: set[str] = set()  # runs whose memory comes after the restore
        self.restarts: dict[str, int] = {}
        self.errors: dict[str, Found] = {}

    def step(self) -> bool:
        """Start what may start, start again what was killed; True when all have ended or cannot go on."""
        records = [control.load(run_id) for run_id in self.started]
        sending = sum(map(self.sends, records))
        while self.waiting and sending < self.at_once:
            sending += self.start(self.waiting.pop(0).run_id)
        over = [self.over(rec) for rec in records]  # each is looked at: a guard may have to be started again
        return all(over) and not self.waiting and len(records) == len(self.started)

    def start(self, run_id: str) -> bool:
        """Start the guard of a run; False, and the error is kept, where it cannot be."""
        if self.ends is not None and run_id not in self.started:
            _trying(lambda: tell_time(run_id, max(0.0, self.ends - time.monotonic())))  # type: ignore[operator]
        error = _trying(lambda: begin(run_id, self.python)).get("error")
        if error:
            self.errors[run_id] = error
            return False
        self.started[run_id] = time.monotonic()
        if control.load(run_id).final:
            return False
        if guard.read_config(run_id).get("strategy") in FOLLOWS:
            self.follows.add(run_id)
        return True

    def sends(self, rec: record.Record) -> bool:
        """Whether it still needs the link."""
        run_id = str(rec.data["run_id"])
        if rec.state == "armed":
            return time.monotonic() - self.started[run_id] < PATIENCE
        return rec.state in SENDING or (run_id in self.follows and not rec.final and rec.state != "undoing")

    def over(self, rec: record.Record) -> bool:
        """Final, or it cannot get on for so long that nobody waits for it. A guard that was killed is started again."""
        run_id = str(rec.data["run_id"])
        if rec.final or run_id in self.errors:
            return True
        stalled = rec.data.get("stalled") or {}
        if stalled and time.time() - float(stalled["since"]) > STALL:
            return True
        if time.monotonic() - self.started[run_id] > LOOK and not control.alive(run_id):
            self.revive(run_id)
        return False

    def revive(self, run_id: str) -> None:
        """Its guard is gone; where that was not its own end, start it again."""
        if control.load(run_id).final:
            return
        self.restarts[run_id] = self.restarts.get(run_id, 0) + 1
        if self.restarts[run_id] <= RESTARTS:
            self.start(run_id)
            return
        where = os.path.join(record.run_dir(run_id), "guard.log")
        self.errors[run_id] = MigrationError("The guard ends again and again.", f"See {where}.").as_dict()

    def carry_out(self, limit: float) -> None:
        """Until all have ended, `limit` seconds at most; the guards go on by themselves."""
        folders = [record.run_dir(run.run_id) for run in self.waiting if os.path.isdir(record.run_dir(run.run_id))]
        deadline = time.monotonic() + limit
        with Watch(*folders) as watch:
            while time.monotonic() < deadline and not watch.until(self.step, min(LOOK, deadline - time.monotonic())):
                pass


def carry_out(
    runs: Sequence[Run], at_once: int, limit: float, python: str, left: float | None = None
) -> dict[str, Found]:
    """Start and watch them; by run: {record, restarts} or {error}, and what was not started: {}."""
    batch = Batch(runs, at_once, python, left)
    batch.carry_out(limit)
    found: dict[str, Found] = {}
    for run in runs:
        rec = record.Record.load(run.run_id) if run.run_id in batch.started else None
        found[run.run_id] = {"error": batch.errors[run.run_id]} if run.run_id in batch.errors else {}
        if rec is not None:
            found[run.run_id].update(record=rec.data, restarts=batch.restarts.get(run.run_id, 0))
    return found
