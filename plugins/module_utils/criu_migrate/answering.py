"""How a module ends: with what its work returns, or with one failure of one shape."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from .errors import MigrationError

Answer = dict[str, Any]


def answer(module: AnsibleModule, act: Callable[[Answer, bool], Answer]) -> None:
    """End the module with what `act` returns for its parameters and for whether it runs in check mode."""
    try:
        module.exit_json(**act(module.params, module.check_mode))
    except MigrationError as error:
        module.fail_json(**failure(error))


def failure(error: MigrationError) -> Answer:
    """What fail_json gets: the message, and as returned values what is known so far (cmd, rc, log_tail, measured)."""
    return {**error.details, "msg": error.text(), "error": {"message": error.message, "remedy": error.remedy}}
