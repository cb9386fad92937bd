"""What metrics.json says of rounds: what they moved, why they ended, how well the downtime was predicted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate import metrics

PAGE = 4096
PARAMS = {"run_id": "redis-1", "workload": {"name": "redis", "params": {}}, "transfer": "page_server",
          "transfer_encryption": "tls"}  # fmt: skip


def round_(pages: int, predicted: float | None) -> dict[str, Any]:
    return {"seconds": 1.0, "frozen": 0.01, "pages_scanned": 500, "pages_written": pages, "pages_skipped": 0,
            "bytes": pages * PAGE, "predicted_downtime": predicted}  # fmt: skip


def build(**changes: Any) -> dict[str, Any]:
    """A move of 0.25 s after two rounds; `changes` are those of the source's record."""
    record = {
        "state": "done", "parent": "pre-2", "bytes": 1000, "pre_dumps": [round_(400, 1.5), round_(50, 0.2)],
        "stop_reason": "target", "predicted": {"downtime": 0.2, "at": 5.0},
        "times": {"stopping": 10.0, "freezing": 10.0, "frozen": 10.01, "sent": 10.11},
        "destination_times": {"resumed": 10.25}, **changes,
    }  # fmt: skip
    stats = {"dump": {"pages_written": 8}}
    plan = {"strategy": "precopy", "lazy_restore": True}
    return metrics.build(PARAMS, {"record": record, "stats": stats}, {}, preflight={"plan": plan})


def part(root: Path, name: str) -> dict[str, Any]:
    schema = json.loads((root / "schemas" / "metrics.schema.json").read_text(encoding="utf-8"))
    return {**schema["properties"][name], "$defs": schema.get("$defs", {})}


def test_rounds_are_told_as_they_were_and_the_schema_knows_them(root: Path) -> None:
    found = build()
    assert [one["predicted_downtime"] for one in found["pre_dumps"]] == [1.5, 0.2]
    assert found["stop_reason"] == "target"
    for name in ("pre_dumps", "stop_reason", "prediction", "transfer"):
        jsonschema.validate(found[name], part(root, name), jsonschema.Draft202012Validator)
    broken = [{**found["pre_dumps"][0], "bytes": -1}]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(broken, part(root, "pre_dumps"), jsonschema.Draft202012Validator)


def test_what_rounds_moved_has_crossed_too() -> None:
    assert build()["transfer"]["bytes"] == (400 + 50 + 8) * PAGE + 1000


def test_rounds_that_were_of_no_use_are_not_counted_and_predict_nothing() -> None:
    """A guard was started again after them: everything was moved once more."""
    found = build(parent="")
    assert found["transfer"]["bytes"] == 8 * PAGE + 1000
    assert found["prediction"] == {"downtime": None, "actual": None, "error": None}


def test_the_prediction_lies_beside_what_it_was() -> None:
    assert build()["prediction"] == {"downtime": 0.2, "actual": 0.25, "error": -0.2}
    assert build(predicted={"downtime": 0.5})["prediction"]["error"] == 1.0


def test_a_decision_against_any_round_is_a_prediction_as_well() -> None:
    found = build(pre_dumps=[], parent="", stop_reason="not_falling")
    assert (found["stop_reason"], found["prediction"]["downtime"]) == ("not_falling", 0.2)


def test_a_move_that_was_undone_has_no_downtime_to_compare_with() -> None:
    times = {"stopping": 10.0, "freezing": 10.0, "frozen": 10.01, "undoing": 40.0, "resumed": 41.0}
    found = build(state="undone", times=times, destination_times={})
    assert found["status"] == "rolled_back"
    assert found["prediction"] == {"downtime": 0.2, "actual": None, "error": None}


def test_without_pre_copy_nothing_is_predicted() -> None:
    found = build(pre_dumps=None, predicted=None, stop_reason=None, parent="")
    assert (found["pre_dumps"], found["stop_reason"]) == ([], None)
    assert set(found["prediction"].values()) == {None}
