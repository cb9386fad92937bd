"""How memory moves: what was asked for, or what the nodes and the process allow, with the reason. Pure functions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from .preflight import Case, Check, Finding, size
from .preflight_images import choose, needs, tmpfs_too_small

EAGER = "Use migration_strategy=full without lazy_restore, which restores all memory before the process runs."
MOST = 0.5  # of the memory has to be able to come later, or it is not worth the risk


class Plan(NamedTuple):
    """strategy: full or postcopy. lazy_restore: the destination faults pages in from its own images."""

    strategy: str
    lazy_restore: bool
    reason: str
    findings: list[Finding]


def decide(case: Case) -> Plan:
    """What this migration does; the reason is empty where that is just what was asked for.

    Post-copy that cannot be becomes an eager move: the process is to be saved, more than the strategy. A lazy restore
    that was asked for and cannot be is a problem.
    """
    strategy, wanted = str(case.params.get("migration_strategy") or "auto"), case.params.get("lazy_restore")
    if strategy == "postcopy":
        against = "; ".join(obstacles(case, remote=True))
        if not against:
            return Plan("postcopy", False, "", [])
        text = f"No post-copy here: {against}. All memory moves while the process is frozen."
        eager = Finding("lazy", case.names["destination"], text, "", True)
        return Plan("full", False, f"moved eagerly, without post-copy: {against}", [eager])
    if strategy == "full":
        return Plan("full", bool(wanted), "", _problems(case, obstacles(case, remote=False) if wanted else []))
    if wanted is False:
        return Plan("full", False, "lazy_restore=false, and post-copy only when asked for", [])
    found = obstacles(case, remote=False)
    if found:
        problems = _problems(case, found if wanted else [])
        return Plan("full", bool(wanted), f"restored eagerly: {'; '.join(found)}", problems)
    return Plan("full", True, "post-copy only when asked for: the process would be lost with the source's node", [])


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
    if plan.strategy == "postcopy":
        text = (
            "Until all pages have come, the process needs both nodes: when the source goes down in that time, it "
            "is lost."
        )
        yield Finding("lazy", case.names["source"], text, "Use migration_strategy=full where that may happen.", True)


CHECKS: tuple[Check, ...] = (check_plan,)
