"""Is there time for it? The planner's view of one migration, as its preflight sees the nodes. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence

from .planner import NEVER, Costs, Estimate, Load, Strategy, Wish, estimate
from .planner_choice import Choice, choose, needs
from .preflight import Case, Finding


def quickest(case: Case, strategies: Sequence[Strategy]) -> Choice:
    """The one of these with the shortest downtime that meets the deadline; the quickest where none does."""
    return choose(_load(case), _costs(case), _wish(case), strategies, _encryptions(case))


def encryption(case: Case, strategy: Strategy) -> str:
    """Of pages: as asked for. `auto` is none only where the deadline is met by nothing else, and tls without one."""
    asked = _asked(case)
    return asked if asked != "auto" else "none" if _planned(case, strategy) == "none" else "tls"


def in_the_clear(case: Case, strategy: Strategy) -> list[Finding]:
    """A word of warning where the deadline is worth more than secrecy."""
    if _asked(case) != "auto" or encryption(case, strategy) != "none":
        return []
    plan = estimate(strategy, _load(case), _costs(case), "tls", _wish(case))
    late = f"with TLS it would take {plan.seconds:.1f} of {_limit(case):g} s"
    text = f"Pages cross in the clear (transfer_encryption=auto): {late}."
    remedy = "Use transfer_encryption=tls where that must not be."
    return [Finding("encryption", case.names["source"], text, remedy, True)]


def too_late(case: Case, strategy: Strategy) -> list[Finding]:
    """A word of warning where this would miss the deadline, with what it needs."""
    if not case.params.get("deadline") or not _load(case).memory:
        return []
    plan: Estimate = estimate(strategy, _load(case), _costs(case), _planned(case, strategy), _wish(case))
    limit = _limit(case)
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
    usual, reached = Costs(), min(found, default=NEVER)
    if _asked(case) == "auto" and usual.tls / 2 < reached < NEVER:  # TLS may have been what held them up, not the link
        return usual._replace(tls=min(reached, usual.tls))
    return usual._replace(bandwidth=reached)


def _wish(case: Case) -> Wish:
    """All of the deadline: what the run has needed so far is in the planner's preparation."""
    params = case.params
    return Wish(float(params.get("downtime_target") or 0.3), int(params.get("predump_iterations") or 0), _limit(case))


def _limit(case: Case) -> float:
    return float(case.params["deadline"]["limit"])


def _asked(case: Case) -> str:
    return str(case.params.get("transfer_encryption") or "tls")


def _encryptions(case: Case) -> tuple[str, ...]:
    """In the planner's words and in the order of preference. Nothing is sent in the clear only because time is short,
    unless that was allowed."""
    if case.params.get("transfer") == "rsync":
        return ("rsync",)
    return ("tls", "none") if _asked(case) == "auto" else (_asked(case),)


def _planned(case: Case, strategy: Strategy) -> str:
    """The first of these with which the deadline is met, or the quickest."""
    allowed = _encryptions(case)
    if len(allowed) == 1 or not case.params.get("deadline") or not _load(case).memory:
        return allowed[0]
    return choose(_load(case), _costs(case), _wish(case), [strategy], allowed).taken.encryption
