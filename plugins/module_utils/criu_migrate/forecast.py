"""Whether a deadline will be met, by the link as the source's guard has just found it, before anything is stopped."""

from __future__ import annotations

import time
from typing import Any

from . import costs
from .guard import Guard
from .iteration import PAGE
from .planner import NEVER, Costs, Load, Strategy, Wish, estimate
from .planner_choice import needs

TELLING = 64 << 20  # bytes that tell of a link; with less the time is that of criu


def link(probed: float, known: float | None) -> float:
    """Bytes/s of the link, NEVER where it is quicker than what was tried with. probed: what the guards' own TLS has
    reached, which is slower than CRIU's pages; so where it came near to what it can, earlier moves know better."""
    return probed if _held_up(probed) else max(probed, NEVER if known is None else known)


def look_ahead(guard: Guard, peer: str, probed: float, exact: bool = False) -> None:
    """Note in the record what this move needs and what is left; says so where it will be too late.

    `exact`: it was tried out as pages will cross, not by what guards send by themselves.

    :raises ValueError: numbers that cannot be
    """
    asked = guard.config.get("pre_copy") or {}
    memory = int(asked.get("memory") or 0)
    if not guard.config.get("forecast") or asked.get("left") is None or not memory:
        return
    left = float(asked["left"]) - (time.time() - guard.rec.data["times"]["armed"])
    strategy = Strategy(str(guard.config.get("strategy", "full")), bool(guard.config.get("lazy_restore")))
    encryption = "rsync" if guard.transfer == "rsync" else "tls" if guard.encrypted else "none"
    pair = Costs(bandwidth=probed if exact else link(probed, costs.speeds().get(peer)))
    plan = estimate(strategy, Load(memory), pair, encryption, Wish(left=left), prepared=True)
    found: dict[str, Any] = {"left": round(left, 3), "needs": round(plan.seconds, 3), "late": plan.seconds > left}
    if found["late"]:
        found["text"] = f"The deadline will be missed: {strategy} {needs(plan, left)}"
        guard.say(found["text"])
    guard.rec.note(deadline=found)


def remember_link(guard: Guard, peer: str) -> None:
    """What a move without rounds tells of the link, for the next one's planner."""
    data, times = guard.rec.data, guard.rec.data["times"]
    if guard.postcopy:
        filled = data.get("lazy") or {}
        size, seconds = int(filled.get("pages_fetched") or 0) * PAGE, float(filled.get("seconds") or 0.0)
    else:
        size = int((data.get("page_server") or {}).get("bytes") or 0)
        seconds = float(times.get("dumped", 0.0)) - float(times.get("frozen", 0.0))
    if size >= TELLING and seconds > 0 and (not guard.postcopy or _held_up(size / seconds)):
        costs.remember(peer, None, size, 0.0, size / seconds)


def _held_up(speed: float) -> bool:
    """Whether it was the link that has limited what guards send by themselves."""
    return speed < Costs().fill_tls / 2
