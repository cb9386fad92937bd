"""Programs from the distribution that run on the source like a service, and clients of theirs on the third host.

A client connects once and never again, checks every answer, and on SIGTERM says as JSON what it has seen.
"""

from __future__ import annotations

import json
import secrets
import shlex
import signal
import subprocess
from pathlib import Path
from typing import Any

from tests.lab.harness.nodes import Lab, Node, wait_for

# Debian's packages of them, on the nodes of the tests' lab.
PACKAGES = ("memcached", "nginx", "nodejs", "postgresql-17", "sqlite3", "strace")
OPEN = """
import socket, sys
socket.create_connection((sys.argv[1], int(sys.argv[2])), 1).close()
"""
HEAD = """
import http.client, json, random, signal, socket, sys, time
host, number = sys.argv[1], int(sys.argv[2])
ending, seen = [], {"answers": 0, "longest": 0.0}
signal.signal(signal.SIGTERM, lambda *_: ending.append(1))
def rounds():
    last = time.monotonic()
    while not ending:
        yield
        now = time.monotonic()
        seen["answers"] += 1
        seen["longest"], last = max(seen["longest"], now - last), now
        if seen["answers"] == 1:
            print("connected", flush=True)
        time.sleep(0.002)
"""
MEMCACHED = (
    HEAD
    + """
sock = socket.create_connection((host, number))
sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
lines = sock.makefile("rb")
def ask(text):
    sock.sendall(text)
    return lines.readline()
def value(key):
    length = int(ask(b"get %s\\r\\n" % key).split()[3])
    found = lines.read(length + 2)[:-2]
    assert lines.readline() == b"END\\r\\n"
    return found
wanted = {b"key%d" % n: random.randbytes(500).hex().encode() for n in range(5000)}
for key, content in wanted.items():
    assert ask(b"set %s 0 0 %d\\r\\n%s\\r\\n" % (key, len(content), content)) == b"STORED\\r\\n"
ask(b"set count 0 0 1\\r\\n0\\r\\n")
for _ in rounds():
    assert int(ask(b"incr count 1\\r\\n")) == seen["answers"] + 1
    key = random.choice(list(wanted))
    assert value(key) == wanted[key], key
seen["right"] = all(value(key) == content for key, content in wanted.items())
print(json.dumps(seen))
"""
)
# The answers number the connection and its requests: both programs keep that in their memory.
HTTP = (
    HEAD
    + """
connection = http.client.HTTPConnection(host, number, timeout=60)
connection.connect()
connection.auto_open = 0
first = None
for _ in rounds():
    n = random.randrange(5000)
    connection.request("GET", f"/{n}")
    found = json.loads(connection.getresponse().read())
    first = first or found
    assert found["connection"] == first["connection"], found
    assert found["requests"] == seen["answers"] + 1, found
    assert found["value"] == f"value of {n}", found
connection.request("GET", "/file")
seen["right"] = connection.getresponse().read() == bytes(range(256)) * 4096
print(json.dumps(seen))
"""
)


def other_users(node: Node) -> bool:
    """Whether CRIU can dump processes of other users than root there: it needs CAP_SYS_RESOURCE (24)."""
    words = node.run("grep", "CapEff", "/proc/self/status").split()
    return bool(int(words[1], 16) >> 24 & 1)


class Service:
    """A program that runs on the source as a service does, in a folder and a session of its own.

    As the ordinary user, where CRIU can dump that user's processes; else as root.
    """

    def __init__(self, lab: Lab, address: str = "", port: int = 0) -> None:
        self.lab = lab
        self.address = address
        self.port = port
        self.folder = f"/srv/foreign-{secrets.token_hex(4)}"
        self.client: tuple[subprocess.Popen[str], int] | None = None
        self.pid = 0
        self.user = "ubuntu" if other_users(lab.source) else "root"
        lab.source.run("install", "-d", "-o", "ubuntu", "-g", "ubuntu", self.folder)
        if address:
            lab.source.run("ip", "addr", "add", f"{address}/24", "dev", "eth0")

    def write(self, name: str, content: str | bytes) -> Path:
        path = self.lab.source.path(f"{self.folder}/{name}")
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        path.chmod(0o644)
        return path

    def start(self, command: str, before: str = "") -> None:
        """Start it, by ssh so that it is in the node's own cgroups, and wait until it listens.

        `before`: what root does first, in front of the command.
        """
        user = f"setpriv --reuid={self.user} --regid={self.user} --clear-groups"
        inner = f"echo $$ >{self.folder}/pid; exec {before} {user} {command} </dev/null >{self.folder}/out 2>&1"
        self.lab.source.ssh(f"cd {self.folder}; setsid sh -c {shlex.quote(inner)} &")
        wait_for("the program's PID", lambda: self.lab.source.path(f"{self.folder}/pid").exists(), 10)
        self.pid = int(self.lab.source.path(f"{self.folder}/pid").read_text())
        if self.port:
            wait_for("the program to listen", self.listens, 20)

    def listens(self) -> bool:
        command = self.lab.client.command("python3", "-I", "-c", OPEN, self.address, str(self.port))
        if subprocess.run(command, capture_output=True).returncode == 0:
            return True
        assert self.lab.source.path(f"/proc/{self.pid}").exists(), self.said(self.lab.source)
        return False

    def said(self, node: Node) -> str:
        return node.path(f"{self.folder}/out").read_text(errors="replace")

    def connect(self, program: str) -> None:
        """Start a client on the third host; returns after its first answer."""
        self.client = self.lab.client.start(program, self.address, str(self.port))

    def client_result(self) -> dict[str, Any]:
        """End the client and return what it has seen; AssertionError when it has ended before, or saw a fault."""
        assert self.client is not None
        child, pid = self.client
        assert child.poll() is None, "the client has ended: its connection or an answer was not right"
        self.lab.client.kill(pid, signal.SIGTERM)
        out, _ = child.communicate(timeout=30)
        assert child.returncode == 0, out
        found: dict[str, Any] = json.loads(out.splitlines()[-1])
        return found

    def clean(self) -> None:
        """End the client, take everything away; never fails."""
        if self.client is not None:
            self.lab.client.run("kill", "-9", str(self.client[1]), check=False)
            self.client[0].wait()
        for node in (self.lab.source, self.lab.destination):
            for item in node.look()["processes"]:
                if item["cwd"].startswith(self.folder) or item["pid"] == self.pid:
                    node.run("kill", "-9", str(item["pid"]), check=False)
            node.run("rm", "-rf", self.folder, check=False)
            if self.address:
                node.run("ip", "addr", "del", f"{self.address}/24", "dev", "eth0", check=False)
