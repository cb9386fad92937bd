#!/usr/bin/python
"""One step in the making of the lab's image."""

from __future__ import annotations

DOCUMENTATION = r"""
module: lab_image
short_description: One step in the making of the root file system that the lab's nodes share
description:
  - The steps, in order, are V(unpacked), V(configured) (both only while the base is missing), V(filling), after which
    the project's own roles are run on the filling node, and V(sealed).
  - A half-made image is never taken; what a killed run left is removed by the next one.
options:
  state:
    description:
      - V(unpacked) fetches and unpacks a minimal Debian with debootstrap, V(configured) makes it a base.
      - V(filling) copies what the image starts from, and starts the copy as a host with sshd on a port of the loopback
        interface.
      - V(sealed) stops that host and gives the image its name in the cache.
    type: str
    choices: [unpacked, configured, filling, sealed]
    required: true
  image:
    description: Where it will lie and what it is made of, C(image) of M(lab_host).
    type: dict
    required: true
  authorized_key:
    description: Public SSH key of the filling node's user, for O(state=filling).
    type: str
    default: ""
attributes:
  check_mode:
    support: full
    description: Nothing is made.
  idempotent:
    support: full
    description: A second run changes nothing.
author: criu.migrate contributors
"""

EXAMPLES = r"""
- name: Unpack a minimal Debian
  lab_image:
    state: unpacked
    image: "{{ host.image }}"
"""

RETURN = r"""
port:
  description: Loopback port of the filling node's sshd.
  type: int
  returned: O(state=filling)
host_key:
  description: Public host key of the filling node's sshd.
  type: str
  returned: O(state=filling)
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ..module_utils.criu_migrate.errors import MigrationError
from ..module_utils.criu_migrate.lab_cache import Image
from ..module_utils.criu_migrate.lab_image import Builder


def step(state: str, image: Image, authorized_key: str, check: bool) -> dict[str, Any]:
    builder = Builder(image)
    # another run may have finished its copy meanwhile: ours is then filled and thrown away
    done = not builder.filled() if state == "sealed" else state != "filling" and image.start_exists()
    if done or check:
        return {"changed": not done}
    if state == "unpacked":
        builder.unpack()
    elif state == "configured":
        builder.configure()
    elif state == "filling":
        builder.copy_start()
        return {"changed": True, **builder.fill(authorized_key)}
    else:
        builder.seal()
    return {"changed": True}


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "required": True, "choices": ["unpacked", "configured", "filling", "sealed"]},
            "image": {"type": "dict", "required": True},
            "authorized_key": {"type": "str", "default": "", "no_log": False},
        },
        supports_check_mode=True,
    )
    params = module.params
    try:
        image = Image(**params["image"])
        module.exit_json(**step(params["state"], image, params["authorized_key"], module.check_mode))
    except MigrationError as error:
        module.fail_json(msg=error.text(), **error.details)


if __name__ == "__main__":
    main()
