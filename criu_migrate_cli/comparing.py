"""criu-migrate compare: runs side by side, by workload and strategy, with median and quartiles."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from . import listing, runs
from .places import CommandError

# Column, path in metrics.json. Seconds, bytes, bytes a second; an error is a part of what it was.
FIGURES = {
    "service": ("downtime", "service"),
    "witness": ("downtime", "witness"),
    "frozen": ("downtime", "frozen"),
    "dump": ("downtime", "dump"),
    "transfer_part": ("downtime", "transfer"),
    "restore": ("downtime", "restore"),
    "handover": ("downtime", "handover"),
    "preparation": ("times", "preparation"),
    "resume": ("times", "resume"),
    "total": ("times", "total"),
    "bytes": ("transfer", "bytes"),
    "throughput": ("transfer", "throughput"),
    "predicted": ("prediction", "downtime"),
    "prediction_error": ("prediction", "error"),
    "ansible_overhead": ("ansible", "overhead"),
}
SHOWN = ("service", "frozen", "total", "bytes")
PICTURES = {
    "service": "Service downtime, as the workload's heartbeat saw it",
    "frozen": "Frozen, from the freeze to the thaw",
    "total": "The whole run",
}
WHOLE = {True: "yes", False: "NO"}
QUARTILES = {"q1": 0.25, "median": 0.5, "q3": 0.75}


def frame(found: Sequence[runs.Run], by: Sequence[str] = ()) -> pd.DataFrame:
    """One row a run.

    :param by: parameters of the workload that get a column of their own
    :raises CommandError: no run has such a parameter
    """
    from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate import results

    rows: list[dict[str, Any]] = []
    for run in found:
        params = run.get("workload", "params") or {}
        row: dict[str, Any] = {
            "run": run.name,
            "started": run.began,
            "workload": run.get("workload", "name"),
            "strategy": runs.strategy(run),
            "transfer": run.get("transfer", "method"),
            "status": run.get("status"),
            "verified": run.get("integrity", "verified"),
            "counted": results.ending(run.metrics, str(run.get("status"))) == "migrated",
            "params": json.dumps(params, sort_keys=True),
        }
        row.update({name: str(params.get(name, "")) for name in by})
        row["rounds"] = len(run.get("pre_dumps") or [])
        row.update({name: run.get(*path) for name, path in FIGURES.items()})
        rows.append(row)
    unknown = [name for name in by if not any(row[name] for row in rows)]
    if unknown:
        known = sorted({name for run in found for name in run.get("workload", "params") or {}})
        raise CommandError(f"--by {unknown[0]}: no run has this parameter. There are {', '.join(known) or 'none'}.")
    data = pd.DataFrame(rows)
    data[list(FIGURES)] = data[list(FIGURES)].apply(pd.to_numeric, errors="coerce")
    return data


def groups(data: pd.DataFrame, by: Sequence[str] = ()) -> pd.DataFrame:
    """One row a group: how many ended how, and median, quartiles, least and greatest of what those took that count.

    What moved and was not whole then, or did not prove it, does not count."""
    keys = ["workload", "strategy", "transfer", *by]
    data = data.assign(transfer=data["transfer"].fillna("-"))
    counted = data.groupby(keys).agg(
        runs=("run", "size"),
        migrated=("status", lambda column: int((column == "migrated").sum())),
        counted=("counted", "sum"),
    )
    counted["not_proven"] = counted["migrated"] - counted["counted"]
    moved = data[data["counted"]].groupby(keys)[list(FIGURES)]
    columns: dict[str, Any] = {}
    least, greatest = moved.min(), moved.max()
    quartiles = {name: moved.quantile(share) for name, share in QUARTILES.items()}
    for figure in FIGURES:
        for name, table in quartiles.items():
            columns[f"{figure}_{name}"] = table[figure]
        columns[f"{figure}_min"], columns[f"{figure}_max"] = least[figure], greatest[figure]
    return counted.join(pd.DataFrame(columns)).reset_index()


def mixed(data: pd.DataFrame, by: Sequence[str] = ()) -> list[str]:
    """Groups whose runs do not have the same parameters, in words: their medians mean little."""
    found = []
    for key, group in data.groupby(["workload", "strategy", "transfer", *by], dropna=False):
        names: set[str] = set()
        settings = [json.loads(text) for text in group["params"]]
        for name in {name for one in settings for name in one} - set(by):
            if any(one.get(name) != settings[0].get(name) for one in settings):
                names.add(name)
        if names:
            label = ", ".join(str(part) for part in (key if isinstance(key, tuple) else (key,)))
            found.append(f"{label}: these runs differ in {', '.join(sorted(names))}; --by separates them.")
    return found


Cell = tuple[str, str]  # what a reader looks for, and what belongs to it


def table(summary: pd.DataFrame, by: Sequence[str] = ()) -> tuple[list[str], list[list[Cell]]]:
    """Head and rows for people: the median, and the first and third quartile beside it."""
    from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate import report_pictures as pictures

    keys = ["workload", "strategy", "transfer", *by]
    rows = []
    for one in summary.to_dict("records"):
        cells = [(str(one[key]), "") for key in keys]
        cells += [(f"{one['migrated']}/{one['runs']}", ""), (str(one["not_proven"] or "-"), "")]
        for figure in SHOWN:
            show = pictures.size if figure == "bytes" else pictures.duration
            values = [one[f"{figure}_{name}"] for name in ("median", "q1", "q3")]
            if any(pd.isna(value) for value in values):
                cells.append(("-", ""))
            else:
                median, low, high = (show(value) for value in values)
                cells.append((median, f"({low} - {high})"))
        rows.append(cells)
    return [*keys, "migrated", "not proven", *SHOWN], rows


def as_text(head: Sequence[str], cells: Sequence[Sequence[Cell]]) -> str:
    """A table in columns."""
    return listing.columns([head, *([" ".join(filter(None, cell)) for cell in row] for row in cells)])


def _spread(data: pd.DataFrame, figure: str, by: Sequence[str]) -> dict[str, Any] | None:
    from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate import report_pictures as pictures

    found = []
    moved = data[data["counted"] & data[figure].notna()]
    for key, group in moved.groupby(["workload", "strategy", "transfer", *by]):
        values = group[figure]
        found.append({
            "label": ", ".join(str(part) for part in (key if isinstance(key, tuple) else (key,))),
            "values": values.tolist(),
            **{name: float(values.quantile(share)) for name, share in QUARTILES.items()},
        })  # fmt: skip
    return pictures.spread(found)


def html(data: pd.DataFrame, summary: pd.DataFrame, by: Sequence[str], filters: str, warnings: Sequence[str]) -> str:
    """The comparison as one self-contained page."""
    from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate import report
    from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate import report_pictures as pictures

    head, rows = table(summary, by)
    columns = ["run", "workload", "strategy", "status", "verified", "service", "frozen", "total", "bytes"]
    cells = []
    for one in data[columns].to_dict("records"):
        times = ["-" if pd.isna(one[name]) else pictures.duration(one[name]) for name in ("service", "frozen", "total")]
        moved = "-" if pd.isna(one["bytes"]) else pictures.size(one["bytes"])
        whole = WHOLE.get(one["verified"], "-")
        cells.append([(text, "") for text in (*(str(one[name]) for name in columns[:4]), whole, *times, moved)])
    drawn = [{"title": title, "spread": _spread(data, figure, by)} for figure, title in PICTURES.items()]
    return report.render(
        "compare.html.j2", runs=cells, run_head=columns, group_head=head, group_rows=rows, keys=len(by) + 3,
        pictures=drawn, filters=filters, warnings=list(warnings),
    )  # fmt: skip


def write(folder: Path, data: pd.DataFrame, summary: pd.DataFrame, page: str) -> list[Path]:
    """Write runs.csv, groups.csv and compare.html.

    :raises CommandError: they cannot be written
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        data.to_csv(folder / "runs.csv", index=False)
        summary.to_csv(folder / "groups.csv", index=False)
        (folder / "compare.html").write_text(page, encoding="utf-8")
    except OSError as error:
        raise CommandError(f"{folder}: {error}. Name another folder with --output.") from error
    return [folder / name for name in ("compare.html", "groups.csv", "runs.csv")]
