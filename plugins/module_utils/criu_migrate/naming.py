"""What one run is called, and what of its parameters serves a later run. Pure functions."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from .tracing import SECONDS

ALIASES = {"predump": "precopy", "lazy": "postcopy"}
# Of one run only; the rest is what its user has asked for.
OF_ONE_RUN = ("run_id", "started", "began", "results_name", "results_dir", "workload", "client")


def output_seconds(values: Mapping[str, Any]) -> float:
    """Seconds of output after the restore, as asked for, or what goes with the way of capturing."""
    asked = values.get("output_seconds")
    return float(asked) if asked is not None else (SECONDS if values.get("output_capture") == "strace" else 0.0)


def settle(
    values: Mapping[str, Any], workload: str, params: Mapping[str, Any], began: float, token: str, label: str = ""
) -> dict[str, Any]:
    """Return the fact ``migration`` of one run: values that were checked, and names that no other run has.

    :param began: when it begins, seconds since 1970
    :param token: some characters that tell runs of one second apart
    :param label: what the run and its results are named after, by default the workload
    """
    label = label or workload
    stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime(began))
    strategy = ALIASES.get(values["migration_strategy"], values["migration_strategy"])
    if values.get("lazy_pages") and strategy in ("auto", "full"):
        strategy = "postcopy"  # what the seed documents mean by it
    elif values.get("lazy_pages") and strategy == "precopy":
        strategy = "hybrid"
    run_id = f"{label}-{stamp}-{token}"
    named = {
        **values,
        "run_id": run_id,
        "workload": {"name": workload, "params": dict(params)},
        "migration_strategy": strategy,
        "experiment_name": values.get("experiment_name") or f"{label}-{strategy}",
        "working_dir": values.get("working_dir") or f"/srv/criu-migrate/{run_id}",
        "output_seconds": output_seconds(values),
    }
    return renamed(named, label, began)


def renamed(migration: Mapping[str, Any], label: str, began: float) -> dict[str, Any]:
    """Return the fact of a run that begins at that time (seconds since 1970), later than it was named perhaps."""
    now = time.gmtime(began)
    return {
        **migration,
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", now),
        "began": began,
        "results_name": f"{label}_{time.strftime('%Y%m%d_%H%M%S', now)}",
    }


def kept(migration: Mapping[str, Any]) -> dict[str, Any]:
    """Return what ``settle`` needs for a later run of the same process: the fact without what is of one run only."""
    found = {name: value for name, value in migration.items() if name not in OF_ONE_RUN}
    if str(found.get("working_dir")).rpartition("/")[2] == migration["run_id"]:
        found["working_dir"] = None
    if found.get("experiment_name") == f"{migration['workload']['name']}-{migration['migration_strategy']}":
        found["experiment_name"] = None
    return found
