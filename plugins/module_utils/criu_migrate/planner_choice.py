"""Which strategy, encryption and number of rounds meets a deadline; again when a round took longer than predicted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from . import iteration
from .iteration import MARGIN, Round
from .planner import (
    ENCRYPTIONS,
    FULL,
    FULL_LAZY,
    HYBRID,
    NEVER,
    POSTCOPY,
    PRECOPY,
    PRECOPY_LAZY,
    Costs,
    Estimate,
    Load,
    Strategy,
    Wish,
    estimate,
)

ALIKE = 1.1  # of downtimes that differ by less, the one whose plan is over so much earlier that it is worth it
ENOUGH = 2  # rounds that make a sample of dirtying
TICK = 0.02  # seconds; below this no downtime is told from another


class Choice(NamedTuple):
    """What to do and why. fits: it meets the deadline, without the margin where nothing meets it with one."""

    taken: Estimate
    reason: str
    fits: bool
    rejected: tuple[Estimate, ...]


def possible(
    *, soft_dirty: bool, lazy_local: bool, userfaultfd: bool, twice: bool, accepted: bool
) -> tuple[Strategy, ...]:
    """The strategies that a pair of nodes and a process allow.

    :param soft_dirty: the source's kernel tracks written pages
    :param lazy_local: the destination can fault pages in from its own images (userfaultfd, the process allows it)
    :param userfaultfd: the same from the source
    :param twice: the destination has room for twice the memory
    :param accepted: the user takes the risk that the source dies before the last page has come
    """
    found = [FULL]
    if lazy_local and twice:
        found.append(FULL_LAZY)
    if soft_dirty:
        found.append(PRECOPY)
        if lazy_local and twice:
            found.append(PRECOPY_LAZY)
    if accepted and userfaultfd and twice:
        found += [POSTCOPY, HYBRID] if soft_dirty else [POSTCOPY]
    return tuple(found)


def choose(
    load: Load,
    costs: Costs,
    wish: Wish,
    strategies: Sequence[Strategy],
    encryptions: Sequence[str] = ENCRYPTIONS[:1],
    done: Sequence[Round] = (),
    *,
    prepared: bool = False,
) -> Choice:
    """The plan with the shortest downtime among those that meet the deadline with MARGIN to spare.

    Encryptions come in the order of preference: a later one is taken only where no plan with an earlier one fits.
    Where none fits with the margin, the quickest of all: it fits without one, or `fits` is false and the reason says
    what would. Post-copy counts like any other where the caller lists it: its last page has to come in time.

    :raises ValueError: nothing to choose from, or numbers that cannot be
    """
    if not strategies or not encryptions:
        raise ValueError("There is no strategy or no encryption to choose from.")
    every = [
        estimate(strategy, load, costs, encryption, wish, done, prepared=prepared)
        for encryption in encryptions
        for strategy in strategies
    ]
    return _pick(every, wish, encryptions)


def _pick(every: Sequence[Estimate], wish: Wish, encryptions: Sequence[str]) -> Choice:
    limit = NEVER if wish.left is None else wish.left
    for encryption in encryptions:
        fitting = [one for one in every if one.encryption == encryption and one.seconds * MARGIN <= limit]
        if fitting:
            return _choice(_shortest(fitting), every, wish, encryptions[0])
    return _choice(min(every, key=lambda one: one.seconds), every, wish, encryptions[0])


def replan(
    load: Load,
    costs: Costs,
    wish: Wish,
    done: Sequence[Round],
    strategies: Sequence[Strategy],
    encryption: str,
) -> Choice:
    """Choose again after a round: its bandwidth and dirtying are believed, what it moved need not move again.

    The taken plan's rounds beyond `done` are those that are still worth it; none means stop now. Of the strategies only
    those that go on from rounds count, and the encryption stays, as the page server is there.

    :param wish: left counts from now on
    :raises ValueError: no round was made, or no strategy goes on from rounds
    """
    going = [one for one in strategies if one.iterates]
    if not done or not going:
        raise ValueError("A plan is made again after a round, with strategies that make rounds.")
    now = measured(costs, done)
    onward, at_once = (
        [estimate(strategy, load, now, encryption, wish._replace(most=most), done, prepared=True) for strategy in going]
        for most in (wish.most, len(done))
    )
    ahead = _pick(onward, wish, (encryption,))
    # After one round of a program of which nothing is known, only another round tells what stopping would cost.
    blind = len(done) < ENOUGH and not load.known
    return ahead if blind and ahead.fits else _pick([*onward, *at_once], wish, (encryption,))


def measured(costs: Costs, done: Sequence[Round]) -> Costs:
    """Costs with the bandwidth that the rounds have reached, whichever of link and processors limits it."""
    reached = iteration.bandwidth(done, costs.lead)
    return costs if reached is None else costs._replace(bandwidth=reached, tls=NEVER, none=NEVER, rsync=NEVER)


def slower(done: Sequence[Round], planned: Sequence[Round]) -> bool:
    """Whether the last round took so much longer than planned that the plan should be made again."""
    if not done or len(done) > len(planned):
        return bool(done)
    here, there = done[-1], planned[len(done) - 1]
    return here.seconds > there.seconds * MARGIN or here.pages > there.pages * MARGIN + 1


def _shortest(fitting: Sequence[Estimate]) -> Estimate:
    best = min(one.downtime for one in fitting)
    return min(
        (one for one in fitting if one.downtime <= max(best * ALIKE, best + TICK)),
        key=lambda one: one.seconds + one.downtime,
    )


def _choice(taken: Estimate, every: Sequence[Estimate], wish: Wish, preferred: str) -> Choice:
    rejected = tuple(one for one in every if one is not taken)
    plan = f"{taken.strategy}: {taken.downtime:.2f} s of downtime, {taken.seconds:.1f} s in all"
    if wish.left is None:
        return Choice(taken, f"{plan}; the shortest downtime", True, rejected)
    if taken.seconds > wish.left:
        return Choice(taken, needs(taken, wish.left), False, rejected)
    if taken.seconds * MARGIN > wish.left:
        return Choice(taken, f"{plan}; nothing fits into {wish.left:.0f} s with a margin of {MARGIN:g}", True, rejected)
    why = "the shortest downtime that fits" if taken.encryption == preferred else f"fits only with {taken.encryption}"
    return Choice(taken, f"{plan}; {why} into {wish.left:.0f} s", True, rejected)


def needs(plan: Estimate, left: float) -> str:
    """What a plan that does not fit would need, as shown to a person: `needs 41 s at 0.9 Gbit/s, 30 s left`."""
    fixed = sum(phase.seconds for phase in plan.phases)
    moving = plan.seconds - fixed
    rate = f" at {_gbit(plan.bytes / moving)}" if moving > 0 else ""
    # Rounded away from each other, so that a plan that misses by little does not read as if it fitted.
    text = f"needs {math.ceil(plan.seconds)} s{rate}, {math.floor(max(0.0, left))} s left"
    most = min((phase.cap for phase in plan.phases if phase.bytes), default=NEVER)
    wanted = plan.bytes / (left - fixed) if left > fixed else NEVER
    # Upwards, so that it would.
    return (
        f"{text}; {_gbit(1.05 * wanted)} would do" if wanted <= most and wanted < NEVER else f"{text}; no link would do"
    )


def _gbit(rate: float) -> str:
    return f"{rate * 8 / 1e9:.2g} Gbit/s"
