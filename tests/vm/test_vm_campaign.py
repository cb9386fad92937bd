"""A few random faults between two machines with kernels, clocks and disks of their own (tests/lab/test_campaign.py).

CRIU_MIGRATE_VM_LAB=NAME uses (or makes) a lab of that name and leaves it; CRIU_MIGRATE_SEED repeats one fault.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.harness import nodes
from tests.lab.harness.aftermath import Aftermath
from tests.lab.harness.chance import KINDS, Draw
from tests.lab.harness.guarded import Guarded
from tests.lab.harness.machine import MachineLab
from tests.lab.test_campaign import bring_about
from tests.lab.test_lab import make
from tests.vm.test_vm import VM

pytestmark = pytest.mark.vm
STRETCH = 16.0  # emulated, nodes are so much slower
DELAY = 2.0  # seconds after a state was reached within which the fault strikes
LIMITS = {"connect": 15, "link": 20, "undo": 20}
GIVEN = os.environ.get("CRIU_MIGRATE_SEED")
SEEDS = [int(GIVEN)] if GIVEN else [1, 2, 3, 5, 6, 8, 11, 14, 17, 20]  # seven of nodes, three of processes


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MachineLab]:
    if os.geteuid() != 0:
        pytest.skip("the lab needs root")
    kept = os.environ.get("CRIU_MIGRATE_VM_LAB", "")
    name, tmp = kept or f"test-{secrets.token_hex(4)}", tmp_path_factory.mktemp("vm")
    try:
        make(tmp, name, *VM)
        yield MachineLab(name)
    finally:
        if not kept:
            make(tmp, name, "-e", "lab_state=absent")


@pytest.mark.parametrize("seed", SEEDS)
def test_a_random_fault(machines: MachineLab, seed: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(nodes, "stretch", STRETCH)
    draw = Draw.of(seed, DELAY)
    machines.keep_pids_apart()
    address = machines.service_address(2) if draw.with_address else ""
    run = Guarded(machines, draw.workload, limits=LIMITS, service_address=address, **KINDS[draw.kind])
    aftermath = Aftermath(run, run.address)
    try:
        bring_about(draw, run, aftermath, tmp_path)
    finally:
        aftermath.clean()
