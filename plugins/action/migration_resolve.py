"""What the records of a run allow."""

from __future__ import annotations

DOCUMENTATION = r"""
name: migration_resolve
short_description: Decide from both records which copy is the process and what may be done
description:
  - Pure decision on the control node; changes nothing.
options:
  found:
    description:
      - Name of the variable in which each host that was asked has what M(criu_guard) has found with V(state=present),
        also where it was not reached.
    type: str
    required: true
  fence:
    description: A person's word, V(source-is-dead) or V(destination-is-dead).
    type: str
    default: ''
"""

EXAMPLES = r"""
- name: See what the records allow
  migration_resolve:
    found: guard_found
  register: resolved
"""

RETURN = r"""
pair:
  description: The hosts that are C(source) and C(destination) of the run, by its records, else the groups' first.
  returned: success
  type: dict
found:
  description: What was found on C(source) and C(destination); empty where nobody was asked.
  returned: success
  type: dict
where:
  description: source, destination, nowhere or undecided.
  returned: success
  type: str
text:
  description: The same in words.
  returned: success
  type: str
states:
  description: How C(source) and C(destination) are, in words.
  returned: success
  type: dict
do:
  description: What may be done on C(source) and C(destination).
  returned: success
  type: dict
"""

from typing import Any

from ansible.plugins.action import ActionBase

from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate import resolve

FENCES = ["", "source-is-dead", "destination-is-dead"]


class ActionModule(ActionBase):
    """Works on the control node, without a connection."""

    TRANSFERS_FILES = False
    _requires_connection = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the decision."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        _validation, given = self.validate_argument_spec(
            {
                "found": {"type": "str", "required": True},
                "fence": {"type": "str", "default": "", "choices": FENCES},
            }
        )
        variables = task_vars or {}
        hosts, groups = variables.get("hostvars", {}), variables.get("groups", {})
        found = {name: dict(hosts[name].get(given["found"]) or {}) for name in groups.get("all", ())}
        usual = {role: groups[role][0] for role in resolve.ROLES if groups.get(role)}
        pair = resolve.pair(found, usual)
        nodes = {role: found.get(pair[role], {}) for role in resolve.ROLES}
        decided = resolve.decide(nodes["source"], nodes["destination"], given["fence"])
        words = resolve.states(**nodes)
        return {**result, "changed": False, "pair": pair, "found": nodes, "states": words, **decided}
