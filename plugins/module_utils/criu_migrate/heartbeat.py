"""What a ring of heartbeats says about service: how finely it saw, and the longest time without any.

Stamps are seconds of CLOCK_REALTIME in the order in which they were made. A process that has moved stamped with two
clocks: the source's up to the freeze, the destination's after it.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from statistics import median
from typing import Any

SLOT = struct.Struct("<d")


def ring_order(data: bytes) -> list[float]:
    """Return the stamps of a ring file, oldest first.

    `data` holds little-endian float64; unused slots are zero. In a ring that is full, the oldest stamp follows the
    newest: there lies the greatest step backwards (steps back by the difference of two clocks are smaller).
    """
    usable = len(data) - len(data) % SLOT.size
    slots = [stamp for (stamp,) in SLOT.iter_unpack(data[:usable])]
    if 0.0 in slots:
        return slots[: slots.index(0.0)]
    if len(slots) < 2:
        return slots
    seam = min(range(len(slots)), key=lambda place: slots[place] - slots[place - 1])
    return slots[seam:] + slots[:seam]


def change_of_clock(stamps: Sequence[float], frozen: float, thawed: float) -> int:
    """Return the place of the first stamp after the freeze.

    That is the first later than `frozen` (source's clock), or, where the destination's clock is behind by more than the
    downtime, the last that steps back. A step back to before `thawed` (destination's clock) was an earlier move.
    """
    back = next((place for place in range(len(stamps) - 1, 0, -1) if stamps[place] < stamps[place - 1]), 0)
    if back and stamps[back] >= thawed:
        return back
    return next((place for place in range(back, len(stamps)) if stamps[place] > frozen), len(stamps))


def of_this_move(stamps: Sequence[float], since: float | None) -> list[float]:
    """Return the stamps of one node without those that an earlier move lies behind: older than `since`, or before
    a step back, which are another clock's."""
    first = 0
    for place, stamp in enumerate(stamps):
        if (since is not None and stamp < since) or (place and stamp < stamps[place - 1]):
            first = place + 1 if since is not None and stamp < since else place
    return list(stamps[first:])


def gap_report(
    stamps: Sequence[float],
    window: tuple[float, float] | None = None,
    clock_offset: float = 0.0,
    frozen: float | None = None,
    since: float | None = None,
) -> dict[str, Any]:
    """Return what stamps show; all figures are seconds.

    `window` is (freeze on the source's clock, thaw on the destination's clock). `clock_offset` is the destination's
    clock minus the source's; it is added to the stamps, and to the window's start, before the freeze. `frozen` is when
    the whole process stood still, on the source's clock: until then, later than the freeze began, it may have stamped.
    `since` is the end of the move before this one, on the source's clock: the gap of that one is not usual.

    resolution: the median distance of two stamps. usual_gap: the largest distance that has no part in the window, the
    error to expect of `service`. usual_gap_p99_9: 99.9 % of those are at most this. service: the longest gap that
    overlaps the window, {seconds, from, to} on the destination's clock; None where no stamp lies on either side.
    """
    report: dict[str, Any] = {
        "count": len(stamps),
        "first": stamps[0] if stamps else None,
        "last": stamps[-1] if stamps else None,
        "resolution": None,
        "usual_gap": None,
        "usual_gap_p99_9": None,
        "service": None,
    }
    start, end = 0.0, 0.0
    if window is not None:
        place = change_of_clock(stamps, window[0] if frozen is None else frozen, window[1])
        before = of_this_move(stamps[:place], since)
        stamps = [stamp + clock_offset for stamp in before] + list(stamps[place:])
        start, end = window[0] + clock_offset, window[1]
    gaps = [(later - early, early, later) for early, later in zip(stamps, stamps[1:])]
    inside = [gap for gap in gaps if window is not None and gap[2] > start and gap[1] < end]
    usual = sorted(gap[0] for gap in gaps if window is None or gap[2] <= start or gap[1] >= end)
    if gaps:
        report["resolution"] = round(median(gap[0] for gap in gaps), 6)
    if usual:
        report["usual_gap"] = round(usual[-1], 6)
        report["usual_gap_p99_9"] = round(usual[int((len(usual) - 1) * 0.999)], 6)
    if inside:
        seconds, early, later = max(inside)
        report["service"] = {"seconds": round(seconds, 6), "from": early, "to": later}
    return report
