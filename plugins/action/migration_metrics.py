"""Metrics and files of a run, out of what was collected on both nodes."""

from __future__ import annotations

DOCUMENTATION = r"""
name: migration_metrics
short_description: Compute the metrics of a migration
description:
  - Turns the records and statistics that M(criu_guard) collected into the document that C(metrics.json) holds, and
    names the logs as the results folder has them. Runs on the control node, changes nothing.
options:
  params:
    description: The fact C(migration).
    type: dict
    required: true
  source:
    description: What C(criu_guard state=collected) returned on the source; empty where nothing was armed.
    type: dict
    default: {}
  destination:
    description: The same of the destination.
    type: dict
    default: {}
  preflight:
    description: What the preflight learned of both nodes.
    type: dict
    default: {}
  verified:
    description: The workload's proof.
    type: dict
    default: {}
  heartbeat:
    description: What the workload's heartbeat shows.
    type: dict
    default: {}
  client:
    description: What the outside client saw.
    type: dict
    default: {}
  error:
    description: C(phase), C(message) and C(remedy) of what ended the run before the guards could.
    type: dict
    default: {}
  earlier:
    description: What was collected on the source before the workload that had been started was ended again.
    type: dict
    default: {}
  began:
    description: When the source was last looked at before the process was moved, in seconds of its clock.
    type: float
  looked:
    description: When the source was looked at, in seconds of the control node's clock.
    type: list
    elements: float
    default: []
  ended:
    description: When the run ended, likewise.
    type: float
  names:
    description: C(name) and C(address) of C(source) and C(destination).
    type: dict
    default: {}
"""

EXAMPLES = r"""
- name: Compute the metrics
  migration_metrics:
    params: "{{ migration }}"
    source: "{{ source_collected }}"
    destination: "{{ destination_collected }}"
  register: computed
"""

RETURN = r"""
metrics:
  description: The document for C(metrics.json).
  returned: success
  type: dict
files:
  description: Text by path below the results folder.
  returned: success
  type: dict
"""

from typing import Any

from ansible.plugins.action import ActionBase

from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate import metrics, result_files

DICTS = ("source", "destination", "preflight", "verified", "heartbeat", "client", "error", "names", "earlier")


class ActionModule(ActionBase):
    """Works on the control node, without a connection."""

    TRANSFERS_FILES = False
    _requires_connection = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the metrics and the files."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        spec: dict[str, Any] = {name: {"type": "dict", "default": {}} for name in DICTS}
        spec["params"] = {"type": "dict", "required": True}
        spec.update({"began": {"type": "float"}, "ended": {"type": "float"}})
        spec["looked"] = {"type": "list", "elements": "float", "default": []}
        _validation, given = self.validate_argument_spec(spec)
        built = metrics.build(
            given["params"],
            given["source"],
            given["destination"],
            preflight=given["preflight"],
            verified=given["verified"],
            heartbeat=given["heartbeat"],
            client=given["client"],
            error=given["error"] or None,
            began=given["began"],
            looked=given["looked"],
            ended=given["ended"],
            names=given["names"],
        )
        logs = result_files.build(
            given["source"], given["destination"], given["earlier"], given["names"], built["status"]
        )
        problems = [(given[role].get("stats") or {}).get("problem") for role in ("source", "destination")]
        if any(problems):
            result["warnings"] = [f"Figures of CRIU's are missing: {problem}" for problem in problems if problem]
        return {**result, "changed": False, "metrics": built, "files": logs}
