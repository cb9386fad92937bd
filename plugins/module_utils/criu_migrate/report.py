"""report.html: one file that shows a run, made of its metrics and its logs. Only the control node uses this."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from . import report_pictures as pictures
from . import results, summary

Data = Mapping[str, Any]
TEMPLATES = Path(__file__).resolve().parents[3] / "templates"
NAME = "report.html"
# What says why, in the logs of CRIU, of the guards and of workloads.
TELLING = re.compile(
    r"\b(error|err|warn|warning|fail(ed|ure)?|refused|cannot|can't|unable|undo\w*|remedy|traceback)\b", re.IGNORECASE
)
MOST_LINES = 30  # of one log
LONGEST = 400  # characters of a line
STATUS = {
    "migrated": ("good", "migrated"),
    "rolled_back": ("bad", "rolled back, goes on on the source"),
    "failed": ("bad", "failed"),
}
INTEGRITY = {
    True: ("good", "verified"),
    False: ("bad", "not whole"),
    None: ("soft", "the workload cannot tell"),
}


def excerpt(text: str) -> list[tuple[int, str]]:
    """Numbered lines of a log that tell of trouble, and its last five; the latest where there are many."""
    lines = text.splitlines()
    found = {number for number, line in enumerate(lines) if TELLING.search(line)}
    chosen = sorted(found)[-(MOST_LINES - 5) :] + list(range(max(0, len(lines) - 5), len(lines)))
    return [(number + 1, lines[number][:LONGEST]) for number in sorted(set(chosen))]


def excerpts(files: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Excerpts of all logs, by path below the results folder."""
    logs = sorted(name for name, text in files.items() if name.endswith((".log", ".err")) and text)
    return [{"name": name, "lines": excerpt(str(files[name]))} for name in logs]


def label(metrics: Data) -> str:
    """The strategy as a reader names it."""
    lazy = " with lazy restore" if metrics.get("lazy_restore") else ""
    return f"{metrics.get('strategy') or 'none'}{lazy}"


def _figures(metrics: Data) -> list[tuple[str, str, str]]:
    """The few numbers on top: name, value, what it is."""
    down, times = metrics.get("downtime") or {}, metrics.get("times") or {}
    transfer = metrics.get("transfer") or {}
    usual = f"usual gap {pictures.duration(down.get('usual_gap'))}"
    seen = "the gap its heartbeat shows, " + usual if down.get("service") is not None else "no heartbeat to see it by"
    by = down.get("witness_by") or "nobody else looked"
    rate = transfer.get("throughput")
    return [
        ("Service downtime", pictures.duration(down.get("service")), seen),
        ("Witness", pictures.duration(down.get("witness")), by),
        ("Frozen", pictures.duration(down.get("frozen")), "from the freeze to the thaw"),
        ("Whole run", pictures.duration(times.get("total")), "from its start, that of the workload left out"),
        ("Moved", pictures.size(transfer.get("bytes")), "not measured" if rate is None else f"{pictures.size(rate)}/s"),
    ]


def _ansible(section: Data | None) -> dict[str, Any] | None:
    """Ansible's own share, where the front end has measured it."""
    if not section:
        return None
    scale = pictures.Scale(0.0, float(section["total"]))
    handover = section.get("handover") or 0.0
    middle = section["total"] - section["overhead"] - handover
    pieces = [
        ("Hand-over by the guards", "frozen", handover),
        ("Other work of the tasks", "source", max(0.0, middle)),
        ("Ansible itself", "rest", section["overhead"]),
    ]
    bars, legend, at = [], [], 0.0
    for name, kind, seconds in pieces:
        bars.append(scale.bar(at, at + seconds, kind, name))
        share = 100 * seconds / section["total"] if section["total"] else 0.0
        legend.append({"label": name, "kind": kind, "value": pictures.duration(seconds), "share": f"{share:.0f} %"})
        at += seconds
    picture = {"rows": [pictures.row("Whole run", pictures.duration(section["total"]), bars)], "axis": scale.axis(),
               "legend": legend}  # fmt: skip
    longest = sorted(section["tasks"], key=lambda task: -task["seconds"])[:12]
    return {**section, "picture": picture, "longest": longest}


def view(metrics: Data, files: Mapping[str, Any], folder: str = "") -> dict[str, Any]:
    """Everything that the template shows."""
    status = str(metrics.get("status", "failed"))
    integrity = metrics.get("integrity") or {}
    details = integrity.get("details")
    told = results.ending(metrics, status) != "migrated"
    kind, words = STATUS.get(status, ("bad", status))
    if status == "migrated" and told:
        kind, words = "bad", "migrated, but not proven whole"
    return {
        "metrics": metrics,
        "folder": Path(folder).name,
        "kind": kind,
        "status": words,
        "strategy": label(metrics),
        "figures": _figures(metrics),
        "whole": pictures.whole_run(metrics),
        "freeze": pictures.freeze(metrics),
        "parts": pictures.parts(metrics),
        "times": pictures.four_times(metrics),
        "rounds": pictures.rounds(metrics),
        "stopped": summary.stopped(metrics.get("stop_reason")),
        "predicted": summary.predicted(metrics.get("prediction") or {}),
        "memory": pictures.memory(metrics),
        "deadlines": pictures.deadlines(metrics),
        "integrity": INTEGRITY[integrity.get("verified")],
        "details": json.dumps(details, indent=2, ensure_ascii=False) if details else "",
        "ansible": _ansible(metrics.get("ansible")),
        "logs": excerpts(files) if told else [],
    }


def render(template: str, **values: Any) -> str:
    """Fill one of the templates. Everything is escaped: logs are written by others."""
    import jinja2

    loader = jinja2.FileSystemLoader(TEMPLATES)
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.ChainableUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(duration=pictures.duration, size=pictures.size)
    return environment.get_template(template).render(**values)


def html(metrics: Data, files: Mapping[str, Any], folder: str = "") -> str:
    """The report of one run, self-contained.

    :param metrics: what metrics.json holds
    :param files: text of the run's logs by path below its folder
    """
    return render("report.html.j2", **view(metrics, files, folder))
