"""Processes that are to be saved, started and registered on the source as a user would; plays that do; the cloud."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate import proc
from tests.conftest import ROOT
from tests.lab.harness.aftermath import Aftermath
from tests.lab.harness.nodes import RUNS, Lab, Node, environment, playbook, program, wait_for
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
    limits: "{{ evacuee.limits }}"
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
    limits: "{{ evacuee.limits }}"
"""
# Connections of their own that notice soon that a node has gone without a word; those of a user take 45 s
ALONE = "-o ControlMaster=no -o ControlPath=none -o ConnectTimeout=5 -o ServerAliveInterval=2 -o ServerAliveCountMax=4"
Pause = dict[str, list[str]]


class Evacuee(Run):
    """One registered `memory` workload; its run is found by its working directory."""

    def __init__(self, lab: Lab, name: str, size: int, priority: int = 0, **limits: float) -> None:
        super().__init__(lab, "memory", f"/srv/criu-migrate/test-{secrets.token_hex(4)}")
        self.name, self.size, self.priority, self.limits = name, size, priority, limits
        self.play: Play | None = None
        self.past: set[str] = set()

    def find(self) -> str | None:
        for node in (self.lab.source, self.lab.destination):
            for run_id in node.runs():
                record = node.record(run_id) if run_id != "notice.json" and run_id not in self.past else None
                if record and record.get("working_dir") == self.working_dir:
                    return run_id
        return None

    def again(self) -> None:
        """Another run is to come."""
        self.past.add(self.run_id)
        self._run_id = ""

    def pass_on(self, role: str, *states: str) -> None:
        """It shall not pause in these states; asked for before it gets there, once it is laid out."""
        self.await_laid_out(role)
        for state in states:
            self.go(role, state)

    def await_laid_out(self, role: str) -> None:
        wait_for(f"{self.name} laid out", lambda: self.node(role).path(f"{RUNS}/{self.run_id}/config.json").exists())

    def output(self) -> str:
        return self.play.output() if self.play else ""


def start(tmp: Path, evacuees: list[Evacuee]) -> None:
    """Start and register them on the source."""
    folder = tmp / "starting"
    folder.mkdir()
    keys = ("name", "size", "priority", "limits")
    listed = [{"folder": one.working_dir, **{key: getattr(one, key) for key in keys}} for one in evacuees]
    play = yaml.safe_load(BOOK)
    play[0]["vars"] = {"evacuees": listed}
    (folder / "book.yml").write_text(yaml.safe_dump(play))
    (folder / "one.yml").write_text(ONE)
    done = playbook(tmp, str(folder / "book.yml"), "-i", str(evacuees[0].lab.inventory))
    assert done.returncode == 0, done.stdout + done.stderr


class Play:
    """watch.yml or evacuate.yml on its way."""

    def __init__(
        self, lab: Lab, tmp: Path, name: str, pause: Pause | None = None, alone: bool = False, **extra: Any
    ) -> None:
        """`pause`: the states, by role, in which every guard stands still. `alone`: with connections of its own."""
        folder = tmp / f"{name}-{secrets.token_hex(3)}"
        folder.mkdir()
        self.log, self.results = folder / "play.log", folder / "results"
        words = [program("ansible-playbook"), f"playbooks/{name}.yml", "-i", str(lab.inventory)]
        if pause:  # no parameter of a user's
            (folder / "pause.yml").write_text(yaml.safe_dump({"all": {"vars": {"migration_pause_at": pause}}}))
            words += ["-i", str(folder / "pause.yml")]
        words += ["-e", json.dumps({"results_dir": str(self.results), **extra})]
        environ = environment(tmp, **({"ANSIBLE_SSH_ARGS": ALONE} if alone else {}))
        with self.log.open("w", encoding="utf-8") as out:
            self.process = subprocess.Popen(
                words, cwd=ROOT, env=environ, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT,
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

    def kill(self) -> None:
        """SIGKILL for ansible-playbook and all that it has started on the control node; workers lead sessions."""
        started = proc.tree(self.process.pid)
        os.killpg(self.process.pid, signal.SIGKILL)
        proc.kill_tree(started, 5.0)
        self.process.wait()

    def close(self) -> None:
        if self.process.poll() is None:
            self.kill()


class Group:
    """Processes that are registered on one source, by name, each with its aftermath."""

    def __init__(self, tmp: Path) -> None:
        self.tmp = tmp
        self.made: dict[str, Evacuee] = {}
        self.after: dict[str, Aftermath] = {}

    def start(self, evacuees: Iterable[Evacuee]) -> None:
        """Start and register them."""
        for one in evacuees:
            self.made[one.name], self.after[one.name] = one, Aftermath(one)
        for aftermath in self.after.values():
            aftermath.others = [other for other in self.after.values() if other is not aftermath]
        start(self.tmp, list(self.made.values()))

    def check(self, where: str, *names: str) -> None:
        """Each of them runs there, whole, once, and nothing is left behind of anybody's."""
        for name in names:
            self.after[name].check(where)

    def clean(self, nodes: Iterable[Node]) -> None:
        for aftermath in self.after.values():
            aftermath.clean()
        for node in nodes:
            node.run("rm", "-rf", REGISTRY)


def registered(node: Node) -> list[str]:
    """Names of the processes that are registered there."""
    folder = node.path(REGISTRY)
    return sorted(path.stem for path in folder.iterdir()) if folder.is_dir() else []


def remove_watch(lab: Lab, tmp: Path) -> None:
    done = playbook(tmp, "playbooks/watch.yml", "-i", str(lab.inventory), "-e", "watch_state=absent")
    assert done.returncode == 0, done.stdout + done.stderr


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
