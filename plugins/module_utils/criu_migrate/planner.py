"""What one migration would take: downtime, seconds until nothing is left on the source, bytes, rounds. Plain numbers.

A migration is a row of phases, each some seconds and some bytes over the link; docs/planner.md has the formulas.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from . import iteration
from .iteration import MOST, PAGE, TARGET, Round, Sample, Terms

NEVER = math.inf


class Strategy(NamedTuple):
    """A way to move; lazy_restore makes no sense where the memory comes after the restore anyway."""

    name: str  # full | precopy | postcopy | hybrid
    lazy_restore: bool = False

    @property
    def follows(self) -> bool:
        """Whether memory is on the source only when the destination already runs."""
        return self.name in ("postcopy", "hybrid")

    @property
    def iterates(self) -> bool:
        """Whether rounds move memory while the process runs on the source."""
        return self.name in ("precopy", "hybrid")

    def __str__(self) -> str:
        return f"{self.name} + lazy restore" if self.lazy_restore else self.name


FULL = Strategy("full")
FULL_LAZY = Strategy("full", True)
PRECOPY = Strategy("precopy")
PRECOPY_LAZY = Strategy("precopy", True)
POSTCOPY = Strategy("postcopy")
HYBRID = Strategy("hybrid")
STRATEGIES = (FULL, FULL_LAZY, PRECOPY, PRECOPY_LAZY, POSTCOPY, HYBRID)
ENCRYPTIONS = ("tls", "none", "rsync")  # rsync carries pages over ssh


class Costs(NamedTuple):
    """One pair of nodes. Seconds, bytes, bytes/s.

    The defaults are medians of the runs of 2026-11-27 of which docs/benchmarks.md tells (2 processors for both nodes,
    Linux 6.18, CRIU 4.2.1); calibration.py takes them from runs of a pair of nodes of your own.
    """

    bandwidth: float = NEVER  # of the link
    tls: float = 1.0e9  # most that the guards' TLS and CRIU carry: dump of 1,083 MB in 1.19 s
    none: float = 1.75e9  # the same not encrypted: 528 MB in 0.38 s
    rsync: float = 0.41e9  # dump into tmpfs and rsync after it: 1,083 MB in 2.76 s
    freeze: float = 0.003  # SIGSTOP until every thread is stopped
    dump: float = 0.05  # without memory; postcopy 0.058 s at 128 MB, 0.33 s at 4,024 MB: the slope is next
    pipe: float = 0.07e-9  # a byte, into CRIU's page pipes before any is sent: no link hides it
    images: float = 0.02  # small images and delta, starting criu
    eager: float = 0.02  # criu restore; 0.10 s at 125 MB, 0.707 s at 1,083 MB; the slope is next
    eager_byte: float = 0.63e-9  # a byte: nearly all of it page faults
    lazy: float = 0.055  # criu restore that reads no memory, its daemon included
    handover: float = 0.01  # restored until thawed
    fill_tls: float = 215e6  # pages that follow over TLS, limited by one Python thread (`make benchmark-fill`)
    fill_none: float = 290e6  # the same not encrypted: 1,017 MB in 3.5 s
    fill_local: float = 1.6e9  # lazy_restore: 528 MB from the destination's own tmpfs in 0.33 s
    lead: float = 0.15  # a pre-dump that finds nothing written: an estimate, pre-copy has not been measured here yet
    preparation: float = 5.8  # from the notice to the freeze: Ansible, preflight, arming; without memory
    reserve_byte: float = 2.5e-9  # a byte: the destination fetches its memory meanwhile (2.4 to 4 s for 1 GB)
    reserve_most: float = 5.0  # limits.reserve
    cleaning: float = 0.03  # from the thaw, or the last page, until nothing is left on the source
    cleaning_byte: float = 0.06e-9  # a byte: 0.113 s at 1,083 MB

    def cap(self, encryption: str, *, fill: bool = False) -> float:
        """Bytes/s that the nodes' processors can do, however fast the link; fill: of pages that follow the restore.

        :raises ValueError: an encryption that is none of ENCRYPTIONS
        """
        known = {"tls": self.tls, "none": self.none, "rsync": self.rsync}
        if encryption not in known:
            raise ValueError(f"encryption {encryption!r} is none of {', '.join(known)}")
        if fill:  # goes over the guards' link, whatever took the images
            return self.fill_none if encryption == "none" else self.fill_tls
        return known[encryption]

    def carries(self, encryption: str, *, fill: bool = False) -> float:
        """Bytes/s of pages, whichever of processors and link is slower."""
        return min(self.bandwidth, self.cap(encryption, fill=fill))

    def prepares(self, memory: float) -> float:
        """Seconds from the notice to the freeze."""
        return self.preparation + min(self.reserve_most, memory * self.reserve_byte)


class Load(NamedTuple):
    """One process tree: its bytes, bytes/s that it writes to (0: none or unknown), bytes that it writes to at all.

    probes: dirtying that was measured before the first round; believed more than the rate.
    """

    memory: float
    dirty_rate: float = 0.0
    writable: float | None = None  # by default all of the memory
    probes: tuple[Sample, ...] = ()

    def dirties(self, seconds: float) -> float:
        """Different bytes written to in so many seconds."""
        if self.probes:
            return min(self.working_set, iteration.dirtied(self.probes, seconds, self.memory))
        return min(self.working_set, self.dirty_rate * seconds)

    @property
    def known(self) -> bool:
        """Whether anything is known of its dirtying."""
        return bool(self.probes) or self.dirty_rate > 0

    @property
    def working_set(self) -> float:
        """Bytes that can be written to at all."""
        return self.memory if self.writable is None else min(self.memory, self.writable)


class Phase(NamedTuple):
    """Seconds that need no link, then bytes over it, never quicker than cap (bytes/s); frozen: neither copy runs."""

    name: str
    seconds: float
    bytes: float = 0.0
    cap: float = NEVER
    frozen: bool = False

    def lasts(self, bandwidth: float) -> float:
        """Seconds of it when it has the link to itself."""
        return self.seconds + (self.bytes / min(self.cap, bandwidth) if self.bytes else 0.0)


class Estimate(NamedTuple):
    """What a migration would take. seconds: from now until it runs there and nothing is left on the source."""

    strategy: Strategy
    encryption: str
    downtime: float
    seconds: float
    bytes: float
    rounds: tuple[Round, ...]
    stop: str | None  # why no further round follows, None where there are none by plan
    phases: tuple[Phase, ...]


class Wish(NamedTuple):
    """What is wanted: seconds of downtime, rounds at most, seconds left to the deadline (None: there is none)."""

    target: float = TARGET
    most: int = MOST
    left: float | None = None


def estimate(
    strategy: Strategy,
    load: Load,
    costs: Costs,
    encryption: str = "tls",
    wish: Wish = Wish(),  # noqa: B008 - a NamedTuple does not change
    done: Sequence[Round] = (),
    *,
    prepared: bool = False,
) -> Estimate:
    """Predict one migration.

    :param done: rounds that were made already; what they tell of the dirtying is believed more than load.dirty_rate
    :param prepared: the preparation is over (it is where rounds were made)
    :raises ValueError: a number that cannot be, or an unknown encryption
    """
    check(load, costs)
    first = 0.0 if prepared or done else costs.prepares(load.memory)
    rounds, stop = _rounds(strategy, load, costs, encryption, wish, done, first)
    made = rounds[len(done) :]
    left = _pending(load, rounds, done) if rounds else load.memory
    rate = costs.cap(encryption)
    row = [Phase("preparation", first)] if first else []
    row += [
        Phase(f"round {place}", costs.lead, float(one.written), rate) for place, one in enumerate(made, len(done) + 1)
    ]
    row += _handover(strategy, load, costs, encryption, left)
    return Estimate(
        strategy,
        encryption,
        sum(phase.lasts(costs.bandwidth) for phase in row if phase.frozen),
        sum(phase.lasts(costs.bandwidth) for phase in row),
        sum(phase.bytes for phase in row),
        tuple(rounds),
        stop,
        tuple(row),
    )


def terms(strategy: Strategy, load: Load, costs: Costs, encryption: str, wish: Wish) -> Terms:
    """What iteration.stop_reason() has to know, for the plan as well as for the rounds of a real migration.

    wish.left counts from now on and has no preparation in it.
    """
    empty = _handover(strategy, load, costs, encryption, 0.0)
    fixed = sum(phase.seconds for phase in empty if phase.frozen)
    rate = costs.carries(encryption)
    after = sum(phase.lasts(costs.bandwidth) for phase in empty if not phase.frozen)
    if strategy.follows:  # what another round leaves has to come before the deadline, too
        after += load.working_set / costs.carries(encryption, fill=True)
    return Terms(
        bandwidth=rate, fixed=fixed, whole=max(load.memory, 1.0), lead=costs.lead, target=wish.target, most=wish.most,
        per_byte=costs.pipe + (0.0 if strategy.follows else 1 / rate), left=wish.left, after=after,
    )  # fmt: skip


def probes(load: Load, rule: Terms) -> list[Sample]:
    """The dirtying that is known before the first round, in the form in which the stop rule takes it."""
    if load.probes or not load.known:
        return list(load.probes)
    whole = rule.lead + load.memory / rule.bandwidth
    return [Sample(seconds, load.dirties(seconds)) for seconds in (whole / 4, whole)]


def check(load: Load, costs: Costs) -> None:
    """Refuse numbers that cannot be.

    :raises ValueError: it names the first of them
    """
    if not (load.memory > 0 and math.isfinite(load.memory)):
        raise ValueError(f"memory {load.memory} must be above 0 bytes")
    if load.dirty_rate < 0 or math.isnan(load.dirty_rate):
        raise ValueError(f"dirty rate {load.dirty_rate} must not be below 0 bytes/s")
    for name, value in costs._asdict().items():
        if math.isnan(value) or value < 0:
            raise ValueError(f"{name} {value} must not be below 0")
    for name in ("bandwidth", "tls", "none", "rsync", "fill_tls", "fill_none", "fill_local"):
        if getattr(costs, name) <= 0:
            raise ValueError(f"{name} {getattr(costs, name)} must be above 0 bytes/s")


def _rounds(
    strategy: Strategy, load: Load, costs: Costs, encryption: str, wish: Wish, done: Sequence[Round], first: float
) -> tuple[list[Round], str | None]:
    """The rounds that the stop rule would let happen, those that were made included."""
    rounds = list(done)
    if not strategy.iterates:
        return rounds, None
    rule = terms(strategy, load, costs, encryption, wish)
    known = probes(load, rule)
    spent = first
    while True:
        left = None if wish.left is None else wish.left - spent
        reason, _predicted = iteration.stop_reason(rounds, rule._replace(left=left), known if len(done) < 2 else ())
        if reason:
            return rounds, reason
        size = _pending(load, rounds, done) if rounds else load.memory
        rounds.append(Round(costs.lead + size / rule.bandwidth, round(size), round(size / PAGE)))
        spent += rounds[-1].seconds


def _pending(load: Load, rounds: Sequence[Round], done: Sequence[Round]) -> float:
    """Bytes written to since the last round began."""
    seconds = rounds[-1].seconds + rounds[-1].waited
    seen = iteration.samples(done)
    return iteration.dirtied(seen, seconds, load.memory) if seen else load.dirties(seconds)


def _handover(strategy: Strategy, load: Load, costs: Costs, encryption: str, left: float) -> list[Phase]:
    """Everything after the last round; left: bytes that are not yet on the destination."""
    dumped = costs.freeze + costs.dump + costs.pipe * left
    row = [Phase("dump", dumped, 0.0 if strategy.follows else left, costs.cap(encryption), frozen=True)]
    lazily = strategy.follows or strategy.lazy_restore
    restored = costs.lazy if lazily else costs.eager + costs.eager_byte * load.memory
    row.append(Phase("restore", costs.images + restored + costs.handover, frozen=True))
    if strategy.lazy_restore:
        row.append(Phase("fill", load.memory / costs.fill_local))
    elif strategy.follows:
        row.append(Phase("fill", 0.0, left, costs.cap(encryption, fill=True)))
        if strategy.name == "hybrid":
            row.append(Phase("fill from own images", (load.memory - left) / costs.fill_local))
    row.append(Phase("cleaning", costs.cleaning + costs.cleaning_byte * load.memory))
    return row
