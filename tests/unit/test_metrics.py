"""What metrics.json says of the time that a run took, and what it leaves out."""

from __future__ import annotations

from typing import Any

import pytest

from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate import metrics

PARAMS = {"run_id": "memory-1", "began": 1000.0, "workload": {"name": "memory", "params": {}}}
# The source's clock is 50 s ahead of the control node's
RECORD = {"state": "done", "times": {"stopping": 1080.0, "freezing": 1080.1, "resumed": 1081.0, "done": 1082.0}}


def build(looked: list[float], began: float | None) -> dict[str, Any]:
    return metrics.build(PARAMS, {"record": RECORD}, {}, looked=looked, began=began, ended=1084.0)


def test_starting_a_test_workload_is_no_part_of_a_migration() -> None:
    # nodes prepared in 4 s; the workload started and filled in 20 s
    started = build([1004.0, 1024.0], began=1074.0)
    assert started["times"]["workload_start"] == 20.0
    there_already = build([1004.0], began=1074.0)
    assert there_already["times"]["workload_start"] == 0.0
    for name, seconds in (("preparation", 10.0), ("total", 14.0), ("downtime", 1.0), ("resume", 3.0)):
        assert started["times"][name] == there_already["times"][name] == pytest.approx(seconds)
    assert started["deadlines"]["gcp"] == {"limit": 30.0, "used": 12.0, "met": True, "margin": 18.0}


def test_a_run_that_ended_before_the_nodes_were_looked_at_has_no_times() -> None:
    found = metrics.build(PARAMS, {}, {}, ended=1084.0)
    assert set(found["times"].values()) == {None}
    assert found["deadlines"]["aws"]["used"] is None
