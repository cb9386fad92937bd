#!/usr/bin/python
"""The module criu_pre_dump; its documentation is below, its work in module_utils."""

from __future__ import annotations

DOCUMENTATION = r"""
module: criu_pre_dump
short_description: Dump the memory of a running process ahead of its dump
description:
  - Writes the memory of a process tree while it runs, so that a later M(criu_dump) with C(prev_images_dir) writes
    only what
    has changed since, and the process is frozen for a shorter time.
  - Needs a kernel that tracks changed pages. Where C(criu check --feature mem_dirty_track) says no, the module
    refuses and
    names the remedy, for there CRIU would crash and leave foreign memory maps in the process.
notes:
  - So far it has been shown only that the module refuses where the kernel cannot; that it works where the kernel can is
    shown by a later issue, on machines with such a kernel.
options:
  pid:
    description: Root of the process tree.
    type: int
    required: true
  prev_images_dir:
    description: The pre-dump before this one.
    type: path
  timeout:
    description: How long CRIU may take, in seconds; it is killed then.
    type: float
    default: 600
attributes:
  check_mode:
    support: full
    description: Returns the command in RV(cmd); makes no directory and does not touch the process. Refuses as always.
  idempotent:
    support: full
    description: Does nothing when O(images_dir) already holds a finished pre-dump of this very process.
extends_documentation_fragment:
  - criu.migrate.criu
  - criu.migrate.criu.options
  - criu.migrate.criu.pages
seealso:
  - module: criu_dump
"""

EXAMPLES = r"""
- name: Write the memory once while the process runs
  criu_pre_dump:
    pid: 4242
    images_dir: /dev/shm/app/1

- name: Write what has changed since
  criu_pre_dump:
    pid: 4242
    images_dir: /dev/shm/app/2
    prev_images_dir: /dev/shm/app/1
"""

RETURN = r"""
pid:
  description: PID of the root of the tree.
  returned: success
  type: int
leave:
  description: Always V(running).
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

from ..module_utils.criu_migrate import answering, steps


def main() -> None:
    module = AnsibleModule(
        argument_spec=steps.common_spec(
            pid={"type": "int", "required": True},
            prev_images_dir={"type": "path"},
            options={"type": "dict", "options": steps.OPTIONS_SPEC},
            page_server={"type": "dict", "options": steps.PAGES_SPEC},
        ),
        supports_check_mode=True,
    )
    answering.answer(module, steps.pre_dump)


if __name__ == "__main__":
    main()
