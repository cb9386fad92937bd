"""Is there time for it? The planner's view of one migration, as its preflight sees the nodes. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence

from .planner import NEVER, Costs, Estimate, Load, Strategy, Wish, estimate
from .planner_choice import Choice, choose, needs
from .preflight import Case, Finding


def quickest(case: Case, strategies: Sequence[Strategy]) -> Choice:
    """The one of these with the shortest downtime that meets the deadline; the quickest where none does."""
    return choose(_load(case), _costs(case), _wish(case), strategies, (_encryption(case),))


def too_late(case: Case, strategy: Strategy) -> list[Finding]:
    """A word of warning where this would miss the deadline, with what it needs."""
    if not case.params.get("deadline") or not _load(case).memory:
        return []
    plan: Estimate = estimate(strategy, _load(case), _costs(case), _encryption(case), _wish(case))
    limit = float(case.params["deadline"]["limit"])
    if plan.seconds <= limit:
        return []
    text = f"The deadline of {limit:g} s will be missed by {strategy}: it {needs(plan, limit)}."
    return [Finding("deadline", case.names["source"], text, "", True)]


def _load(case: Case) -> Load:
    return Load(float(case.tree.get("memory", {}).get("pages", 0)))


def _costs(case: Case) -> Costs:
    """The link as earlier moves have found it; where there were none, nothing is known against it."""
    links = case.source.get("links") or {}
    found = [float(links[address]) for address in case.reached_by if address in links]
    return Costs(bandwidth=min(found, default=NEVER))


def _wish(case: Case) -> Wish:
    """All of the deadline: what the run has needed so far is in the planner's preparation."""
    params = case.params
    limit = float(params["deadline"]["limit"])
    return Wish(float(params.get("downtime_target") or 0.3), int(params.get("predump_iterations") or 0), limit)


def _encryption(case: Case) -> str:
    """As asked for: nothing is sent in the clear only because time is short."""
    if case.params.get("transfer") == "rsync":
        return "rsync"
    return str(case.params.get("transfer_encryption") or "tls")
