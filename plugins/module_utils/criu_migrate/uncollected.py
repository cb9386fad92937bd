"""Runs of an evacuation that nobody has collected, as its control node died: the next evacuation takes them over.

Both guards' configurations bear what the plan has said of the run, for whoever comes later.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from . import control, guard, record, registry, supersede
from .errors import MigrationError

PLANNED = "planned"  # in config.json
Found = dict[str, Any]


def runs() -> list[Found]:
    """Those that left this node, or tried to, each as its plan had it, with the `state` of its record."""
    found = []
    for run_id in record.runs():
        try:
            rec = record.Record.load(run_id)
        except MigrationError:
            continue  # supersede.tidy() names it
        if rec is None or rec.data["role"] != "source" or control.never_began(rec):
            continue
        known = planned(run_id)
        if known:
            found.append({**known, "state": rec.state})
    return found


def planned(run_id: str) -> Found:
    """What the plan has said of a run that is not collected yet; {} where it is, or is none of an evacuation."""
    return dict(guard.read_config(run_id).get(PLANNED) or {}) if not supersede.collected(run_id) else {}


def taken(entry: registry.Entry, left: Sequence[Found]) -> bool:
    """The process of this entry is on its way in one of these runs, or has gone with it. One that was started anew
    under the same PID file or in the same directory is another one."""
    for run in left:
        if run["entry"]["by"] != entry["by"] or run["state"] == "undone":
            continue
        try:
            return registry.locate(entry).pid == int(run["pid"])
        except MigrationError:
            return True
    return False
