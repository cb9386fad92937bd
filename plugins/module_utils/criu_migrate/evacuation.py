"""An evacuation in plain data: which process goes where and when, what its run is called, and how all of it ended."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from . import costs, naming, planner_evacuation, preflight, preflight_images
from .planner import NEVER, Costs, Load
from .preflight import Case, Facts, Finding

AT_ONCE = 3  # at least: one that is being prepared, two that send, so that one always keeps the link busy
STARTING = 2.0  # seconds from the notice to the first freeze where guards stand by: one Ansible task, two programs
PEER = 7200.0  # seconds that a destination's guard waits for its source's: until it is its turn
LINK = 15.0  # seconds without a word from a destination until a run is undone: its turn on the link goes to another


class Placed(NamedTuple):
    """A process that can be moved to `host`."""

    process: Facts
    host: str
    migration: Facts
    preflight: Facts
    port: int

    @property
    def bytes(self) -> int:
        return int(self.process["tree"]["memory"]["pages"])


class Refusal(NamedTuple):
    """A process that cannot be moved anywhere, and why, in words."""

    name: str
    message: str


class Order(NamedTuple):
    """The processes in the order in which they go, how many send at once, and by name what is expected of each; late:
    those that would miss the deadline."""

    processes: list[Facts]
    at_once: int
    expected: dict[str, str]
    late: list[str]


class Plan(NamedTuple):
    """Who goes, in order, who cannot, what a person should know, and how many send at once."""

    runs: list[Placed]
    refused: list[Refusal]
    warnings: list[str]
    at_once: int
    expected: dict[str, str]


def ordered(processes: Iterable[Facts], free: Mapping[str, float], bandwidth: float, seconds: float) -> Order:
    """As the planner would have it (planner_evacuation.py). Those that it gives up go last, as an instance may live
    longer than it was told.

    :param free: bytes of memory that can be taken on each destination
    :param bandwidth: bytes/s of the source's link
    :param seconds: that there will be from the notice on, 0 where that is not known
    """
    known = {str(item["name"]): item for item in processes}
    if not known:
        return Order([], AT_ONCE, {}, [])
    asked = [
        planner_evacuation.Process(name, Load(float(item["tree"]["memory"]["pages"])), int(item["priority"]))
        for name, item in known.items()
    ]
    pair = Costs(bandwidth=bandwidth, preparation=STARTING, reserve_byte=0.0)
    found = planner_evacuation.evacuation(asked, free, pair, seconds or NEVER)
    # Without a deadline only those are lost that have no room: that is the preflight's to say, with its remedy
    expected = {fate.name: fate.reason for fate in found.fates} if seconds else {}
    late = [fate.name for fate in found.fates if not fate.saved] if seconds else []
    order = [known[fate.name] for fate in found.fates]
    return Order(order, max(AT_ONCE, found.at_once), expected, late)


class Planner:
    """Places each process on a destination that can take it, beside those that were placed there before.

    source: what criu_evacuate has found on the source. offers: the same by host of each destination that was reached.
    name: of the source. reached: host -> address of all of them. began: seconds since 1970; tokens: one a process.
    seconds: that there will be from the notice on, 0 where that is not known.
    """

    def __init__(
        self, source: Facts, offers: Mapping[str, Facts], name: str, reached: Mapping[str, str], began: float,
        tokens: Sequence[str], seconds: float = 0.0,
    ) -> None:  # fmt: skip
        self.source = source
        self.offers = dict(offers)
        self.name = name
        self.reached = dict(reached)
        self.began = began
        self.tokens = list(tokens)
        self.seconds = seconds
        self.sizes: dict[str, list[int]] = {host: [] for host in offers}

    def plan(self) -> Plan:
        free = {host: float(offer["node"]["memory"]["available"]) for host, offer in self.offers.items()}
        order = ordered(self.source["processes"], free, self.bandwidth(), self.seconds)
        runs: list[Placed] = []
        refused: list[Refusal] = []
        warnings = [f"{name}: {order.expected[name]}" for name in order.late]
        for process, token in zip(order.processes, self.tokens):
            placed, findings = self.place(process, token, order.at_once)
            if placed is None:
                refused.append(Refusal(str(process["name"]), preflight.message(findings)))
                continue
            runs.append(placed)
            self.sizes[placed.host].append(placed.bytes)
            warnings += [f"{process['name']}: {item.text()}" for item in findings if item.warning]
        return Plan(runs, refused, warnings, order.at_once, order.expected)

    def bandwidth(self) -> float:
        """Bytes/s of the link, as earlier moves to these destinations have found it."""
        links = self.source["node"].get("links") or {}
        found = [float(links[self.reached[host]]) for host in self.offers if self.reached[host] in links]
        return min(found, default=costs.UNKNOWN)

    def place(self, process: Facts, token: str, at_once: int) -> tuple[Placed | None, list[Finding]]:
        """On the destination with the least to take in so far that has no objection; else the objections of all."""
        params = {"pid": process["pid"]}
        migration = naming.settle(process["params"], "process", params, self.began, token, str(process["name"]))
        migration["working_dir"] = process["working_dir"] or migration["working_dir"]
        migration["deadline"] = None  # begins with the notice, which is not there yet
        against: list[Finding] = []
        for host in sorted(self.offers, key=lambda item: (sum(self.sizes[item]), item)):
            case = self.case(process, host, migration, at_once)
            findings = preflight.judge(case)
            if all(item.warning for item in findings):
                port = int(self.offers[host]["ports"][process["name"]])
                result = without_rounds(preflight.result(case, findings), migration)
                return Placed(process, host, migration, result, port), findings
            against += [item for item in findings if item not in against]
        nobody = Finding("destination", "evacuation", "No destination was reached.", "Look at their SSH and network.")
        return None, against or [nobody]

    def case(self, process: Facts, host: str, migration: Facts, at_once: int) -> Case:
        return Case(
            source=self.source["node"],
            destination=self.left(host, at_once),
            tree=process["tree"],
            there=self.offers[host]["there"][process["name"]],
            params=migration,
            names={"source": self.name, "destination": host},
            reached_by=tuple(self.reached.values()),
        )

    def left(self, host: str, at_once: int) -> Facts:
        """The destination's facts without what those take that were placed there before: their memory for good, and
        images as long as one is on its way."""
        node: Facts = self.offers[host]["node"]
        stay = [int(size * preflight_images.RESERVE) for size in self.sizes[host]]
        images = sum(sorted(stay)[-(at_once - 1) :]) if at_once > 1 else 0
        space = {
            path: {**place, "free": max(0, place["free"] - images)} if place["fstype"] in ("tmpfs", "ramfs") else place
            for path, place in node["space"].items()
        }
        available = max(0, node["memory"]["available"] - sum(stay) - images)
        return {**node, "memory": {**node["memory"], "available": available}, "space": space}


def without_rounds(result: Facts, migration: Facts) -> Facts:
    """Where the strategy was left to us: one dump. Rounds would take the link from the others."""
    plan = result["plan"]
    if migration["migration_strategy"] != "auto" or plan["strategy"] not in ("precopy", "hybrid"):
        return result
    reason = "one dump, as rounds would take the link from the others of an evacuation"
    return {**result, "plan": {**plan, "strategy": "full", "reason": reason}}


def told(plan: Plan, source: str, more: bool = False) -> list[str]:
    """The plan for a person, a line for each process. `more`: there are others."""
    lines = [
        f"{item.process['name']}: {preflight.size(item.bytes)} from {source} to {item.host}, "
        f"{item.preflight['plan']['strategy']}{' + lazy restore' if item.preflight['plan']['lazy_restore'] else ''}"
        + (f", {plan.expected[item.process['name']]}" if item.process["name"] in plan.expected else "")
        for item in plan.runs
    ]
    lines += [f"{item.name}: cannot be saved" for item in plan.refused]
    return lines or ([] if more else ["No process is registered that runs here."])


def armed_for_notice(config: Facts, limits: Mapping[str, float], port: int = 0) -> Facts:
    """A guard's configuration as an evacuation wants it: on the port that both know beforehand, no memory fetched ahead
    (ten that do so at once would take the processors from the dumps), and a dead destination given up soon."""
    found = {**config, "limits": {**limits, "link": min(float(limits["link"]), LINK)}}
    found["limits"]["peer"] = max(float(limits["peer"]), PEER)
    if config["role"] == "destination":
        found.update(ports=[port, port], memory=0)
    return found


# --- afterwards -----------------------------------------------------------------------------------------------------


class Line(NamedTuple):
    """One process in the table. outcome: saved, not saved or unknown. node: where it is, '' where nobody knows."""

    name: str
    outcome: str
    node: str
    seconds: float | None
    downtime: float | None
    verified: bool | None
    why: str
    run_id: str = ""


class Ending(NamedTuple):
    """What became of one process; where it is, '' where nobody knows or there is none; what a person should know."""

    outcome: str
    node: str
    notes: list[str]


def answered(found: Mapping[str, Any]) -> bool:
    """The node has told of this run; or of its not having any record of it."""
    return "record" in found


def is_open(source: Mapping[str, Any], destination: Mapping[str, Any]) -> bool:
    """Neither record says for certain where the process is: it began to move, and no end of it was seen; or nobody has
    answered at all."""
    one, two = (item.get("record") or {} for item in (source, destination))
    if not (answered(source) or answered(destination)):
        return True
    begun = "freezing" in (one.get("times") or {}) or two.get("state", "armed") not in ("armed", "undone", "done")
    return begun and one.get("state") not in ("done", "undone") and two.get("state") != "done"


def ending(
    status: str, source: Mapping[str, Any], destination: Mapping[str, Any], hosts: Mapping[str, str], run_id: str
) -> Ending:
    """What the nodes have told, put together.

    :param status: of the metrics, by the records alone
    :param source: what it has told of this run: record, alive, rebooted; {unreachable, msg} where it was not reached
    :param destination: likewise
    :param hosts: by role, their names
    """
    here, there = hosts["source"], hosts["destination"]
    remedy = f"ansible-playbook playbooks/resolve.yml -e run_id={run_id}"
    if status == "migrated":
        return _moved(destination, there)
    one, two = source.get("record") or {}, (destination.get("record") or {}).get("state")
    notes = silence(here, source)
    if status == "failed" and is_open(source, destination):
        notes += [f"The record on {there} says {two}."] if two else silence(there, destination)
        return Ending("unknown", "", [*notes, remedy])
    held = two not in (None, "armed", "undone") or not answered(destination)
    if one.get("state") == "undone" and held and not one.get("destination_undone"):
        notes += silence(there, destination)
        notes.append(f"What {there} still holds of it is removed by {remedy}")
    stayed = bool(source["alive"]) if "alive" in source else status == "rolled_back"
    if status == "rolled_back" and not stayed:
        notes.append(f"It has ended on {here} since.")
    return Ending("not saved", here if stayed else "", notes)


def _moved(destination: Mapping[str, Any], host: str) -> Ending:
    """By the records it is on the destination: is it still?"""
    if not answered(destination):
        return Ending("unknown", "", [f"It moved to {host}.", *silence(host, destination)])
    if destination.get("rebooted"):
        return Ending("not saved", "", [f"It moved to {host}, which was started anew since: it died there."])
    if "alive" in destination and not destination["alive"]:
        return Ending("unknown", "", [f"It moved to {host} and has ended there since, by itself or by a fault."])
    return Ending("saved", host, [])


def silence(host: str, found: Mapping[str, Any]) -> list[str]:
    """Why nothing is known of a node, in one line; none where it has answered."""
    if answered(found):
        return []
    said = str(found.get("msg") or "").strip().splitlines()
    return [f"{host} cannot be asked: {said[0]}" if said else f"{host} was not asked."]


def line(name: str, metrics: Mapping[str, Any], notice: float | None, found: Ending) -> Line:
    """What became of one process. Saved: it is on the destination and nothing speaks against its being whole.

    :param notice: when the end was announced or the evacuation was begun, seconds of the source's clock; None where it
        moved before that
    """
    error = metrics.get("error") or {}
    verified = (metrics.get("integrity") or {}).get("verified")
    marks = metrics.get("marks") or {}
    moved = metrics["status"] == "migrated"
    ended = marks.get("done", marks.get("destination_done"))
    seconds = None if ended is None or notice is None or not moved else ended - notice
    outcome, said = found.outcome, [str(error.get("message") or ""), *found.notes]
    if outcome == "saved" and verified is False:
        outcome, said = "not saved", said if said[0] else ["Its proof does not hold.", *said]
    why = "\n".join(filter(None, said)) or ("" if outcome == "saved" else "It was not started.")
    downtime = (metrics.get("downtime") or {}).get("frozen")
    return Line(name, outcome, found.node, seconds, downtime, verified, why, str(metrics.get("run_id") or ""))


def table(lines: Sequence[Line], left: float | None) -> str:
    """All of them for a person, and the sum of it."""
    saved = sum(item.outcome == "saved" for item in lines)
    head = f"Evacuation: {saved} of {len(lines)} saved"
    head += "" if left is None else f", {left:.1f} s were left"
    width = max([len("PROCESS"), *(len(item.name) for item in lines)])
    rows = [f"  {'PROCESS':<{width}}  {'OUTCOME':<9}  {'AFTER':>8}  {'DOWNTIME':>8}  PROOF     NODE"]
    for item in lines:
        proof = {True: "whole", False: "NOT WHOLE", None: "-"}[item.verified]
        rows.append(
            f"  {item.name:<{width}}  {item.outcome:<9}  {_seconds(item.seconds):>8}  {_seconds(item.downtime):>8}"
            f"  {proof:<9} {item.node or '-'}"
        )
        rows += [f"  {'':<{width}}  {part}" for part in item.why.splitlines()]
    return "\n".join([head, *rows])


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f} s"
