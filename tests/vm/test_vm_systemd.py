"""The watcher as a service of systemd.

The lab's nodes have no systemd as their first process, and one refuses to work as any other. In a virtual machine it
gets namespaces of processes, mounts and cgroups of its own, an sshd among its services, and the play comes in by that.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.lab.harness.evacuee import CLOUD, PORT, SERVERS
from tests.lab.harness.machine import Machine, MachineLab
from tests.lab.harness.nodes import playbook, wait_for

pytestmark = pytest.mark.vm
LIMIT = 120.0  # seconds; emulated
SSH = 2222
UNIT, PLACE = "criu-migrate-watch.service", "/etc/systemd/system"
FILES = {
    f"{PLACE}/inner.target": "[Unit]\nDefaultDependencies=no\nAllowIsolate=yes\nWants=inner-sshd.service\n",
    f"{PLACE}/inner-sshd.service": f"[Unit]\nDefaultDependencies=no\n[Service]\nExecStart=/usr/sbin/sshd -D -p {SSH}\n",
}
BOOT = """
mkdir /sys/fs/cgroup/inner; echo $$ > /sys/fs/cgroup/inner/cgroup.procs
container=criu-migrate-test exec setsid -f unshare --fork --pid --mount --cgroup --mount-proc --propagation slave \
  --kill-child sh -c 'mount -t cgroup2 cgroup2 /sys/fs/cgroup
  exec /lib/systemd/systemd --system --unit=inner.target' < /dev/null > /run/inner.log 2>&1
"""
BOOK = """
- hosts: source
  gather_facts: false
  become: true
  tasks:
    - ansible.builtin.import_role: {name: watch}
      when: watch_state == 'present'
    - ansible.builtin.include_role: {name: watch, tasks_from: absent}
      when: watch_state == 'absent'
    - migration_notice: {seconds: 60, every: 1, hints: false, registered: ''}
      register: watch_waited
      when: await_notice | default(false)
    - ansible.builtin.debug: {msg: "kind={{ watch_waited.notice.kind | default('none') }}"}
      when: await_notice | default(false)
"""


class Booted:
    """systemd in a virtual machine."""

    def __init__(self, node: Machine) -> None:
        self.node, self.made = node, set[str]()
        for name, text in FILES.items():
            node.path(name).write_text(text)
        before = self.in_run()
        node.run("sh", "-c", BOOT)
        wait_for("systemd (/run/inner.log)", self.works, LIMIT)
        self.made = self.in_run() - before  # nologin among it, which would keep everybody out

    def in_run(self) -> set[str]:
        return set(self.node.run("find", "/run", "-mindepth", "1", "-maxdepth", "1").split())

    def pid(self) -> int:
        found = self.node.find(["/lib/systemd/systemd --system --unit=inner.target"])
        return next((pid for pid, words in found if words.startswith("/lib/systemd")), 0)

    def systemctl(self, *words: str) -> str:
        return self.node.run("nsenter", "--all", "-t", str(self.pid()), "systemctl", *words, check=False).strip()

    def works(self) -> bool:
        return bool(self.pid()) and self.systemctl("is-active", "inner-sshd.service") == "active"

    def shows(self, name: str) -> str:
        return self.systemctl("show", "-P", name, UNIT)

    def close(self) -> None:
        if self.pid():
            self.node.slay(self.pid())
            wait_for("the end of systemd", lambda: not self.pid(), LIMIT)
        rest = "find /sys/fs/cgroup/inner -depth -type d -exec rmdir {} +; ! [ -e /sys/fs/cgroup/inner ] && echo gone"
        wait_for("its empty cgroup", lambda: "gone" in self.node.run("sh", "-c", rest, check=False), LIMIT)
        self.node.run("rm", "-rf", *self.made, *FILES)


@pytest.fixture
def node(machines: MachineLab) -> Machine:
    assert isinstance(machines.source, Machine)
    return machines.source


@pytest.fixture
def booted(node: Machine) -> Iterator[Booted]:
    found = Booted(node)
    yield found
    found.close()


@pytest.fixture
def cloud(node: Machine) -> Iterator[str]:
    """A metadata service that hears of what is written to the files of CLOUD; its base URL."""
    node.path(CLOUD).mkdir()
    node.path("/run/metadata_servers.py").write_bytes(SERVERS.read_bytes())
    program = "import runpy; runpy.run_path('/run/metadata_servers.py', run_name='__main__')"
    child, pid = node.start(program, "aws", "127.0.0.1", str(PORT), CLOUD)
    yield f"http://127.0.0.1:{PORT}"
    node.slay(pid)
    child.wait()
    node.run("rm", "-rf", CLOUD, "/run/metadata_servers.py")


def play(lab: MachineLab, tmp: Path, url: str, **extra: object) -> str:
    """The role on that node, by way of systemd's sshd."""
    groups = {
        "source": {"hosts": {lab.source.name: {"ansible_host": lab.source.address, "ansible_port": SSH}}},
        "destination": {"hosts": {lab.destination.name: {"ansible_host": lab.destination.address}}},
    }
    config = lab.inventory.parent / "ssh.cfg"
    known = {"ansible_user": "ubuntu", "ansible_ssh_common_args": f"-F {config}", "ansible_timeout": 60}
    (tmp / "hosts.yml").write_text(yaml.safe_dump({"all": {"vars": known, "children": groups}}))
    (tmp / "book.yml").write_text(BOOK)
    wanted = {"watch_provider": "aws", "watch_aws_url": url, "watch_interval": 0.2, "watch_state": "present", **extra}
    done = playbook(tmp, "-i", str(tmp / "hosts.yml"), str(tmp / "book.yml"), "-e", json.dumps(wanted))
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_watcher_is_a_service(machines: MachineLab, booted: Booted, cloud: str, tmp_path: Path) -> None:
    """Under everything that its unit forbids it starts, comes back after a kill, hears the notice, and goes."""
    node = booted.node
    play(machines, tmp_path, cloud)
    assert booted.shows("ActiveState") == "active" and booted.systemctl("is-enabled", UNIT) == "enabled"
    assert "changed=0" in play(machines, tmp_path, cloud), "nothing is to be done twice"
    first = booted.shows("ExecMainPID")

    booted.systemctl("kill", "--signal=KILL", UNIT)
    wait_for("its restart", lambda: booted.shows("NRestarts") == "1", LIMIT)
    assert booted.shows("ExecMainPID") != first

    node.path(CLOUD + "/action").write_text("100")
    assert "kind=interruption" in play(machines, tmp_path, cloud, await_notice=True)
    notice = json.loads(node.path("/var/lib/criu-migrate/notice.json").read_text())
    assert notice["provider"] == "aws" and notice["action"] == "terminate"

    play(machines, tmp_path, cloud, watch_state="absent")
    assert booted.shows("LoadState") == "not-found"
    assert not node.path(f"{PLACE}/{UNIT}").exists()
    assert not node.path(f"{PLACE}/multi-user.target.wants/{UNIT}").exists()
    assert not node.path("/var/lib/criu-migrate-watch").exists()
