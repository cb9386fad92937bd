#!/usr/bin/python
"""Let a running workload prove that its state is whole."""

from __future__ import annotations

DOCUMENTATION = r"""
module: workload_verify
short_description: Let a running workload prove that its state is whole
description:
  - Writes a token to C(verify_request) in the working directory and waits for the program's own answer.
  - A proof that fails does not fail the module; look at RV(verified).
options:
  working_dir:
    description: Absolute path of the workload's directory.
    type: path
    required: true
  timeout:
    description: Seconds to wait for the answer.
    type: float
    default: 300.0
  supported:
    description: Whether the program can check itself. Where not, only its life is reported.
    type: bool
    default: true
  pid:
    description:
      - A process that runs already. Where it is the root of a workload that was started in the directory it works in
        (C(workload.pid) there names it) and can check itself, it is asked; of others only their life is reported.
    type: int
attributes:
  check_mode:
    support: none
    description: The program is not asked; RV(verified) is null.
author: criu.migrate contributors
"""

EXAMPLES = r"""
- name: Check every key
  workload_verify:
    working_dir: /srv/criu-migrate/demo
"""

RETURN = r"""
verified:
  description: Whether the state is whole; null where nobody can tell.
  type: bool
  returned: always
method:
  description: How it was checked.
  type: str
  returned: always
details:
  description: What was counted.
  type: dict
  returned: always
"""

from ansible.module_utils.basic import AnsibleModule

from ..module_utils.criu_migrate import workload
from ..module_utils.criu_migrate.errors import MigrationError


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "working_dir": {"type": "path"},
            "timeout": {"type": "float", "default": 300.0},
            "supported": {"type": "bool", "default": True},
            "pid": {"type": "int"},
        },
        required_one_of=[("working_dir", "pid")],
        supports_check_mode=True,
    )
    given = module.params
    try:
        if module.check_mode:
            module.exit_json(changed=False, verified=None, method="not asked in check mode", details={})
        if given["pid"] is not None:
            module.exit_json(changed=False, **workload.verify_process(given["pid"], given["timeout"]))
        answer = workload.verify(given["working_dir"], given["timeout"], given["supported"])
        module.exit_json(changed=False, **answer)
    except MigrationError as error:
        module.fail_json(msg=error.text(), **error.details)


if __name__ == "__main__":
    main()
