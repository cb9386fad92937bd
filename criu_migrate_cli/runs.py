"""The runs in results/: finding them, reading them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from .places import CommandError

STAMP = re.compile(r"(\d{8})[-_](\d{6})")
AGO = re.compile(r"(\d+(?:\.\d+)?)\s*([smhdw])")
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}  # seconds
MOST_LOG = 4 << 20  # bytes of one log that are read, its end


@dataclass
class Run:
    """One folder of results. `problem` says why its metrics cannot be used; they are empty then."""

    folder: Path
    metrics: dict[str, Any]
    problem: str = ""

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def began(self) -> datetime | None:
        """When it was started (UTC), by its metrics, else by its name; None where neither says."""
        text = str(self.metrics.get("started") or "")
        try:
            return datetime.fromisoformat(text.replace("Z", "+00:00"))
        except ValueError:
            found = STAMP.search(str(self.metrics.get("run_id") or "")) or STAMP.search(self.name)
        try:
            moment = datetime.strptime("".join(found.groups()), "%Y%m%d%H%M%S") if found else None
        except ValueError:
            moment = None
        return moment.replace(tzinfo=timezone.utc) if moment else None

    def get(self, *path: str) -> Any:
        """A value of the metrics by its path, None where it is not there."""
        value: Any = self.metrics
        for name in path:
            value = value.get(name) if isinstance(value, dict) else None
        return value


def load(folder: Path) -> Run:
    """Read one run.

    :raises CommandError: there are no metrics, or they are broken
    """
    path = folder / "metrics.json"
    try:
        metrics = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CommandError(
            f"{folder}: there is no metrics.json. Name a folder that a migration has written (criu-migrate results "
            "lists them)."
        ) from None
    except (OSError, ValueError) as error:
        raise CommandError(f"{path} cannot be read: {error}. Remove the folder, or repair the file.") from None
    problem = wrong(metrics)
    if problem:
        raise CommandError(f"{path} cannot be used: {problem}. Remove the folder, or repair the file.")
    return Run(folder, metrics)


def wrong(metrics: Any) -> str:
    """What keeps metrics from being shown at all; '' where nothing does. The schema asks for more than that."""
    if not isinstance(metrics, dict):
        return "it holds no object"
    for name, kind in (("run_id", str), ("status", str), ("workload", dict), ("downtime", dict), ("times", dict)):
        if not isinstance(metrics.get(name), kind):
            return f"{name} is missing or of the wrong type"
    if metrics.get("schema_version") != 1:
        return f"schema_version is {metrics.get('schema_version')!r}, this version reads 1"
    return ""


def every(parent: Path) -> list[Run]:
    """All runs below a folder, newest first; broken ones with their problem.

    :raises CommandError: the folder is not there
    """
    if not parent.is_dir():
        raise CommandError(f"{parent}: there is no such folder. Name the one with the results: --results-dir DIR.")
    found = []
    for path in parent.glob("*/metrics.json"):
        try:
            found.append(load(path.parent))
        except CommandError as error:
            found.append(Run(path.parent, {}, str(error)))
    oldest = datetime.min.replace(tzinfo=timezone.utc)
    return sorted(found, key=lambda run: (run.began or oldest, run.name), reverse=True)


def named(words: Iterable[str], parent: Path) -> list[Run]:
    """Runs by the name of their folder, its path, or the run id; `last` is the newest.

    :raises CommandError: there is none of that name
    """
    found = []
    for word in words:
        path = next((one for one in (Path(word), parent / word) if (one / "metrics.json").is_file()), None)
        if path is not None:
            found.append(load(path))
            continue
        there = every(parent) if parent.is_dir() else []
        if word == "last" and there:
            found.append(load(there[0].folder))
            continue
        match = next((run for run in there if run.get("run_id") == word), None)
        if match is None:
            # says which of the two is missing, the folder or the file
            folder = next((one for one in (Path(word), parent / word) if one.is_dir()), None)
            if folder is not None:
                load(folder)
            raise CommandError(f"{word}: there is no such run in {parent}. `criu-migrate results` lists them.")
        found.append(match)
    return found


def since(text: str, now: datetime) -> datetime:
    """The moment that a user means: 2026-11-21, 2026-11-21T03:15, or 2h, 3d ago.

    :raises CommandError: it means none
    """
    ago = AGO.fullmatch(text.strip())
    if ago:
        return now - timedelta(seconds=float(ago.group(1)) * UNITS[ago.group(2)])
    try:
        moment = datetime.fromisoformat(text.replace("Z", "+00:00"))
    except ValueError:
        raise CommandError(f"--since {text}: it must be like 2026-11-21, 2026-11-21T03:15, 30m, 2h or 3d.") from None
    return moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)


def strategy(run: Run) -> str:
    """The strategy with what belongs to it, by which runs are put together."""
    lazy = " + lazy restore" if run.get("lazy_restore") else ""
    return f"{run.get('strategy') or '-'}{lazy}"


def chosen(
    found: Sequence[Run], workloads: Sequence[str], strategies: Sequence[str], after: datetime | None
) -> list[Run]:
    """The runs that fit all filters; an empty filter lets everything through."""
    kept = []
    for run in found:
        began = run.began
        if workloads and run.get("workload", "name") not in workloads:
            continue
        if strategies and run.get("strategy") not in strategies:
            continue
        if after and (began is None or began < after):
            continue
        kept.append(run)
    return kept


def logs(folder: Path) -> dict[str, str]:
    """Texts of the logs of a run by path below its folder."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix in (".log", ".err") and path.is_file() and not path.is_symlink():
            with path.open("rb") as handle:
                handle.seek(max(0, path.stat().st_size - MOST_LOG))
                found[str(path.relative_to(folder))] = handle.read().decode("utf-8", "replace")
    return found
