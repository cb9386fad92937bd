"""Judge what criu_inspect saw on both nodes: every problem at once, each with its remedy."""

from __future__ import annotations

DOCUMENTATION = r"""
name: migration_preflight
short_description: Judge whether a migration can be begun
description:
  - Holds the facts of both nodes, of the process tree and the parameters against each other. Lists every problem at
    once, each with its remedy, and fails if there is one. Changes nothing.
  - Runs on the control node.
options:
  params:
    description: The fact C(migration), as the action C(migration_parameters) returned it.
    type: dict
    required: true
  source:
    description: What C(criu_inspect) returned on the source.
    type: dict
    required: true
  destination:
    description: What C(criu_inspect) returned on the destination.
    type: dict
    required: true
  names:
    description: The inventory's names of both nodes, C(source) and C(destination).
    type: dict
    required: true
  reached_by:
    description: The addresses by which Ansible reaches the nodes; none of them can move.
    type: list
    elements: str
    default: []
  prepared:
    description: Whether the nodes were prepared already. If not, a missing CRIU is only told.
    type: bool
    default: true
"""

EXAMPLES = r"""
- name: Judge
  migration_preflight:
    params: "{{ migration }}"
    source: "{{ source_inspected }}"
    destination: "{{ destination_inspected }}"
    names: {source: node-1, destination: node-2}
  register: judged
"""

RETURN = r"""
preflight:
  description:
    - C(source) and C(destination) (name, kernel, criu, python, ...), C(images) (base directory on each node),
      C(warnings) and C(process) (pid, start, procs, memory in bytes, command), empty while it is not started.
  returned: success
  type: dict
problems:
  description: What was found, each with C(check), C(node), C(problem), C(remedy) and C(warning).
  returned: success, and with -v on failure, whose message says the same
  type: list
"""

from typing import Any

from ansible.plugins.action import ActionBase

from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate import preflight

ARGUMENTS: dict[str, dict[str, Any]] = {
    "params": {"type": "dict", "required": True},
    "source": {"type": "dict", "required": True},
    "destination": {"type": "dict", "required": True},
    "names": {"type": "dict", "required": True},
    "reached_by": {"type": "list", "elements": "str", "default": []},
    "prepared": {"type": "bool", "default": True},
}


class ActionModule(ActionBase):
    """The verdict on the control node, without a connection."""

    TRANSFERS_FILES = False
    _requires_connection = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the facts that the migration needs, or fail with every problem."""
        outcome: dict[str, Any] = super().run(tmp, task_vars)
        _validation, given = self.validate_argument_spec(ARGUMENTS)
        case = preflight.Case(
            source=given["source"]["node"],
            destination=given["destination"]["node"],
            tree=given["source"].get("tree") or {},
            there=given["destination"]["there"],
            params=given["params"],
            names=given["names"],
            reached_by=tuple(given["reached_by"]),
            prepared=given["prepared"],
        )
        findings = preflight.judge(case)
        outcome["changed"] = False
        listed = [finding._asdict() for finding in findings]
        warnings = [finding.text() for finding in findings if finding.warning]
        if warnings:
            outcome["warnings"] = warnings
        if any(not finding.warning for finding in findings):
            outcome.update(failed=True, msg=preflight.message(findings))
            return {**outcome, "problems": listed} if self._display.verbosity else outcome
        return {**outcome, "problems": listed, "preflight": preflight.result(case, findings)}
