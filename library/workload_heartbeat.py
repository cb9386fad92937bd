#!/usr/bin/python
"""Read a workload's heartbeat: how long nothing was served."""

from __future__ import annotations

DOCUMENTATION = r"""
module: workload_heartbeat
short_description: Read from a workload's heartbeat how long nothing was served
description:
  - Reads a ring of stamps (CLOCK_REALTIME, seconds) and reports the longest gap in a window of time, with the
    error to expect.
options:
  path:
    description: The ring file, C(heartbeat.bin) in the working directory.
    type: path
    required: true
  window:
    description:
      - Two moments in seconds since 1970, the freeze (source's clock) and the thaw (destination's clock).
        Without it no gap is singled out.
    type: list
    elements: float
  clock_offset:
    description: The destination's clock minus the source's, in seconds; added to what was stamped before the freeze.
    type: float
    default: 0.0
  frozen:
    description:
      - When the whole process stood still (seconds since 1970, source's clock); if not given, the window's begin.
        What was stamped up to then is the source's.
    type: float
  since:
    description:
      - When an earlier move of the process ended (seconds since 1970, source's clock). Older stamps do not count.
    type: float
attributes:
  check_mode:
    support: full
    description: It only reads.
author: criu.migrate contributors
"""

EXAMPLES = r"""
- name: See how long the service was away
  workload_heartbeat:
    path: /srv/criu-migrate/demo/heartbeat.bin
    window: [1795231518.20, 1795231518.43]
"""

RETURN = r"""
present:
  description: Whether there is a ring file with at least one stamp. Without, all figures are null.
  type: bool
  returned: always
count:
  description: Number of stamps in the ring.
  type: int
  returned: always
resolution:
  description: Median distance of two stamps, seconds.
  type: float
  returned: always
usual_gap:
  description: Largest distance of two stamps outside of the window, seconds.
  type: float
  returned: always
usual_gap_p99_9:
  description: 99.9 % of the distances outside of the window are at most this, seconds.
  type: float
  returned: always
service:
  description: The longest gap that overlaps the window, {seconds, from, to}, on the destination's clock; null if none.
  type: dict
  returned: always
"""

from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

from ..module_utils.criu_migrate.heartbeat import gap_report, ring_order


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "window": {"type": "list", "elements": "float"},
            "clock_offset": {"type": "float", "default": 0.0},
            "frozen": {"type": "float"},
            "since": {"type": "float"},
        },
        supports_check_mode=True,
    )
    window = module.params["window"]
    offset = module.params["clock_offset"]
    if window is not None and (len(window) != 2 or window[0] + offset > window[1]):
        module.fail_json(msg=f"window must be [freeze, thaw] in seconds, in this order, and is {window}.")
    try:
        stamps = ring_order(Path(module.params["path"]).read_bytes())
    except FileNotFoundError:
        stamps = []
    moments = (window[0], window[1]) if window else None
    report = gap_report(stamps, moments, offset, module.params["frozen"], module.params["since"])
    module.exit_json(changed=False, present=bool(stamps), **report)


if __name__ == "__main__":
    main()
