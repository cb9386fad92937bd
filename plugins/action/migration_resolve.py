"""What the records of a run allow."""

from __future__ import annotations

DOCUMENTATION = r"""
name: migration_resolve
short_description: Decide from both records which copy is the process and what may be done
description:
  - Pure decision on the control node; changes nothing.
options:
  source:
    description: What M(criu_guard) has found on the source with V(state=present), also where it was not reached.
    type: dict
    default: {}
  destination:
    description: The same of the destination.
    type: dict
    default: {}
  fence:
    description: A person's word, V(source-is-dead) or V(destination-is-dead).
    type: str
    default: ''
"""

EXAMPLES = r"""
- name: See what the records allow
  migration_resolve:
    source: "{{ found_on_source }}"
    destination: "{{ found_on_destination }}"
  register: resolved
"""

RETURN = r"""
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


class ActionModule(ActionBase):
    """Works on the control node, without a connection."""

    TRANSFERS_FILES = False
    _requires_connection = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the decision."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        _validation, given = self.validate_argument_spec(
            {
                "source": {"type": "dict", "default": {}},
                "destination": {"type": "dict", "default": {}},
                "fence": {"type": "str", "default": "", "choices": ["", "source-is-dead", "destination-is-dead"]},
            }
        )
        decided = resolve.decide(given["source"], given["destination"], given["fence"])
        words = resolve.states(source=given["source"], destination=given["destination"])
        return {**result, "changed": False, "states": words, **decided}
