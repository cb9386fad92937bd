"""The results of an evacuation: a folder for each process, and one table."""

from __future__ import annotations

DOCUMENTATION = r"""
name: migration_evacuated
short_description: Write the results of all runs of an evacuation, and return a table of them
description:
  - Makes one folder below O(results_dir) for each process, as M(migration_results) does, and
    C(evacuation_TIMESTAMP.json) beside them with the table's lines.
  - Runs on the control node. Writes nothing in check mode.
options:
  plan:
    description: What M(migration_evacuation) returned.
    type: dict
    required: true
  started:
    description: What M(criu_evacuate) returned on the source with V(started); also where it was lost meanwhile.
    type: dict
    default: {}
  listening:
    description: What it returned with V(started) on the destinations, by host.
    type: dict
    default: {}
  collected:
    description: What it returned with V(collected), by host; also where a host could not be reached.
    type: dict
    required: true
  seconds:
    description: Seconds that there were from the beginning on, where no notice says so; 0 where nothing does.
    type: float
    default: 0
  results_dir:
    description: Folder on the control node.
    type: str
    default: results
"""

EXAMPLES = r"""
- name: Write the results
  migration_evacuated:
    plan: "{{ evacuate_plan }}"
    started: "{{ evacuate_started }}"
    collected: {node-1: "{{ evacuate_collected }}"}
"""

RETURN = r"""
summary:
  description: The table.
  returned: success
  type: str
lines:
  description: What became of each process.
  returned: success
  type: list
saved:
  description: Whether all of them were saved.
  returned: success
  type: bool
"""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate import (
    evacuation,
    metrics,
    naming,
    result_files,
    result_writing,
    results,
)

ARGUMENTS: dict[str, dict[str, Any]] = {
    "plan": {"type": "dict", "required": True},
    "started": {"type": "dict", "default": {}},
    "listening": {"type": "dict", "default": {}},
    "collected": {"type": "dict", "required": True},
    "seconds": {"type": "float", "default": 0.0},
    "results_dir": {"type": "str", "default": "results"},
}


def of_node(answer: Mapping[str, Any], run_id: str) -> dict[str, Any]:
    """What a node has told of one run; where it could not be reached that is what it told."""
    told = (answer.get("runs") or {}).get(run_id)
    if not told and (answer.get("unreachable") or answer.get("failed")):
        return {"msg": answer.get("msg")}
    return dict(told or {})


def measured(
    run: dict[str, Any], source: dict[str, Any], destination: dict[str, Any], begun: float | None,
    names: dict[str, dict[str, str]], told: dict[str, Any],
) -> dict[str, Any]:  # fmt: skip
    """The metrics of one run. `told` is what the module that started it has said: a record, or why there is none."""
    there = [item for item in (destination, source) if "verified" in item or "heartbeat" in item]
    here = there[0] if there else {}
    problem = told.get("error") or source.get("error") or destination.get("proof_error") or source.get("proof_error")
    error = {"phase": "evacuation", **problem} if problem else None
    built = metrics.build(
        run["migration"], source, destination, preflight=run["preflight"], verified=here.get("verified"),
        heartbeat=here.get("heartbeat"), error=error, began=begun, ended=source.get("now"), names=names,
    )  # fmt: skip
    return built


class ActionModule(ActionBase):
    """Works on the control node, without a connection."""

    TRANSFERS_FILES = False
    _requires_connection = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Write everything and return the table."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        _validation, given = self.validate_argument_spec(ARGUMENTS)
        given = json.loads(json.dumps(given))
        if self._task.check_mode:
            return {**result, "changed": False, "skipped": True}
        try:
            return {**result, **self._write(given, task_vars or {})}
        except OSError as error:
            raise AnsibleActionFail(f"The results could not be written below {given['results_dir']}: {error}. "
                                    "Give another folder with -e results_dir=.") from error

    def _write(self, given: dict[str, Any], variables: Mapping[str, Any]) -> dict[str, Any]:
        started, plan = given["started"], given["plan"]
        notice = started.get("notice") or {}
        begun = notice.get("seen") or started.get("began")
        lines, warnings = [], []
        again = {run["name"] for run in plan["runs"] if not run.get("state")} | {one["name"] for one in plan["refused"]}
        for run in plan["runs"]:
            found, more = self._one(given, run, begun, variables)
            warnings += more
            if not run.get("state") or run["name"] not in again:  # what came of it in the end is told once
                lines.append(found)
        stayed = [(item["name"], item["message"]) for item in plan["refused"]]
        known = {item["name"] for item in [*plan["runs"], *plan["refused"]]}
        late = [name for name in started.get("entries") or [] if name not in known and begun is not None]
        stayed += [(name, "It was registered after the last look, or did not run then.") for name in late]
        lines += [evacuation.Line(name, "not saved", plan["source"], None, None, None, why) for name, why in stayed]
        ends = notice.get("ends") or (begun + given["seconds"] if given["seconds"] and begun else None)
        left = None if ends is None or not started.get("now") else ends - started["now"]
        text = "\n".join([evacuation.table(lines, left), *(f"  {word}" for word in plan.get("problems") or [])])
        folder = Path.cwd() / Path(given["results_dir"]).expanduser()
        stamp = time.strftime("%Y%m%d_%H%M%S", time.gmtime())
        document = {"notice": notice or None, "left": left, "lines": [item._asdict() for item in lines]}
        results.write_text(folder / f"evacuation_{stamp}.json", results.as_json(document))
        if not result_writing.ours():
            Display().display(text)
        saved = all(item.outcome == "saved" for item in lines)
        return {"changed": True, "warnings": warnings, "summary": text, "lines": document["lines"], "saved": saved}

    @staticmethod
    def _one(
        given: dict[str, Any], run: dict[str, Any], begun: float | None, variables: Mapping[str, Any]
    ) -> tuple[evacuation.Line, list[str]]:
        """The line of one run, whose folder is written, and warnings."""
        hosts, where = variables.get("hostvars", {}), {"source": given["plan"]["source"], "destination": run["host"]}
        names = {
            role: {"name": host, "address": str(hosts[host].get("ansible_host") or "") if host in hosts else ""}
            for role, host in where.items()
        }
        source, destination = (of_node(given["collected"].get(where[role]) or {}, run["run_id"]) for role in where)
        told = of_node(given["started"], run["run_id"])
        if not source.get("record") and told.get("record"):
            source["record"] = told["record"]  # the node went down since
        deaf = of_node(given["listening"].get(run["host"]) or {}, run["run_id"]).get("error")
        if deaf and not told.get("error"):
            told["error"] = deaf  # the source only knows that nobody has answered
        stopping = ((source.get("record") or {}).get("times") or {}).get("stopping", begun)
        began = min(begun, stopping) if begun and stopping else begun  # of an earlier evacuation, before this one's
        run = {**run, "migration": naming.renamed(run["migration"], run["name"], began or time.time())}
        built = measured(run, source, destination, began, names, told)
        logs = result_files.build(source, destination, {}, names, built["status"])
        written = result_writing.write(run["migration"], built, built["status"], logs)
        end = evacuation.ending(built["status"], source, destination, where, run["run_id"])
        notice = begun if began == begun else None
        return evacuation.line(run["name"], built, notice, end), written["warnings"]
