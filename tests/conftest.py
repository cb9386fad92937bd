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
