"""How a module ends, as Ansible reads it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.testing import patch_module_args

from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate.answering import Answer, answer
from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate.errors import CriuError


def ended(capsys: pytest.CaptureFixture[str], act: Any, check: bool = False) -> tuple[int, dict[str, Any]]:
    """Exit code, and what the module has printed."""
    with patch_module_args({"name": "redis", "_ansible_check_mode": check}):
        module = AnsibleModule(argument_spec={"name": {"type": "str"}}, supports_check_mode=True)
        with pytest.raises(SystemExit) as caught:
            answer(module, act)
    printed: dict[str, Any] = json.loads(capsys.readouterr().out)
    return int(caught.value.code or 0), printed


@pytest.mark.parametrize("check", [True, False])
def test_what_the_work_returns(capsys: pytest.CaptureFixture[str], check: bool) -> None:
    def act(given: Answer, checked: bool) -> Answer:
        return {"changed": not checked, "moved": given["name"]}

    code, printed = ended(capsys, act, check)
    assert code == 0 and printed["changed"] is not check and printed["moved"] == "redis"


def test_a_failure_with_what_is_known(capsys: pytest.CaptureFixture[str]) -> None:
    def act(_given: Answer, _check: bool) -> Answer:
        raise CriuError("criu dump ended with 1.", "Look at its log.", {"rc": 1, "log_tail": "Error"})

    code, printed = ended(capsys, act)
    assert code == 1 and printed["failed"] and printed["msg"] == "criu dump ended with 1. Remedy: Look at its log."
    assert printed["error"] == {"message": "criu dump ended with 1.", "remedy": "Look at its log."}
    assert printed["rc"] == 1 and printed["log_tail"] == "Error"


def test_a_mistake_is_not_made_a_failure_of_the_migration(capsys: pytest.CaptureFixture[str]) -> None:
    def act(_given: Answer, _check: bool) -> Answer:
        raise KeyError("name")

    with pytest.raises(KeyError):
        ended(capsys, act)
