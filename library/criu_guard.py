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
      - V(fenced) writes down a person's word that the other node's copy is dead, and lets the guard run the stopped
        copy here, or remove one that is not whole.
      - V(absent) removes keys, images, logs and the guard of a finished run; the record stays. The registry's entry of
        a process that an evacuation has moved goes where it went.
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
        take processor time from the dump that is under way.
    type: bool
    default: false
  until_filling:
    description:
      - When watching, return as soon as the process runs on the other node and only its memory is still coming.
      - How much has come is in C(record.lazy).
    type: bool
    default: false
  until_round:
    description:
      - When watching a source that makes rounds of pre-dump, return as soon as a further one was made, where the next
        lasts long enough for another task to begin meanwhile. The process runs on the source then, nothing was stopped.
      - What rounds were like is in C(record.pre_dumps), why no further one was made in C(record.stop_reason).
    type: bool
    default: false
  until_late:
    description:
      - When watching a source, return as soon as its guard foresees, by the link that it has measured, that the
        deadline will be missed. C(record.deadline.text) says what the move needs and what would do.
    type: bool
    default: false
  seconds:
    description: How long O(state=watched), and O(state=fenced) on the destination, wait at most, in seconds.
    type: float
    default: 600
  working_dir:
    description: Where the workload's output is, for O(state=collected) where this node has no record of the run.
    type: path
    default: ""
  pid:
    description: Root of the process, likewise; 0 where there is none.
    type: int
    default: 0
  frozen_output:
    description: Bytes that the workload's output had when it was frozen, for O(state=collected) on the destination.
    type: int
  output_seconds:
    description: Seconds of output after the restore that O(state=collected) waits for on the destination.
    type: float
    default: 0
attributes:
  check_mode:
    description: Nothing is written, started or ended in check mode; V(watched) then only reads the record.
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
rebooted:
  description: This node was started anew since the run began, and whatever it held of the process died with it.
  returned: always, where there is a record, but not with O(state=collected) and O(state=absent)
  type: bool
died:
  description: The copy on this node was to run, and died before it did.
  returned: with C(rebooted)
  type: bool
incomplete:
  description: The copy on this node lacks memory that only the source has (post-copy).
  returned: with C(rebooted)
  type: bool
port:
  description: The port that the destination's guard listens on.
  returned: O(state=armed) on the destination
  type: int
watched:
  description: A play is watching the guard on this node at this moment.
  returned: O(state=present)
  type: bool
restarts:
  description: How often a killed guard was started again.
  returned: O(state=watched), or O(state=started) with O(watch)
  type: int
logs:
  description: Text of every log, by file name.
  returned: O(state=collected)
  type: dict
output:
  description: C(path), C(size), and the text C(before) the freeze and C(after) it.
  returned: O(state=collected)
  type: dict
strace:
  description: C(raw) and C(info) of what strace has caught, by C(pre_dump) and C(post_restore).
  returned: O(state=collected)
  type: dict
seen:
  description: C(memory) in bytes, C(open_files) and C(status) of the process as it is now on this node.
  returned: O(state=collected)
  type: dict
stats:
  description: CRIU's own statistics; times in seconds. C(problem) where they are there and cannot be read.
  returned: O(state=collected)
  type: dict
"""

import sys
from collections.abc import Callable
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ..module_utils.criu_migrate import collecting, control, record
from ..module_utils.criu_migrate.errors import MigrationError


def armed(params: dict[str, Any]) -> dict[str, Any]:
    config = {**params["config"], "run_id": params["run_id"]}
    changed = control.arm(config, params["tls"])
    result: dict[str, Any] = {"changed": changed}
    if config["role"] == "destination":
        control.start(params["run_id"], sys.executable)
        result["port"] = control.wait_for_port(params["run_id"], 20.0)
    return result


def watch(params: dict[str, Any]) -> int:
    """How often a killed guard had to be started again."""
    until = (params["until_filling"], params["until_round"], params["until_late"])
    return control.watch(params["run_id"], sys.executable, params["seconds"], *until)[1]


def absent(run_id: str, warn: Callable[[str], None]) -> dict[str, Any]:
    """Remove what the run left; warn of an entry of the registry that could not follow its process."""
    from ..module_utils.criu_migrate import batch_collect  # what it imports costs the other states time

    changed, problems = batch_collect.remove_one(run_id)
    for problem in problems:
        warn(problem)
    return {"changed": changed}


def act(params: dict[str, Any], warn: Callable[[str], None]) -> dict[str, Any]:
    run_id, state = params["run_id"], params["state"]
    if state == "armed":
        result = armed(params)
    elif state == "started":
        result = {"changed": control.start(run_id, sys.executable)}
        if params["watch"]:
            result["restarts"] = watch(params)
    elif state == "watched":
        restarts = watch(params)
        result = {"changed": restarts > 0, "restarts": restarts}
    elif state == "collected":
        asked = ("working_dir", "pid", "frozen_output", "output_seconds", "check")
        return {"changed": False, **collecting.collect(run_id, *(params[name] for name in asked))}
    elif state == "fenced":
        result = {"changed": control.fence(run_id, sys.executable, params["seconds"])}
    elif state == "undone":
        result = {"changed": control.undo_destination(run_id)}
    elif state == "absent":
        return absent(run_id, warn)
    else:
        result = {"changed": False, "watched": control.watched(run_id)}
    found = record.Record.load(run_id)
    if found is None:
        return {**result, "record": None}
    return {**result, "record": found.data, **control.health(found)}


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
            "until_filling": {"type": "bool", "default": False},
            "until_round": {"type": "bool", "default": False},
            "until_late": {"type": "bool", "default": False},
            "seconds": {"type": "float", "default": 600.0},
            "working_dir": {"type": "path", "default": ""},
            "pid": {"type": "int", "default": 0},
            "frozen_output": {"type": "int"},
            "output_seconds": {"type": "float", "default": 0.0},
        },
        supports_check_mode=True,
    )
    if module.check_mode and module.params["state"] in ("armed", "started", "undone", "fenced", "absent"):
        module.exit_json(changed=True, record=None)
    params = {**module.params, "check": module.check_mode}
    if module.check_mode and params["state"] == "watched":
        params["state"] = "present"
    try:
        module.exit_json(**act(params, module.warn))
    except MigrationError as error:
        module.fail_json(msg=error.text(), error=error.as_dict())


if __name__ == "__main__":
    main()
