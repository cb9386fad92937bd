"""criu-migrate results: the runs, newest first."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from . import runs

HEAD = ("run", "started", "workload", "strategy", "transfer", "status", "service", "frozen", "total", "whole")
NUMBERS = ("service", "frozen", "total")
COLOURS = {"migrated": "32", "rolled_back": "33", "failed": "31", "broken": "31"}


def record(run: runs.Run) -> dict[str, Any]:
    """What is listed of a run; times in seconds."""
    began = run.began
    return {
        "run": run.name,
        "run_id": run.get("run_id"),
        "started": began.strftime("%Y-%m-%dT%H:%M:%SZ") if began else None,
        "workload": run.get("workload", "name"),
        "strategy": runs.strategy(run) if run.metrics else None,
        "transfer": run.get("transfer", "method"),
        "status": run.get("status") or "broken",
        "service": run.get("downtime", "service"),
        "frozen": run.get("downtime", "frozen"),
        "total": run.get("times", "total"),
        "whole": run.get("integrity", "verified"),
        "problem": run.problem or None,
        "folder": str(run.folder),
    }


def as_json(found: Sequence[runs.Run]) -> str:
    """The list for programs."""
    return json.dumps([record(run) for run in found], indent=2)


def table(found: Sequence[runs.Run], colour: bool = False) -> str:
    """The list for people."""
    rows = [_cells(record(run)) for run in found]
    widths = [max(len(row[place]) for row in [list(HEAD), *rows]) for place in range(len(HEAD))]
    lines = []
    for number, row in enumerate([list(HEAD), *rows]):
        cells = []
        for name, cell, width in zip(HEAD, row, widths, strict=True):
            text = cell.rjust(width) if name in NUMBERS else cell.ljust(width)
            if name == "status" and colour and number:
                shown = "failed" if row[-1] == "NO" else cell
                text = f"\x1b[{COLOURS.get(shown, '0')}m{text}\x1b[0m"
            cells.append(text)
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def columns(rows: Sequence[Sequence[str]]) -> str:
    """Rows of equal length, each cell as wide as the widest of its column."""
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    padded = [[cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in rows]
    return "\n".join("  ".join(row).rstrip() for row in padded)


def _cells(one: dict[str, Any]) -> list[str]:
    texts = {name: "-" if one[name] is None else str(one[name]) for name in HEAD}
    texts.update({name: "-" if one[name] is None else f"{one[name]:.3f}s" for name in NUMBERS})
    texts["whole"] = {True: "yes", False: "NO", None: "-"}[one["whole"]]
    return [texts[name] for name in HEAD]
