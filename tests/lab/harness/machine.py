"""A host of the lab that is a virtual machine: nothing of it can be seen from outside, so a helper inside answers.

Only what the fault campaign needs of a Node; the helper is one Python process at the far end of one ssh connection.
"""

from __future__ import annotations

import base64
import json
import select
import shlex
import subprocess
import time
from collections.abc import Sequence
from typing import Any

from tests.conftest import ROOT
from tests.lab.harness.nodes import RUN_ROOT, RUNS, Lab, Node

LIMIT = 300.0  # seconds for one answer; what is emulated is slow
BREATH = 0.05  # seconds between two looks at a record: they take the machine's only processor
HELPER = """
import base64, json, os, subprocess, sys
def read(path):
    with open(path, "rb") as stream:
        return base64.b64encode(stream.read()).decode()
def write(path, data):
    with open(path, "wb") as stream:
        stream.write(base64.b64decode(data))
        stream.flush()
        os.fsync(stream.fileno())  # it has to outlive a power cut
def touch(path, mode):
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY, mode))
def stat(path):
    return os.stat(path).st_mode
def run(words, text):
    done = subprocess.run(words, input=text, capture_output=True, text=True)
    return [done.returncode, done.stdout, done.stderr]
def find(names):
    found = []
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{entry}/cmdline", "rb") as stream:
                words = stream.read().replace(b"\\0", b" ").decode()
        except OSError:
            continue
        if any(name in words for name in names):
            found.append([int(entry), words])
    return found
does = {"read": read, "write": write, "touch": touch, "stat": stat, "run": run, "find": find, "list": os.listdir,
        "mkdir": lambda path, mode: os.makedirs(path, mode, exist_ok=True), "chmod": os.chmod, "unlink": os.unlink,
        "replace": os.replace, "kill": os.kill}
for line in sys.stdin:
    name, *words = json.loads(line)
    try:
        print(json.dumps({"value": does[name](*words)}), flush=True)
    except OSError as error:
        print(json.dumps({"errno": error.errno, "text": str(error)}), flush=True)
"""


class Machine(Node):
    """Reached by ssh only. The helper is started when it is first needed, and again after a power cut."""

    helper: subprocess.Popen[str] | None = None

    def ask(self, *words: Any) -> Any:
        """One thing for the helper to do; the OSError that it got there."""
        for last in (False, True):
            helper = self.helper = self.helper or self.call()
            assert helper.stdin is not None and helper.stdout is not None
            try:
                helper.stdin.write(json.dumps(words) + "\n")
                helper.stdin.flush()
                line = helper.stdout.readline() if select.select([helper.stdout], [], [], LIMIT)[0] else ""
            except BrokenPipeError:
                line = ""
            if line:
                break
            self.leave()
            assert not last, f"{self.name} does not answer: {words}"
        found = json.loads(line)
        if "errno" in found:
            raise OSError(found["errno"], found["text"])
        return found["value"]

    def call(self, program: str = HELPER, *options: str) -> subprocess.Popen[str]:
        """A Python program inside, as root, that talks by its standard input and output."""
        words = shlex.join(["python3", "-I", "-u", "-c", program, *options])
        config = ROOT / "inventories" / self.lab / "ssh.cfg"
        alone = ["-o", "ControlMaster=no", "-o", "ControlPath=none", "-o", "ConnectTimeout=180"]
        command = ["ssh", "-F", str(config), *alone, self.name, f"sudo {words}"]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def start(self, program: str, *words: str) -> tuple[subprocess.Popen[str], int]:
        child = self.call("import os; print(os.getpid())\n" + program, *words)
        assert child.stdout is not None
        pid = int(child.stdout.readline())
        assert child.stdout.readline(), f"{self.name}: the helper program ended at once"
        return child, pid

    def leave(self) -> None:
        super().leave()
        if self.helper is not None:
            self.helper.kill()
            self.helper.wait()
            self.helper = None

    def path(self, inside: str) -> Inside:  # type: ignore[override]  # as much of a Path as is used
        return Inside(self, inside)

    def run(self, *words: str, text: str = "", check: bool = True) -> str:
        code, out, err = self.ask("run", words, text)
        assert not check or code == 0, f"{self.name}: {words}: {out}{err}"
        return str(out)

    def find(self, names: Sequence[str]) -> list[tuple[int, str]]:
        return [(int(pid), str(words)) for pid, words in self.ask("find", names)]

    def link(self, state: str) -> None:
        """Cut both machines off from each other only: whoever looks at them comes by the same cable."""
        hub = ["nsenter", f"--net={RUN_ROOT / self.lab / 'net'}", "bridge"]
        ports = json.loads(subprocess.run([*hub, "-j", "link"], check=True, capture_output=True).stdout)
        for name in (port["ifname"] for port in ports if not port["ifname"].startswith("client")):
            isolated = "on" if state == "down" else "off"
            subprocess.run([*hub, "link", "set", "dev", name, "isolated", isolated], check=True)

    def slay(self, pid: int) -> None:
        self.ask("kill", pid, 9)

    def record(self, run_id: str) -> dict[str, Any] | None:
        time.sleep(BREATH)
        return super().record(run_id)

    def runs(self) -> list[str]:
        try:
            return sorted(self.ask("list", RUNS))
        except FileNotFoundError:
            return []


class Inside:
    """A path of a machine."""

    def __init__(self, machine: Machine, name: str) -> None:
        self.machine = machine
        self.name = name

    def __truediv__(self, name: str) -> Inside:
        return Inside(self.machine, f"{self.name}/{name}")

    def read_bytes(self) -> bytes:
        return base64.b64decode(self.machine.ask("read", self.name))

    def read_text(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        return self.read_bytes().decode(encoding, errors)

    def write_bytes(self, data: bytes) -> None:
        self.machine.ask("write", self.name, base64.b64encode(data).decode())

    def write_text(self, text: str, encoding: str = "utf-8") -> None:
        self.write_bytes(text.encode(encoding))

    def touch(self, mode: int = 0o644) -> None:
        self.machine.ask("touch", self.name, mode)

    def mkdir(self, mode: int = 0o755, parents: bool = True) -> None:
        self.machine.ask("mkdir", self.name, mode)

    def chmod(self, mode: int) -> None:
        self.machine.ask("chmod", self.name, mode)

    def replace(self, other: Inside) -> None:
        self.machine.ask("replace", self.name, other.name)

    def exists(self) -> bool:
        try:
            self.machine.ask("stat", self.name)
        except FileNotFoundError:
            return False
        return True

    def unlink(self, missing_ok: bool = False) -> None:
        try:
            self.machine.ask("unlink", self.name)
        except FileNotFoundError:
            if not missing_ok:
                raise


class MachineLab(Lab):
    """Two virtual machines, and the client's host of namespaces."""

    def host(self, group: str, name: str, address: str) -> Node:
        return (Node if group == "client" else Machine)(self.name, name, address)
