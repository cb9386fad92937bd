"""One random fault: drawn from a seed, brought about, and how it may end."""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate import lazy_file
from tests.lab.harness import power
from tests.lab.harness.aftermath import Aftermath
from tests.lab.harness.guarded import Guarded
from tests.lab.harness.harm import cut
from tests.lab.harness.nodes import wait_for
from tests.lab.harness.run import FINAL

KINDS: dict[str, dict[str, Any]] = {
    "full": {"strategy": "full"},
    "lazy_restore": {"strategy": "full", "lazy_restore": True},
    "postcopy": {"strategy": "postcopy"},
}
OURS = ("guard.pyz", "/sbin/criu", "sleep infinity")
NAMES = ("guard.pyz", "criu dump", "criu restore", "criu lazy-pages", "sleep infinity")
STATES = ("armed", "freezing", "frozen", "dumped", "detached", "restored", "committed")
OTHER = {"source": "destination", "destination": "source"}
EVERY = 3  # one of so many faults is a node's, by its seed
# How a node comes back: at once; once the other one has done what it can alone; or after a person has been asked.
RETURNS = ("rebooted", "off for long", "off until a person had decided")


@dataclass
class Draw:
    """What the seed says. moment: seconds after the source has reached the state `wanted`."""

    seed: int
    chance: random.Random
    kind: str
    with_address: bool
    workload: str
    wanted: str
    moment: float
    of_a_node: bool

    @classmethod
    def of(cls, seed: int, delay: float, kinds: Iterable[str] = KINDS) -> Draw:
        chance = random.Random(seed)  # noqa: S311  nothing secret: to be repeated
        kind, with_address = chance.choice(sorted(kinds)), chance.random() < 0.5
        workload = "redis" if with_address else chance.choice(["memory", "memory", "redis"])
        wanted, moment = chance.choice(STATES), chance.uniform(0.0, delay)
        of_a_node = seed % EVERY == EVERY - 1
        if of_a_node:
            moment *= moment / delay  # rather soon: once all has ended an outage is not worth its time
        return cls(seed, chance, kind, with_address, workload, wanted, moment, of_a_node)


@dataclass
class End:
    """fault: in words. where: the role on which the process runs now, '' where it died with its node. by: whose word
    decided. client: whether the outside client must not have noticed."""

    fault: str
    where: str
    by: str = ""
    client: bool = True

    @property
    def outcome(self) -> str:
        words = {"source": "undone", "destination": "moved", "": "lost with its node"}[self.where]
        return words + (f", {self.by}" if self.by else "")


# --- a process, or the link ------------------------------------------------------------------------------------------


def strike(run: Guarded, chance: random.Random) -> str:
    """One fault that leaves both nodes on; what it was, in words."""
    if chance.random() < 0.2:
        seconds = chance.uniform(0.2, 4.0)
        with cut(run.node("destination")):
            time.sleep(seconds)  # so long is the cable out: the length is the fault itself
        return f"link cut for {seconds:.1f} s"
    role = chance.choice(["source", "destination"])
    there = run.node(role).find(OURS)
    if not there:
        return f"nothing to kill on the {role}"
    pid, words = chance.choice(sorted(there, key=lambda item: item[1]))
    with contextlib.suppress(ProcessLookupError):
        run.node(role).slay(pid)
    return f"{role}: killed {next((name for name in NAMES if name in words), words[:40])}"


def revive(run: Guarded) -> None:
    """A guard that nobody keeps any more: the play or resolve.yml starts it again."""
    for role in OTHER:
        alive = run.node(role).find(("guard.pyz",))
        if run.record(role)["state"] not in (*FINAL, "absent") and not alive:
            run.start_guard(role)


def ended(run: Guarded) -> bool:
    revive(run)
    return run.state("source") in FINAL


# --- a node ----------------------------------------------------------------------------------------------------------


def outage(run: Guarded, aftermath: Aftermath, chance: random.Random, tmp: Path) -> End:
    """A node loses its power and comes back; a person does what resolve.yml says. AssertionError where the copies are
    not as the design states."""
    role, back = chance.choice(["source", "destination"]), chance.choice(RETURNS)
    node, other = run.node(role), OTHER[role]
    power.off(node)
    asked, kept = "", kept_whole(run, role)
    try:
        if back != RETURNS[0]:
            settle(run, other)
            check_kept(run, aftermath, other)
        if back == RETURNS[2]:
            asked = person(run, role, tmp)
    finally:
        power.on(node)
    died = run.record(role)
    asked = person(run, role, tmp) or asked
    run.await_state("source", *FINAL, limit=90)
    run.await_state("destination", *FINAL, limit=90)
    where = stated(role, died, run, kept)
    ran = role == "destination" and "running" in died["times"]
    if ran and where == "source":
        assert asked, f"an older copy runs again, and no person has said so:\n{run.story()}"
    check_verdict(run, where)
    return End(f"{role}: power, {back}", where, asked, client=not ran)


def settle(run: Guarded, role: str) -> None:
    """Until the living node can do no more without the other."""
    died = run.node(role).log(run.run_id).count("\n")

    def heard(*words: str) -> bool:
        lines = run.node(role).log(run.run_id).splitlines()[died:]
        return any(word in line for word in words for line in lines)

    def source() -> bool:
        state = run.state("source")
        return state in FINAL or (state == "committed" and heard("committed: commit:", "committed: filled:"))

    def destination() -> bool:
        found = run.record("destination")
        if run.postcopy:  # a restore waits for what will never come
            filling = found["state"] == "running" and not found.get("filled")
            return not filling or heard("waiting for the source")
        return bool(found["state"] != "restoring")

    wait_for(f"the {role} to wait for the other node", source if role == "source" else destination, 60)


def check_kept(run: Guarded, aftermath: Aftermath, role: str) -> None:
    """A stopped copy that may still be needed is there, all of it stopped."""
    if run.state(role) != {"source": "committed", "destination": "restored"}[role]:
        return
    copy = aftermath.copies(run.node(role).look())
    still = [item for item in copy if item["stopped"] or item["state"] == "t"]  # t: criu's dump still holds it
    assert copy and still == copy, f"on the {role}: {copy}:\n{run.story()}"


def person(run: Guarded, role: str, tmp: Path) -> str:
    """Run resolve.yml; where it asks for a person's word about the node that was off, give it. Returns who decided."""
    seconds = 60 if power.is_on(run.node(role)) else 1
    decided, said = power.tried(run, tmp, "-e", f"resolve_seconds={seconds}")
    if decided:
        return ""
    word = f"-e fence={role}-is-dead"
    assert word in said, f"resolve.yml does not say what to do:\n{said}\n{run.story()}"
    power.resolve(run, tmp, "-e", "resolve_seconds=60", *word.split())
    return "a person decided"


def kept_whole(run: Guarded, role: str) -> bool:
    """The node that lives on has a copy, or all that makes one, that needs nothing of the source which has died."""
    if role == "destination":  # which is off: nothing of a machine can be read then
        return False
    found = run.record("destination")
    if found["state"] not in ("restoring", "restored", "running", "done"):
        return False
    listed = run.node("destination").path(f"{run.images['destination']}/{run.run_id}/{lazy_file.NAME}.map")
    all_came = bool(found.get("filled")) or (listed.exists() and lazy_file.whole(listed.read_bytes()))
    return not run.postcopy or (all_came and found["state"] != "restoring")


def stated(role: str, died: dict[str, Any], run: Guarded, kept: bool) -> str:
    """Where the process has to be by the design's table: by what the dead node had written down (`died`), by what the
    other one had (`kept`), and by how far that came. Never by how it ended alone: a copy that was wrongly ended would
    count as lost."""
    source, destination = run.record("source"), run.record("destination")
    if role == "destination":
        if source["state"] != "done":
            return "source"
        proof = died["state"] == "done" or bool(died.get("filled") if run.lazy else "running" in died["times"])
        assert proof, f"the source's copy was ended before the destination's had run, whole:\n{run.story()}"
        return ""
    whole = kept or ("restored" in destination["times"] and (not run.postcopy or bool(destination.get("filled"))))
    return "destination" if whole and died["state"] not in ("undoing", "undone") else ""


def check_verdict(run: Guarded, where: str) -> None:
    """What resolve.yml would say of the two records now is the truth."""
    said = power.verdict(run)
    assert said["where"] == (where or "nowhere"), f"{said}, but the process is: {where or 'lost'}:\n{run.story()}"
    assert set(said["do"].values()) == {"none"}, f"something is left to do: {said}:\n{run.story()}"
