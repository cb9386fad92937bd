"""Tests that need nodes with kernels of their own (lab_backend=vm)."""

from __future__ import annotations

import pytest


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "vm: needs virtual machines; `-m 'not vm'` leaves it out")
