"""The preflight's verdict: pure functions of what was seen on both nodes and of the user's parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

Facts = dict[str, Any]
SHOWN = 5  # so many examples in one line, the rest is counted


class Finding(NamedTuple):
    """Something that hinders the migration, or (warning) that a person wants to know before it starts."""

    check: str
    node: str
    problem: str
    remedy: str
    warning: bool = False

    def text(self) -> str:
        return f"[{self.node}] {self.problem}" + (f" Remedy: {self.remedy}" if self.remedy else "")


class Case(NamedTuple):
    """All that a check may look at.

    source, destination: facts of the nodes; tree: the process tree, empty while it is not started; there: the tree
    held against the destination; params: the fact `migration`; names: of both nodes; reached_by: the addresses by
    which Ansible reaches them; prepared: CRIU should be installed by now.
    """

    source: Facts
    destination: Facts
    tree: Facts
    there: Facts
    params: Facts
    names: dict[str, str]
    reached_by: tuple[str, ...] = ()
    prepared: bool = True

    def nodes(self) -> Iterator[tuple[str, Facts]]:
        yield self.names["source"], self.source
        yield self.names["destination"], self.destination

    @property
    def service_address(self) -> str:
        return str(self.params.get("service_address") or "").split("/")[0]


Check = Callable[[Case], Iterable[Finding]]


def listed(items: Iterable[Any], shown: int = SHOWN) -> str:
    """At most `shown` of them in words."""
    words = [str(item) for item in items]
    more = f" and {len(words) - shown} more" if len(words) > shown else ""
    return ", ".join(words[:shown]) + more


def size(number: float) -> str:
    """Bytes for a person, in binary units."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if number < 1024 or unit == "GiB":
            return f"{number:.0f} {unit}" if unit in ("B", "KiB") else f"{number:.1f} {unit}"
        number /= 1024
    return ""


def same_node(case: Case) -> bool:
    """Both names lead to one machine: same boot, same PID and network namespace."""
    return bool(case.source["identity"] == case.destination["identity"])


def judge(case: Case) -> list[Finding]:
    """Every finding of every check, problems first. One node under two names is the only finding then."""
    from . import preflight_images, preflight_nodes, preflight_plan, preflight_process, preflight_sockets

    if same_node(case):
        pair = f"{case.names['source']} and {case.names['destination']}"
        return [
            Finding(
                "same_node",
                case.names["destination"],
                f"The destination is the source: {pair} are one machine.",
                "Name two machines in the groups source and destination.",
            )
        ]
    found = list(preflight_process.check_there(case))
    if found:
        case = case._replace(tree={}, there={**case.there, "files": [], "pids_taken": [], "ports_taken": []})
    for module in (preflight_nodes, preflight_process, preflight_sockets, preflight_images, preflight_plan):
        for check in module.CHECKS:
            found += check(case)
    return sorted(found, key=lambda finding: finding.warning)


def message(findings: Iterable[Finding]) -> str:
    """One block for a person: every problem with its remedy."""
    problems = [finding for finding in findings if not finding.warning]
    head = "1 problem found" if len(problems) == 1 else f"{len(problems)} problems found"
    return "\n".join([f"{head}, nothing was touched:", *(f"  - {problem.text()}" for problem in problems)])


def result(case: Case, findings: Iterable[Finding]) -> Facts:
    """The compact facts that a migration needs later on."""
    from . import preflight_deadline, preflight_images, preflight_plan
    from .planner import Strategy

    plan = preflight_plan.decide(case)
    encryption = preflight_deadline.encryption(case, Strategy(plan.strategy, plan.lazy_restore))
    tree = case.tree
    return {
        "source": _node(case.source, case.names["source"]),
        "destination": _node(case.destination, case.names["destination"]),
        "images": preflight_images.choose(case).images,
        "plan": {
            "strategy": plan.strategy,
            "lazy_restore": plan.lazy_restore,
            "encryption": encryption,
            "reason": plan.reason,
        },
        "warnings": [finding.text() for finding in findings if finding.warning],
        "process": {
            "pid": tree["pid"],
            "start": tree["start"],
            "procs": tree["procs"],
            "memory": tree["memory"],
            "command": tree["command"],
        }
        if tree.get("found")
        else {},
    }


def _node(facts: Facts, name: str) -> Facts:
    criu = facts["criu"]
    kept = {key: facts[key] for key in ("hostname", "kernel", "arch", "python", "identity", "capabilities", "memory")}
    return {"name": name, **kept, "criu": criu["version"], "features": criu["features"]}
