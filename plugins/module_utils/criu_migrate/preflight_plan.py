"""How memory moves: what was asked for, or what the nodes and the process allow, with the reason. Pure functions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from .preflight import Case, Check, Finding, size
from .preflight_images import choose, needs

EAGER = "Use migration_strategy=full without lazy_restore, which restores all memory before the process runs."
MOST = 0.5  # of the memory has to be able to come later, or it is not worth the risk


class Plan(NamedTuple):
    """strategy: full or postcopy. lazy_restore: the destination faults pages in from its own images."""

    strategy: str
    lazy_restore: bool
    reason: str
    findings: list[Finding]


def decide(case: Case) -> Plan:
    """What this migration does. Only `auto` steps back by itself; what was asked for and cannot be is a problem."""
    strategy, wanted = str(case.params.get("migration_strategy") or "auto"), case.params.get("lazy_restore")
    if strategy == "postcopy":
        return Plan("postcopy", False, "asked for", _problems(case, obstacles(case, remote=True), "post-copy"))
    if strategy == "full":
        against = obstacles(case, remote=False) if wanted else []
        return Plan("full", bool(wanted), "asked for", _problems(case, against, "lazy restore"))
    if wanted is False:
        return Plan("full", False, "lazy_restore=false, and post-copy only when asked for", [])
    against = obstacles(case, remote=False)
    if against:
        problems = _problems(case, against, "lazy restore") if wanted else []
        return Plan("full", bool(wanted), f"restored eagerly: {'; '.join(against)}", problems)
    return Plan("full", True, "post-copy only when asked for: the process would be lost with the source's node", [])


def obstacles(case: Case, remote: bool) -> list[str]:
    """What speaks against pages that come after the restore, from the destination's images or (remote) the source."""
    found = [
        f"{name} has no userfaultfd that CRIU can use"
        for name, facts in list(case.nodes())[0 if remote else 1 :]
        if facts["criu"]["features"].get("uffd-noncoop") is False
    ]
    place = case.destination["space"].get(choose(case).images["destination"]) or {}
    memory, need = case.destination["memory"]["available"], needs(case)["destination"]
    if not remote and place.get("fstype") not in ("tmpfs", "ramfs"):
        found.append("the images do not lie in memory on the destination")
    if memory < need.images + need.process:
        found.append(f"twice the process's memory ({size(need.images + need.process)}) does not fit until it is filled")
    pages, lazy = (int(case.tree.get("memory", {}).get(name, 0)) for name in ("pages", "lazy"))
    if pages and lazy < pages * MOST:
        found.append(f"only {size(lazy)} of {size(pages)} can come later (shared, locked and huge pages cannot)")
    return found


def _problems(case: Case, against: list[str], what: str) -> list[Finding]:
    node = case.names["destination"]
    return [Finding("lazy", node, f"No {what} here: {obstacle}.", EAGER) for obstacle in against]


def check_plan(case: Case) -> Iterator[Finding]:
    plan = decide(case)
    yield from plan.findings
    if plan.strategy == "postcopy" and not plan.findings:
        text = (
            "Until all pages have come, the process needs both nodes: when the source goes down in that time, it "
            "is lost."
        )
        yield Finding("lazy", case.names["source"], text, "Use migration_strategy=full where that may happen.", True)


CHECKS: tuple[Check, ...] = (check_plan,)
