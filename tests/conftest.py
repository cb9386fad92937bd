"""What every kind of test uses. The code under test is imported as ``ansible_collections.criu.migrate...``."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
Run = Callable[..., "subprocess.CompletedProcess[str]"]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option for tests of many rounds."""
    parser.addoption("--soak", type=int, default=0, metavar="N", help="lab tests N times, and those marked soak")


def pytest_configure(config: pytest.Config) -> None:
    """Make the marker known."""
    config.addinivalue_line("markers", "soak: takes so long that it runs with --soak only")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the tests marked soak to --soak."""
    if config.getoption("--soak"):
        return
    left = [item for item in items if item.get_closest_marker("soak")]
    if left:
        config.hook.pytest_deselected(items=left)
        items[:] = [item for item in items if item not in left]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Repeat each lab test as often as --soak says."""
    rounds = metafunc.config.getoption("--soak")
    if rounds and "lab" in Path(metafunc.module.__file__ or "").parts:
        metafunc.fixturenames.append("soak_round")
        metafunc.parametrize("soak_round", range(1, rounds + 1))


@pytest.fixture
def root() -> Path:
    """Return the root of the repository."""
    return ROOT


@pytest.fixture
def ansible(tmp_path: Path) -> Run:
    """Return a function that runs a program of ansible-core in the clone, with no nodes named by the environment."""

    def run(program: str, *arguments: str, cwd: Path = ROOT, **environ: str) -> subprocess.CompletedProcess[str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("ANSIBLE_", "SSH_"))}
        for name in ("SOURCE_NODE_IP", "DEST_NODE_IP"):
            kept.pop(name, None)
        kept.update(ANSIBLE_LOCAL_TEMP=str(tmp_path / "ansible"), ANSIBLE_NOCOLOR="1", **environ)
        command = [str(Path(sys.executable).with_name(program)), *arguments]
        return subprocess.run(command, cwd=cwd, env=kept, capture_output=True, text=True, timeout=300)

    return run
