"""What a node has to tell of a run, whatever came of it: record, logs, CRIU's statistics, the workload's output."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Any

from . import control, output, proc, record, stats, tracing

MAX_LOG = 2 << 20  # bytes of one log that are collected, its end
LOGS = (".log", ".err")


def collect(
    run_id: str, working_dir: str = "", pid: int = 0, frozen: int | None = None, seconds: float = 0.0,
    look_only: bool = False,
) -> dict[str, Any]:
    """Everything of a run on this node; also where no guard was armed here, as far as the workload can be seen.

    pid: root of the process, where there is no record. frozen: bytes that the output had at the freeze, where another
    node has seen that. seconds: of output after the restore that are waited for, counted from then. look_only: nothing
    is ended, strace neither.
    """
    folder = record.run_dir(run_id)
    rec = record.Record.load(run_id)
    data = rec.data if rec else {}
    if not look_only:
        tracing.end(folder, "pre_dump")
        _await_output(data, seconds)
        tracing.end(folder, "post_restore", patience=seconds + 1.0)
    procs = [proc.Proc.from_dict(item) for item in data.get("procs", [])] or (proc.tree(pid) if pid else [])
    alive = [item for item in procs if item.alive()]
    known = data.get("output") or {}
    place = output.place(str(data.get("working_dir") or working_dir), alive[0].pid if alive else 0)
    border = known.get("size", frozen)
    return {
        "now": time.time(),
        "record": data or None,
        "logs": logs(folder),
        "output": output.around_freeze(place or output.again(known), border, MAX_LOG),
        "strace": {phase: tracing.collect(folder, phase, MAX_LOG) for phase in tracing.PHASES},
        "seen": look(alive),
        "stats": stats.read(folder),
        "guard_alive": control.alive(run_id),
        "alive": [item.pid for item in alive],
    }


def _await_output(data: dict[str, Any], seconds: float) -> None:
    """Until the process has run for so many seconds on this node, where it was brought here."""
    here = data.get("role") == "destination" and data.get("state") in ("running", "done")
    if here and "resumed" in data.get("times", {}):
        time.sleep(min(seconds, max(0.0, float(data["times"]["resumed"]) + seconds - time.time())))


def logs(folder: str) -> dict[str, str]:
    """Every log of a run by its name, the end of it."""
    found: dict[str, str] = {}
    for name in sorted(os.listdir(folder)) if os.path.isdir(folder) else []:
        if not name.endswith(LOGS):
            continue
        with open(os.path.join(folder, name), "rb") as handle:
            handle.seek(max(0, os.fstat(handle.fileno()).st_size - MAX_LOG))
            text = handle.read().decode("utf-8", "replace")
        if text or name.endswith(".log"):
            found[name] = text
    return found


def look(procs: Sequence[proc.Proc]) -> dict[str, Any]:
    """Memory (bytes), open files and status of a tree, as Guard.observe() notes them; {} where it does not run."""
    if not procs:
        return {}
    return {
        "at": time.time(),
        "memory": proc.memory(procs),
        "open_files": proc.open_files(procs),
        "status": proc.status_text(procs),
    }
