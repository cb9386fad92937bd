#!/usr/bin/python
"""The module criu_lazy_pages; its documentation is below, its work in module_utils."""

from __future__ import annotations

DOCUMENTATION = r"""
module: criu_lazy_pages
short_description: Start or stop the daemon that brings a restored process its memory on demand
description:
  - The daemon has to run before M(criu_restore) with C(lazy_pages=true), with the same O(work_dir). It takes the
    memory from
    O(images_dir), without any network, or from O(page_server), and ends when all of it is there. It is ready when
    the module returns, and lives on in a session of its own.
  - Never kill the daemon while it still fills a process. The process dies with it, or reads zeros where its memory was.
  - The process must not be dumped again before the daemon has ended.
notes:
  - O(page_server) is for images of C(criu dump --lazy-pages), whose own page server still holds the memory. That is
    post-copy. A link that is cut, or a daemon that dies, then costs the process. The guards' post-copy
    (C(migration_strategy=postcopy)) survives both.
options:
  state:
    description:
      - V(started) starts the daemon unless that of this O(work_dir) runs.
      - V(stopped) waits for its end, at most O(timeout) seconds, and fails when it has not come by then or the
        daemon has failed.
    type: str
    choices: [started, stopped]
    default: started
  force:
    description: Kill the daemon when O(timeout) has passed. See above what that does to the process.
    type: bool
    default: false
  timeout:
    description: How long to wait until it is ready, or for its end, in seconds.
    type: float
    default: 60
attributes:
  check_mode:
    support: full
    description: Returns the command in RV(cmd), without C(--status-fd); starts and stops nothing.
  idempotent:
    support: full
    description: A daemon that runs, or one that has ended, is left as it is.
extends_documentation_fragment:
  - criu.migrate.criu
  - criu.migrate.criu.pages
seealso:
  - module: criu_restore
"""

EXAMPLES = r"""
- name: Stand ready with the memory
  criu_lazy_pages:
    images_dir: /dev/shm/app
    work_dir: /run/app

- name: Bring the process back
  criu_restore:
    images_dir: /dev/shm/app
    work_dir: /run/app
    lazy_pages: true

- name: Wait until all of its memory is there
  criu_lazy_pages:
    images_dir: /dev/shm/app
    work_dir: /run/app
    state: stopped
"""

RETURN = r"""
pid:
  description: PID of criu.
  returned: when there is or was one
  type: int
pages:
  description: Pages C(transferred) and C(total), as CRIU's log counts them.
  returned: O(state=stopped)
  type: dict
killed:
  description: It had to be killed.
  returned: O(state=stopped)
  type: bool
bytes:
  description: Size of the memory images in O(images_dir), in bytes.
  returned: success
  type: int
seconds:
  description: How long it ran, in seconds.
  returned: O(state=stopped)
  type: float
stderr:
  description: What CRIU said outside its log.
  returned: O(state=stopped)
  type: str
cmd:
  description: The command line of CRIU that ran, or that would run in check mode.
  returned: always, as far as it is known
  type: list
  elements: str
rc:
  description: Exit code of CRIU, where it has ended by itself.
  returned: O(state=stopped) and RV(killed=false), or failure
  type: int
log:
  description: Path of CRIU's log on the node.
  returned: when CRIU ran
  type: str
log_tail:
  description: The last lines of that log, and before them the errors of the part left out.
  returned: when CRIU ran, also on failure
  type: str
error:
  description: C(message) and C(remedy) of a failure.
  returned: failure
  type: dict
"""

from ansible.module_utils.basic import AnsibleModule

from ..module_utils.criu_migrate import answering, daemons, steps


def main() -> None:
    module = AnsibleModule(
        argument_spec=steps.common_spec(
            timeout={"type": "float", "default": 60.0},
            state={"type": "str", "choices": ["started", "stopped"], "default": "started"},
            force={"type": "bool", "default": False},
            page_server={"type": "dict", "options": steps.PAGES_SPEC},
        ),
        supports_check_mode=True,
    )
    answering.answer(module, daemons.lazy_pages)


if __name__ == "__main__":
    main()
