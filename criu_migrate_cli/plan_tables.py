"""What criu-migrate plan shows: tables for people, data for programs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from statistics import median, quantiles
from typing import TYPE_CHECKING, Any

from .listing import columns

if TYPE_CHECKING:
    from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate.calibration import Prediction
    from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate.planner import Costs, Estimate, Load, Wish
    from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate.planner_choice import Choice
    from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate.planner_evacuation import Evacuation

MB = 1 << 20


def texts(
    costs: Costs,
    wish: Wish,
    loads: Sequence[Load],
    plans: Sequence[Choice],
    left: Evacuation | None,
    checked: Sequence[Prediction],
) -> Iterator[str]:
    """Paragraphs for people."""
    if checked:
        yield _errors(checked)
    if len(plans) == 1:
        yield f"{_load(loads[0])}; {_frame(costs, wish)}"
        yield _all_ways(plans[0], wish)
        yield plans[0].reason
    elif plans:
        yield _frame(costs, wish)
        yield columns([
            ["memory", "writes", "taken", "pages by", "downtime", "until free", "saved", "why"],
            *([
                f"{load.memory / MB:,.0f} MB", f"{load.dirty_rate / MB:,.0f} MB/s", str(one.taken.strategy),
                one.taken.encryption, _seconds(one.taken.downtime), _seconds(one.taken.seconds),
                "yes" if one.fits else "NO", one.reason.rpartition("; ")[2] if one.fits else one.reason,
            ] for load, one in zip(loads, plans, strict=True)),
        ])  # fmt: skip
    if left is not None:
        yield _frame(costs, wish)
        yield from _leaving(left)


def as_data(
    costs: Costs,
    wish: Wish,
    recorded: int,
    loads: Sequence[Load],
    plans: Sequence[Choice],
    left: Evacuation | None,
    checked: Sequence[Prediction],
) -> dict[str, Any]:
    """The same for programs: seconds, bytes, bytes/s; null where there is no limit."""
    data: dict[str, Any] = {
        "deadline": wish.left,
        "target": wish.target,
        "recorded_runs": recorded,
        "costs": {name: value if math.isfinite(value) else None for name, value in costs._asdict().items()},
    }
    if plans:
        data["plans"] = [
            {
                "memory": load.memory, "dirty_rate": load.dirty_rate, "writable": load.writable,
                "fits": one.fits, "reason": one.reason,
                "taken": _estimate(one.taken, wish), "rejected": [_estimate(other, wish) for other in one.rejected],
            }
            for load, one in zip(loads, plans, strict=True)
        ]  # fmt: skip
    if left is not None:
        data["evacuation"] = {
            "strategy": left.strategy.name, "lazy_restore": left.strategy.lazy_restore, "at_once": left.at_once,
            "busy": left.busy, "seconds": left.seconds, "processes": [fate._asdict() for fate in left.fates],
        }  # fmt: skip
    if checked:
        data["checked"] = [{"strategy": name, "runs": len(some), **_figures(some)} for name, some in _groups(checked)]
        data["runs"] = [
            {
                "run": one.measured.name, "strategy": str(one.measured.strategy), "encryption": one.measured.encryption,
                "bytes": one.measured.bytes, "predicted_from": one.runs,
                "downtime": {
                    "predicted": one.downtime, "by_guard": one.measured.expected, "measured": one.measured.downtime,
                },
                "until_free": {"predicted": one.seconds, "measured": one.measured.used},
            }
            for one in checked
        ]  # fmt: skip
    return data


def _estimate(plan: Estimate, wish: Wish) -> dict[str, Any]:
    return {
        "strategy": plan.strategy.name, "lazy_restore": plan.strategy.lazy_restore, "encryption": plan.encryption,
        "downtime": plan.downtime, "seconds": plan.seconds, "bytes": plan.bytes, "stop_reason": plan.stop,
        "rounds": [{"seconds": one.seconds, "bytes": one.written} for one in plan.rounds],
        "in_time": wish.left is None or plan.seconds <= wish.left,
    }  # fmt: skip


def _all_ways(choice: Choice, wish: Wish) -> str:
    rows = [["", "strategy", "pages by", "downtime", "until free", "moved", "rounds", "in time"]]
    for plan in sorted((choice.taken, *choice.rejected), key=lambda one: one.downtime):
        rounds = f"{len(plan.rounds)} ({plan.stop})" if plan.stop else "-"
        in_time = "-" if wish.left is None else "yes" if plan.seconds <= wish.left else "NO"
        rows.append([
            "*" if plan is choice.taken else "", str(plan.strategy), plan.encryption, _seconds(plan.downtime),
            _seconds(plan.seconds), f"{plan.bytes / MB:,.0f} MB", rounds, in_time,
        ])  # fmt: skip
    return columns(rows)


def _leaving(left: Evacuation) -> Iterator[str]:
    yield columns([
        ["process", "to", "downtime", "until free", "saved", "why"],
        *([
            fate.name, fate.destination or "-", _seconds(fate.downtime), _seconds(fate.seconds),
            "yes" if fate.saved else "NO", fate.reason,
        ] for fate in left.fates),
    ])  # fmt: skip
    saved = sum(fate.saved for fate in left.fates)
    busy = f", the link {left.busy:.0%} busy" if left.busy else ""
    yield (
        f"{saved} of {len(left.fates)} saved in {left.seconds:.1f} s: {left.strategy}, {left.at_once} at once, "
        f"in this order{busy}."
    )


def _errors(checked: Sequence[Prediction]) -> str:
    """A row a strategy; what the guards had predicted is shown where some had."""
    shown = {"downtime_error": "downtime", "until_free_error": "until free"}
    if any(one.guard_error is not None for one in checked):
        shown["guard_error"] = "downtime by its guard"
    rows = [["recorded", "runs"]]
    for what in shown.values():
        rows[0] += [f"{what}: error", "quartiles", "most"]
    for name, some in [*_groups(checked), ("all", list(checked))]:
        row = [name, str(len(some))]
        for figures in map(_figures(some).get, shown):
            values = [f"{figures[key]:.0%}" for key in ("median", "q1", "q3", "most")] if figures else []
            row += [values[0], f"{values[1]} - {values[2]}", values[3]] if values else ["-", "-", "-"]
        rows.append(row)
    return columns(rows)


def _groups(checked: Sequence[Prediction]) -> list[tuple[str, list[Prediction]]]:
    found: dict[str, list[Prediction]] = {}
    for one in checked:
        found.setdefault(f"{one.measured.strategy}, {one.measured.encryption}", []).append(one)
    return sorted(found.items())


def _figures(some: Sequence[Prediction]) -> dict[str, dict[str, float] | None]:
    """Errors as a part of what was measured."""
    ends = [one.seconds_error for one in some]
    return {
        "downtime_error": _spread([one.downtime_error for one in some]),
        "until_free_error": _spread([error for error in ends if error is not None]),
        "guard_error": _spread([one.guard_error for one in some if one.guard_error is not None]),
    }


def _spread(values: Sequence[float]) -> dict[str, float] | None:
    if not values:
        return None
    low, _middle, high = quantiles(values, n=4, method="inclusive") if len(values) > 1 else [values[0]] * 3
    return {"median": median(values), "q1": low, "q3": high, "most": max(values)}


def _load(load: Load) -> str:
    writes = f"writes to {load.dirty_rate / MB:,.0f} MB/s" if load.dirty_rate else "writes nothing"
    within = f" within {load.working_set / MB:,.0f} MB" if load.dirty_rate and load.writable is not None else ""
    return f"{load.memory / MB:,.0f} MB that {writes}{within}"


def _frame(costs: Costs, wish: Wish) -> str:
    link = (
        f"link of {costs.bandwidth * 8 / 1e9:.3g} Gbit/s" if math.isfinite(costs.bandwidth) else "no link is the limit"
    )
    return f"{link}, {'no deadline' if wish.left is None else f'{wish.left:g} s from the notice'}"


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f} s" if value < 10 else f"{value:.1f} s"
