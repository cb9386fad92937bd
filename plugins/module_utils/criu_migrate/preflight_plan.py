"""How memory moves: what was asked for, or what the nodes and the process allow, with the reason. Pure functions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from .planner import Strategy
from .planner_choice import possible
from .preflight import Case, Check, Finding, size
from .preflight_deadline import in_the_clear, quickest, too_late
from .preflight_images import choose, needs, tmpfs_too_small

EAGER = "Use migration_strategy=full without lazy_restore, which restores all memory before the process runs."
MOST = 0.5  # of the memory has to be able to come later, or it is not worth the risk


WORTH = 64 << 20  # bytes of memory below which one dump is over before a round of pre-dump were


class Plan(NamedTuple):
    """strategy: full, precopy, postcopy or hybrid. lazy_restore: pages are faulted in from the destination's images."""

    strategy: str
    lazy_restore: bool
    reason: str
    findings: list[Finding]


def decide(case: Case) -> Plan:
    """What this migration does; the reason is empty where that is just what was asked for.

    Post-copy or pre-copy that cannot be becomes the best move that can: the process is to be saved, more than the
    strategy. A lazy restore that was asked for and cannot be is a problem.
    """
    strategy, wanted = str(case.params.get("migration_strategy") or "auto"), case.params.get("lazy_restore")
    if strategy == "postcopy":
        return _postcopy(case)
    if strategy == "hybrid":
        return _hybrid(case)
    if strategy == "full":
        return Plan("full", bool(wanted), "", _problems(case, obstacles(case, remote=False) if wanted else []))
    against = "; ".join(untrackable(case))
    lazy, why, problems = _lazily(case, wanted)
    if strategy == "precopy":
        if not against:
            return Plan("precopy", lazy, why if why and wanted is None else "", problems)
        best = "full with lazy_restore" if lazy else "full"
        text = f"No pre-copy here: {against}. The best that works on these nodes is {best}."
        return Plan("full", lazy, f"no pre-copy: {against}", [*problems, _warning(case, "source", text)])
    never = "post-copy only when asked for: the process would be lost with the source's node"
    if case.params.get("deadline") and case.tree.get("memory", {}).get("pages"):
        ways = possible(soft_dirty=not against, lazy_local=lazy, userfaultfd=False, twice=True, accepted=False)
        taken = quickest(case, [way for way in ways if way.lazy_restore or not wanted])
        way = taken.taken.strategy
        return Plan(way.name, way.lazy_restore, _joined(taken.reason, why, never), problems)
    if not against and case.tree.get("memory", {}).get("pages", 0) >= WORTH:
        tracked = "pre-copy, as this kernel tells which pages change"
        return Plan("precopy", lazy, _joined(tracked, why, never), problems)
    return Plan("full", lazy, _joined(why, never), problems)


def _joined(*reasons: str) -> str:
    return "; ".join(filter(None, reasons))


def _postcopy(case: Case) -> Plan:
    against = "; ".join(obstacles(case, remote=True))
    if not against:
        return Plan("postcopy", False, "", [])
    text = f"No post-copy here: {against}. All memory moves while the process is frozen."
    return Plan("full", False, f"moved eagerly, without post-copy: {against}", [_warning(case, "destination", text)])


def _hybrid(case: Case) -> Plan:
    """Half of it where the other half cannot be."""
    rounds, late = "; ".join(untrackable(case)), "; ".join(obstacles(case, remote=True))
    if not rounds and not late:
        return Plan("hybrid", False, "", [])
    instead = "postcopy" if rounds and not late else "precopy" if late and not rounds else "full"
    found = decide(case._replace(params={**case.params, "migration_strategy": instead, "lazy_restore": None}))
    missing = _joined(rounds, late)
    text = f"No hybrid here: {missing}. The best that works on these nodes is {found.strategy}."
    return found._replace(reason=f"no hybrid: {missing}", findings=[*found.findings, _warning(case, "source", text)])


def _lazily(case: Case, wanted: bool | None) -> tuple[bool, str, list[Finding]]:
    """Whether to restore lazily where nothing (None) or this was asked for; why not; what is a problem."""
    if wanted is False:
        return False, "lazy_restore=false", []
    found = obstacles(case, remote=False)
    if found:
        return bool(wanted), f"restored eagerly: {'; '.join(found)}", _problems(case, found if wanted else [])
    return True, "", []


def _warning(case: Case, role: str, text: str) -> Finding:
    return Finding("strategy", case.names[role], text, "", True)


def untrackable(case: Case) -> list[str]:
    """What speaks against rounds of pre-dump."""
    found = []
    if not case.source["criu"]["features"].get("mem_dirty_track"):
        found.append(f"the kernel of {case.names['source']} does not track changed pages (CONFIG_MEM_SOFT_DIRTY)")
    if case.params.get("transfer") == "rsync":
        found.append("rounds go to the page server, not by rsync")
    pages, lazy = (int(case.tree.get("memory", {}).get(name, 0)) for name in ("pages", "lazy"))
    if pages - lazy > WORTH:  # criu/cr-dump.c: a pre-dump sends shared memory before it lets the tree run again
        found.append(f"{size(pages - lazy)} (shared, locked, huge pages) would cross while the process stands still")
    return found


def obstacles(case: Case, remote: bool) -> list[str]:
    """What speaks against pages that come after the restore, from the destination's images or (remote) the source."""
    found = [
        f"{name} has no userfaultfd that CRIU can use"
        for name, facts in list(case.nodes())[0 if remote else 1 :]
        if facts["criu"]["features"].get("uffd-noncoop") is False
    ]
    memory, need = case.destination["memory"]["available"], needs(case)["destination"]
    found += [] if remote else not_in_memory(case)
    if memory < need.images + need.process:
        found.append(f"twice the process's memory ({size(need.images + need.process)}) does not fit until it is filled")
    pages, lazy = (int(case.tree.get("memory", {}).get(name, 0)) for name in ("pages", "lazy"))
    if pages and lazy < pages * MOST:
        found.append(f"only {size(lazy)} of {size(pages)} can come later (shared, locked and huge pages cannot)")
    return found


def not_in_memory(case: Case) -> list[str]:
    """Why a lazy restore would not find its images in the destination's memory; [] where it would."""
    place = case.destination["space"].get(choose(case).images["destination"]) or {}
    if place.get("fstype") in ("tmpfs", "ramfs"):
        return []
    objection = tmpfs_too_small(case)
    if objection:
        return [f"the process is too large for the destination's tmpfs ({objection})"]
    return ["the images do not lie in memory on the destination"]


def _problems(case: Case, against: list[str]) -> list[Finding]:
    node = case.names["destination"]
    return [Finding("lazy", node, f"No lazy restore here: {obstacle}.", EAGER) for obstacle in against]


def check_plan(case: Case) -> Iterator[Finding]:
    plan = decide(case)
    yield from plan.findings
    way = Strategy(plan.strategy, plan.lazy_restore)
    yield from too_late(case, way)
    yield from in_the_clear(case, way)
    if plan.strategy in ("postcopy", "hybrid"):
        text = (
            "Until all pages have come, the process needs both nodes: when the source goes down in that time, it "
            "is lost."
        )
        yield Finding("lazy", case.names["source"], text, "Use migration_strategy=full where that may happen.", True)


CHECKS: tuple[Check, ...] = (check_plan,)
