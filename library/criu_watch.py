#!/usr/bin/python
"""The module criu_watch; its documentation is below, its work in module_utils."""

from __future__ import annotations

DOCUMENTATION = r"""
module: criu_watch
short_description: Wait on a node for the notice that its instance is about to end
description:
  - Lays out a small program that asks the cloud's metadata service for its notices, Amazon's (IMDSv2, interruption of a
    spot instance and rebalance recommendation) or Google's (preempted), and writes what it hears to
    C(/var/lib/criu-migrate/notice.json).
  - Where the node has no systemd the module also starts that program, in a session of its own. Where it has, the role
    C(watch) does so with a unit.
options:
  state:
    description:
      - V(present) lays the program out, and without systemd sees that it runs with these settings.
      - V(noticed) waits up to O(seconds) for a notice.
      - V(absent) ends and removes it, and the notice.
    type: str
    choices: [present, noticed, absent]
    default: present
  provider:
    description: Whose service it is; V(auto) takes the one that answers.
    type: str
    choices: [auto, aws, gcp]
    default: auto
  aws_url:
    description: Base URL of Amazon's service; by default C(http://169.254.169.254).
    type: str
    default: ""
  gcp_url:
    description: Base URL of Google's server; by default C(http://metadata.google.internal).
    type: str
    default: ""
  interval:
    description: Seconds between two questions to Amazon's service. Google's answers when there is something to say.
    type: float
    default: 2
  seconds:
    description: How long V(noticed) waits at most, in seconds.
    type: float
    default: 30
  hints:
    description: Whether a rebalance recommendation, a mere hint, is a notice for V(noticed).
    type: bool
    default: false
attributes:
  check_mode:
    description: Nothing is written, started or ended in check mode; V(noticed) then does not wait.
    support: full
  idempotent:
    description: A second time nothing changes.
    support: full
author: criu-migrate
"""

EXAMPLES = r"""
- name: Watch for notices
  criu_watch:
    provider: auto

- name: Wait for one
  criu_watch:
    state: noticed
    seconds: 60
  register: watched
"""

RETURN = r"""
systemd:
  description: systemd is this node's init.
  returned: O(state=present)
  type: bool
folder:
  description: Where the program lies.
  returned: O(state=present)
  type: str
python:
  description: The interpreter that runs it.
  returned: O(state=present)
  type: str
notice:
  description:
    - C(provider), C(kind) (interruption, rebalance, preempted), C(action), C(seen) and C(ends) (seconds since 1970, the
      node's clock), and C(seconds_left) as of now. Null where none has come, or one of an earlier boot.
  returned: O(state=noticed)
  type: dict
running:
  description: The watcher runs. It ends by itself when the end was announced.
  returned: O(state=noticed)
  type: bool
provider:
  description: The provider whose service has answered, '' while none has.
  returned: O(state=noticed)
  type: str
trouble:
  description: Why the service is not heard just now, '' where it is.
  returned: O(state=noticed)
  type: str
restarts:
  description: How often a watcher that was killed had to be started again.
  returned: O(state=noticed)
  type: int
registered:
  description: A text that changes whenever the registry does, or a process that it leads to.
  returned: O(state=noticed)
  type: str
"""

import sys
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ..module_utils.criu_migrate import answering, watcher, watching
from ..module_utils.criu_migrate.errors import MigrationError


def present(params: dict[str, Any], check: bool) -> dict[str, Any]:
    for name in ("aws_url", "gcp_url"):
        watching.check_url(name, params[name])
    if not 0.05 <= params["interval"] <= 60:
        raise MigrationError(f"interval={params['interval']:g}: it must lie between 0.05 and 60 seconds.")
    wanted = {name: params[name] for name in ("provider", "aws_url", "gcp_url", "interval")}
    changed = watching.lay_out(wanted, check)
    with_systemd = watching.systemd()
    if not with_systemd and not check:
        if changed:
            watching.stop()
        changed = watching.start(sys.executable) or changed
    elif not with_systemd:
        changed = changed or not watching.running()
    return {"changed": changed, "systemd": with_systemd, "folder": watcher.FOLDER, "python": sys.executable}


def act(params: dict[str, Any], check: bool) -> dict[str, Any]:
    if params["state"] == "present":
        return present(params, check)
    if params["state"] == "absent":
        return {"changed": watching.remove(check)}
    if check:
        return {"changed": False, **watching.now(params["hints"])}
    found = watching.await_notice(params["seconds"], params["hints"], sys.executable)
    return {"changed": found["restarts"] > 0, **found}


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "default": "present", "choices": ["present", "noticed", "absent"]},
            "provider": {"type": "str", "default": "auto", "choices": ["auto", "aws", "gcp"]},
            "aws_url": {"type": "str", "default": ""},
            "gcp_url": {"type": "str", "default": ""},
            "interval": {"type": "float", "default": 2.0},
            "seconds": {"type": "float", "default": 30.0},
            "hints": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    answering.answer(module, act)


if __name__ == "__main__":
    main()
