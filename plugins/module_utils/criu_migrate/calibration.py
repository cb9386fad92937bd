"""Costs of a pair of nodes, taken from the metrics.json of migrations between them. Dicts in, numbers out.

Each figure is fitted by itself: a line over the bytes where runs are of different sizes (Theil-Sen: the median of the
slopes between pairs of runs, which no single bad run moves), else the default line stretched to their median.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any, NamedTuple

from .iteration import Round
from .planner import ENCRYPTIONS, Costs, Load, Strategy, Wish, estimate

APART = 1.5  # runs whose sizes differ by less say nothing of a slope
ENOUGH = 3  # runs of different sizes, for a line of their own
MOST = 60  # runs that a line is drawn through; more do not move it


class Measured(NamedTuple):
    """What a migration that came through took. Seconds, bytes; None where it was not measured."""

    name: str
    nodes: frozenset[str]
    strategy: Strategy
    encryption: str
    bytes: float  # of memory, whichever way it went
    downtime: float
    used: float | None
    preparation: float | None
    freeze: float | None
    dump: float | None
    transfer: float | None
    restore: float | None
    handover: float | None
    fill: float | None
    after: float | None  # from the thaw until nothing was left on the source
    rounds: tuple[Round, ...] = ()  # those that the last dump was put on
    iterated: float = 0.0  # from the first look at what is written to until the freeze
    expected: float | None = None  # downtime that its own guard had predicted before the freeze


class Prediction(NamedTuple):
    """One run beside what the others say of it. runs: so many others of the same nodes; 0: the defaults alone."""

    measured: Measured
    downtime: float
    seconds: float
    runs: int

    @property
    def downtime_error(self) -> float:
        """|predicted - measured| / measured."""
        return abs(self.downtime - self.measured.downtime) / self.measured.downtime

    @property
    def guard_error(self) -> float | None:
        """The same of what its own guard had predicted after the last round, where it had."""
        expected = self.measured.expected
        return None if expected is None else abs(expected - self.measured.downtime) / self.measured.downtime

    @property
    def seconds_error(self) -> float | None:
        """The same of the seconds until nothing was left on the source, where they were measured."""
        used = self.measured.used
        return abs(self.seconds - used) / used if used else None


def read(metrics: Mapping[str, Any], name: str = "") -> Measured | None:
    """The figures of one metrics.json; None where nothing was moved or it does not say how much."""
    parts, moved, marks = (metrics.get(key) or {} for key in ("downtime", "transfer", "marks"))
    size, frozen, strategy = moved.get("bytes"), parts.get("frozen"), metrics.get("strategy")
    if metrics.get("status") != "migrated" or not size or not frozen or not strategy:
        return None
    # Runs of before there was a `channels` have their encryption in one place only.
    pages = (moved.get("channels") or {}).get("pages") or {}
    encryption = "rsync" if pages.get("way", moved.get("method")) == "rsync" else moved.get("encryption")
    nodes = metrics.get("nodes") or {}
    made = _rounds(metrics.get("pre_dumps") or [])
    expected = (metrics.get("prediction") or {}).get("downtime")
    # Rounds that a guard's restart has made useless predict nothing; older runs, which do not say, had none such.
    rounds = () if "prediction" in metrics and expected is None else made
    iterated = _between(marks, "iterating", "stopping")
    iterated = sum(one.seconds for one in made) if iterated is None else iterated
    preparation = (metrics.get("times") or {}).get("preparation")
    if preparation is not None:
        preparation = max(0.0, preparation - iterated)
    return Measured(
        name=name or str(metrics.get("run_id")),
        nodes=frozenset(str((nodes.get(role) or {}).get("address")) for role in ("source", "destination")),
        strategy=Strategy(str(strategy), bool(metrics.get("lazy_restore"))),
        encryption=encryption if encryption in ENCRYPTIONS else "tls",
        bytes=float(rounds[0].written if rounds else size),
        downtime=float(frozen),
        used=((metrics.get("deadlines") or {}).get("aws") or {}).get("used"),
        preparation=preparation,
        freeze=_between(marks, "stopping", "frozen"),
        dump=parts.get("dump"),
        transfer=parts.get("transfer"),
        restore=parts.get("restore"),
        handover=parts.get("handover"),
        fill=(metrics.get("lazy") or {}).get("seconds"),
        after=_between(marks, "destination_resumed", "done"),
        rounds=rounds,
        iterated=iterated,
        expected=expected,
    )


def costs_of(runs: Sequence[Measured], base: Costs = Costs()) -> Costs:  # noqa: B008 - a NamedTuple does not change
    """Costs as these runs show them; what none of them shows is taken from base.

    Where the link was the limit, the bytes/s found are those of the link.
    """
    plain = [one for one in runs if not one.rounds]
    follows = [one for one in plain if one.strategy.follows]
    at_once = [one for one in plain if not one.strategy.follows]
    lazily = [one for one in plain if one.strategy.follows or one.strategy.lazy_restore]
    eager = [one for one in at_once if not one.strategy.lazy_restore]
    dump, pipe = line([(one.bytes, one.dump) for one in follows if one.dump], base.dump, base.pipe)
    restore = line([(one.bytes, one.restore) for one in eager if one.restore], base.eager, base.eager_byte)
    images = _middle([_rest(one) for one in at_once], base.images)
    # What starting a lazy-pages daemon and handing memory over costs is in no part, so it goes with the restore.
    lazy = [one.restore + rest - images for one in lazily if one.restore and (rest := _rest(one)) is not None]
    rounds = [(step.written, step.seconds) for one in runs for step in one.rounds]
    found = base._replace(
        lead=line(rounds, base.lead, 1 / base.tls)[0] if rounds else base.lead,
        dump=dump, pipe=pipe, eager=restore[0], eager_byte=restore[1],
        freeze=_middle([one.freeze for one in plain], base.freeze),
        handover=_middle([one.handover for one in plain], base.handover),
        lazy=_middle(lazy, base.lazy),
        images=images,
    )  # fmt: skip
    return _speeds(at_once, lazily, _ends(plain, found))


def line(points: Sequence[tuple[float, float]], fixed: float, slope: float) -> tuple[float, float]:
    """Seconds without a byte and seconds a byte, through points (bytes, seconds); the default line where none are."""
    some = sorted(points)[:: len(points) // MOST + 1]
    pairs = [(one, two) for place, one in enumerate(some) for two in some[place + 1 :] if two[0] >= one[0] * APART]
    if len(some) >= ENOUGH and pairs:
        found = max(0.0, median((two[1] - one[1]) / (two[0] - one[0]) for one, two in pairs))
        return max(0.0, median(seconds - found * size for size, seconds in some)), found
    stretch = median(seconds / (fixed + slope * size) for size, seconds in some) if some else 1.0
    return fixed * stretch, slope * stretch


def predict(runs: Sequence[Measured], base: Costs = Costs()) -> list[Prediction]:  # noqa: B008
    """Each run by what the others of its two nodes say, itself left out."""
    found = []
    for one in runs:
        others = [other for other in runs if other is not one and other.nodes == one.nodes]
        costs = costs_of(others, base)
        wish = Wish(most=len(one.rounds))
        plan = estimate(one.strategy, Load(one.bytes), costs, one.encryption, wish, one.rounds)
        before = costs.prepares(one.bytes) if one.rounds else 0.0  # a plan that goes on with rounds begins at them
        found.append(Prediction(one, plan.downtime, one.iterated + before + plan.seconds, len(others)))
    return found


def _rounds(pre_dumps: Sequence[Mapping[str, Any]]) -> tuple[Round, ...]:
    return tuple(
        Round(float(one.get("seconds") or 0.0), int(one.get("bytes") or 0), int(one.get("pages_written") or 0))
        for one in pre_dumps
    )


def _between(marks: Mapping[str, Any], first: str, last: str) -> float | None:
    return float(marks[last]) - float(marks[first]) if first in marks and last in marks else None


def _middle(values: Sequence[float | None], default: float) -> float:
    there = [max(0.0, value) for value in values if value is not None]
    return median(there) if there else default


def _rest(one: Measured) -> float | None:
    """Seconds frozen that no other part has: small images, delta, starting criu; None where pages are among them."""
    if one.encryption == "rsync" or None in (one.freeze, one.dump, one.restore, one.handover):
        return None
    return one.downtime - sum(part or 0.0 for part in (one.freeze, one.dump, one.restore, one.handover))


def _ends(plain: Sequence[Measured], base: Costs) -> Costs:
    """Before the freeze and after the last page."""
    spare = base.prepares
    prepared = [one.preparation - spare(one.bytes) + base.preparation for one in plain if one.preparation is not None]
    after = [
        (one.bytes, one.after - (one.fill or 0.0))
        for one in plain
        if one.after is not None and one.after > (one.fill or 0.0)
    ]
    fixed, slope = line(after, base.cleaning, base.cleaning_byte)
    return base._replace(preparation=_middle(prepared, base.preparation), cleaning=fixed, cleaning_byte=slope)


def _speeds(at_once: Sequence[Measured], lazily: Sequence[Measured], base: Costs) -> Costs:
    """Bytes/s on every way that was taken."""
    found: dict[str, float] = {}
    for way in ENCRYPTIONS:
        rates = []
        for one in at_once:
            # rsync carries the pages after the dump, a page server during it
            moving = (one.dump or 0.0) - base.dump - base.pipe * one.bytes
            moving += (one.transfer or 0.0) - base.images if way == "rsync" else 0.0
            if one.encryption == way and moving > 0:
                rates.append(one.bytes / moving)
        found[way] = median(rates) if rates else getattr(base, way)
    for way in ("tls", "none"):
        fills = [one.bytes / one.fill for one in lazily if one.strategy.follows and one.encryption == way and one.fill]
        found[f"fill_{way}"] = median(fills) if fills else getattr(base, f"fill_{way}")
    local = [one.bytes / one.fill for one in lazily if one.strategy.lazy_restore and one.fill]
    found["fill_local"] = median(local) if local else base.fill_local
    return base._replace(**found)
