"""The folder of a run, its summary, and the schema of its metrics."""

from __future__ import annotations

import copy
import json
import stat
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate import report, results, summary

NODE = {"kernel": "6.18.0", "criu": "4.2.1", "python": "3.13.5", "clock_offset": 0.0}
FIGURES = {"before": 1048576, "after": 2097152}
METRICS: dict[str, Any] = {
    "schema_version": 1,
    "run_id": "redis-20261121-031500-4f2a",
    "experiment_name": "redis-full",
    "started": "2026-11-21T03:15:00Z",
    "workload": {"name": "redis", "params": {"num_keys": 1000}},
    "strategy": "full",
    "lazy_restore": False,
    "transfer": {
        "method": "page_server", "encryption": "tls", "bytes": 2 << 20, "seconds": 0.5, "throughput": 4194304.0,
    },
    "status": "migrated",
    "process": {"node": "node-2", "pid": 345},
    "nodes": {"source": NODE, "destination": {**NODE, "clock_offset": -0.0002, "clock_offset_bound": 0.0001}},
    "times": {"preparation": 8.1, "downtime": 0.912, "resume": 0.4, "total": 12.3},
    "downtime": {
        "service": 0.915, "witness": 0.93, "resolution": 0.005, "usual_gap": 0.006, "frozen": 0.91, "dump": 0.5,
        "transfer": 0.1, "restore": 0.3, "handover": 0.01,
    },
    "pre_dumps": [],
    "stop_reason": None,
    "dump": {"freezing": 0.01, "pages_written": 512},
    "restore": {"restore": 0.3},
    "lazy": {"pages_total": None, "pages_transferred": None, "seconds": None},
    "memory": {"source": FIGURES, "destination": FIGURES},
    "open_files": {"source": {"before": 10, "after": 9}, "destination": {"before": 10, "after": 11}},
    "deadlines": {
        "aws": {"limit": 120.0, "used": 9.0, "met": True, "margin": 111.0},
        "gcp": {"limit": 30.0, "used": 31.0, "met": False, "margin": -1.0},
    },
    "integrity": {"verified": True, "method": "every key compared", "details": {"keys": 1000}},
}  # fmt: skip


@pytest.fixture
def schema(root: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((root / "schemas" / "metrics.schema.json").read_text(encoding="utf-8"))
    return loaded


def test_schema_is_one_and_takes_an_example(schema: dict[str, Any]) -> None:
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(METRICS, schema, jsonschema.Draft202012Validator)


def test_schema_takes_a_failure_before_the_freeze(schema: dict[str, Any]) -> None:
    failed = copy.deepcopy(METRICS)
    failed.update(status="failed", strategy=None, error={"phase": "preflight", "message": "m", "remedy": None})
    for part in ("times", "downtime"):
        failed[part] = dict.fromkeys(failed[part])
    jsonschema.validate(failed, schema, jsonschema.Draft202012Validator)


@pytest.mark.parametrize(
    ("path", "value"),
    [(("downtime", "service"), "0.9"), (("downtime", "frozen"), -1), (("status",), "done"), (("unknown",), 1),
     (("transfer", "bytes"), 1.5), (("nodes", "source", "os"), "x"), (("schema_version",), 2)],
)  # fmt: skip
def test_schema_refuses(schema: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    wrong = copy.deepcopy(METRICS)
    place = wrong
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(wrong, schema, jsonschema.Draft202012Validator)


def test_summary_has_the_form_of_the_first_documents() -> None:
    lines = summary.render(METRICS, "/r/redis_1").splitlines()
    assert lines[:4] == [
        "=" * 60, "CRIU Experiment Metrics: redis-full", "Workload Type: redis", "=" * 60,
    ]  # fmt: skip
    assert lines[-1] == "=" * 60
    for line in ("Final Dump:", "  Duration: 0.50s", "  Size: 2.00 MB", "  Throughput: 4.00 MB/s", "Restore:",
                 "  Process: runs on node-2 as PID 345", "Integrity: verified (every key compared)",
                 "  Service: 0.915s (usual gap 0.006s, resolution 0.005s)", "  Downtime: 0.912s",
                 "  AWS (120s): met, 9.00s used, 111.00s left", "  GCP (30s): MISSED by 1.00s, 31.00s used",
                 "Total Experiment Duration: 12.30s", "Results: /r/redis_1"):  # fmt: skip
        assert line in lines, line
    assert not any("Pre-dump" in line for line in lines)


def test_summary_of_pre_dumps() -> None:
    rounds = [{"seconds": 1.0}, {"seconds": 2.0}]
    text = summary.render({**METRICS, "pre_dumps": rounds}, "/r")
    assert "Pre-dump Iterations: 2\n  Total time: 3.00s\n  Average time: 1.50s\n  Iteration 1: 1.00s" in text


def test_summary_of_pre_copy_says_why_it_stopped_and_how_well_it_had_predicted() -> None:
    one = {"seconds": 1.25, "pages_written": 256, "bytes": 1 << 20, "frozen": 0.0125, "predicted_downtime": 0.2}
    prediction = {"downtime": 0.2, "actual": 0.25, "error": -0.2}
    text = summary.render({**METRICS, "pre_dumps": [one], "stop_reason": "target", "prediction": prediction}, "/r")
    assert "  Iteration 1: 1.25s, 256 pages, 1.00 MB, frozen 0.013s, downtime predicted 0.200s\n" in text
    assert "  No further one: the predicted downtime meets the target\n" in text
    assert "  Downtime predicted: 0.200s, it was 0.250s (-20%)\n" in text


def test_summary_of_rounds_that_failed() -> None:
    text = summary.render({**METRICS, "pre_dumps": [], "stop_reason": "failed: criu pre-dump ended with 1"}, "/r")
    assert "Pre-dump Iterations: 0\n  No further one: they failed, and all memory moved while" in text
    assert "(criu pre-dump ended with 1)" in text
    assert "Pre-dump" not in summary.render(METRICS, "/r")


@pytest.mark.parametrize("reason", ["target", "not_falling", "rounds", "few_pages", "more_pages", "deadline"])
def test_every_rule_has_its_words(reason: str) -> None:
    assert summary.stopped(reason) not in ("", reason)


def test_summary_of_a_failure_names_cause_and_remedy() -> None:
    error = {"phase": "restore", "message": "criu restore failed\nlast line", "remedy": "free the PID"}
    failed = {"status": "rolled_back", "error": error, "process": {"node": "node-1", "pid": 7}}
    text = summary.render(failed, "/r")
    assert "Result: ROLLED BACK" in text
    assert "  Cause: criu restore failed\n         last line\n  Remedy: free the PID" in text
    assert "runs on node-1 as PID 7" in text
    failed = {"status": "failed", "error": error, "marks": {"stopping": 1.0}}
    assert "resolve.yml" in summary.render(failed, "/r")
    assert "was not stopped" in summary.render({"status": "failed", "error": error}, "/r")


FAULT = {"phase": "verify", "message": "it did not answer", "remedy": None}


@pytest.mark.parametrize(
    ("changes", "suffix", "said"),
    [
        ({}, "", "Result: migrated"),
        ({"integrity": {"verified": None}}, "", "Result: migrated"),
        ({"integrity": {"verified": False}}, "_failed", "Result: MIGRATED, BUT NOT WHOLE"),
        ({"integrity": {"verified": None}, "error": FAULT}, "_failed", "Result: MIGRATED, BUT NOT PROVEN"),
        ({"status": "rolled_back", "integrity": {"verified": True}}, "_failed", "Result: ROLLED BACK"),
    ],
)
def test_a_proof_that_failed_is_no_success(changes: dict[str, Any], suffix: str, said: str) -> None:
    metrics = {**METRICS, **changes}
    assert results.SUFFIXES[results.ending(metrics, metrics["status"])] == suffix
    assert results.ending(metrics, "exception") == "exception"
    assert said in summary.render(metrics, "/r")
    assert ("not proven" in report.view(metrics, {})["status"]) == said.startswith("Result: MIGRATED")


def test_folder_is_private_and_never_shared(tmp_path: Path) -> None:
    first = results.make_folder(tmp_path / "r", "redis_1", "redis-1-aaaa", "migrated")
    second = results.make_folder(tmp_path / "r", "redis_1", "redis-1-bbbb", "failed")
    third = results.make_folder(tmp_path / "r", "redis_2", "redis-2-cccc", "exception")
    assert [first.name, second.name, third.name] == ["redis_1", "redis_1_bbbb_failed", "redis_2_exception"]
    assert stat.S_IMODE(first.stat().st_mode) == 0o700


def test_files_stay_in_the_folder(tmp_path: Path) -> None:
    folder = results.make_folder(tmp_path, "x", "x-1", "migrated")
    files = {"source/criu-dump.log": "text", "../up": "no", "/abs": "no", "gone": None, "dest/r.json": {"a": 1}}
    assert results.write_files(folder, files) == ["../up", "/abs"]
    written = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    assert written == ["dest/r.json", "source/criu-dump.log"]
    assert stat.S_IMODE((folder / "source/criu-dump.log").stat().st_mode) == 0o600
