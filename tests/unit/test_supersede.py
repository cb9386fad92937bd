"""Which earlier runs a new one may end: never one whose play still verifies it, and only what is in its way."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate import inspect_node, proc, record, supersede

Run = Callable[..., Path]
KEY = {"redis_port": 7001}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """Lay out a run that has moved a living process here; `collected` by its play, or not."""
    monkeypatch.setattr(record, "RUNS", str(tmp_path))
    roomy(monkeypatch, True)
    child = subprocess.Popen(["sleep", "infinity"])
    stat = proc.stat(child.pid)
    assert stat

    def make(run_id: str, name: str = "memory", collected: bool = True, **more: Any) -> Path:
        folder = tmp_path / run_id
        folder.mkdir()
        data = {
            "run_id": run_id, "role": "destination", "state": "done", "times": {"done": time.time()},
            "workload": {"name": name, "params": KEY}, "procs": [proc.Proc(child.pid, stat[2]).as_dict()], **more,
        }  # fmt: skip
        (folder / "record.json").write_text(json.dumps(data))
        if not collected:
            (folder / "config.json").write_text(json.dumps({"images_dir": str(tmp_path / "none")}))
        return folder

    yield make
    child.kill()
    child.wait()


def roomy(monkeypatch: pytest.MonkeyPatch, is_so: bool) -> None:
    monkeypatch.setattr(inspect_node, "memory", lambda: {"total": 1000, "available": 900 if is_so else 100})


def names(workload: str, key: dict[str, Any], own: str = "new") -> list[str]:
    return [data["run_id"] for data in supersede.find(workload, key, own)]


def test_one_that_nobody_has_collected_is_left_alone(run: Run) -> None:
    """Its play may be verifying it at this moment."""
    run("redis-1", "redis", collected=False)
    assert names("redis", KEY) == []
    os.unlink(run("redis-2", "redis", collected=False) / "config.json")
    assert names("redis", KEY) == ["redis-2"]


def test_only_what_is_in_the_way_is_ended(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    run("memory-1")
    run("redis-1", "redis")
    assert names("memory", {}) == [], "several of these run side by side"
    assert names("redis", {"redis_port": 7002}) == []
    assert names("redis", KEY, own="redis-1") == []
    roomy(monkeypatch, False)
    assert names("memory", {}) == ["memory-1"]
    run("memory-2", collected=False)
    assert names("memory", {}) == ["memory-1"], "also where memory is scarce"


@pytest.mark.parametrize("name", supersede.KEEP)
def test_what_is_a_users_is_never_ended(run: Run, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    run("theirs", name)
    roomy(monkeypatch, False)
    assert names(name, KEY) == []


def test_runs_that_nobody_has_ended_or_collected_are_named(run: Run) -> None:
    run("collected")
    run("left", collected=False)
    run("at-work", collected=False, state="running")
    run("own", collected=False)
    assert supersede.tidy("own") == [
        {"run_id": "at-work", "state": "running"},
        {"run_id": "left", "state": "done, but was not collected"},
    ]
