"""The hosts of an inventory over ssh connections that stay open, as one prepares them before a move by hand."""

from __future__ import annotations

import shlex
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml


class BenchmarkError(Exception):
    """A run could not be carried out; the text has the command and its last words."""


@dataclass
class Host:
    """One host: `warm` connections are shared and stay open, others are made for one command."""

    name: str
    address: str
    options: list[str]
    control: Path

    def ssh(self, warm: bool = True) -> list[str]:
        """Return the ssh command line up to the host."""
        words = ["ssh", *self.options, "-o", "BatchMode=yes"]
        if warm:
            words += ["-o", "ControlMaster=auto", "-o", f"ControlPath={self.control}/%n", "-o", "ControlPersist=900"]
        else:
            words += ["-o", "ControlPath=none"]
        return [*words, self.name]

    def run(self, script: str, stdin: bytes | None = None, warm: bool = True, limit: float = 300.0) -> str:
        """Run a shell script as root and return what it printed.

        :raises BenchmarkError: when it ends with another code than 0 or not within `limit` seconds
        """
        command = [*self.ssh(warm), "sudo sh -c " + shlex.quote(script)]
        try:
            done = subprocess.run(
                command,
                input=stdin,
                stdin=subprocess.DEVNULL if stdin is None else None,
                capture_output=True,
                timeout=limit,
            )
        except subprocess.TimeoutExpired as error:
            raise BenchmarkError(f"{self.name}: not within {limit:g} s: {script}") from error
        if done.returncode:
            text = (done.stdout + done.stderr).decode(errors="replace").strip()[-2000:]
            raise BenchmarkError(f"{self.name}: `{script}` ended with {done.returncode}: {text}")
        return done.stdout.decode(errors="replace")

    def put(self, path: str, content: bytes, mode: str = "0644") -> None:
        """Write a file on the host as root; who reads it sees all of it or nothing."""
        folder, new = shlex.quote(str(Path(path).parent)), shlex.quote(path + ".new")
        script = f"mkdir -p {folder} && cat > {new} && chmod {mode} {new} && mv {new} {shlex.quote(path)}"
        self.run(script, stdin=content)

    def get(self, path: str) -> bytes:
        """Return the content of a file."""
        done = subprocess.run(
            [*self.ssh(), "sudo cat " + shlex.quote(path)], stdin=subprocess.DEVNULL, capture_output=True, timeout=60
        )
        if done.returncode:
            raise BenchmarkError(f"{self.name}: {path}: {done.stderr.decode(errors='replace').strip()}")
        return done.stdout

    def close(self) -> None:
        """End the shared connection."""
        subprocess.run([*self.ssh()[:-1], "-O", "exit", self.name], capture_output=True)


@dataclass
class Hosts:
    """Source, destination, the clients' host, and the address that moves."""

    source: Host
    destination: Host
    client: Host
    service_address: str
    inventory: Path

    def all(self) -> list[Host]:
        """Return the three hosts."""
        return [self.source, self.destination, self.client]


def _first(inventory: dict[str, Any], group: str) -> tuple[str, dict[str, Any]]:
    hosts = inventory["all"]["children"].get(group, {}).get("hosts") or {}
    if not hosts:
        raise BenchmarkError(f"The inventory has no host in group {group}.")
    name = next(iter(hosts))
    return name, hosts[name] or {}


def load(path: Path, control: Path, service_address: str = "") -> Hosts:
    """Read an inventory in YAML with the groups source, destination and client; ssh.cfg beside it is used."""
    inventory = yaml.safe_load(path.read_text(encoding="utf-8"))
    common = inventory["all"].get("vars") or {}
    config = path.parent / "ssh.cfg"
    options = ["-F", str(config)] if config.exists() else ["-l", str(common.get("ansible_user", "ubuntu"))]
    made: list[Host] = []
    for group in ("source", "destination", "client"):
        name, values = _first(inventory, group)
        made.append(Host(name, str(values.get("ansible_host", name)), options, control))
    address = service_address or str(common.get("lab_service_address", ""))
    if not address:
        raise BenchmarkError("Which address moves? Give --service_address.")
    return Hosts(made[0], made[1], made[2], address, path)
