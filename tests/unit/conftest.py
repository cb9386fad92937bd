"""Processes with memory that more than one file of tests moves or fills; what moves have cost, for each test."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate import costs
from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate.secure import Secure
from tests.unit.channel import Child
from tests.unit.prey import Prey
from tests.unit.test_secure import contexts, pair


@pytest.fixture(autouse=True)
def own_costs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(costs, "FOLDER", str(tmp_path))


@pytest.fixture
def prey() -> Iterator[Prey]:
    made = Prey()
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def child() -> Iterator[Child]:
    made = Child()
    yield made
    os.kill(made.pid, signal.SIGKILL)
    os.waitpid(made.pid, 0)


@pytest.fixture
def dial(tmp_path: Path) -> Callable[[], tuple[Secure, Secure]]:
    paths = contexts(tmp_path)
    return lambda: pair(paths["source"], paths["destination"])
