#!/usr/bin/python
"""What a preflight has to know about a node and about the process tree that is to move."""

from __future__ import annotations

DOCUMENTATION = r"""
module: criu_inspect
short_description: Look at a node, and at a process tree or at what it would meet there
description:
  - On the source it looks at the node and, with O(pid), at everything that CRIU would meet in that process tree.
  - On the destination it looks at the node and, with O(source), holds the source's facts against what is there.
  - Judges nothing; M(criu.migrate.migration_preflight) does, with the facts of both nodes.
options:
  pid:
    description: Root of the process tree on this node; 0 while it is not started.
    type: int
    default: 0
  source:
    description: C(cpu) and C(tree), as this module found them on the source; makes this node the destination.
    type: dict
  roots:
    description: Paths that travel along with the process.
    type: list
    elements: path
    default: []
  contract:
    description:
      - Add the directory that the process works in to O(roots) where it is the root of a workload that was started
        there, and name it as RV(tree.working_dir).
    type: bool
    default: false
  image_dir:
    description: Directory for CRIU's images where the user named one, to look at its space; it need not exist.
    type: path
    default: ''
  wanted:
    description:
      - What the destination has to offer, C(service_address), C(service_interface), C(working_dir) and
        C(ports) (first and last).
    type: dict
    default: {}
  control_clock:
    description: Time of the control node in seconds since 1970, to compare clocks roughly.
    type: float
    default: 0.0
attributes:
  check_mode:
    description: Does the same, as it changes nothing on the node.
    support: full
  idempotent:
    description: Never reports a change.
    support: full
author: criu.migrate contributors
"""

EXAMPLES = r"""
- name: Look at the source and at the process
  criu_inspect:
    pid: 4242
    roots: [/srv/app]
  register: source

- name: Look at the destination
  criu_inspect:
    source:
      cpu: "{{ source.node.cpu }}"
      tree: "{{ source.tree }}"
    wanted:
      working_dir: /srv/app
      ports: [27000, 27999]
  delegate_to: "{{ groups['destination'] | first }}"
"""

RETURN = r"""
node:
  description:
    - C(criu) (as M(criu.migrate.criu_check) returns it), C(kernel), C(arch), C(python), C(identity), C(cpu), C(clock),
      C(capabilities), C(missing_commands), C(memory) and C(space) (bytes), C(addresses), C(pid_max).
  returned: always
  type: dict
tree:
  description:
    - C(found), C(start) (clock ticks), C(procs), C(tasks), C(memory) (bytes), C(files), C(sockets), C(unsupported),
      C(terminals), C(outside_session), C(pipes_outside), C(sysv), C(working_dir) (see O(contract)).
      Only C(pid), C(found) and C(why) where there is none.
  returned: with O(pid)
  type: dict
there:
  description:
    - C(files) that are missing or differ, C(pids_taken), C(ports_taken), C(unix_missing), C(free_port),
      C(working_dir), C(service), C(cpu_complaint).
  returned: with O(source)
  type: dict
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ..module_utils.criu_migrate import inspect_destination, inspect_node, inspect_source, workload
from ..module_utils.criu_migrate.errors import MigrationError


def look(params: dict[str, Any]) -> dict[str, Any]:
    node = inspect_node.look(params["image_dir"], params["control_clock"])
    found: dict[str, Any] = {"node": node}
    if params["pid"]:
        folder = workload.contract_of(params["pid"]) if params["contract"] else None
        roots = [*params["roots"], *([str(folder)] if folder else [])]
        found["tree"] = {**inspect_source.look(params["pid"], roots), "working_dir": str(folder or "")}
    if params["source"]:
        cpu, tree = params["source"].get("cpu") or {}, params["source"].get("tree") or {}
        found["there"] = inspect_destination.look(cpu, tree, params["wanted"], node["criu"]["path"])
    return found


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "pid": {"type": "int", "default": 0},
            "source": {"type": "dict"},
            "roots": {"type": "list", "elements": "path", "default": []},
            "contract": {"type": "bool", "default": False},
            "image_dir": {"type": "path", "default": ""},
            "wanted": {"type": "dict", "default": {}},
            "control_clock": {"type": "float", "default": 0.0},
        },
        supports_check_mode=True,
    )
    try:
        module.exit_json(changed=False, **look(module.params))
    except (MigrationError, OSError) as error:
        module.fail_json(msg=error.text() if isinstance(error, MigrationError) else f"The preflight: {error}")


if __name__ == "__main__":
    main()
