"""A few random faults between two machines with kernels, clocks and disks of their own (tests/lab/test_campaign.py).

CRIU_MIGRATE_VM_LAB=NAME uses (or makes) a lab of that name and leaves it; CRIU_MIGRATE_SEED repeats one fault.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from tests.lab.harness import nodes
from tests.lab.harness.aftermath import Aftermath
from tests.lab.harness.chance import KINDS, Draw
from tests.lab.harness.guarded import Guarded
from tests.lab.harness.machine import MachineLab
from tests.lab.test_campaign import bring_about

pytestmark = pytest.mark.vm
STRETCH = 16.0  # emulated, nodes are so much slower
DELAY = 2.0  # seconds after a state was reached within which the fault strikes
# Kinds that need a kernel that tracks pages. What each round does is not of interest here, only that there are some.
ROUNDS: dict[str, dict[str, Any]] = {
    name: {"strategy": name, "lazy_restore": lazy, "pre_copy": {"iterations": 2, "interval": 0.5, "memory": 1 << 26}}
    for name, lazy in (("precopy", True), ("hybrid", False))
}
LIMITS = {"connect": 15, "link": 20, "undo": 20}
GIVEN = os.environ.get("CRIU_MIGRATE_SEED")
SEEDS = [int(GIVEN)] if GIVEN else [1, 2, 3, 5, 6, 8, 11, 14, 17, 20]  # seven of nodes, three of processes


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kinds", [KINDS, ROUNDS], ids=["anywhere", "pre-copy"])
def test_a_random_fault(
    machines: MachineLab, kinds: dict[str, Any], seed: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(nodes, "stretch", STRETCH)
    draw = Draw.of(seed, DELAY, kinds)
    machines.keep_pids_apart()
    address = machines.service_address(2) if draw.with_address else ""
    run = Guarded(machines, draw.workload, limits=LIMITS, service_address=address, **kinds[draw.kind])
    aftermath = Aftermath(run, run.address)
    try:
        bring_about(draw, run, aftermath, tmp_path)
    finally:
        aftermath.clean()
