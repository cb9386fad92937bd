#!/usr/bin/python
"""The module criu_images_info; its documentation is below, its work in module_utils."""

from __future__ import annotations

DOCUMENTATION = r"""
module: criu_images_info
short_description: Tell what a directory of images holds, and whether its process still runs
description:
  - Reads the note that M(criu_dump) leaves beside the images, and looks for the dumped process on this node.
options:
  images_dir:
    description: Directory of CRIU's images.
    type: path
    required: true
attributes:
  check_mode:
    support: full
    description: Does the same, as it changes nothing on the node.
  idempotent:
    support: full
    description: Never reports a change.
author: criu.migrate contributors
"""

EXAMPLES = r"""
- name: Look at the checkpoint
  criu_images_info:
    images_dir: /var/lib/checkpoints/app
  register: found

- name: Stop where the original still runs
  ansible.builtin.assert:
    that: not found.running
"""

RETURN = r"""
complete:
  description: The directory holds a finished dump.
  returned: success
  type: bool
id:
  description: Tells one dump from another, the same in every copy of it. Empty without a note of M(criu_dump).
  returned: success
  type: str
pid:
  description: PID of the root of the dumped tree, 0 when it is not known.
  returned: success
  type: int
leave:
  description: How the dump left the process, empty when it is not known.
  returned: success
  type: str
running:
  description: The very process that was dumped, told by PID and start time, is alive on this node and not stopped.
  returned: success
  type: bool
alive:
  description: As RV(running), but it may be stopped.
  returned: success
  type: bool
bytes:
  description: Size of the images, in bytes.
  returned: success
  type: int
"""

from ansible.module_utils.basic import AnsibleModule

from ..module_utils.criu_migrate import answering, folders


def main() -> None:
    module = AnsibleModule(
        argument_spec={"images_dir": {"type": "path", "required": True}},
        supports_check_mode=True,
    )
    answering.answer(module, lambda params, _check: {"changed": False, **folders.info(params["images_dir"])})


if __name__ == "__main__":
    main()
