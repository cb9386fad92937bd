#!/usr/bin/python
"""Let strace catch what a running workload writes."""

from __future__ import annotations

DOCUMENTATION = r"""
module: workload_trace
short_description: Attach strace to a running workload, or detach it
description:
  - The seed documents' way of catching a program's output, C(output_capture=strace).
  - strace writes to the run's directory on the node, C(criu_guard state=collected) brings it. It leaves the process
    at a limit by itself, and when a guard is about to freeze the process, which could not be dumped otherwise.
options:
  run_id:
    description: Name of the run.
    type: str
    required: true
  phase:
    description: Before the dump, on the source, or after the restore, on the destination.
    type: str
    choices: [pre_dump, post_restore]
    required: true
  state:
    description: V(absent) detaches it and returns when it is gone.
    type: str
    choices: [present, absent]
    default: present
  pid:
    description: Root of the tree, for O(state=present).
    type: int
  seconds:
    description: Seconds after which it leaves by itself.
    type: float
    default: 600
attributes:
  check_mode:
    support: full
    description: Nothing is attached.
  idempotent:
    support: full
    description: Where it is attached already it stays.
author: criu.migrate contributors
"""

EXAMPLES = r"""
- name: Catch six seconds of output
  workload_trace:
    run_id: redis-20261121-031500-4f2a
    phase: post_restore
    pid: 4242
    seconds: 6
"""

RETURN = r"""
attached:
  description: Whether strace is attached now.
  type: bool
  returned: always
"""

from ansible.module_utils.basic import AnsibleModule

from ..module_utils.criu_migrate import record, tracing
from ..module_utils.criu_migrate.errors import MigrationError


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "run_id": {"type": "str", "required": True},
            "phase": {"type": "str", "required": True, "choices": list(tracing.PHASES)},
            "state": {"type": "str", "default": "present", "choices": ["present", "absent"]},
            "pid": {"type": "int"},
            "seconds": {"type": "float", "default": tracing.LEASE},
        },
        required_if=[("state", "present", ["pid"])],
        supports_check_mode=True,
    )
    given = module.params
    wanted = given["state"] == "present"
    if module.check_mode:
        there = bool(tracing.noted(record.run_dir(given["run_id"]), given["phase"]))
        module.exit_json(changed=wanted != there, attached=wanted)
    try:
        if wanted:
            changed = tracing.begin(given["run_id"], given["phase"], given["pid"], given["seconds"])
        else:
            changed = tracing.end(record.run_dir(given["run_id"]), given["phase"])
    except MigrationError as error:
        module.fail_json(msg=error.text(), error=error.as_dict())
    module.exit_json(changed=changed, attached=wanted)


if __name__ == "__main__":
    main()
