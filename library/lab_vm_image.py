#!/usr/bin/python
"""What the lab's virtual machines start from."""

from __future__ import annotations

DOCUMENTATION = r"""
module: lab_vm_image
short_description: The disk, the kernel and the snapshot that virtual machines of the lab start from
description:
  - Makes them, once, of the filled image that nodes of namespaces share, and of the distribution's kernel.
  - Finds out by a boot with a time limit whether KVM works here, takes emulation otherwise, and saves the booted
    machine, before it has seen a disk, as the snapshot that every machine starts from.
options:
  image:
    description: Folder of the filled image, as M(lab_host) says.
    type: path
    required: true
  memory:
    description: Memory of a machine in MiB.
    type: int
    default: 2048
  cpus:
    description: CPUs of a machine.
    type: int
    default: 1
attributes:
  check_mode:
    support: full
    description: Nothing is made or tried.
  idempotent:
    support: full
    description: A second run changes nothing.
author: criu.migrate contributors
"""

EXAMPLES = r"""
- name: Make what the machines start from
  lab_vm_image:
    image: "{{ host.image.path }}"
"""

RETURN = r"""
vm:
  description: The folder of all that, memory (MiB) and CPUs, for M(lab_network).
  type: dict
  returned: success
hardware:
  description: What works here, accelerator and snapshot.
  type: dict
  returned: unless in check mode
"""

from dataclasses import asdict
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ..module_utils.criu_migrate.errors import MigrationError
from ..module_utils.criu_migrate.lab_vm_image import VmImage


def present(image: str, memory: int, cpus: int, check: bool) -> dict[str, Any]:
    vm = VmImage(image)
    given = {"folder": vm.folder, "memory": memory, "cpus": cpus}
    built = not vm.exists()
    if check:
        return {"changed": built, "vm": given}
    if built:
        vm.build()
    tried, hardware = vm.hardware(memory, cpus)
    return {"changed": built or tried, "vm": given, "hardware": asdict(hardware)}


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "image": {"type": "path", "required": True},
            "memory": {"type": "int", "default": 2048},
            "cpus": {"type": "int", "default": 1},
        },
        supports_check_mode=True,
    )
    params = module.params
    try:
        module.exit_json(**present(params["image"], params["memory"], params["cpus"], module.check_mode))
    except MigrationError as error:
        module.fail_json(msg=error.text(), **error.details)


if __name__ == "__main__":
    main()
