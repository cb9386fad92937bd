#!/usr/bin/python
"""The module criu_page_server; its documentation is below, its work in module_utils."""

from __future__ import annotations

DOCUMENTATION = r"""
module: criu_page_server
short_description: Start or stop a CRIU page server
description:
  - A page server takes in the memory of one dump from another node and ends with it. It is ready to be connected to
    when
    the module returns, and lives on in a session of its own.
  - Without O(tls) anybody who reaches the port can write images, and the memory travels in clear text.
options:
  state:
    description:
      - V(started) starts a page server unless that of this O(work_dir) runs.
      - V(stopped) waits for the end of the one in O(work_dir), at most O(timeout) seconds, and then kills it. It fails
        when the page server has failed; look at RV(killed), which is false when all pages have arrived.
    type: str
    choices: [started, stopped]
    default: started
  address:
    description: Address to listen on; required for O(state=started).
    type: str
  port:
    description: Port to listen on; V(0) takes one of O(port_range) that is free.
    type: int
    default: 0
  port_range:
    description: First and last port to choose from. The default is 27000 to 27999.
    type: list
    elements: int
  tls:
    description: PEM files on this node; see O(address). Clients need a certificate of the same CA.
    type: dict
    suboptions:
      ca:
        description: Certificate of the CA.
        type: path
        required: true
      cert:
        description: Certificate of this node.
        type: path
        required: true
      key:
        description: Private key of this node.
        type: path
        required: true
  prev_images_dir:
    description: The pre-dump on which the one to be taken in is based.
    type: path
  timeout:
    description: How long to wait until it is ready, or for its end, in seconds.
    type: float
    default: 30
attributes:
  check_mode:
    support: full
    description: Returns the command in RV(cmd), without C(--status-fd); starts and stops nothing.
  idempotent:
    support: full
    description: A page server that runs, or one that has ended, is left as it is.
extends_documentation_fragment:
  - criu.migrate.criu
seealso:
  - module: criu_dump
"""

EXAMPLES = r"""
- name: Start a page server
  criu_page_server:
    images_dir: /dev/shm/app
    address: 10.77.5.11
    tls:
      ca: /etc/criu-migrate/ca.pem
      cert: /etc/criu-migrate/cert.pem
      key: /etc/criu-migrate/key.pem
  register: pages

- name: Wait for all pages
  criu_page_server:
    images_dir: /dev/shm/app
    state: stopped
  register: ended
  failed_when: ended is failed or ended.killed
"""

RETURN = r"""
pid:
  description: PID of criu.
  returned: when there is or was one
  type: int
port:
  description: Port that it listens on.
  returned: when there is or was one; in check mode the port it would take
  type: int
killed:
  description: It had to be killed.
  returned: O(state=stopped)
  type: bool
bytes:
  description: Size of the memory images in O(images_dir), in bytes.
  returned: success
  type: int
seconds:
  description: How long it ran, in seconds.
  returned: O(state=stopped)
  type: float
stderr:
  description: What CRIU said outside its log.
  returned: O(state=stopped)
  type: str
cmd:
  description: The command line of CRIU that ran, or that would run in check mode.
  returned: always, as far as it is known
  type: list
  elements: str
rc:
  description: Exit code of CRIU, where it has ended by itself.
  returned: O(state=stopped) and RV(killed=false), or failure
  type: int
log:
  description: Path of CRIU's log on the node.
  returned: when CRIU ran
  type: str
log_tail:
  description: The last lines of that log, and before them the errors of the part left out.
  returned: when CRIU ran, also on failure
  type: str
error:
  description: C(message) and C(remedy) of a failure.
  returned: failure
  type: dict
measured:
  description: What had been measured until a failure, such as the ports that were tried.
  returned: failure of CRIU
  type: dict
"""

from ansible.module_utils.basic import AnsibleModule

from ..module_utils.criu_migrate import answering, daemons, steps


def main() -> None:
    module = AnsibleModule(
        argument_spec=steps.common_spec(
            timeout={"type": "float", "default": 30.0},
            state={"type": "str", "choices": ["started", "stopped"], "default": "started"},
            address={"type": "str"},
            port={"type": "int", "default": 0},
            port_range={"type": "list", "elements": "int"},
            tls={"type": "dict", "options": steps.TLS_SPEC},
            prev_images_dir={"type": "path"},
        ),
        required_if=[("state", "started", ["address"])],
        supports_check_mode=True,
    )
    answering.answer(module, daemons.page_server)


if __name__ == "__main__":
    main()
