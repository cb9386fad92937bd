"""When pre-copy stops: what stopping now would cost, and whether another round would make it cheaper. Plain numbers.

A round moves what was written while the round before it ran. The rule predicts the downtime of stopping now and that of
stopping after one more round, from bandwidth and dirty rate; this is QEMU's rule (pending bytes / bandwidth against
a target of 300 ms, migration/migration.c) and not a count of pages as in p.haul or go-criu's phaul.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations
from statistics import median, median_high, median_low
from typing import NamedTuple

PAGE = 4096  # bytes
TARGET = 0.3  # seconds of downtime with which a user is content
MOST = 8  # rounds; the number at which p.haul and go-criu give up
GAIN = 0.1  # a round that shortens the downtime by a smaller part than this is not worth its time
MARGIN = 1.25  # a round and the last copy may take so many times what was predicted before a deadline is missed
PHAUL_FEW, PHAUL_GROWTH = 64, 32  # pages
KEPT = 3  # samples that are looked at: the middle one of three is not moved by one noisy round
PROBES = (0.1, 0.3)  # windows of probes, as parts of the time in which all memory moves: docs/planner.md
APART = math.log(1.5)
STRAY = 0.2
BLINK = 1e-3  # seconds; a shorter window says nothing of a rate


class Round(NamedTuple):
    """One pre-dump as it was measured.

    seconds: from its start to its last byte; written: bytes that crossed; pages: that were found written to;
    waited: seconds between its end and the start of what follows.
    """

    seconds: float
    written: int
    pages: int
    waited: float = 0.0


class Sample(NamedTuple):
    """So many different bytes were written to in so many seconds."""

    seconds: float
    dirtied: float


class Terms(NamedTuple):
    """What a rule has to know of the pair of nodes, and what is wanted.

    bandwidth: bytes/s while a round's pages move; fixed: seconds of downtime that no round shortens (freeze, dump of
    small images, restore); whole: bytes that can be written to at all (the memory); per_byte: seconds of downtime for
    each byte that is left, by default those of the link; lead: seconds of a round that moves nothing; target: seconds;
    most: rounds; left: seconds to the deadline, None without one; after: seconds between the thaw and the moment
    with nothing left on the source; gain: None turns `not_falling` off, for a fixed number of rounds.
    """

    bandwidth: float
    fixed: float
    whole: float
    per_byte: float | None = None
    lead: float = 0.0
    target: float = TARGET
    most: int = MOST
    left: float | None = None
    after: float = 0.0
    gain: float | None = GAIN


def stop_reason(rounds: Sequence[Round], terms: Terms, probes: Sequence[Sample] = ()) -> tuple[str | None, float]:
    """Why no further round should follow (None: one should), and the predicted downtime of stopping now, seconds.

    `target`: the prediction meets the target; `rounds`: as many as are allowed; `not_falling`: another round would
    shorten the downtime by less than `gain`; `deadline`: another round and the last copy might not fit.
    Without a sample (one round, no probe) everything counts as written again. Probes are measured before the first
    round, in windows of PROBES: two of different length tell a small working set from a quick writer.

    :raises ValueError: a bandwidth or size that is not above 0
    """
    if terms.bandwidth <= 0 or terms.whole <= 0:
        raise ValueError(f"bandwidth {terms.bandwidth} and memory {terms.whole} must be above 0")
    seen = samples(rounds, probes)
    now = _downtime(_pending(rounds, seen, terms, hopeful=False), terms)
    if rounds and now <= terms.target:
        return "target", now
    if len(rounds) >= terms.most:
        return "rounds", now
    if terms.gain is not None and seen and not _falls(rounds, seen, terms):
        return "not_falling", now
    if terms.left is not None and _ahead(rounds, seen, terms) > terms.left:
        return "deadline", now
    return None, now


def phaul_reason(rounds: Sequence[Round]) -> str | None:
    """When go-criu's phaul stops (phaul/client.go): round 8 (`rounds`), fewer than 64 pages (`few_pages`), or 32 more
    than in the round before (`more_pages`). It predicts no downtime, so the names of stop_reason() do not fit."""
    if not rounds:
        return None
    grown = len(rounds) > 1 and rounds[-1].pages >= rounds[-2].pages + PHAUL_GROWTH
    if rounds[-1].pages < PHAUL_FEW:
        return "few_pages"
    return "rounds" if len(rounds) >= MOST else "more_pages" if grown else None


def samples(rounds: Sequence[Round], probes: Sequence[Sample] = ()) -> list[Sample]:
    """The dirtying that was seen: round i found what was written since round i-1 began."""
    found = [
        Sample(before.seconds + before.waited, float(this.pages * PAGE)) for before, this in zip(rounds, rounds[1:])
    ]
    return [Sample(max(one.seconds, BLINK), max(one.dirtied, float(PAGE))) for one in [*probes, *found]]


def dirtied(seen: Sequence[Sample], seconds: float, whole: float, *, hopeful: bool = False) -> float:
    """Different bytes that will be written to in so many seconds; everything where nothing was seen.

    Programs write to the same pages again, so this grows slower than time: bytes = a * seconds ** p with p in [0, 1].
    p is the slope between samples on logarithmic axes. One sample alone is taken for writes spread evenly over the
    memory: bytes = whole * (1 - exp(-x)), x proportional to time, whose slope is x / (exp(x) - 1); or for a small
    working set, slope 0, which it does not tell apart: halfway. The middle of the last three samples decides.
    hopeful: for a shorter time than was seen, of two slopes the one that dirties less, of one sample that it was
    spread evenly, so that a noisy round proves nothing. A longer time is not made out to be worse by that.
    """
    if not seen:
        return whole
    if seconds <= 0:
        return 0.0
    kept = seen[-KEPT:]
    slopes = [_even(kept[0], whole), *_slopes(kept)]
    sober = median(slopes) / (2 if len(kept) == 1 else 1)
    bright = median_high(slopes) if hopeful else sober
    guesses = [
        one.dirtied * math.pow(seconds / one.seconds, bright if seconds < one.seconds else sober) for one in kept
    ]
    return min(whole, (median_low if hopeful else median)(guesses))


def bandwidth(rounds: Sequence[Round], lead: float = 0.0) -> float | None:
    """Bytes/s that rounds have reached: the middle of the last three that were large enough to tell, None without any.

    :param lead: seconds of each round in which nothing moves
    """
    largest = max((one.written for one in rounds), default=0)
    telling = [one for one in rounds if one.written * 10 >= largest > 0 and one.seconds > lead]
    return median_low([one.written / (one.seconds - lead) for one in telling[-KEPT:]]) if telling else None


def _even(sample: Sample, whole: float) -> float:
    """The slope at a sample if its writes were spread evenly over the memory."""
    x = -math.log(max(1e-9, 1 - min(1.0, sample.dirtied / whole)))
    return x / math.expm1(x) if x > 1e-9 else 1.0


def _slopes(kept: Sequence[Sample]) -> list[float]:
    """Between all pairs (Theil-Sen), as one bad sample spoils each slope that it has a part in."""
    found = []
    for one, two in combinations(kept, 2):
        apart = math.log(two.seconds / one.seconds)
        # Windows of nearly one length tell the rate and not how it grows.
        if abs(apart) > APART:
            slope = math.log(two.dirtied / one.dirtied) / apart
            # Less in a longer time, or growth faster than time: one of the two is noise, or the program has changed.
            if -STRAY <= slope <= 1 + STRAY:
                found.append(min(1.0, max(0.0, slope)))
    return found


def _downtime(pending: float, terms: Terms) -> float:
    per_byte = 1 / terms.bandwidth if terms.per_byte is None else terms.per_byte
    return terms.fixed + pending * per_byte


def _pending(rounds: Sequence[Round], seen: Sequence[Sample], terms: Terms, *, hopeful: bool) -> float:
    """Bytes that a stop now would have to move: everything before the first round."""
    if not rounds:
        return terms.whole
    return dirtied(seen, rounds[-1].seconds + rounds[-1].waited, terms.whole, hopeful=hopeful)


def _lasts(pending: float, terms: Terms) -> float:
    """Seconds of the round that moves this."""
    return terms.lead + pending / terms.bandwidth


def _falls(rounds: Sequence[Round], seen: Sequence[Sample], terms: Terms) -> bool:
    """Whether another round is worth it, taking the brighter view where samples disagree."""
    pending = _pending(rounds, seen, terms, hopeful=True)
    then = dirtied(seen, _lasts(pending, terms), terms.whole, hopeful=True)
    return _downtime(then, terms) <= _downtime(pending, terms) * (1 - (terms.gain or 0.0))


def _ahead(rounds: Sequence[Round], seen: Sequence[Sample], terms: Terms) -> float:
    """Seconds until nothing is left on the source if one more round is made, with a margin."""
    lasts = _lasts(_pending(rounds, seen, terms, hopeful=False), terms)
    return MARGIN * (lasts + _downtime(dirtied(seen, lasts, terms.whole), terms)) + terms.after
