"""A lab of its own: made twice changes nothing, removed leaves no trace."""

from __future__ import annotations

import os
import secrets
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.lab.harness.nodes import Lab, playbook

PLACES = ("/run/criu-migrate-lab", "/var/lib/criu-migrate-lab", str(ROOT / "inventories"))


def make(tmp: Path, name: str, *more: str) -> str:
    done = playbook(tmp, "playbooks/lab.yml", "-e", f"lab_name={name}", *more)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def traces(name: str) -> list[str]:
    """Everything on this machine that carries the lab's name: files, mounts, cgroups, processes."""
    found = [
        f"{place}/{item}" for place in PLACES if os.path.isdir(place) for item in os.listdir(place) if name in item
    ]
    found += [line for line in Path("/proc/self/mounts").read_text().splitlines() if name in line]
    cgroups = subprocess.run(["find", "/sys/fs/cgroup", "-name", f"*{name}*"], capture_output=True, text=True)
    found += cgroups.stdout.splitlines()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if name in command:
            found.append(f"process {folder.name}: {command}")
    return found


@pytest.fixture
def own_name(tmp_path: Path) -> Iterator[str]:
    name = f"test-{secrets.token_hex(4)}"
    yield name
    make(tmp_path, name, "-e", "lab_state=absent")


def test_a_lab_comes_and_goes(own_name: str, tmp_path: Path) -> None:
    first = make(tmp_path, own_name, "-e", "lab_nodes=3", "-e", "lab_rate=1gbit")
    assert "changed=0 " not in first
    lab = Lab(own_name)
    assert len(list(Path("/run/criu-migrate-lab", own_name).glob("node-*.pid"))) == 3
    assert "rate 1Gbit" in lab.source.run("tc", "qdisc", "show", "dev", "eth0")
    again = make(tmp_path, own_name, "-e", "lab_nodes=3", "-e", "lab_rate=1gbit")
    assert "changed=0 " in again, again
    make(tmp_path, own_name, "-e", "lab_state=absent")
    assert traces(own_name) == []
    assert "changed=0 " in make(tmp_path, own_name, "-e", "lab_state=absent")
