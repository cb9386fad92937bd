"""Tests with real CRIU: every session has a lab of its own, made and removed by playbooks/lab.yml.

CRIU_MIGRATE_LAB=NAME uses (or makes) a lab of that name and leaves it, for quick repetition.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.lab.harness.aftermath import Aftermath
from tests.lab.harness.evacuee import Cloud, Evacuee, Group, Play, remove_watch
from tests.lab.harness.foreign import PACKAGES
from tests.lab.harness.guarded import Guarded
from tests.lab.harness.migration import Migration
from tests.lab.harness.nodes import Lab, playbook

Guard = Callable[..., tuple[Guarded, Aftermath]]
Prepare = Callable[..., tuple[Migration, Aftermath]]
Plays = Callable[..., Play]
Standing = Callable[..., Group]


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("criu-migrate")
    group.addoption("--soak", action="store_true", help="run the tests marked soak as well")
    group.addoption("--faults", type=int, default=8, help="how many random faults test_campaign.py brings about")
    group.addoption("--rounds", type=int, default=1, help="how often each lab test is run")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "soak: takes long and is left out unless --soak is given")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    rounds = metafunc.config.getoption("rounds")
    if rounds > 1 and "lab" in metafunc.fixturenames and "seed" not in metafunc.fixturenames:
        metafunc.fixturenames.append("round_number")
        metafunc.parametrize("round_number", range(1, rounds + 1))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("soak"):
        return
    longer = [item for item in items if item.get_closest_marker("soak")]
    if longer:
        config.hook.pytest_deselected(items=longer)
        items[:] = [item for item in items if item not in longer]


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """The lab of this session, removed at its end, also after Ctrl-C and SIGTERM."""
    if os.geteuid() != 0:
        pytest.skip("the lab needs root")
    kept = os.environ.get("CRIU_MIGRATE_LAB", "")
    signal.signal(signal.SIGTERM, lambda *_: pytest.exit("terminated", 143))
    with making(tmp_path_factory.mktemp("lab"), kept or f"test-{secrets.token_hex(4)}", bool(kept)) as lab:
        yield lab


@pytest.fixture(scope="module")
def wide_lab(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A lab of three nodes beside the other one, for the tests of one file."""
    with making(tmp_path_factory.mktemp("wide"), f"{lab.name}-wide", False, "lab_nodes=3") as wide:
        yield wide


@contextlib.contextmanager
def making(tmp: Path, name: str, keep: bool, *settings: str) -> Iterator[Lab]:
    """A lab for the block, and after it where it is kept."""
    words = [word for setting in (f"lab_name={name}", *settings) for word in ("-e", setting)]
    try:
        done = playbook(tmp, "playbooks/lab.yml", *words, "-e", f"lab_packages={','.join(PACKAGES)}")
        assert done.returncode == 0, f"the lab could not be made:\n{done.stdout}{done.stderr}"
        yield Lab(name)
    finally:
        if not keep:
            done = playbook(tmp, "playbooks/lab.yml", *words, "-e", "lab_state=absent")
            assert done.returncode == 0, f"the lab could not be removed:\n{done.stdout}{done.stderr}"


@pytest.fixture
def prepare(lab: Lab, tmp_path: Path) -> Iterator[Prepare]:
    """Return a function that lays out a migration and its aftermath, both cleared away after the test."""
    made: list[Aftermath] = []
    lab.keep_pids_apart()

    def make(workload: str, own_pid: int = 0, **params: Any) -> tuple[Migration, Aftermath]:
        migration = Migration(lab, tmp_path, workload, **params)
        aftermath = Aftermath(migration, str(params.get("service_address", "")), own_pid)
        made.append(aftermath)
        return migration, aftermath

    yield make
    for aftermath in made:
        aftermath.clean()


@pytest.fixture
def guarded(lab: Lab) -> Iterator[Guard]:
    """Return a function that lays out a migration by the guards alone, cleared away after the test."""
    made: list[Aftermath] = []
    lab.keep_pids_apart()

    def make(workload: str = "memory", **config: Any) -> tuple[Guarded, Aftermath]:
        run = Guarded(lab, workload, **config)
        made.append(Aftermath(run, run.address))
        return run, made[-1]

    yield make
    for aftermath in made:
        aftermath.clean()


@pytest.fixture
def plays(lab: Lab, tmp_path: Path) -> Iterator[Plays]:
    """Return a function that starts a playbook; whatever it leaves of the watch is removed after the test."""
    made: list[Play] = []

    def begin(name: str, **extra: Any) -> Play:
        made.append(Play(lab, tmp_path, name, **extra))
        return made[-1]

    yield begin
    for play in made:
        play.close()
    remove_watch(lab, tmp_path)


@pytest.fixture
def standing(lab: Lab, tmp_path: Path) -> Iterator[Standing]:
    """Return a function that starts and registers workloads of so many MB, by name, in the order in which they are to
    go; they are gone after the test. `limits`: of their guards, in seconds."""
    group = Group(tmp_path)
    lab.keep_pids_apart()

    def begin(limits: dict[str, float] | None = None, **sizes: int) -> Group:
        ranks = reversed(range(len(sizes)))
        group.start(Evacuee(lab, name, sizes[name], rank, **(limits or {})) for name, rank in zip(sizes, ranks))
        return group

    yield begin
    group.clean([lab.source, lab.destination])


@pytest.fixture
def cloud(lab: Lab, request: pytest.FixtureRequest) -> Iterator[Cloud]:
    service = Cloud(lab, getattr(request, "param", "aws"))
    yield service
    service.close()
