#!/usr/bin/python
"""What the CRIU of this node can do."""

from __future__ import annotations

DOCUMENTATION = r"""
module: criu_check
short_description: Tell what the CRIU of this node can do, by trying
description:
  - Runs C(criu check), asks for single features, and dumps a small process of its own that listens on a TCP socket.
    Some versions of CRIU pass the check and still cannot dump a socket on a newer kernel.
  - Only the protocol of the page server cannot be tried, so a CRIU before 4.2 is told by its version.
  - Never fails because CRIU is missing or does not work; look at RV(ok) and RV(reason).
options:
  features:
    description: Names for C(criu check --feature).
    type: list
    elements: str
    default: [mem_dirty_track, uffd-noncoop, network_lock_nftables, timens, pidfd_store]
  trial:
    description: Make the trial dump. Its process and its directory are gone afterwards.
    type: bool
    default: true
  commands:
    description: Other commands that must be there; RV(missing_commands) has those that are not.
    type: list
    elements: str
    default: []
  sysctls:
    description: Kernel settings to compare; RV(sysctls) has those that differ.
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description: Name of the setting, for instance V(fs.pipe-max-size).
        type: str
        required: true
      value:
        description: The value it must have.
        type: int
        required: true
      at_least:
        description: A higher value is as good.
        type: bool
        default: false
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
- name: Look at CRIU
  criu_check:
    features: [mem_dirty_track]
    commands: [nft]
  register: found

- name: Stop unless it works
  ansible.builtin.assert:
    that: found.ok
    fail_msg: "{{ found.reason }}"
"""

RETURN = r"""
ok:
  description: CRIU 4.2 or later is installed, C(criu check) passes and the trial dump, if made, succeeded.
  type: bool
  returned: always
reason:
  description: Why RV(ok) is false, empty if it is true.
  type: str
  returned: always
installed:
  description: There is a criu on this node.
  type: bool
  returned: always
binary:
  description: Path of CRIU.
  type: str
  returned: always
version:
  description: CRIU's version, empty without CRIU.
  type: str
  returned: always
  sample: 4.2.1
git_id:
  description: The commit it was built from, empty where the build does not say.
  type: str
  returned: always
kernel:
  description: Release of the running kernel.
  type: str
  returned: always
check:
  description: Exit code and last lines of C(criu check).
  type: dict
  returned: always, empty without CRIU
features:
  description: For each of O(features) whether kernel and CRIU offer it.
  type: dict
  returned: always, empty unless C(criu check) passes
trial:
  description: C(dumpable), C(rc) and C(seconds) of the trial dump; if it failed, C(reason) and C(log_tail).
  type: dict
  returned: always, empty where it was not made
missing_commands:
  description: Those of O(commands) that are not on this node.
  type: list
  elements: str
  returned: always
sysctls:
  description: Settings that differ from O(sysctls), each with C(value), the one wanted, and C(current).
  type: dict
  returned: always
"""

from ansible.module_utils.basic import AnsibleModule

from ..module_utils.criu_migrate import probe
from ..module_utils.criu_migrate.errors import MigrationError

SYSCTL = {
    "name": {"type": "str", "required": True},
    "value": {"type": "int", "required": True},
    "at_least": {"type": "bool", "default": False},
}


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "features": {"type": "list", "elements": "str", "default": list(probe.FEATURES)},
            "trial": {"type": "bool", "default": True},
            "commands": {"type": "list", "elements": "str", "default": []},
            "sysctls": {"type": "list", "elements": "dict", "default": [], "options": SYSCTL},
        },
        supports_check_mode=True,
    )
    params = module.params
    try:
        found = probe.look(params["features"], params["trial"])
    except MigrationError as error:
        module.fail_json(msg=error.text(), **error.details)
    found["binary"] = found.pop("path")  # Ansible would add owner and mode to a "path"
    found["missing_commands"] = probe.missing_commands(params["commands"])
    found["sysctls"] = probe.low_settings(params["sysctls"])
    module.exit_json(changed=False, **found)


if __name__ == "__main__":
    main()
