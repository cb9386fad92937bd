"""Which of a node's processes can be saved in time: their order, how many at once, by which strategy, and where to.

A link that is shared is one machine with many jobs and one deadline: shortest first finishes the most of them. The
phases of each (planner.py) are played through, those that move bytes at the same time sharing the link evenly.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from .iteration import MARGIN
from .planner import FULL, FULL_LAZY, NEVER, Costs, Load, Phase, Strategy, Wish, estimate

AT_ONCE = 8  # more at once than this share the processors of a node too thinly for the costs of one to hold
ALIKE = 1.01  # ends that differ by less are one: then fewer at once, as each of them waits less for the link
EACH = 0.5  # seconds after which one more process is prepared: an estimate, half of one Ansible task over SSH
ROOM = 2.0  # memory at the destination while a process comes: its images in tmpfs and itself


class Process(NamedTuple):
    """One process tree to be saved; of a higher priority one is never given up for any of a lower."""

    name: str
    load: Load
    priority: int = 0


class Fate(NamedTuple):
    """What becomes of one process. seconds: from the notice until nothing of it is left on the source."""

    name: str
    saved: bool
    seconds: float | None
    downtime: float | None
    destination: str | None
    reason: str


class Evacuation(NamedTuple):
    """The plan: fates in the order in which they start, and those that do not. busy: share of the link that is used
    from the first byte to the last."""

    fates: tuple[Fate, ...]
    strategy: Strategy
    at_once: int
    busy: float
    seconds: float


class Played(NamedTuple):
    """One job of the simulation: seconds of its end and downtime, both from the start of the first."""

    ends: float
    downtime: float


def evacuation(
    processes: Sequence[Process],
    free: Mapping[str, float],
    costs: Costs,
    limit: float,
    strategies: Sequence[Strategy] = (FULL, FULL_LAZY),
    encryption: str = "tls",
    each: float = EACH,
) -> Evacuation:
    """Save the most within the deadline; of plans that save as many the one with the least downtime.

    :param free: bytes of memory that can be taken on each node
    :param limit: seconds from the notice to the end of the source
    :param each: seconds after which one more process is prepared, while those before it are on their way already
    :raises ValueError: nothing to save or to save it with, names that are not unique, numbers that cannot be
    """
    names = [one.name for one in processes]
    if not names or not strategies or len(set(names)) < len(names):
        raise ValueError("An evacuation needs processes of different names, and a strategy.")
    ordered = sorted(processes, key=lambda one: (-one.priority, one.load.memory, one.name))
    plans = [
        _plan(ordered, free, costs, limit, strategy, encryption, each, at_once)
        for strategy in strategies
        for at_once in range(1, min(len(ordered), AT_ONCE) + 1)
    ]
    most = max(_worth(plan, ordered) for plan in plans)
    best = [plan for plan in plans if _worth(plan, ordered) == most]
    # One at a time waits least for the link; more at once end earlier, which a deadline may yet need.
    soonest = min(plan.seconds for plan in best)
    inside = [plan for plan in best if plan.seconds <= max(soonest * ALIKE, limit / MARGIN)]
    return min(inside or best, key=lambda plan: (_waits(plan), plan.at_once))


def place(processes: Iterable[Process], free: Mapping[str, float], at_once: int) -> dict[str, str]:
    """A node for each process that has room on one, in this order: spread, or packed where that takes in more."""
    listed = list(processes)
    spread = _place(listed, free, at_once, packed=False)
    if len(spread) == len(listed):
        return spread
    packed = _place(listed, free, at_once, packed=True)
    return packed if len(packed) > len(spread) else spread


def play(
    jobs: Sequence[Sequence[Phase]], bandwidth: float, at_once: int, ready: Sequence[float] = ()
) -> tuple[list[Played], float]:
    """Play jobs through that start in order, so many at a time; also the busy share of the link, 0 to 1.

    ready: seconds before which a job cannot start, in ascending order; without it all can at once.

    While n phases move bytes each gets an even share, and what one cannot take (its cap) goes to the others.
    """
    running: dict[int, _Job] = {}
    ended: dict[int, Played] = {}
    now, moved, first, last = 0.0, 0.0, NEVER, 0.0
    waiting = list(range(len(jobs)))
    starts = list(ready) or [0.0] * len(jobs)
    while waiting or running:
        while waiting and len(running) < at_once and starts[waiting[0]] <= now:
            running[waiting[0]] = _Job(jobs[waiting[0]])
            waiting.pop(0)
        rates = shares({key: job.cap for key, job in running.items() if job.moves}, bandwidth)
        steps = [job.until(rates.get(key, 0.0)) for key, job in running.items()]
        if waiting and len(running) < at_once:
            steps.append(starts[waiting[0]] - now)
        step = min(steps)
        if rates and step > 0:
            first, last = min(first, now), now + step
            moved += sum(min(rate * step, running[key].left) for key, rate in rates.items())
        # What is due next starts at its very moment, whatever floats make of the sum.
        now = starts[waiting[0]] if waiting and len(running) < at_once and step == steps[-1] else now + step
        for key in list(running):
            running[key].go(step, rates.get(key, 0.0))
            if running[key].over:
                ended[key] = Played(now, running.pop(key).downtime)
    possible = bandwidth * (last - first) if last > first else 0.0
    return [ended[key] for key in range(len(jobs))], min(1.0, moved / possible) if possible else 0.0


def shares(caps: Mapping[int, float], bandwidth: float) -> dict[int, float]:
    """Bytes/s of each: even shares of the link, none above its cap, what is left over to the others."""
    found: dict[int, float] = {}
    left = bandwidth
    for number, key in enumerate(sorted(caps, key=lambda one: caps[one])):
        found[key] = min(caps[key], left / (len(caps) - number))
        left -= found[key] if found[key] < NEVER else 0.0
    return found


class _Job:
    """Where a job stands in its row of phases."""

    def __init__(self, phases: Sequence[Phase]) -> None:
        self.phases = [phase for phase in phases if phase.seconds > 0 or phase.bytes > 0]
        self.downtime = 0.0
        self._enter()

    def _enter(self) -> None:
        self.waits = self.phases[0].seconds if self.phases else 0.0
        self.left = self.phases[0].bytes if self.phases else 0.0

    @property
    def over(self) -> bool:
        return not self.phases

    @property
    def moves(self) -> bool:
        return bool(self.phases) and self.waits <= 0 and self.left > 0

    @property
    def cap(self) -> float:
        return self.phases[0].cap

    def until(self, rate: float) -> float:
        """Seconds until something of it changes."""
        if self.over:
            return 0.0
        return self.left / rate if self.moves else self.waits

    def go(self, step: float, rate: float) -> None:
        if self.over:
            return
        self.downtime += step if self.phases[0].frozen else 0.0
        if self.moves:
            self.left = 0.0 if self.left <= rate * step * (1 + 1e-9) else self.left - rate * step
        else:
            self.waits = 0.0 if self.waits <= step * (1 + 1e-9) else self.waits - step
        if self.waits <= 0 and self.left <= 0:
            self.phases.pop(0)
            self._enter()


def _place(listed: Sequence[Process], free: Mapping[str, float], at_once: int, *, packed: bool) -> dict[str, str]:
    taken: dict[str, list[float]] = {name: [] for name in sorted(free)}
    found = {}
    for one in listed:
        rooms = {name: free[name] - _used([*sizes, one.load.memory], at_once) for name, sizes in taken.items()}
        fitting = [name for name, room in rooms.items() if room >= 0]
        if not fitting:
            continue
        chosen = (min if packed else max)(fitting, key=lambda name: rooms[name])
        taken[chosen].append(one.load.memory)
        found[one.name] = chosen
    return found


def _used(sizes: Sequence[float], at_once: int) -> float:
    """Bytes at the worst moment: everything that is there, and the images of the largest that come at once."""
    return sum(sizes) + (ROOM - 1) * sum(sorted(sizes)[-at_once:])


def _plan(
    ordered: Sequence[Process],
    free: Mapping[str, float],
    costs: Costs,
    limit: float,
    strategy: Strategy,
    encryption: str,
    each: float,
    at_once: int,
) -> Evacuation:
    places = place(ordered, free, at_once)
    going = [one for one in ordered if one.name in places]
    # While others move, rounds get a share of the link only.
    shared = costs._replace(bandwidth=costs.bandwidth / at_once) if strategy.iterates else costs
    plans = {one.name: estimate(strategy, one.load, shared, encryption, Wish(), prepared=True) for one in going}
    first = costs.prepares(max((one.load.memory for one in going), default=0.0))

    def run(some: Sequence[Process]) -> tuple[list[Played], float]:
        ready = [first + each * place for place in range(len(some))]
        return play([plans[one.name].phases for one in some], costs.bandwidth, at_once, ready)

    kept: list[Process] = []
    late: dict[str, float] = {}
    # What cannot be saved must not take the link from what can: of each class so many of the shortest as are in time.
    for level in sorted({one.priority for one in going}, reverse=True):
        members = [one for one in going if one.priority == level]
        least, most = 0, len(members)
        while least < most:
            half = (least + most + 1) // 2
            in_time = all(done.ends <= limit for done in run([*kept, *members[:half]])[0])
            least, most = (half, most) if in_time else (least, half - 1)
        kept += members[:least]
        if members[least:]:  # the larger ones would end later still
            late.update(dict.fromkeys((one.name for one in members[least:]), run([*kept, members[least]])[0][-1].ends))
    played, busy = run(kept)
    done = dict(zip((one.name for one in kept), played))
    fates = [_saved(one, done[one.name], places[one.name], limit) for one in kept]
    fates += [_lost(one, late.get(one.name), limit, free) for one in ordered if one.name not in done]
    return Evacuation(tuple(fates), strategy, at_once, busy, max((one.ends for one in played), default=0.0))


def _saved(one: Process, done: Played, node: str, limit: float) -> Fate:
    seconds = done.ends
    close = "" if seconds * MARGIN <= limit else f", with less than {MARGIN:g} times to spare"
    return Fate(one.name, True, seconds, done.downtime, node, f"{seconds:.1f} s of {limit:.0f} s{close}")


def _lost(one: Process, late: float | None, limit: float, free: Mapping[str, float]) -> Fate:
    if late is not None:
        return Fate(one.name, False, None, None, None, f"would end at {late:.1f} s or later, {limit:.0f} s left")
    most = max(free.values(), default=0.0)
    why = f"no node has {ROOM * one.load.memory / 1e6:.0f} MB left for it; the largest began with {most / 1e6:.0f} MB"
    return Fate(one.name, False, None, None, None, why)


def _worth(plan: Evacuation, ordered: Sequence[Process]) -> tuple[int, ...]:
    """Saved processes of each priority, the highest first: more of a higher one is better than any of a lower."""
    saved = {fate.name for fate in plan.fates if fate.saved}
    classes = sorted({one.priority for one in ordered}, reverse=True)
    return tuple(sum(one.priority == level and one.name in saved for one in ordered) for level in classes)


def _waits(plan: Evacuation) -> float:
    return round(sum(fate.downtime or 0.0 for fate in plan.fates), 3)
