"""Two tables of many moves, in Markdown: what each way of moving took, and what became of the moves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .moves import VARIANTS, good
from .report import spread

# column, key, unit's divisor, digits
MEASURES = (("service's downtime, s", "service", 1.0, 2), ("total, s", "total", 1.0, 1), ("MB", "bytes", 1e6, 0))

BEFORE = ("prepare", "begin", "preflight", "arm")  # phases in which the process has not been touched


def cell(values: Sequence[float], digits: int) -> str:
    """Return the median, the quartiles, least and greatest of `values`, and their number where it is not said."""
    if not values:
        return "-"
    found = spread(values)
    words = {key: f"{found[key]:.{digits}f}" for key in found if key != "count"}
    return "{median} ({low_quartile}-{high_quartile}; {min}-{max})".format(**words)


def _names(moves: Sequence[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(str(move["workload"]) for move in moves))


def _phase(move: dict[str, Any]) -> str:
    return str((move.get("error") or {}).get("phase", ""))


def figures(moves: Sequence[dict[str, Any]]) -> list[str]:
    """Return the lines of the first table: of the moves that went well, the one that started the workload left out."""
    lines = ["| workload | variant | runs | " + " | ".join(name for name, *_rest in MEASURES) + " |"]
    lines.append("|---|---|---" + "|---" * len(MEASURES) + "|")
    for workload in _names(moves):
        for variant in VARIANTS:
            runs = [m for m in moves if (m["workload"], m["variant"]) == (workload, variant) and good(m)]
            if not runs:
                continue
            cells = []
            for _name, key, divisor, digits in MEASURES:
                values = [run[key] / divisor for run in runs if run[key] is not None]
                missing = f" of {len(values)}" if len(values) < len(runs) else ""
                cells.append(cell(values, digits) + missing)
            lines.append(f"| {workload} | {variant} | {len(runs)} | " + " | ".join(cells) + " |")
    return lines


def outcomes(moves: Sequence[dict[str, Any]]) -> list[str]:
    """Return the lines of the second table. refused: before the process was touched; lost: whatever is left."""
    head = ("started", "moves", "out", "back", "migrated and verified", "refused", "rolled back", "lost",
            "longest usual gap, s")  # fmt: skip
    lines = [f"| workload | {' | '.join(head)} |", "|---" * (len(head) + 1) + "|"]
    for workload in _names(moves):
        mine = [move for move in moves if move["workload"] == workload]
        well = [move for move in mine if good(move)]
        back = [move for move in mine if move["status"] == "rolled_back"]
        ways = [sum(move["direction"] == way for move in mine) for way in ("out", "back")]
        gaps = [move["usual_gap"] for move in well if move["usual_gap"] is not None]
        started = sum(move["variant"] == "first" for move in mine)
        early = [move for move in mine if move["status"] == "failed" and _phase(move) in BEFORE]
        lost = len(mine) - len(well) - len(early) - len(back)
        counts = [started, len(mine), *ways, len(well), len(early), len(back), lost]
        lines.append(f"| {workload} | {' | '.join(map(str, counts))} | {f'{max(gaps):.2f}' if gaps else '-'} |")
    return lines


def markdown(moves: Sequence[dict[str, Any]]) -> str:
    """Return both tables."""
    note = "Median (quartiles; least-greatest). The move that started the workload is in the second table only."
    return "\n".join([note, "", *figures(moves), "", *outcomes(moves)]) + "\n"
