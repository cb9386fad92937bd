"""What the records of a run allow."""

from __future__ import annotations

DOCUMENTATION = r"""
name: migration_resolve
short_description: Decide from both records which copy is the process and what may be done
description:
  - Pure decision on the control node; changes nothing.
options:
  source:
    description: The source's record; empty where it has none or was not reached.
    type: dict
    default: {}
  destination:
    description: The destination's record, likewise.
    type: dict
    default: {}
  source_reachable:
    description: Whether the source answered.
    type: bool
    required: true
  fence:
    description: A person's word, V(source-is-dead).
    type: str
    default: ''
"""

EXAMPLES = r"""
- name: See what the records allow
  migration_resolve:
    source: "{{ source_record }}"
    destination: "{{ destination_record }}"
    source_reachable: true
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
                "source_reachable": {"type": "bool", "required": True},
                "fence": {"type": "str", "default": "", "choices": ["", "source-is-dead", "destination-is-dead"]},
            }
        )
        decided = resolve.decide(
            given["source"] or None, given["destination"] or None, given["source_reachable"], given["fence"]
        )
        return {**result, "changed": False, **decided}
