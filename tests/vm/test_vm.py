"""Nodes that are virtual machines: own kernels, own clocks, own disks.

One lab for the whole file, made, used and removed in this order: where KVM does not work, every step on a node is slow.
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.lab.harness.nodes import Lab, Node, playbook, program
from tests.lab.test_lab import make, traces

pytestmark = pytest.mark.vm
CLOCK_OFFSET = 3  # seconds that node-2 is ahead
WORKLOADS = ("-e", "lab_workloads=memory,redis")  # each machine has a copy of the image: only what is used here
VM = ("-e", "lab_backend=vm", "-e", "lab_memory=1024", "-e", f"lab_clock_offset={CLOCK_OFFSET}", *WORKLOADS)


def tell(node: Node, words: str) -> str:
    """What a shell command prints as root on a node; a virtual machine is reached by ssh only."""
    done = subprocess.run(node.ssh_command(words), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, f"{node.name}: {words}: {done.stdout}{done.stderr}"
    return done.stdout.strip()


def clock_ahead(node: Node) -> tuple[float, float]:
    """Least and greatest number of seconds that a node's clock can be ahead of ours."""
    before = time.time()
    theirs = float(tell(node, "date +%s.%N"))
    return theirs - time.time(), theirs - before


def check_corrected(metrics: dict[str, Any]) -> None:
    """Held against the source's clock alone: it committed before the copy was thawed, and was told of that afterwards.

    With the other clock taken at its word, or corrected the wrong way, all of these would be off by its offset.
    """
    marks, downtime = metrics["marks"], metrics["downtime"]
    least, most = marks["committed"] - marks["stopping"], marks["acknowledged"] - marks["stopping"]
    assert most - least < CLOCK_OFFSET, f"too slow a machine to tell: {marks}"
    slack = 2 * downtime["usual_gap"] + 0.2
    for name in ("frozen", "service", "witness"):
        assert least - slack < downtime[name] < most + slack, (name, downtime, marks)


@pytest.fixture(scope="module")
def vm_lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    if os.geteuid() != 0:
        pytest.skip("the lab needs root")
    name, tmp = f"test-{secrets.token_hex(4)}", tmp_path_factory.mktemp("vm")
    try:
        make(tmp, name, *VM)
        yield Lab(name)
    finally:
        make(tmp, name, "-e", "lab_state=absent")


def test_the_machines_are_what_was_asked_for(vm_lab: Lab, tmp_path: Path) -> None:
    for node in (vm_lab.source, vm_lab.destination):
        assert tell(node, "uname -r") != os.uname().release
        tell(node, "criu check --feature mem_dirty_track")
    least, most = clock_ahead(vm_lab.source)
    assert least < 0.2 and most > -0.2
    least, most = clock_ahead(vm_lab.destination)
    assert least < CLOCK_OFFSET + 0.2 and most > CLOCK_OFFSET - 0.2
    again = make(tmp_path, vm_lab.name, *VM)
    assert "changed=0 " in again, again


def test_a_process_moves_between_two_kernels_with_two_clocks(vm_lab: Lab, tmp_path: Path) -> None:
    boot_ids = {tell(node, "cat /proc/sys/kernel/random/boot_id") for node in (vm_lab.source, vm_lab.destination)}
    assert len(boot_ids) == 2
    extra = {"workload": "memory", "mb_size": 16, "max_memory": 16, "results_dir": str(tmp_path / "results")}
    done = playbook(tmp_path, "migrate.yml", "-i", str(vm_lab.inventory), "-e", json.dumps(extra))
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = (tmp_path / "results").glob("*/metrics.json")
    metrics: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    found = metrics["nodes"]["destination"]
    assert abs(found["clock_offset"] - CLOCK_OFFSET) < found["clock_offset_bound"] + 0.2
    check_corrected(metrics)
    assert "Integrity: verified" in done.stdout


def test_a_power_cycle_keeps_the_disk_and_nothing_else(vm_lab: Lab, tmp_path: Path) -> None:
    node = vm_lab.destination
    before = tell(
        node, "echo kept >/var/tmp/disk; sync; echo lost >/dev/shm/memory; cat /proc/sys/kernel/random/boot_id"
    )
    arguments = f"lab={vm_lab.name} name={node.name} state=restarted"
    own_python = f"ansible_python_interpreter={program('python')}"
    done = subprocess.run(
        [program("ansible"), "localhost", "-c", "local", "-e", own_python, "-m", "lab_node", "-a", arguments],
        cwd=Path(__file__).parents[2], capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    subprocess.run(["ssh", *node.ssh_command("true")[1:-2], "-O", "exit", node.name], capture_output=True)
    assert tell(node, "cat /var/tmp/disk; ls /dev/shm") == "kept"
    assert tell(node, "cat /proc/sys/kernel/random/boot_id") != before
    least, most = clock_ahead(node)
    assert least < CLOCK_OFFSET + 0.2 and most > CLOCK_OFFSET - 0.2


def test_nothing_is_left(vm_lab: Lab, tmp_path: Path) -> None:
    make(tmp_path, vm_lab.name, "-e", "lab_state=absent")
    assert [line for line in traces(vm_lab.name) if "ssh" not in line] == []
