"""A small process to be dumped, and modules run on a node as Ansible runs them."""

from __future__ import annotations

import json
import re
import secrets
import subprocess
from pathlib import Path
from typing import Any

from tests.conftest import ROOT
from tests.lab.harness.nodes import Lab, Node, environment, program, wait_for

# Its memory is random and its count goes through a TCP connection to itself: both have to survive. No file stays open.
PROGRAM = """
import hashlib, os, socket, sys, time
folder, size = sys.argv[1], int(sys.argv[2])
data = os.urandom(size)
server = socket.create_server(("127.0.0.1", 0))
near = socket.create_connection(server.getsockname())
far, _peer = server.accept()
server.close()
count = 0
while True:
    near.sendall(count.to_bytes(8, "big"))
    count = int.from_bytes(far.recv(8), "big") + 1
    text = f"{count} {hashlib.sha256(data).hexdigest()}"
    try:
        with open(folder + "/state.new", "w") as stream:
            stream.write(text)
        os.replace(folder + "/state.new", folder + "/state")
    except FileNotFoundError:
        pass
    time.sleep(0.02)
"""


class Modules:
    """Runs modules and playbooks of this clone against the lab, as a user would."""

    def __init__(self, lab: Lab, tmp: Path) -> None:
        self.lab = lab
        self.tmp = tmp

    def _run(self, *words: str, timeout: float = 120.0) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [program(words[0]), "-i", str(self.lab.inventory), *words[1:]],
            cwd=ROOT, capture_output=True, text=True, timeout=timeout, stdin=subprocess.DEVNULL,
            env=environment(self.tmp, ANSIBLE_CALLBACK_RESULT_FORMAT="json"),
        )  # fmt: skip

    def __call__(self, node: Node, module: str, *words: str, **args: Any) -> dict[str, Any]:
        """The result of one module; `failed` is in it where it failed. `words` are further options of ansible."""
        done = self._run("ansible", node.name, "-b", "-m", module, "-a", json.dumps(args), *words)
        # With async the last of several results is the module's own.
        found = re.findall(r"^\S+ \| [^\n{]*=> (\{.*?^\})", done.stdout, re.MULTILINE | re.DOTALL)
        assert found, f"{module} gave no result:\n{done.stdout}{done.stderr}"
        result: dict[str, Any] = json.loads(found[-1])
        return {**result, "failed": done.returncode != 0}

    def ok(self, node: Node, module: str, *words: str, **args: Any) -> dict[str, Any]:
        result = self(node, module, *words, **args)
        assert not result["failed"], json.dumps(result, indent=1)
        return result

    def shell(self, node: Node, command: str) -> None:
        done = self._run("ansible", node.name, "-b", "-m", "ansible.builtin.shell", "-a", f"chdir=/ {command}")
        assert done.returncode == 0, done.stdout + done.stderr

    def playbook(self, name: str, *words: str) -> subprocess.CompletedProcess[str]:
        return self._run("ansible-playbook", f"playbooks/{name}.yml", *words)


class Victim:
    """The process under test, in a directory of its own on both nodes."""

    def __init__(self, modules: Modules, size: int = 20_000_000) -> None:
        self.modules = modules
        self.source, self.destination = modules.lab.source, modules.lab.destination
        self.folder = f"/srv/e-{secrets.token_hex(4)}"
        for node in (self.source, self.destination):
            node.run("mkdir", "-m", "0700", self.folder)
        self.source.path(self.folder + "/victim.py").write_text(PROGRAM, encoding="utf-8")
        # Through ssh, so that it lies in the same cgroups as the criu that Ansible starts.
        command = f"setsid python3 {self.folder}/victim.py {self.folder} {size}"
        command += f" </dev/null >/dev/null 2>&1 & echo $! >{self.folder}/pid"
        modules.shell(self.source, command)
        self.pid = int(self.source.path(self.folder + "/pid").read_text(encoding="ascii"))
        self.digest = wait_for("the first count", lambda: self.state(self.source))[1]

    def state(self, node: Node) -> tuple[int, str] | None:
        try:
            words = node.path(self.folder + "/state").read_text(encoding="utf-8").split()
        except FileNotFoundError:
            return None
        return int(words[0]), words[1]

    def goes_on(self, node: Node) -> None:
        """It runs there: its count rises, and its memory is what it was."""
        first = (self.state(node) or (0, ""))[0]
        _count, digest = wait_for(
            "the count", lambda: found if (found := self.state(node)) and found[0] > first + 1 else None, 20.0
        )
        assert digest == self.digest, "its memory has changed"

    def process(self, node: Node) -> dict[str, Any] | None:
        return next((item for item in node.look()["processes"] if item["pid"] == self.pid), None)

    def images(self, name: str) -> str:
        return f"{self.folder}/{name}"

    def small_images_to(self, name: str, pages: bool = False) -> None:
        """What a page server, or a dump with --lazy-pages, leaves on the source, to the destination."""
        where = self.destination.path(self.images(name))
        where.mkdir(mode=0o700, exist_ok=True)
        for path in self.source.path(self.images(name)).iterdir():
            if path.suffix in (".img", ".json") and (pages or not path.name.startswith("pages-")):
                (where / path.name).write_bytes(path.read_bytes())

    def clean(self) -> None:
        for node in (self.source, self.destination):
            for item in node.look()["processes"]:
                mine = any(self.folder in word for word in item["words"])
                if item["pid"] == self.pid or mine:
                    node.run("kill", "-9", str(item["pid"]), check=False)
            node.run("rm", "-rf", self.folder)


def nft_tables(node: Node) -> list[str]:
    return sorted(line for line in node.run("nft", "list", "tables").splitlines() if "CRIU-" in line)
