"""CRIU's statistics: read where they are there, and said where they cannot be."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate import stats
from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate.errors import MigrationError

ENTRIES = {"entries": [{"dump": {"freezing_time": 2500, "pages_written": 7}}]}


@pytest.fixture
def crit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a program that stands for crit; Python has no pycriu."""
    monkeypatch.setitem(sys.modules, "pycriu", None)
    program = tmp_path / "crit"
    monkeypatch.setattr(shutil, "which", lambda _name, path: str(program) if program.exists() else None)
    return program


def say(program: Path, text: str) -> None:
    program.write_text(f"#!/bin/sh\n{text}\n")
    program.chmod(0o755)


def test_times_are_seconds_and_counts_stay_counts(crit: Path, tmp_path: Path) -> None:
    (tmp_path / "stats-dump").touch()
    say(crit, f"echo '{json.dumps(ENTRIES)}'")
    assert stats.read(str(tmp_path)) == {"dump": {"freezing": 0.0025, "pages_written": 7}}


def test_no_statistics_are_no_problem(crit: Path, tmp_path: Path) -> None:
    assert stats.read(str(tmp_path)) == {}


def test_what_cannot_be_read_is_said_and_does_not_hinder_an_undo(crit: Path, tmp_path: Path) -> None:
    for name in ("stats-dump", "inventory.img"):
        (tmp_path / name).touch()
    assert "python3-pycriu" in stats.read(str(tmp_path))["problem"]
    say(crit, "echo 'no such magic' >&2; exit 1")
    with pytest.raises(MigrationError, match="no such magic"):
        stats.decode(str(tmp_path / "stats-dump"))
    assert stats.run_id(str(tmp_path), str(tmp_path / "no.log")) == ""
