"""The lab that the tests use, its hosts seen from outside: by their namespaces, so that a cut link hides nothing."""

from __future__ import annotations

import copy
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml

from tests.conftest import ROOT

RUN_ROOT = Path("/run/criu-migrate-lab")
RUNS = "/var/lib/criu-migrate"
LOOK = Path(__file__).with_name("look.py")
# The middle of the widest range without a PID, or TID, in use; what comes next has a place in it as well.
WIDEST_GAP = """
import glob
last, most = (int(open(f"/proc/sys/kernel/{name}").read()) for name in ("ns_last_pid", "pid_max"))
used = sorted({300, last, most, *(int(path.rsplit("/", 1)[1]) for path in glob.glob("/proc/[0-9]*/task/[0-9]*"))})
low, high = max(zip(used, used[1:]), key=lambda pair: pair[1] - pair[0])
print((low + high) // 2)
"""
T = TypeVar("T")
stretch = 1.0  # how many times longer everything may take: nodes may be emulated


def wait_for(what: str, probe: Callable[[], T | None], limit: float = 60.0) -> T:
    """Return the first result of `probe` that is not None or False; AssertionError after `limit` seconds.

    The state lies in files of other machines' namespaces, which give no event to this process.
    """
    deadline = time.monotonic() + limit * stretch
    while True:
        found = probe()
        if found is not None and found is not False:
            return found
        assert time.monotonic() < deadline, f"{what}: not within {limit:g} s"
        time.sleep(0.005)


class Node:
    """One host of the lab."""

    def __init__(self, lab: str, name: str, address: str) -> None:
        self.lab = lab
        self.name = name
        self.address = address

    @property
    def init(self) -> int:
        """The PID, on this machine, of the node's PID 1."""
        return int((RUN_ROOT / self.lab / f"{self.name}.pid").read_text().split()[0])

    def path(self, inside: str) -> Path:
        """Where a path of the node lies for this machine."""
        return Path(f"/proc/{self.init}/root") / inside.lstrip("/")

    def command(self, *words: str) -> list[str]:
        return ["nsenter", "-t", str(self.init), "-a", "env", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", *words]

    def run(self, *words: str, text: str = "", check: bool = True) -> str:
        """Run a command as root inside the node and return its output."""
        done = subprocess.run(self.command(*words), input=text, capture_output=True, text=True, timeout=60)
        assert not check or done.returncode == 0, f"{self.name}: {words}: {done.stdout}{done.stderr}"
        return done.stdout

    def python(self, program: str, *words: str) -> str:
        return self.run("python3", "-I", "-", *words, text=program)

    def ssh_command(self, words: str) -> list[str]:
        config = ROOT / "inventories" / self.lab / "ssh.cfg"
        share = ["-o", "ControlMaster=auto", "-o", f"ControlPath=/tmp/.{self.lab}-%C", "-o", "ControlPersist=60"]
        return ["ssh", "-F", str(config), *share, self.name, f"sudo sh -c {shlex.quote(words)}"]

    def leave(self) -> None:
        """End what is connected to the node."""
        subprocess.run([*self.ssh_command("")[:-2], "-O", "exit", self.name], capture_output=True)

    def ssh(self, words: str) -> None:
        """Run a shell command as root over ssh: unlike `run` it ends up in the node's own cgroups."""
        # No pipes: what stays in the background would hold them.
        done = subprocess.run(
            self.ssh_command(f"({words}) </dev/null >/dev/null 2>&1"), stdin=subprocess.DEVNULL, timeout=60
        )
        assert done.returncode == 0, f"{self.name}: {words} ended with {done.returncode}"

    def start(self, program: str, *words: str) -> tuple[subprocess.Popen[str], int]:
        """Start a Python program inside the node and wait for its first line; returns it and its PID in there.

        The PID, as killing the Popen ends only nsenter, which waits in front of the PID namespace.
        """
        begin = "import os; print(os.getpid())\n"
        command = self.command("python3", "-I", "-u", "-c", begin + program, *words)
        child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        pid = int(child.stdout.readline())
        assert child.stdout.readline(), f"{self.name}: the helper program ended at once"
        return child, pid

    def look(self) -> dict[str, Any]:
        """Everything that a migration could leave there."""
        found: dict[str, Any] = json.loads(self.python(LOOK.read_text(encoding="utf-8")))
        return found

    def kill(self, pid: int, number: int = signal.SIGKILL) -> None:
        """Send a signal to a PID of the node's own namespace."""
        self.run("kill", f"-{int(number)}", str(pid))

    def find(self, names: Sequence[str]) -> list[tuple[int, str]]:
        """PIDs of this machine, and command lines, of everything in the node that has one of these names in it.

        From outside, as a look from inside takes longer than most states of a migration last.
        """
        node = os.stat(f"/proc/{self.init}/ns/pid").st_ino
        found: list[tuple[int, str]] = []
        for entry in filter(str.isdigit, os.listdir("/proc")):
            try:
                words = Path(f"/proc/{entry}/cmdline").read_bytes().replace(b"\0", b" ").decode()
                if not any(name in words for name in names) or os.stat(f"/proc/{entry}/ns/pid").st_ino != node:
                    continue
            except OSError:
                continue
            found.append((int(entry), words))
        return found

    def slay(self, pid: int) -> None:
        """SIGKILL for what `find` has found; ProcessLookupError where it has ended."""
        os.kill(pid, signal.SIGKILL)

    def record(self, run_id: str) -> dict[str, Any] | None:
        try:
            found: dict[str, Any] = json.loads(self.path(f"{RUNS}/{run_id}/record.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        return found

    def runs(self) -> list[str]:
        try:
            return sorted(os.listdir(self.path(RUNS)))
        except FileNotFoundError:
            return []

    def log(self, run_id: str, name: str = "guard.log") -> str:
        try:
            return self.path(f"{RUNS}/{run_id}/{name}").read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return ""

    def link(self, state: str) -> None:
        """Cut or heal the node's cable: "down" or "up"."""
        hub = RUN_ROOT / self.lab / "net"
        subprocess.run(["nsenter", f"--net={hub}", "ip", "link", "set", self.name, state], check=True)


class Lab:
    """Two nodes and a client's host, made by playbooks/lab.yml."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.inventory = ROOT / "inventories" / name / "hosts.yml"
        groups = yaml.safe_load(self.inventory.read_text(encoding="utf-8"))["all"]["children"]
        self.nodes = {
            group: self.host(group, host, values["ansible_host"])
            for group in ("source", "destination", "client")
            for host, values in groups[group]["hosts"].items()
        }
        self.source, self.destination = self.nodes["source"], self.nodes["destination"]
        self.client = self.nodes["client"]
        self.all = {
            host: values["ansible_host"]
            for group in (*groups.values(), *groups.get("all_nodes", {}).get("children", {}).values())
            for host, values in (group.get("hosts") or {}).items()
            if values
        }
        self.subnet = self.source.address.rpartition(".")[0]

    def host(self, group: str, name: str, address: str) -> Node:
        return Node(self.name, name, address)

    def towards(self, name: str) -> Lab:
        """The same lab with that node as the destination."""
        other = copy.copy(self)
        other.destination = self.host("destination", name, self.all[name])
        other.nodes = {**self.nodes, "destination": other.destination}
        return other

    def keep_pids_apart(self) -> None:
        """Let the source's next PIDs be free on the destination: one that is taken there stops a restore.

        They begin in the middle of the widest gap, as whatever starts on the destination comes to its ends.
        """
        place = int(self.destination.python(WIDEST_GAP))
        self.source.run("sh", "-c", f"echo {place} > /proc/sys/kernel/ns_last_pid")

    def service_address(self, number: int = 0) -> str:
        """A free address of the lab, each number another."""
        return f"{self.subnet}.{200 + number}"


def program(name: str) -> str:
    """A program of the virtual environment that runs these tests."""
    return str(Path(sys.executable).with_name(name))


def environment(tmp: Path, **more: str) -> dict[str, str]:
    """The environment without anything that would change what Ansible does."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("ANSIBLE_", "SSH_"))}
    for name in ("SOURCE_NODE_IP", "DEST_NODE_IP"):
        kept.pop(name, None)
    return {**kept, "ANSIBLE_NOCOLOR": "1", "ANSIBLE_LOCAL_TEMP": str(tmp / "ansible"), **more}


def playbook(tmp: Path, *words: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run a playbook of this clone to its end."""
    command = [program("ansible-playbook"), *words]
    return subprocess.run(
        command, cwd=ROOT, env=environment(tmp, **environ), capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
