"""What Ansible itself cost, from the runner's events. Seconds throughout; no value of a variable is kept."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import datetime
from importlib import metadata
from typing import Any

Event = Mapping[str, Any]
# These ask nothing of a node: all of their time is Ansible's own.
CONTROL = ("assert", "debug", "fail", "include_role", "include_tasks", "meta", "set_fact", "validate_argument_spec")
RESULTS = {
    "runner_on_ok": "ok",
    "runner_on_skipped": "skipped",
    "runner_on_failed": "failed",
    "runner_on_unreachable": "unreachable",
}
WORST = ("skipped", "ok", "changed", "unreachable", "failed")


def moment(event: Event) -> float:
    """When an event happened, seconds since the epoch on the control node's clock."""
    return datetime.fromisoformat(str(event["created"])).timestamp()


class Timing:
    """Follows the events of one run.

    :param began: when ansible-playbook was started, seconds since the epoch
    :param plugins: names of actions that work on the control node; their time is neither a node's nor Ansible's
    """

    def __init__(self, began: float, plugins: Collection[str] = ()) -> None:
        self.began = began
        self.plugins = frozenset(plugins)
        self.tasks: list[dict[str, Any]] = []
        self._play = ""

    def feed(self, event: Event) -> None:
        """Take one event into account; others than those of plays and tasks are left out."""
        kind, data = event.get("event"), event.get("event_data") or {}
        if kind == "playbook_on_play_start":
            self._play = str(data.get("play") or "")
        elif kind in ("playbook_on_task_start", "playbook_on_handler_task_start"):
            self._close(moment(event))
            action = str(data.get("resolved_action") or data.get("task_action") or "")
            self.tasks.append({
                "play": self._play, "task": str(data.get("task") or ""), "action": action, "hosts": {},
                "began": moment(event), "ended": None, "status": "skipped",
            })  # fmt: skip
        elif kind in RESULTS and self.tasks:
            self._result(str(kind), data, moment(event))
        elif kind == "playbook_on_stats":
            self._close(moment(event))

    def _close(self, now: float) -> None:
        # An include has no result of its own: it lasts until the next task.
        if self.tasks and self.tasks[-1]["ended"] is None:
            self.tasks[-1]["ended"] = now
            self.tasks[-1]["status"] = "ok"

    def _result(self, kind: str, data: Event, now: float) -> None:
        task = self.tasks[-1]
        status = RESULTS[kind]
        if status == "ok" and (data.get("res") or {}).get("changed"):
            status = "changed"
        task["status"] = max(task["status"], status, key=WORST.index)
        task["ended"] = now
        seconds = data.get("duration")
        if seconds is not None and status != "skipped":
            task["hosts"][str(data.get("host"))] = round(float(seconds), 6)

    def section(self, ended: float, rc: int, handover: float | None) -> dict[str, Any]:
        """The `ansible` section of metrics.json.

        :param ended: when ansible-playbook ended, seconds since the epoch
        :param handover: seconds that the guards were at work between the freeze and their end
        """
        self._close(ended)
        done = [task for task in self.tasks if task["status"] != "skipped"]
        skipped = [task for task in self.tasks if task["status"] == "skipped"]
        per_task = min((min(task["hosts"].values()) for task in done if self._on_nodes(task)), default=None)
        rows = [self._row(task, per_task) for task in done]
        total = max(0.0, ended - self.began)
        startup = max(0.0, self.tasks[0]["began"] - self.began) if self.tasks else total
        idle = sum(_seconds(task) for task in skipped)
        between = max(0.0, total - startup - idle - sum(row["seconds"] for row in rows))
        return {
            "core": metadata.version("ansible-core"),
            "runner": metadata.version("ansible-runner"),
            "rc": rc,
            "total": round(total, 6),
            "startup": round(startup, 6),
            "between": round(between, 6),
            "per_task": per_task,
            "overhead": round(min(total, startup + between + idle + sum(row["overhead"] for row in rows)), 6),
            "handover": None if handover is None else round(handover, 6),
            "hosts": sorted({host for task in done for host in task["hosts"]}),
            "skipped": {"tasks": len(skipped), "seconds": round(idle, 6)},
            "tasks": rows,
        }

    def _on_nodes(self, task: Mapping[str, Any]) -> bool:
        """Whether a module ran on a node."""
        plugin = str(task["action"]).rpartition(".")[2] in self.plugins
        return bool(task["hosts"]) and not _control(task) and not plugin and "localhost" not in task["hosts"]

    def _row(self, task: Mapping[str, Any], per_task: float | None) -> dict[str, Any]:
        seconds = _seconds(task)
        overhead = seconds
        if not _control(task):
            overhead = min(seconds, per_task or 0.0) if self._on_nodes(task) else 0.0
        return {
            "play": task["play"],
            "task": task["task"],
            "action": task["action"],
            "status": task["status"],
            "began": round(float(task["began"]) - self.began, 6),
            "seconds": round(seconds, 6),
            "overhead": round(overhead, 6),
            "hosts": task["hosts"],
        }


def _seconds(task: Mapping[str, Any]) -> float:
    return max(0.0, float(task["ended"]) - float(task["began"]))


def _control(task: Mapping[str, Any]) -> bool:
    return str(task["action"]).rpartition(".")[2] in CONTROL


def handover(metrics: Mapping[str, Any]) -> float | None:
    """Seconds from the freeze until the guards were done, or had undone; None where there was no freeze."""
    marks = metrics.get("marks") or {}
    last = marks.get("done", marks.get("undone"))
    if "freezing" not in marks or last is None:
        return None
    return max(0.0, float(last) - float(marks["freezing"]))
