"""The plays around the watcher as Ansible runs them, on this machine as its own node: in a mount namespace of their
own, with another /var/lib, so that nothing is left and nothing is met. No CRIU is needed: no process is registered."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import ROOT
from tests.unit.metadata_servers import AwsService, serving

LIMIT = 90.0
PLAY = """
- hosts: source
  gather_facts: false
  tasks:
    - ansible.builtin.import_role: {name: watch}
    - ansible.builtin.include_role: {name: watch, tasks_from: wait}
    - ansible.builtin.debug: {msg: "kind={{ watch_waited.notice.kind | default('none') }}"}
    - ansible.builtin.import_role: {name: watch, tasks_from: absent}
"""
# A watcher that outlived the test would ask a server that is gone
WRAP = 'mount -t tmpfs tmpfs /var/lib && mkdir -p /etc/systemd/system && "$@"; code=$?; exit $code'


@pytest.fixture
def aws() -> Iterator[AwsService]:
    service = AwsService()
    with serving(service):
        yield service


class Play:
    """One ansible-playbook with everything that it has started in PID and mount namespaces of its own."""

    def __init__(self, tmp: Path, **extra: Any) -> None:
        self.log = tmp / "play.log"
        local = {"ansible_connection": "local", "ansible_become": False, "ansible_python_interpreter": sys.executable}
        groups: dict[str, Any] = {"source": {"hosts": {"node-1": {}}}, "destination": {"hosts": {"node-2": {}}}}
        (tmp / "hosts.yml").write_text(yaml.safe_dump({"all": {"vars": local, "children": groups}}))
        (tmp / "book.yml").write_text(PLAY)
        program = str(Path(sys.executable).with_name("ansible-playbook"))
        command = ["unshare", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child", "sh", "-c", WRAP, "sh"]
        command += [program, "-i", str(tmp / "hosts.yml"), str(tmp / "book.yml"), "-e", json.dumps(extra)]
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("ANSIBLE_", "SSH_"))}
        environ = {**kept, "ANSIBLE_LOCAL_TEMP": str(tmp / "ansible"), "ANSIBLE_NOCOLOR": "1"}
        with self.log.open("w") as out:
            self.process = subprocess.Popen(command, cwd=ROOT, env=environ, stdout=out, stderr=subprocess.STDOUT)

    def said(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")

    def until(self, text: str) -> None:
        deadline = time.monotonic() + LIMIT
        while text not in self.said():
            assert time.monotonic() < deadline and self.process.poll() is None, self.said()
            time.sleep(0.02)

    def end(self) -> str:
        assert self.process.wait(LIMIT) == 0, self.said()
        return self.said()

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()


@pytest.fixture
def play(tmp_path: Path) -> Iterator[Any]:
    if os.geteuid() != 0 or os.path.isdir("/run/systemd/system"):
        pytest.skip("namespaces need root, and here a node without systemd is played")
    made: list[Play] = []

    def start(**extra: Any) -> Play:
        made.append(Play(tmp_path, watch_interval=0.1, **extra))
        return made[-1]

    yield start
    for one in made:
        one.close()


def test_from_the_watch_to_the_notice(play: Any, aws: AwsService) -> None:
    """Those who are to be saved stand by first; then the wait says what it hears, and ends with the notice."""
    one = play(watch_aws_url=aws.url, watch_provider="aws", watch_every=5)
    one.until("watching, the metadata service of aws answers")
    assert "No process is registered that runs here." in one.said()
    aws.faults = [500] * 4
    aws.end_in(100)
    assert "kind=interruption" in one.end()


def test_a_watch_ends_when_its_time_is_over_and_looks_again_on_its_way(play: Any, aws: AwsService) -> None:
    said = play(watch_aws_url=aws.url, watch_seconds=6, watch_refresh=2).end()
    assert "kind=none" in said
    assert said.count("No process is registered that runs here.") >= 2


def test_a_single_look(play: Any, aws: AwsService) -> None:
    aws.rebalance = {"noticeTime": "2026-11-27T08:22:00Z"}
    assert "kind=none" in play(watch_aws_url=aws.url, watch_once=True).end()


def test_a_hint_is_enough_where_it_was_asked_for(play: Any, aws: AwsService) -> None:
    aws.rebalance = {"noticeTime": "2026-11-27T08:22:00Z"}
    assert "kind=rebalance" in play(watch_aws_url=aws.url, watch_rebalance=True).end()
