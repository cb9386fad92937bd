"""Plan an evacuation: every registered process on a destination that can take it, and what its guards are told."""

from __future__ import annotations

DOCUMENTATION = r"""
name: migration_evacuation
short_description: Plan where the processes of a node go, in which order, and what their guards are told
description:
  - Judges every process against every destination as M(migration_preflight) does for one, counts what those take that
    were placed before, and makes the configurations of both guards of each run.
  - A process that no destination can take is refused, with every problem and its remedy; the others go.
  - Runs on the control node, changes nothing.
options:
  source:
    description: What M(criu_evacuate) has found on the source with V(inspected).
    type: dict
    required: true
  offers:
    description: What it has found on each destination that was reached with V(offered), by host.
    type: dict
    required: true
  hosts:
    description:
      - All destinations that were asked for, also those that were not reached. What an earlier evacuation has sent to
        one of them, and nobody has collected, is watched and collected with the rest.
    type: list
    elements: str
    default: []
  seconds:
    description: Seconds that there will be from the notice on; 0 where that is not known.
    type: float
    default: 0
  results_dir:
    description: Folder on the control node under which each run gets its own.
    type: str
    default: results
"""

EXAMPLES = r"""
- name: Plan
  migration_evacuation:
    source: "{{ evacuate_inspected }}"
    offers: {node-2: "{{ evacuate_offered }}"}
  register: evacuate_planned
"""

RETURN = r"""
runs:
  description:
    - The runs in the order in which they go. Each has C(run_id), C(name), C(priority), C(bytes), C(host), C(pid),
      C(since), C(entry), C(migration) and C(preflight), those that an earlier evacuation has begun also C(state).
  returned: success
  type: list
source:
  description: The host that they leave.
  returned: success
  type: str
by_host:
  description: By host what it has to know of its runs.
  returned: success
  type: dict
lines:
  description: Who goes where, in their order, for a person.
  returned: success
  type: list
problems:
  description: Entries of the registry whose process is not there, in words.
  returned: success
  type: list
registered:
  description: Stands for what was registered.
  returned: success
  type: str
at_once:
  description: How many of them send at a time.
  returned: success
  type: int
refused:
  description: C(name) and C(message) of processes that cannot be moved.
  returned: success
  type: list
configs:
  description: The guards' configurations by host.
  returned: success
  type: dict
"""

import secrets
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ansible.plugins.action import ActionBase

from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate import evacuation, uncollected

# What guards are told stands in one place, for one process and for many.
TOLD = Path(__file__).resolve().parents[2] / "roles" / "migration" / "vars" / "main.yml"
ARGUMENTS: dict[str, dict[str, Any]] = {
    "source": {"type": "dict", "required": True},
    "offers": {"type": "dict", "required": True},
    "hosts": {"type": "list", "elements": "str", "default": []},
    "seconds": {"type": "float", "default": 0.0},
    "results_dir": {"type": "str", "default": "results"},
}


def run_of(placed: evacuation.Placed, results_dir: str) -> dict[str, Any]:
    """What the steps after the plan need of one run."""
    process, migration = placed.process, {**placed.migration, "results_dir": results_dir}
    entry = {key: process[key] for key in ("name", "priority", "by", "params")}
    return {
        "run_id": migration["run_id"],
        "name": process["name"],
        "priority": process["priority"],
        "bytes": placed.bytes,
        "host": placed.host,
        "pid": process["pid"],
        "since": process["since"],
        "entry": entry,
        "migration": migration,
        "preflight": placed.preflight,
    }


def by_host(runs: list[dict[str, Any]], source: str, asked: set[str]) -> dict[str, list[dict[str, Any]]]:
    """What each node that is asked has to know of its runs, in their order."""
    found: dict[str, list[dict[str, Any]]] = {source: []}
    for run in runs:
        known = {key: run[key] for key in ("run_id", "name", "pid", "since", "entry")}
        for host in {source, run["host"]} & {source, *asked}:
            found.setdefault(host, []).append(known)
    return found


class ActionModule(ActionBase):
    """The plan on the control node, without a connection."""

    TRANSFERS_FILES = False
    _requires_connection = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the plan; warnings say who cannot go and what a person should know."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        _validation, given = self.validate_argument_spec(ARGUMENTS)
        variables = task_vars or {}
        source = str(variables["inventory_hostname"])
        hosts = variables.get("hostvars", {})
        reached = {name: str(hosts[name].get("ansible_host") or name) for name in [source, *given["offers"]]}
        began = time.time()
        tokens = [secrets.token_hex(2) for _ in given["source"]["processes"]]
        planner = evacuation.Planner(given["source"], given["offers"], source, reached, began, tokens, given["seconds"])
        plan = planner.plan()
        configs: dict[str, list[dict[str, Any]]] = {name: [] for name in reached}
        folder = str(Path.cwd() / Path(given["results_dir"]).expanduser())
        runs = [run_of(placed, folder) for placed in plan.runs]
        for placed, run in zip(plan.runs, runs):
            one, other = self._configs(placed, {"source": source, "destination": placed.host}, reached, variables)
            configs[source].append({**one, uncollected.PLANNED: run})
            configs[placed.host].append({**other, uncollected.PLANNED: run})
        earlier = given["source"].get("earlier") or []
        told = [f"{run['name']}: is on its way to {run['host']} since earlier, {run['state']}" for run in earlier]
        runs = [{**run, "migration": {**run["migration"], "results_dir": folder}} for run in earlier] + runs
        refused = [item._asdict() for item in plan.refused]
        warnings = [*given["source"]["problems"], *plan.warnings]
        warnings += [f"{item.name} cannot be saved: {item.message}" for item in plan.refused]
        return {
            **result, "changed": False, "warnings": warnings, "refused": refused, "configs": configs,
            "source": source, "registered": given["source"].get("registered", ""), "at_once": plan.at_once,
            "lines": told + evacuation.told(plan, source, bool(told)), "runs": runs,
            "by_host": by_host(runs, source, {*given["hosts"], *given["offers"]}),
            "problems": given["source"]["problems"],
        }  # fmt: skip

    def _configs(
        self, placed: evacuation.Placed, hosts: dict[str, str], reached: dict[str, str], variables: Mapping[str, Any]
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """What roles/migration tells the guards of one process on the source and on the destination."""
        told = self._loader.load_from_file(str(TOLD), trusted_as_template=True)
        known = {
            **variables,
            **told,
            "migration": placed.migration,
            "migration_preflight": placed.preflight,
            "migration_process": {"pid": placed.process["pid"], "start": placed.process["start"]},
            "migration_hosts": hosts,
            "migration_peer": reached[placed.host],
            "migration_looked": [placed.migration["began"]],
            "migration_pause_at": variables.get("migration_pause_at") or {},
            "__migration_armed": {"port": placed.port},
        }
        templar = self._templar.copy_with_new_env(available_variables=known)
        common, one, other = (
            templar.template(told[f"__migration_{part}"]) for part in ("common", "source", "destination")
        )
        limits = placed.migration["limits"]
        ids = {"run_id": placed.migration["run_id"]}
        return (
            evacuation.armed_for_notice({**common, **one, **ids}, limits),
            evacuation.armed_for_notice({**common, **other, **ids}, limits, placed.port),
        )
