"""A migration by the guards alone, as the role arms them, without Ansible: a fault test then takes seconds.

What the guards are told is what roles/migration/vars/main.yml tells them.
"""

from __future__ import annotations

import json
import os
import secrets
import shlex
import signal
import subprocess
import time
from functools import cache
from pathlib import Path
from typing import Any

from ansible_collections.criu.migrate.plugins.action import migration_certificates
from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate import payload
from tests.conftest import ROOT
from tests.lab.harness.nodes import RUNS, Lab, Node, wait_for
from tests.lab.harness.run import FINAL, Run

PROGRAMS = {
    "memory": ("memory_standalone.py", ["--mb_size=16", "--interval=0.5", "--max_memory=32"]),
    "redis": ("redis_standalone.py", ["--redis_port=7002", "--num_keys=5000", "--value_size=1024"]),
}
CLIENT = "redis_client.py"
OPTIONS = {
    "tcp_established": True, "tcp_close": False, "file_locks": True, "ext_unix_sk": True, "link_remap": True,
    "shell_job": False, "ghost_limit": 1 << 20,
}  # fmt: skip
PORTS = [27000, 27999]


@cache
def guard_program() -> bytes:
    return payload.build()


def private_file(path: Path, data: bytes) -> None:
    path.touch(mode=0o600)
    path.write_bytes(data)


class Guarded(Run):
    """Starts a workload (redis with its outside client where there is a service address), then both guards."""

    def __init__(
        self, lab: Lab, workload: str = "memory", pause: dict[str, list[str]] | None = None, **config: Any
    ) -> None:
        super().__init__(lab, workload, f"/srv/criu-migrate/test-{secrets.token_hex(4)}")
        self._run_id = f"{workload}-test-{secrets.token_hex(4)}"
        self.pause = pause or {}
        self.address = str(config.get("service_address", ""))
        self.program: list[str] = list(config.pop("program", []))
        self.config: dict[str, Any] = {
            "run_id": self._run_id, "workload": {"name": workload, "params": {}}, "working_dir": self.working_dir,
            "heartbeat": f"{self.working_dir}/heartbeat.bin", "roots": [self.working_dir], "service_address": "",
            "service_interface": "", "transfer": "page_server", "transfer_encryption": "tls", "keep_images": False,
            "limits": {}, "options": OPTIONS, **config,
        }  # fmt: skip
        self.images = {"source": "/dev/shm/criu-migrate", "destination": "/dev/shm/criu-migrate"}
        self.pid = 0

    def find(self) -> str | None:
        return self._run_id

    @property
    def postcopy(self) -> bool:
        return self.config.get("strategy") in ("postcopy", "hybrid")

    @property
    def lazy(self) -> bool:
        return self.postcopy or bool(self.config.get("lazy_restore"))

    # --- the workload ------------------------------------------------------------------------------------------

    def launch(self, node: Node, folder: str, words: list[str]) -> int:
        """Start a program in the node as its own session, through ssh, so that it is in the node's own cgroups."""
        node.path(folder).mkdir(parents=True)
        for path in (ROOT / "workloads").glob("*.py"):
            (node.path(folder) / path.name).write_bytes(path.read_bytes())
        node.path(f"{folder}/checkpoint_flag").touch()
        inner = f"echo $$ >{folder}/pid; exec {shlex.join(words)} </dev/null >>{folder}/output.log 2>&1"
        node.ssh(f"cd {folder}; setsid sh -c {shlex.quote(inner)} &")
        ready = node.path(f"{folder}/checkpoint_ready")
        try:
            wait_for(f"{words} to be ready", lambda: ready.exists() and ready.read_text().startswith("ready"), 60)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.unready(node, folder)}") from None
        return int(node.path(f"{folder}/pid").read_text())

    def unready(self, node: Node, folder: str) -> str:
        """What is to be seen of a program that did not get ready: its output, the files, who has the address."""
        log = node.path(f"{folder}/output.log")
        said = [log.read_text(encoding="utf-8") if log.exists() else "no output", *os.listdir(node.path(folder))]
        for name, host in self.lab.nodes.items():
            for command in ("ip neigh", "ip -brief addr", "nft list ruleset", "ss -tanp", "ps -ef"):
                said.append(f"--- {name}: {command}\n" + host.run(*command.split(), check=False))
        return "\n".join(said)

    def begin_workload(self) -> None:
        if self.address:
            self.lab.source.run("ip", "addr", "add", f"{self.address}/24", "dev", "eth0", "noprefixroute")
        name, options = PROGRAMS.get(self.workload, ("", []))
        words = self.program or ["python3", f"{self.working_dir}/{name}", f"--working_dir={self.working_dir}", *options]
        self.pid = self.launch(self.lab.source, self.working_dir, words)
        if self.workload == "redis" and self.address:
            folder = self.working_dir + "-client"
            words = ["python3", f"{folder}/{CLIENT}", f"--working_dir={folder}", f"--host={self.address}"]
            self.launch(self.lab.client, folder, [*words, "--port=7002", "--num_keys=200"])

    # --- the guards --------------------------------------------------------------------------------------------

    def arm(self, role: str, tls: dict[str, str], **more: Any) -> None:
        """Lay out what criu_guard state=armed lays out."""
        node = self.node(role)
        folder = node.path(f"{RUNS}/{self._run_id}")
        (folder / "tls").mkdir(parents=True, mode=0o700)
        folder.chmod(0o700)
        for name in ("ca", "cert", "key"):
            private_file(folder / "tls" / f"{name}.pem", tls[name].encode())
        images = f"{self.images[role]}/{self._run_id}"
        config = {**self.config, "role": role, "pause_at": self.pause.get(role, []), "images_dir": images, **more}
        private_file(folder / "config.json", json.dumps(config).encode())
        private_file(folder / "guard.pyz", guard_program())
        record = {
            "run_id": self._run_id, "role": role, "state": "armed", "times": {"armed": time.time()},
            "boot_id": node.path("/proc/sys/kernel/random/boot_id").read_text().strip(),
            **{name: self.config[name] for name in ("workload", "working_dir", "service_address")},
        }  # fmt: skip
        private_file(folder / "record.json", json.dumps(record).encode())

    def start_guard(self, role: str) -> None:
        """Start a guard from its record, for the first time or again, as criu_guard state=started does."""
        self.node(role).ssh(f"python3 -I {RUNS}/{self._run_id}/guard.pyz {self._run_id}")

    def start(self) -> Guarded:
        """Start the workload and let the guards go."""
        self.arm_both()
        self.start_guard("source")
        return self

    def arm_both(self) -> None:
        """Start the workload; the destination's guard listens, the source's has only to be started."""
        self.begin_workload()
        tls = migration_certificates.make(self._run_id, 2)
        self.arm("destination", tls["destination"], ports=PORTS)
        self.start_guard("destination")
        port = wait_for("the destination's port", lambda: self.record("destination").get("port"), 20)
        stat = self.lab.source.path(f"/proc/{self.pid}/stat").read_text()
        start = int(stat[stat.rindex(")") + 2 :].split()[19])
        peer = {"host": self.lab.destination.address, "port": port}
        self.arm("source", tls["source"], pid=self.pid, start=start, peer=peer)

    def replace_guard(self, role: str, state: str, keeper: bool) -> None:
        """Kill a guard, by itself or with the keeper that would start it again; then it is started by hand.

        It shall not pause in `state` a second time.
        """
        before = self.record(role)
        self.node(role).kill(int(before["guard"]["pid"]), signal.SIGSTOP)  # not one step further
        self.go(role, state)
        self.kill_guard(role, keeper)
        if keeper:
            self.start_guard(role)
        self.await_new_guard(role, before)

    def finish(self, *states: str, limit: float = 90.0) -> str:
        """Wait until the source's record is final, in one of `states`; returns the role where the process is."""
        state = str(self.await_state("source", *FINAL, limit=limit)["state"])
        assert state in (states or ("done",)), self.story()
        return "destination" if state == "done" else "source"

    def output(self) -> str:
        logs = [
            self.node(role).log(self._run_id, name)[-1500:]
            for role, name in (("source", "criu-dump.log"), ("destination", "criu-restore.log"))
        ]
        return "\n...\n".join(logs)


def program_of(text: str) -> list[str]:
    """A Python program as a command line."""
    return ["python3", "-c", text]


def await_ssh(node: Node) -> None:
    """After a power cycle: until the node can be reached again."""
    wait_for("sshd", lambda: subprocess.run(node.ssh_command("true"), capture_output=True).returncode == 0, 60)
