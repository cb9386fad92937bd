"""Tests that need nodes with kernels of their own (lab_backend=vm)."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator

import pytest

from tests.lab.harness.machine import MachineLab
from tests.lab.test_lab import make
from tests.vm.test_vm import VM


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "vm: needs virtual machines; `-m 'not vm'` leaves it out")


@pytest.fixture(scope="session")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MachineLab]:
    """One lab for all tests that look into its nodes. CRIU_MIGRATE_VM_LAB=NAME uses (or makes) one and leaves it."""
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
