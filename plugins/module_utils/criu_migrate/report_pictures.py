"""What report.html draws, as numbers: pure functions of metrics. Lengths are percent of a picture's width, so that
the same picture fits a phone and a desktop. Only the control node uses this."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Data = Mapping[str, Any]
MB = 1024 * 1024
PAGE = 4096
# Label, kind (its colour), first and last mark: without a gap from the freeze to the thaw.
STEPS = (
    ("Stop the process tree", "rest", "stopping", "frozen"),
    ("Dump", "dump", "frozen", "dumped"),
    ("Address off, small images sent", "transfer", "dumped", "destination_restoring"),
    ("Restore, stopped", "restore", "destination_restoring", "destination_restored"),
    ("Commit and thaw", "handover", "destination_restored", "destination_resumed"),
)
PARTS = (
    ("Dump", "dump"),
    ("Transfer", "transfer"),
    ("Restore", "restore"),
    ("Handover", "handover"),
)


def duration(value: Any) -> str:
    """Seconds as a reader wants them: 0.0042 is `4.2 ms`, 2.006 is `2.01 s`; `not measured` for None."""
    if value is None:
        return "not measured"
    number = float(value)
    if 0 < abs(number) < 0.001:
        return f"{number * 1e6:.0f} µs"
    if abs(number) < 0.01:
        return f"{number * 1000:.1f} ms"
    if abs(number) < 1:
        return f"{number * 1000:.0f} ms"
    return f"{number:.2f} s" if abs(number) < 100 else f"{number:,.0f} s"


def size(value: Any) -> str:
    """Bytes in MB of 1024 x 1024; `not measured` for None."""
    if value is None:
        return "not measured"
    return f"{value / MB:,.1f} MB" if value < 100 * MB else f"{value / MB:,.0f} MB"


def ticks(first: float, last: float, most: int = 5) -> list[float]:
    """At most so many round numbers within a range."""
    span = last - first
    if span <= 0:
        return [first]
    power = 10.0 ** math.floor(math.log10(span / most))
    step = next(power * one for one in (1, 2, 5, 10, 20) if span / (power * one) <= most)
    low = math.ceil(first / step - 1e-9)
    return [round(number * step, 9) for number in range(low, math.floor(last / step + 1e-9) + 1)]


class Scale:
    """Places of moments (seconds) in a picture, as percent of its width."""

    def __init__(self, first: float, last: float) -> None:
        self.first, self.last = first, max(last, first + 1e-6)

    def at(self, moment: float) -> float:
        share = (moment - self.first) / (self.last - self.first)
        return round(100 * min(1.0, max(0.0, share)), 3)

    def bar(self, begin: float, end: float, kind: str, title: str = "") -> dict[str, Any]:
        left = self.at(begin)
        return {"left": left, "width": round(max(0.0, self.at(end) - left), 3), "kind": kind, "title": title}

    def axis(self, zero: float = 0.0, unit: str = "s") -> list[dict[str, Any]]:
        found = ticks(self.first - zero, self.last - zero)
        return [{"left": self.at(one + zero), "label": f"{one:g} {unit}"} for one in found]


def row(label: str, value: str, bars: Iterable[Data]) -> dict[str, Any]:
    return {"label": label, "value": value, "bars": list(bars)}


def moments(metrics: Data) -> dict[str, float]:
    """Marks beside `thawed` (wherever), `began` and `ended` of the run, as far as they are known."""
    marks = {name: float(value) for name, value in (metrics.get("marks") or {}).items()}
    thawed = marks.get("destination_resumed", marks.get("resumed"))
    if thawed is not None:
        marks["thawed"] = thawed
    times = metrics.get("times") or {}
    if times.get("preparation") is not None and "stopping" in marks:
        marks["began"] = marks["stopping"] - float(times["preparation"])
    if times.get("resume") is not None and thawed is not None:
        marks["ended"] = thawed + float(times["resume"])
    return marks


def _where(marks: Data, scale: Scale, status: Any) -> list[dict[str, Any]]:
    """The process's own lane: on the source, standing still, on the destination."""
    bars = [scale.bar(scale.first, marks["stopping"], "source", "runs on the source")]
    end = marks.get("thawed")
    bars.append(scale.bar(marks["stopping"], scale.last if end is None else end, "frozen", "stands still"))
    if end is not None:
        there = ("destination", "the destination") if status == "migrated" else ("source", "the source")
        bars.append(scale.bar(end, scale.last, there[0], f"runs on {there[1]}"))
    return bars


def whole_run(metrics: Data) -> dict[str, Any] | None:
    """The run from its beginning to its end; None where the process was never stopped."""
    marks = moments(metrics)
    if "stopping" not in marks:
        return None
    known = sorted(marks.values())
    begin, end = marks.get("began", known[0]), marks.get("ended", known[-1])
    scale = Scale(begin, end)
    rows = [row("The process", "", _where(marks, scale, metrics.get("status")))]
    thawed = marks.get("thawed")

    def add(label: str, kind: str, first: float | None, last: float | None) -> None:
        if first is not None and last is not None and last >= first:
            rows.append(row(label, duration(last - first), [scale.bar(first, last, kind)]))

    add("Preparation", "rest", marks.get("began"), marks["stopping"])
    add("Rounds of pre-dump", "transfer", marks.get("iterating"), marks["stopping"])
    add("Downtime", "frozen", marks["stopping"], thawed)
    if metrics.get("status") == "migrated":
        add("Memory still coming", "lazy", thawed, marks.get("destination_filled"))
        add("Until the source is free", "source", begin, marks.get("done"))
    add("Resume: until verified and reported", "rest", thawed, marks.get("ended"))
    return {"rows": rows, "axis": scale.axis(begin)}


def freeze(metrics: Data) -> dict[str, Any] | None:
    """The hand-over from the freeze to the thaw, zero at the freeze; None where there was none."""
    marks = moments(metrics)
    if "stopping" not in marks:
        return None
    zero = marks["stopping"]
    end = marks.get("thawed", max(marks.values()))
    margin = 0.06 * max(end - zero, 1e-3)
    scale = Scale(zero - margin, end + margin)
    rows = [row("The process", "", _where(marks, scale, metrics.get("status")))]
    undone = "thawed" in marks and "destination_resumed" not in marks
    for label, kind, first, last in STEPS:
        if first in marks and last in marks:
            seconds = marks[last] - marks[first]
            rows.append(row(label, duration(seconds), [scale.bar(marks[first], marks[last], kind)]))
    if undone and "undoing" in marks:
        bars = [scale.bar(marks["undoing"], marks["resumed"], "bad")]
        rows.append(row("Undo", duration(marks["resumed"] - marks["undoing"]), bars))
    return {"rows": rows, "axis": scale.axis(zero)}


def parts(metrics: Data) -> dict[str, Any] | None:
    """The frozen seconds cut into their parts; `rest` is what lies between them."""
    found = metrics.get("downtime") or {}
    total = found.get("frozen")
    if not total:
        return None
    pieces = [(label, kind, found[kind]) for label, kind in PARTS if found.get(kind) is not None]
    rest = float(total) - sum(seconds for _label, _kind, seconds in pieces)
    if rest > 0:
        pieces.append(("Stopping, and between the steps", "rest", rest))
    scale, at = Scale(0.0, max(float(total), sum(seconds for *_, seconds in pieces))), 0.0
    bars, legend = [], []
    for label, kind, seconds in pieces:
        bars.append(scale.bar(at, at + seconds, kind, f"{label}: {duration(seconds)}"))
        share = 100 * seconds / scale.last
        legend.append({"label": label, "kind": kind, "value": duration(seconds), "share": f"{share:.0f} %"})
        at += seconds
    return {"rows": [row("Frozen", duration(total), bars)], "axis": scale.axis(), "legend": legend}


def four_times(metrics: Data) -> dict[str, Any] | None:
    """Preparation, downtime, resume and total, on one scale."""
    times = metrics.get("times") or {}
    kinds = {"preparation": "source", "downtime": "frozen", "resume": "destination", "total": "rest"}
    longest = max((float(times[name]) for name in kinds if times.get(name) is not None), default=0.0)
    if not longest:
        return None
    scale = Scale(0.0, longest)
    rows = []
    for name, kind in kinds.items():
        value = times.get(name)
        rows.append(row(name.capitalize(), duration(value), [] if value is None else [scale.bar(0, value, kind)]))
    return {"rows": rows, "axis": scale.axis()}


def _counted(
    label: str, kind: str, written: Any, scanned: Any, frozen: Any = None, predicted: Any = None
) -> dict[str, Any] | None:
    if not written and not scanned:
        return None
    pages = int(written or 0)
    text = f"{pages:,} pages, {size(pages * PAGE)}"
    if frozen is not None:
        text += f", frozen {duration(frozen)}"
    if predicted is not None:
        text += f"; downtime predicted {duration(predicted)}"
    return {"label": label, "kind": kind, "pages": pages, "scanned": int(scanned or pages), "text": text}


def rounds(metrics: Data) -> dict[str, Any] | None:
    """Pages that each round moved: pre-dumps, the final dump, and what came after the restore."""
    dump, lazy = metrics.get("dump") or {}, metrics.get("lazy") or {}
    found = [
        _counted(
            f"Round {number}", "transfer",
            *(one.get(name) for name in ("pages_written", "pages_scanned", "frozen", "predicted_downtime")),
        )
        for number, one in enumerate(metrics.get("pre_dumps") or [], 1)
    ]  # fmt: skip
    found.append(_counted("Final dump", "dump", dump.get("pages_written"), dump.get("pages_scanned")))
    found.append(_counted("After the restore", "lazy", lazy.get("pages_transferred"), lazy.get("pages_total")))
    items = [one for one in found if one]
    if not items:
        return None
    scale = Scale(0, max(one["scanned"] for one in items))
    rows = [
        row(one["label"], one["text"], [scale.bar(0, one["scanned"], "track", "looked at"),
                                        scale.bar(0, one["pages"], one["kind"], "moved")])
        for one in items
    ]  # fmt: skip
    return {"rows": rows, "axis": []}


def memory(metrics: Data) -> dict[str, Any] | None:
    """Resident memory on both nodes, before and after."""
    found = metrics.get("memory") or {}
    named = [(f"{node.capitalize()}, {when}", node, (found.get(node) or {}).get(when))
             for node, when in (("source", "before"), ("source", "after"),
                                ("destination", "before"), ("destination", "after"))]  # fmt: skip
    most = max((value for *_, value in named if value), default=0)
    if not most:
        return None
    scale = Scale(0, most)
    rows = [row(label, size(value), [scale.bar(0, value, node)] if value else []) for label, node, value in named]
    return {"rows": rows, "axis": []}


def deadlines(metrics: Data) -> list[dict[str, Any]]:
    """Verdicts, each with a bar of what was used of its limit."""
    found = []
    why = "not measured" if metrics.get("status") == "migrated" else "it did not move"
    for name, one in (metrics.get("deadlines") or {}).items():
        label = f"{name.upper() if name in ('aws', 'gcp') else name}, {one['limit']:g} s"
        if one.get("met") is None or one.get("used") is None:
            found.append({**row(label, f"no verdict: {why}", []), "verdict": "none"})
            continue
        met = bool(one["met"])
        text = f"met, {duration(one['margin'])} left" if met else f"missed by {duration(-one['margin'])}"
        scale = Scale(0, max(one["limit"], one["used"]))
        bars = [scale.bar(0, scale.last, "track"), scale.bar(0, one["used"], "good" if met else "bad")]
        found.append({**row(label, text, bars), "verdict": "met" if met else "missed"})
    return found


def spread(groups: Sequence[Data]) -> dict[str, Any] | None:
    """One row a group of runs: a dot a run, a box over the middle half, a line at the median.

    groups: {label, values, q1, median, q3} with values in seconds.
    """
    values = [float(value) for group in groups for value in group["values"]]
    if not values:
        return None
    scale = Scale(0.0, max(values) * 1.02)
    rows = []
    for group in groups:
        if not group["values"]:
            continue
        q1, q3 = scale.at(group["q1"]), scale.at(group["q3"])
        bars = [{"left": q1, "width": max(round(q3 - q1, 3), 0.2), "kind": "box", "title": "the middle half"}]
        median, low, high = (duration(group[name]) for name in ("median", "q1", "q3"))
        text = f"{median} ({low} - {high}), n={len(group['values'])}"
        rows.append({**row(group["label"], text, bars), "median": scale.at(group["median"]),
                     "dots": [scale.at(float(value)) for value in group["values"]]})  # fmt: skip
    return {"rows": rows, "axis": scale.axis(), "tall": True}
