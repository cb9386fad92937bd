#!/usr/bin/python
"""Start a workload on a node, detached, and wait until it serves."""

from __future__ import annotations

DOCUMENTATION = r"""
module: workload_start
short_description: Start a workload detached and wait until it serves
description:
  - Makes the working directory, writes the workload's programs there, and starts O(argv) in a session of its own, with
    stdin from /dev/null and its output in C(output.log) of the working directory, as an ordinary user.
  - Creates C(checkpoint_flag), whose absence ends a workload, and waits for C(checkpoint_ready).
  - Fails at once, with the program's last words, where the program ends before it is ready.
  - With O(pid) nothing is started; the process is only looked at.
options:
  working_dir:
    description: Absolute path of the workload's directory, the same on every node. Required unless O(pid) is given.
    type: path
  argv:
    description: The program and its arguments. No shell is involved.
    type: list
    elements: str
  command:
    description: The same as one line, split as a shell would, in place of O(argv).
    type: str
  programs:
    description: Files to write into O(working_dir) first, name to content.
    type: dict
    default: {}
  user:
    description: Account that runs the workload. By default the one that became root by sudo.
    type: str
    default: ""
  wait_ready:
    description: Wait for the ready signal. Without, the program is only watched for half a second.
    type: bool
    default: true
  ready_timeout:
    description: Seconds to wait for the ready signal; the program is killed after them.
    type: float
    default: 60.0
  verifies:
    description: Whether the program can check itself; noted, so that a later run which moves it on knows it too.
    type: bool
    default: false
  pid:
    description: A process that runs already, in place of O(argv).
    type: int
attributes:
  check_mode:
    support: full
    description: Nothing is written or started.
  idempotent:
    support: full
    description: A workload that runs already in O(working_dir) is left alone.
author: criu.migrate contributors
"""

EXAMPLES = r"""
- name: Start a program that says when it is ready
  workload_start:
    working_dir: /srv/criu-migrate/demo
    argv: [python3, app.py, --working_dir, /srv/criu-migrate/demo]
    programs:
      app.py: "{{ lookup('ansible.builtin.file', 'app.py') }}"
"""

RETURN = r"""
pid:
  description: Root of the process tree and leader of its session.
  type: int
  returned: always, null in check mode
start_ticks:
  description: Its start time in clock ticks since boot, see proc_pid_stat(5); tells it from a later one of that PID.
  type: int
  returned: when it runs
ready_seconds:
  description: Seconds from the start to the ready signal; null without O(wait_ready).
  type: float
  returned: when it was started
since:
  description: When the last migration of a process that ran already let it go on, seconds since 1970; null if none did.
  type: float
  returned: when it was not started
user:
  description: Account that runs it.
  type: str
  returned: always
working_dir:
  description: Its directory; null with O(pid).
  type: str
  returned: always
"""

from ansible.module_utils.basic import AnsibleModule

from ..module_utils.criu_migrate import workload, workload_start
from ..module_utils.criu_migrate.errors import MigrationError


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "working_dir": {"type": "path"},
            "argv": {"type": "list", "elements": "str"},
            "command": {"type": "str"},
            "programs": {"type": "dict", "default": {}},
            "user": {"type": "str", "default": ""},
            "wait_ready": {"type": "bool", "default": True},
            "ready_timeout": {"type": "float", "default": 60.0},
            "verifies": {"type": "bool", "default": False},
            "pid": {"type": "int"},
        },
        required_one_of=[("argv", "command", "pid")],
        mutually_exclusive=[("argv", "command", "pid")],
        required_by={"argv": ["working_dir"], "command": ["working_dir"]},
        supports_check_mode=True,
    )
    given = dict(module.params)
    try:
        pid, command = given.pop("pid"), given.pop("command")
        if pid is not None:
            module.exit_json(**workload.adopt(pid))
        if command is not None:
            given["argv"] = workload_start.words(command)
        module.exit_json(**workload_start.start(**given, check=module.check_mode))
    except MigrationError as error:
        module.fail_json(msg=error.text(), **error.details)


if __name__ == "__main__":
    main()
