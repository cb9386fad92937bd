#!/usr/bin/python
"""The module criu_dump; its documentation is below, its work in module_utils."""

from __future__ import annotations

DOCUMENTATION = r"""
module: criu_dump
short_description: Dump a process tree with CRIU
description:
  - Writes the state of a process and all its children to images, from which M(criu_restore) brings it back.
  - Unless the process is to be left running, the whole tree is stopped with SIGSTOP before the dump. So nothing that
    may
    happen to CRIU can set it going again, and there are never two running copies.
  - When anything fails the process runs on as before; sockets, network lock and images of the attempt are cleaned up.
options:
  pid:
    description: Root of the process tree.
    type: int
    required: true
  leave:
    description:
      - What becomes of the process once the dump has succeeded.
      - V(stopped) leaves it frozen, its connections locked by CRIU. Run the module again with V(running) or V(killed).
      - V(running) lets it run on. The images are then a copy of the past.
      - V(killed) ends it, only after success. Where it had connections, CRIU's nftables table stays until the
        restore, so
        that nobody tells the peers that the connection is gone.
    type: str
    choices: [stopped, running, killed]
    default: stopped
  track_mem:
    description: Start tracking changed pages. Always on with O(prev_images_dir); refused where the kernel cannot.
    type: bool
    default: false
  prev_images_dir:
    description: The pre-dump before this one, of which only what has changed since is written.
    type: path
  timeout:
    description: How long CRIU may take, in seconds; it is killed then.
    type: float
    default: 600
attributes:
  check_mode:
    support: full
    description: Returns the command in RV(cmd); makes no directory and does not touch the process.
  idempotent:
    support: full
    description: Does nothing when O(images_dir) already holds a finished dump of this very process, told by PID and
      start time.
extends_documentation_fragment:
  - criu.migrate.criu
  - criu.migrate.criu.options
  - criu.migrate.criu.pages
seealso:
  - module: criu_restore
"""

EXAMPLES = r"""
- name: Freeze the process into its images
  criu_dump:
    pid: 4242
    images_dir: /var/lib/checkpoints/app
  register: dumped

- name: Let it run on after all
  criu_dump:
    pid: 4242
    images_dir: /var/lib/checkpoints/app
    leave: running

- name: Send the memory straight to another node, encrypted
  criu_dump:
    pid: 4242
    images_dir: /dev/shm/app
    page_server:
      address: 10.77.5.11
      port: 27015
      tls:
        ca: /etc/criu-migrate/ca.pem
        cert: /etc/criu-migrate/cert.pem
        key: /etc/criu-migrate/key.pem
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
            leave={"type": "str", "choices": ["stopped", "running", "killed"], "default": "stopped"},
            track_mem={"type": "bool", "default": False},
            prev_images_dir={"type": "path"},
            options={"type": "dict", "options": steps.OPTIONS_SPEC},
            page_server={"type": "dict", "options": steps.PAGES_SPEC},
        ),
        supports_check_mode=True,
    )
    answering.answer(module, steps.dump)


if __name__ == "__main__":
    main()
