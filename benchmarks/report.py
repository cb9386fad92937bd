"""Figures of many runs: medians, spread, ratios of pairs; as CSV, JSON and a table in Markdown."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import median, quantiles
from typing import Any

TOTAL = "total"  # seconds from the start to the end of the move
MEASURES = ("client", "heartbeat", TOTAL)
FIELDS = (
    "pair", "variant", "client", "client_usual", "heartbeat", "heartbeat_usual", "total", "memory", "connected",
    "client_verified", "verified", "acknowledged", "load_before", "error",
)  # fmt: skip


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return count, median, both quartiles (inclusive method), least and greatest of at least one value."""
    low, _middle, high = quantiles(values, n=4, method="inclusive") if len(values) > 1 else (values[0],) * 3
    return {
        "count": len(values),
        "median": median(values),
        "low_quartile": low,
        "high_quartile": high,
        "min": min(values),
        "max": max(values),
    }


def good(run: dict[str, Any]) -> bool:
    """Return whether redis and its client came through the run whole."""
    return not run.get("error") and bool(run["connected"] and run["client_verified"] and run["verified"])


def ratios(runs: Sequence[dict[str, Any]], variant: str, other: str, measure: str) -> list[float]:
    """Return `variant`/`other` of each pair in which both runs were good."""
    by_pair: dict[int, dict[str, float]] = {}
    for run in runs:
        if good(run):
            by_pair.setdefault(run["pair"], {})[run["variant"]] = run[measure]
    return [pair[variant] / pair[other] for pair in by_pair.values() if variant in pair and other in pair]


def foretold(runs: Sequence[dict[str, Any]]) -> list[float]:
    """Return by how much of the downtime its prediction has missed it, in good runs that were predicted."""
    seen = [((run.get("details") or {}).get("prediction") or {}).get("error") for run in runs if good(run)]
    return [abs(error) for error in seen if error is not None]


def summarise(runs: Sequence[dict[str, Any]], variants: Sequence[str]) -> dict[str, Any]:
    """Return {seconds: {variant: {measure: spread}}, ratios: {...}, foretold: spread, failed: count} of all runs."""
    summary: dict[str, Any] = {"seconds": {}, "ratios": {}, "failed": sum(not good(run) for run in runs)}
    missed = foretold(runs)
    summary["foretold"] = spread(missed) if missed else {}
    for measure in MEASURES:
        for variant in variants:
            values = [run[measure] for run in runs if run["variant"] == variant and good(run)]
            if values:
                summary["seconds"].setdefault(variant, {})[measure] = spread(values)
        for other in variants[1:]:
            values = ratios(runs, variants[0], other, measure)
            if values:
                summary["ratios"].setdefault(f"{variants[0]} / {other}", {})[measure] = spread(values)
    return summary


def _row(name: str, measure: str, values: dict[str, float], digits: int) -> str:
    keys = ("median", "low_quartile", "high_quartile", "min", "max")
    return (
        f"| {name} | {measure} | " + " | ".join(f"{values[key]:.{digits}f}" for key in keys) + f" | {values['count']} |"
    )


def markdown(summary: dict[str, Any]) -> str:
    """Return the tables: seconds of each variant, then ratios of pairs."""
    head = "seen by | median | quartile | quartile | min | max | runs |\n|---|---|---|---|---|---|---|---|"
    lines = [f"| downtime (and all of it: total), seconds | {head}"]
    for variant, measures in summary["seconds"].items():
        lines += [_row(variant, measure, values, 3) for measure, values in measures.items()]
    lines += ["", f"| ratio in a pair | {head}"]
    for name, measures in summary["ratios"].items():
        lines += [_row(name, measure, values, 2) for measure, values in measures.items()]
    if summary["foretold"]:
        lines += ["", f"| predicted downtime missed what it was | {head}"]
        lines.append(_row("by this part of it", "heartbeat", summary["foretold"], 2))
    return "\n".join(lines) + "\n"


def write(folder: Path, facts: dict[str, Any], runs: Sequence[dict[str, Any]], summary: dict[str, Any]) -> None:
    """Write runs.csv, benchmark.json and table.md into `folder`."""
    with open(folder / "runs.csv", "w", newline="", encoding="utf-8") as stream:
        table = csv.DictWriter(stream, FIELDS, extrasaction="ignore")
        table.writeheader()
        table.writerows(runs)
    (folder / "benchmark.json").write_text(
        json.dumps({"facts": facts, "summary": summary, "runs": list(runs)}, indent=1) + "\n", encoding="utf-8"
    )
    intro = "".join(f"- {name}: {value}\n" for name, value in facts.items())
    (folder / "table.md").write_text(f"{intro}\n{markdown(summary)}", encoding="utf-8")
