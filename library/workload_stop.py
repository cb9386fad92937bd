#!/usr/bin/python
"""End a workload and, if asked, remove its directory."""

from __future__ import annotations

DOCUMENTATION = r"""
module: workload_stop
short_description: End a workload and wait until its whole tree is gone
description:
  - Removes C(checkpoint_flag), which ends a workload, and waits; after O(grace) seconds sends SIGTERM, then SIGKILL.
  - Refuses to touch a tree that is stopped, as it may be the only copy during a migration, unless O(force).
options:
  working_dir:
    description: Absolute path of the workload's directory.
    type: path
    required: true
  grace:
    description: Seconds that the program gets to end by itself.
    type: float
    default: 10.0
  purge:
    description:
      - Remove the directory afterwards, if it was made for the workload.
      - Of one that was there before, only the files of the contract go.
    type: bool
    default: false
  force:
    description: End a stopped tree too.
    type: bool
    default: false
  result_file:
    description: Name of a JSON file in the directory that the program leaves; it is returned.
    type: str
    default: ""
attributes:
  check_mode:
    support: full
    description: Nothing is ended or removed.
  idempotent:
    support: full
    description: A workload that has ended is no change.
author: criu.migrate contributors
"""

EXAMPLES = r"""
- name: End the workload and remove its directory
  workload_stop:
    working_dir: /srv/criu-migrate/demo
    purge: true
"""

RETURN = r"""
signalled:
  description: PIDs that did not end by themselves.
  type: list
  elements: int
  returned: always
output:
  description: The end of the program's output.
  type: str
  returned: when the directory exists
result:
  description: Content of O(result_file), null where there is none.
  type: raw
  returned: with O(result_file)
"""

from ansible.module_utils.basic import AnsibleModule

from ..module_utils.criu_migrate import workload
from ..module_utils.criu_migrate.errors import MigrationError


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "working_dir": {"type": "path", "required": True},
            "grace": {"type": "float", "default": 10.0},
            "purge": {"type": "bool", "default": False},
            "force": {"type": "bool", "default": False},
            "result_file": {"type": "str", "default": ""},
        },
        supports_check_mode=True,
    )
    try:
        module.exit_json(**workload.stop(**module.params, check=module.check_mode))
    except MigrationError as error:
        module.fail_json(msg=error.text(), **error.details)


if __name__ == "__main__":
    main()
