#!/usr/bin/python
"""The module criu_evacuate; its documentation is below, its work in module_utils."""

from __future__ import annotations

DOCUMENTATION = r"""
module: criu_evacuate
short_description: Move all registered processes of a node at once, a step for all of them in one task
description:
  - One Ansible task costs 0.5 to 1 s, and a spot instance has as little as 30 s. So each state here does its step for
    every process of the node.
  - The guards that do the work are those of M(criu_guard).
options:
  state:
    description:
      - V(inspected), on the source, looks at the node and at every process that M(criu_registry) knows.
      - V(offered), on a destination, holds these processes against what is there.
      - V(armed) lays out the guards of O(runs), in place of all that stood by before. Nothing is started.
      - V(started) starts them. On the source O(at_once) send at a time, in order, and the module returns when all have
        ended or O(seconds) have passed; on a destination it returns when all listen.
      - V(collected) returns what became of each run, its logs, and what the process proves of itself.
      - V(absent) removes keys, images and logs of runs that have ended; the registry's entries follow their processes.
    type: str
    choices: [inspected, offered, armed, started, collected, absent]
    required: true
  source:
    description: C(cpu) and C(processes) of the source, for V(offered).
    type: dict
    default: {}
  control_clock:
    description: Time of the control node in seconds since 1970, to compare clocks roughly.
    type: float
    default: 0.0
  configs:
    description: The guards' configurations, for V(armed).
    type: list
    elements: dict
    default: []
  tls:
    description: Certificates by run, for V(armed), each with PEM texts C(ca), C(cert) and C(key).
    type: dict
    default: {}
  runs:
    description: The runs in the order in which they go, each with C(run_id) and C(name), and what its state needs.
    type: list
    elements: dict
    default: []
  records:
    description: What V(started) returned on the source as RV(runs), for V(collected) on a destination.
    type: dict
    default: {}
  role:
    description: What this node is, for V(started).
    type: str
    choices: [source, destination]
    default: destination
  at_once:
    description: How many runs send at a time.
    type: int
    default: 3
  seconds:
    description: How long V(started) waits at most, in seconds.
    type: float
    default: 600
attributes:
  check_mode:
    description: Nothing is written, started or ended in check mode.
    support: full
  idempotent:
    description: Arming, starting and removing twice changes nothing the second time.
    support: full
author: criu-migrate
"""

EXAMPLES = r"""
- name: Look at all processes that are to be saved
  criu_evacuate:
    state: inspected
  register: evacuate_inspected

- name: Let them go
  criu_evacuate:
    state: started
    role: source
    runs: "{{ evacuate_plan.runs }}"
    seconds: 60
"""

RETURN = r"""
node:
  description: Facts of the node, as M(criu_inspect) returns them.
  returned: O(state=inspected), O(state=offered)
  type: dict
processes:
  description: Registered processes, each with its entry, C(pid), C(start), C(working_dir) and C(tree).
  returned: O(state=inspected)
  type: list
earlier:
  description: Runs of an evacuation that nobody has collected, as M(migration_evacuation) planned them, with C(state).
  returned: O(state=inspected)
  type: list
problems:
  description: Entries whose process is not here, or that could not follow their process, in words.
  returned: O(state=inspected), O(state=absent)
  type: list
there:
  description: What a process meets on this node, by its name.
  returned: O(state=offered)
  type: dict
ports:
  description: A free port for each process, by its name.
  returned: O(state=offered)
  type: dict
runs:
  description: By run, C(record), C(port) or C(error); with V(collected) what M(criu_guard) collects, and C(verified).
  returned: O(state=started), O(state=collected)
  type: dict
notice:
  description: The notice that this node has had, null where there was none.
  returned: O(state=started) on the source
  type: dict
entries:
  description: Names of all that was registered at the end and is still here, to see what was not planned.
  returned: O(state=started) on the source
  type: list
began:
  description: When the module began, in seconds of this node's clock.
  returned: O(state=started)
  type: float
now:
  description: When it ended, likewise.
  returned: O(state=started)
  type: float
registered:
  description: A text that changes whenever the registry does, or a process that it leads to.
  returned: O(state=inspected)
  type: str
kept:
  description: Runs that have not ended and may hold the only copy of a process.
  returned: O(state=absent)
  type: list
"""

import sys
import time
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ..module_utils.criu_migrate import answering, batch, batch_collect, evacuation_look, notices, registry

LISTEN = 20.0  # seconds in which a guard has to listen
LOOKS = ("inspected", "offered", "collected")


def started(given: dict[str, Any]) -> dict[str, Any]:
    began = time.time()
    if given["role"] == "destination":
        found = batch.listen([str(run["run_id"]) for run in given["runs"]], sys.executable, LISTEN)
        return {"changed": bool(given["runs"]), "runs": found, "began": began, "now": time.time()}
    runs = [batch.Run(str(run["run_id"]), str(run["name"])) for run in given["runs"]]
    left = (notices.read() or {}).get("seconds_left")
    found = batch.carry_out(runs, given["at_once"], given["seconds"], sys.executable, left)
    entries = [entry["name"] for entry in registry.entries()[0]]
    more = {"notice": notices.read(), "began": began, "now": time.time(), "entries": entries}
    return {"changed": bool(runs), "runs": found, **more}


def act(given: dict[str, Any], check: bool) -> dict[str, Any]:
    state = given["state"]
    if check and state not in LOOKS:
        return {"changed": True, "runs": {}}
    if state == "inspected":
        return {"changed": False, **evacuation_look.source(given["control_clock"])}
    if state == "offered":
        source = given["source"]
        wanted = [evacuation_look.wanted(item) for item in source["processes"]]
        found = evacuation_look.destination(source["cpu"], wanted, given["control_clock"])
        return {"changed": False, **found}
    if state == "armed":
        return {"changed": batch.arm(given["configs"], given["tls"])}
    if state == "started":
        return started(given)
    if state == "collected":
        found = batch_collect.collect(given["runs"], given["records"], sys.executable, check)
        return {"changed": False, "runs": found}
    return batch_collect.remove(given["runs"])


def main() -> None:
    states = ["inspected", "offered", "armed", "started", "collected", "absent"]
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "required": True, "choices": states},
            "source": {"type": "dict", "default": {}},
            "control_clock": {"type": "float", "default": 0.0},
            "configs": {"type": "list", "elements": "dict", "default": []},
            "tls": {"type": "dict", "default": {}, "no_log": True},
            "runs": {"type": "list", "elements": "dict", "default": []},
            "records": {"type": "dict", "default": {}},
            "role": {"type": "str", "default": "destination", "choices": ["source", "destination"]},
            "at_once": {"type": "int", "default": 3},
            "seconds": {"type": "float", "default": 600.0},
        },
        supports_check_mode=True,
    )
    answering.answer(module, act)


if __name__ == "__main__":
    main()
