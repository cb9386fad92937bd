#!/usr/bin/python
"""The module criu_restore; its documentation is below, its work in module_utils."""

from __future__ import annotations

DOCUMENTATION = r"""
module: criu_restore
short_description: Bring a process tree back from its images with CRIU
description:
  - The process comes back under its old PIDs, which have to be free, with the files that it had open at the same
    paths and
    of the same sizes.
  - A process that the dump had frozen runs again with O(leave=running), except those parts that were stopped before.
  - The module cannot see other nodes. Make sure that the original does not run there any more.
  - When anything fails, CRIU ends what it had begun to restore.
options:
  leave:
    description:
      - V(stopped) restores without letting the process run; run the module again with V(running) to set it going.
      - V(stopped) never stops a restored process that runs already.
    type: str
    choices: [stopped, running]
    default: running
  lazy_pages:
    description:
      - Restore without the memory; the daemon of M(criu_lazy_pages), started before with the same O(work_dir),
        brings it on
        demand.
    type: bool
    default: false
  pidfile:
    description: File for the PID of the root. The default is C(restore.pid) in O(work_dir).
    type: path
  timeout:
    description: How long CRIU may take, in seconds; it is killed then.
    type: float
    default: 600
attributes:
  check_mode:
    support: full
    description: Returns the command in RV(cmd) and finds missing images and taken PIDs; changes nothing.
  idempotent:
    support: full
    description: Does nothing when the process that was restored in this O(work_dir) still lives, told by PID and
      start time.
extends_documentation_fragment:
  - criu.migrate.criu
  - criu.migrate.criu.options
seealso:
  - module: criu_dump
  - module: criu_lazy_pages
"""

EXAMPLES = r"""
- name: Bring the process back
  criu_restore:
    images_dir: /var/lib/checkpoints/app
  register: restored

- name: Bring it back within milliseconds, its memory on demand
  criu_restore:
    images_dir: /var/lib/checkpoints/app
    work_dir: /run/app
    lazy_pages: true
"""

RETURN = r"""
pid:
  description: PID of the root of the tree.
  returned: success
  type: int
leave:
  description: How the process was left.
  returned: success
  type: str
pidfile:
  description: File that holds the PID.
  returned: success
  type: str
cmd:
  description: The command line of CRIU that ran, or that would run in check mode.
  returned: always, as far as it is known
  type: list
  elements: str
rc:
  description: Exit code of CRIU; negative for a signal.
  returned: when CRIU ran
  type: int
log:
  description: Path of CRIU's log on the node.
  returned: when CRIU ran
  type: str
log_tail:
  description: The last lines of that log, and before them the errors of the part left out.
  returned: when CRIU ran, also on failure
  type: str
seconds:
  description: Wall time of the command, in seconds.
  returned: when CRIU ran
  type: float
stats:
  description: CRIU's own statistics by C(dump) and C(restore); times in seconds, sizes in pages.
  returned: when CRIU ran
  type: dict
bytes:
  description: Size of the images in O(images_dir), in bytes. Pages that went to a page server are not among them.
  returned: when CRIU ran
  type: int
pids:
  description: PIDs of the tree, the root first.
  returned: success
  type: list
  elements: int
error:
  description: C(message) and C(remedy) of a failure.
  returned: failure
  type: dict
measured:
  description: What had been measured until a failure; as RV(stats), RV(seconds), RV(bytes) and RV(pids).
  returned: failure of CRIU
  type: dict
"""

from ansible.module_utils.basic import AnsibleModule

from ..module_utils.criu_migrate import answering, restoring, steps


def main() -> None:
    module = AnsibleModule(
        argument_spec=steps.common_spec(
            leave={"type": "str", "choices": ["stopped", "running"], "default": "running"},
            lazy_pages={"type": "bool", "default": False},
            pidfile={"type": "path"},
            options={"type": "dict", "options": steps.OPTIONS_SPEC},
        ),
        supports_check_mode=True,
    )
    answering.answer(module, restoring.restore)


if __name__ == "__main__":
    main()
