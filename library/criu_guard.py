#!/usr/bin/python
"""The module criu_guard; its documentation is below, its work in module_utils."""

from __future__ import annotations

DOCUMENTATION = r"""
module: criu_guard
short_description: Arm, start, watch and collect the guard of a migration on one node
description:
  - A guard is a small program in a session of its own. The guards on the source and on the destination carry a
    migration out between them, so that no Ansible task lies between freeze and thaw and nothing depends on the
    control node staying alive.
  - Each guard keeps a record in C(/var/lib/criu-migrate/RUN_ID/record.json). The source's record decides which copy
    of the process may run.
options:
  run_id:
    description: Name of the run; directories, ports and nftables tables are derived from it.
    type: str
    required: true
  state:
    description:
      - V(armed) lays out the run's directory, starts the destination's guard and returns its port; on the source it
        leaves the guard ready to be started.
      - V(started) starts the guard from its record (again).
      - V(watched) waits until the record is final or O(seconds) have passed; starts a guard that was killed again.
      - V(present) only reads the record.
      - V(collected) returns the record, CRIU's statistics and all logs.
      - V(undone), on the destination only, ends its guard and removes the copy that never ran.
      - V(fenced) lets this node's stopped copy run on a person's word that the other node's is dead.
      - V(absent) removes keys, images, logs and the guard of a finished run; the record stays.
    type: str
    choices: [armed, started, watched, present, collected, undone, fenced, absent]
    required: true
  config:
    description: The guard's configuration, for O(state=armed); see docs/guards.md.
    type: dict
    default: {}
  tls:
    description: PEM texts C(ca), C(cert) and C(key) made for this one run.
    type: dict
    default: {}
  watch:
    description:
      - With O(state=started), then watch as O(state=watched) does, in the same task. The start of a second task would
        processor time from the dump that is under way.
    type: bool
    default: false
  from_state:
    description: With O(state=watched), return as soon as the record has left this state.
    type: str
    default: ''
  seconds:
    description: How long O(state=watched) waits at most, in seconds.
    type: float
    default: 600
attributes:
  check_mode:
    description: Nothing is written or started in check mode; reading states work as always.
    support: full
  idempotent:
    description: Arming, starting and removing twice changes nothing the second time.
    support: full
author: criu-migrate
"""

EXAMPLES = r"""
- name: Arm the destination's guard
  criu_guard:
    run_id: redis-20261121-031500-4f2a
    state: armed
    config: "{{ guard_config }}"
    tls: "{{ certificates.destination }}"

- name: Wait for the end of the migration
  criu_guard:
    run_id: redis-20261121-031500-4f2a
    state: watched
    seconds: 900
"""

RETURN = r"""
record:
  description: The record of this node's guard.
  returned: always, where there is one
  type: dict
port:
  description: The port that the destination's guard listens on.
  returned: O(state=armed) on the destination
  type: int
restarts:
  description: How often a killed guard was started again.
  returned: O(state=watched), or O(state=started) with O(watch)
  type: int
logs:
  description: Text of every log, by file name.
  returned: O(state=collected)
  type: dict
stats:
  description: CRIU's own statistics; times in seconds.
  returned: O(state=collected)
  type: dict
"""

import sys
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ..module_utils.criu_migrate import control, record
from ..module_utils.criu_migrate.errors import MigrationError


def armed(params: dict[str, Any]) -> dict[str, Any]:
    config = {**params["config"], "run_id": params["run_id"]}
    changed = control.arm(config, params["tls"])
    result: dict[str, Any] = {"changed": changed}
    if config["role"] == "destination":
        control.start(params["run_id"], sys.executable)
        result["port"] = control.wait_for_port(params["run_id"], 20.0)
    return result


def act(params: dict[str, Any]) -> dict[str, Any]:
    run_id, state = params["run_id"], params["state"]
    if state == "armed":
        result = armed(params)
    elif state == "started":
        result = {"changed": control.start(run_id, sys.executable)}
        if params["watch"]:
            _rec, result["restarts"] = control.watch(run_id, sys.executable, params["seconds"])
    elif state == "watched" and params["from_state"]:
        control.wait_change(run_id, params["from_state"], params["seconds"])
        result = {"changed": False}
    elif state == "watched":
        _rec, restarts = control.watch(run_id, sys.executable, params["seconds"])
        result = {"changed": restarts > 0, "restarts": restarts}
    elif state == "collected":
        return {"changed": False, **control.collect(run_id)}
    elif state == "fenced" and control.load(run_id).data["role"] == "source":
        result = {"changed": control.fence_source(run_id, sys.executable)}
    elif state in ("undone", "fenced"):
        result = {"changed": control.offline(run_id, "fence" if state == "fenced" else "undo")}
    elif state == "absent":
        return {"changed": control.remove(run_id)}
    else:
        result = {"changed": False}
    found = record.Record.load(run_id)
    return {**result, "record": found.data if found else None}


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "run_id": {"type": "str", "required": True},
            "state": {
                "type": "str",
                "required": True,
                "choices": ["armed", "started", "watched", "present", "collected", "undone", "fenced", "absent"],
            },
            "config": {"type": "dict", "default": {}},
            "tls": {"type": "dict", "default": {}, "no_log": True},
            "watch": {"type": "bool", "default": False},
            "from_state": {"type": "str", "default": ""},
            "seconds": {"type": "float", "default": 600.0},
        },
        supports_check_mode=True,
    )
    if module.check_mode and module.params["state"] in ("armed", "started", "undone", "fenced", "absent"):
        module.exit_json(changed=True, record=None)
    try:
        module.exit_json(**act(module.params))
    except MigrationError as error:
        module.fail_json(msg=error.text(), error=error.as_dict())


if __name__ == "__main__":
    main()
