#!/usr/bin/python
"""The module migration_supersede; its documentation is below, its work in module_utils."""

from __future__ import annotations

DOCUMENTATION = r"""
module: migration_supersede
short_description: End what an earlier run of the same test workload left running on this node
description:
  - A migrated workload goes on running on the destination. When the same test workload is started anew, the
    earlier one may be in its way, by what O(key) names, or by its memory where the node has less than a quarter left.
  - Only workloads with made-up data that this project starts are ended, and only when their run has finished and its
    play has collected it, so that it is not being verified. C(command) and C(process) are never touched.
options:
  workload:
    description: Name of the workload that is about to be started.
    type: str
    required: true
  key:
    description:
      - Parameters that have to be the same for the earlier one to be in the way, like C(redis_port).
      - Without any it is in the way only where the node has little memory left.
    type: dict
    default: {}
  run_id:
    description: The run that is about to begin, which is left alone.
    type: str
    default: ''
attributes:
  check_mode:
    description: Reports what would be ended and ends nothing.
    support: full
  idempotent:
    description: A second call finds nothing.
    support: full
author: criu-migrate
"""

EXAMPLES = r"""
- name: End an earlier redis on the same port
  migration_supersede:
    workload: redis
    key:
      redis_port: 6379
"""

RETURN = r"""
ended:
  description: Names of the runs whose process was ended.
  returned: success
  type: list
unfinished:
  description:
    - C(run_id) and C(state) of runs whose record is not final, each of which may hold the only copy of a process, and
      of runs that have ended and that no play has collected.
  returned: success
  type: list
"""

from ansible.module_utils.basic import AnsibleModule

from ..module_utils.criu_migrate import supersede
from ..module_utils.criu_migrate.errors import MigrationError


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "workload": {"type": "str", "required": True},
            "key": {"type": "dict", "default": {}, "no_log": False},
            "run_id": {"type": "str", "default": ""},
        },
        supports_check_mode=True,
    )
    given = module.params
    try:
        found = supersede.find(given["workload"], given["key"], given["run_id"])
        open_runs = [] if module.check_mode else supersede.tidy(given["run_id"])
        if not module.check_mode:
            for data in found:
                supersede.end(data)
    except MigrationError as error:
        module.fail_json(msg=error.text(), error=error.as_dict())
    module.exit_json(changed=bool(found), ended=[data["run_id"] for data in found], unfinished=open_runs)


if __name__ == "__main__":
    main()
