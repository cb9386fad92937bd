"""Wait for a node's notice, for as long as it takes, whatever becomes of the connection meanwhile."""

from __future__ import annotations

DOCUMENTATION = r"""
name: migration_notice
short_description: Wait until a node's cloud announces its end
description:
  - Asks M(criu_watch) again and again, each time for O(every) seconds, and says what changes. A node that cannot be
    reached is tried again without end.
  - Returns when there is a notice, when O(seconds) have passed, or when what is registered for an evacuation has
    changed.
options:
  seconds:
    description:
      - How long to wait; 0 waits without end.
      - A node that cannot be reached then is waited for, as what follows needs it.
    type: float
    default: 0
  at_most:
    description: Seconds after which a node that cannot be reached is given up; 0 never does.
    type: float
    default: 0
  every:
    description: Seconds of one question to the node. A connection that is lost is noticed after as long.
    type: float
    default: 20
  hints:
    description: Whether a rebalance recommendation is a notice.
    type: bool
    default: false
  once:
    description: Only look whether there is a notice now.
    type: bool
    default: false
  registered:
    description: What was registered when M(criu_evacuate) last looked; '' where that does not matter.
    type: str
    default: ""
"""

EXAMPLES = r"""
- name: Wait for the notice
  migration_notice:
    seconds: 3600
  register: watch_waited
"""

RETURN = r"""
notice:
  description: The notice, as M(criu_watch) returns it; null where none came.
  returned: success
  type: dict
registered:
  description: Stands for what is registered; changes with it.
  returned: success
  type: str
stale:
  description: What is registered differs from O(registered).
  returned: success
  type: bool
"""

import contextlib
from typing import Any

from ansible.errors import AnsibleActionFail, AnsibleConnectionFailure
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate.awaiting import Lost, Wait

MODULE = "criu_watch"
FAILURES = 5  # of the module in a row, without a word of its own: the connection died under it, or Python is gone
ARGUMENTS: dict[str, dict[str, Any]] = {
    "seconds": {"type": "float", "default": 0.0},
    "at_most": {"type": "float", "default": 0.0},
    "every": {"type": "float", "default": 20.0},
    "hints": {"type": "bool", "default": False},
    "once": {"type": "bool", "default": False},
    "registered": {"type": "str", "default": ""},
}


class ActionModule(ActionBase):
    """One task that outlives its connections."""

    TRANSFERS_FILES = False
    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the notice, or what has ended the wait."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        _validation, given = self.validate_argument_spec(ARGUMENTS)
        variables = task_vars or {}
        node, self._failed = str(variables.get("inventory_hostname", "")), 0

        def ask(seconds: float) -> dict[str, Any]:
            return self._ask(node, {"state": "noticed", "seconds": seconds, "hints": given["hints"]}, variables)

        wait = Wait(node, ask, lambda text: Display().display(f"... {text}"))
        once = given["once"] or self._task.check_mode
        found = wait.until(given["seconds"], given["at_most"], given["every"], given["registered"], once)
        return {**result, "changed": False, **found}

    def _ask(self, node: str, arguments: dict[str, Any], variables: dict[str, Any]) -> dict[str, Any]:
        """What the node says within so many seconds. Lost where nothing comes."""
        try:
            found: dict[str, Any] = self._execute_module(MODULE, module_args=arguments, task_vars=variables)
        except AnsibleConnectionFailure as error:
            self._hang_up()
            raise Lost(str(error).strip().splitlines()[-1]) from error
        if found.get("failed") and "error" not in found:
            self._failed += 1
            self._hang_up()
            text = str(found.get("module_stderr") or found.get("msg") or "no word").strip()
            if self._failed >= FAILURES:
                raise AnsibleActionFail(f"{node} cannot be asked for its notice: {text[-500:]}")
            raise Lost(text.splitlines()[-1] if text else "no word")
        self._failed = 0
        return found

    def _hang_up(self) -> None:
        """The next try makes a connection of its own, also where an old one is shared (ControlPersist)."""
        with contextlib.suppress(Exception):
            self._connection.reset()
