"""Processes that are to be saved, started and registered on the source as a user would, and the cloud around it."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
from pathlib import Path
from typing import Any

import yaml

from tests.conftest import ROOT
from tests.lab.harness.nodes import Lab, environment, playbook, program, wait_for
from tests.lab.harness.run import Run

REGISTRY = "/etc/criu-migrate/processes.d"
SERVERS = ROOT / "tests" / "unit" / "metadata_servers.py"
CLOUD = "/run/metadata"
PORT = 8199
LIMIT = 240.0
BOOK = """
- hosts: source
  gather_facts: false
  become: true
  tasks:
    - ansible.builtin.include_tasks: one.yml
      loop: "{{ evacuees }}"
      loop_control: {loop_var: evacuee}
"""
ONE = """
- migration_parameters: {nodes: false}
  vars:
    workload: memory
    working_dir: "{{ evacuee.folder }}"
    mb_size: "{{ evacuee.size }}"
    max_memory: "{{ evacuee.size }}"
    interval: 0.5
  register: checked
  become: false
- ansible.builtin.set_fact: {migration: "{{ checked.migration }}"}
- ansible.builtin.include_role: {name: workload_memory, tasks_from: install}
- ansible.builtin.include_role: {name: workload_memory, tasks_from: start}
- ansible.builtin.include_role: {name: register}
  vars:
    register_name: "{{ evacuee.name }}"
    register_priority: "{{ evacuee.priority }}"
    pid: "{{ workload_started.pid }}"
"""


class Evacuee(Run):
    """One registered `memory` workload; its run is found by its working directory."""

    def __init__(self, lab: Lab, name: str, size: int, priority: int = 0) -> None:
        super().__init__(lab, "memory", f"/srv/criu-migrate/test-{secrets.token_hex(4)}")
        self.name, self.size, self.priority = name, size, priority
        self.play: Play | None = None

    def find(self) -> str | None:
        for node in (self.lab.source, self.lab.destination):
            for run_id in node.runs():
                record = node.record(run_id) if run_id != "notice.json" else None
                if record and record.get("working_dir") == self.working_dir:
                    return run_id
        return None

    def output(self) -> str:
        return self.play.output() if self.play else ""


def start(tmp: Path, evacuees: list[Evacuee]) -> None:
    """Start and register them on the source."""
    folder = tmp / "starting"
    folder.mkdir()
    listed = [{"name": e.name, "size": e.size, "folder": e.working_dir, "priority": e.priority} for e in evacuees]
    play = yaml.safe_load(BOOK)
    play[0]["vars"] = {"evacuees": listed}
    (folder / "book.yml").write_text(yaml.safe_dump(play))
    (folder / "one.yml").write_text(ONE)
    done = playbook(tmp, str(folder / "book.yml"), "-i", str(evacuees[0].lab.inventory))
    assert done.returncode == 0, done.stdout + done.stderr


class Play:
    """watch.yml or evacuate.yml on its way."""

    def __init__(self, lab: Lab, tmp: Path, name: str, **extra: Any) -> None:
        self.log, self.results = tmp / f"{name}.log", tmp / "results"
        words = [program("ansible-playbook"), f"playbooks/{name}.yml", "-i", str(lab.inventory)]
        words += ["-e", json.dumps({"results_dir": str(self.results), **extra})]
        with self.log.open("w", encoding="utf-8") as out:
            self.process = subprocess.Popen(
                words, cwd=ROOT, env=environment(tmp), stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT,
                start_new_session=True,
            )  # fmt: skip

    def output(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")

    def until(self, text: str) -> None:
        def said() -> bool:
            assert self.process.poll() is None or text in self.output(), self.output()
            return text in self.output()

        wait_for(repr(text), said, LIMIT)

    def finish(self, rc: int = 0) -> dict[str, Any]:
        """What became of all, as evacuation_TIMESTAMP.json has it; {} where nothing was to be done."""
        assert self.process.wait(LIMIT) == rc, self.output()
        written = list(self.results.glob("evacuation_*.json")) if self.results.is_dir() else []
        return dict(json.loads(written[-1].read_text(encoding="utf-8"))) if written else {}

    def close(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


class Cloud:
    """A metadata service inside the source: only that node's own loopback has it."""

    def __init__(self, lab: Lab, kind: str) -> None:
        self.node, self.kind = lab.source, kind
        self.url = f"http://127.0.0.1:{PORT}"
        self.folder = self.node.path(CLOUD)
        self.folder.mkdir(exist_ok=True)
        for path in self.folder.iterdir():
            path.unlink()
        self.node.path("/run/metadata_servers.py").write_bytes(SERVERS.read_bytes())
        words = ("python3", "-I", "/run/metadata_servers.py", kind, "127.0.0.1", str(PORT), CLOUD)
        self.process = subprocess.Popen(self.node.command(*words), stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None and self.process.stdout.readline(), "the metadata service ended"

    def say(self, name: str, text: str = "") -> None:
        """Announce: `action` with the seconds that are left, `rebalance`, `preempted`."""
        new = self.folder / f".{name}"
        new.write_text(text, encoding="ascii")
        new.replace(self.folder / name)

    def close(self) -> None:
        for pid, _words in self.node.find(["metadata_servers.py"]):
            self.node.slay(pid)
        self.process.wait()
        self.node.path("/run/metadata_servers.py").unlink(missing_ok=True)
