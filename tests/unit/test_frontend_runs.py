"""criu-migrate results, compare and report, on metrics that real runs have left."""

from __future__ import annotations

import csv
import json
import shutil
from datetime import datetime, timezone
from pathlib import Path

import pytest

from criu_migrate_cli import comparing, listing, runs
from criu_migrate_cli.main import main
from criu_migrate_cli.places import CommandError
from tests.conftest import ROOT

NEWEST = ["memory_20261121_090820", "memory_20261121_074229", "redis_20261121_054636",
          "redis_20261121_035141_exception", "redis_20261121_035059_failed"]  # fmt: skip


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Return a results folder of its own with the recorded runs."""
    return Path(shutil.copytree(ROOT / "tests" / "unit" / "data" / "runs", tmp_path / "results"))


def call(results: Path, *words: str) -> int:
    return main([*words, "--results-dir", str(results)])


def test_results_lists_newest_first(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(results, "results") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == NEWEST
    assert "\x1b" not in "".join(lines)
    assert "full + lazy restore" in lines[1] and "0.147s" in lines[1]


def test_results_for_programs(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(results, "results", "--json", "--workload", "redis") == 0
    found = json.loads(capsys.readouterr().out)
    assert [one["status"] for one in found] == ["migrated", "failed", "rolled_back"]
    assert found[0]["service"] == 2.010688 and found[0]["started"] == "2026-11-21T05:46:36Z"


def test_colour_only_where_asked(results: Path) -> None:
    found = runs.every(results)
    assert "\x1b[32mmigrated" in listing.table(found, colour=True)
    assert "\x1b" not in listing.table(found)
    found[0].metrics["integrity"]["verified"] = False
    assert "\x1b[31mmigrated" in listing.table(found, colour=True)


def test_broken_metrics_are_said_and_hide_nothing(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (results / NEWEST[0] / "metrics.json").write_text('{"schema_version": 1, "run_id"', encoding="utf-8")
    assert call(results, "results") == 0
    shown = capsys.readouterr()
    assert "broken" in shown.out and NEWEST[4] in shown.out
    assert shown.err.count("\n") == 1 and "cannot be read" in shown.err and "repair" in shown.err
    assert call(results, "report", NEWEST[0]) == 2
    assert call(results, "compare") == 0
    assert "left out" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["[]", "{}", '{"run_id": "x", "status": 1}'])
def test_metrics_of_another_kind_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "metrics.json").write_text(text, encoding="utf-8")
    with pytest.raises(CommandError, match="cannot be used"):
        runs.load(tmp_path)


@pytest.mark.parametrize(
    ("words", "message"),
    [(("report", "nothing"), "there is no such run"), (("results", "--workload", "video"), "There are no such runs"),
     (("compare", "--since", "soon"), "it must be like"), (("compare", "--by", "colour"), "no run has this parameter")],
)  # fmt: skip
def test_errors_are_one_line(
    results: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], message: str
) -> None:
    assert call(results, *words) == 2
    shown = capsys.readouterr().err
    assert message in shown and shown.count("\n") == 1


def test_no_results_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(tmp_path / "nowhere", "results") == 2
    assert "--results-dir" in capsys.readouterr().err


@pytest.mark.parametrize("word", [NEWEST[0], "last", "memory-20261121-090819-"])
def test_report_is_written(results: Path, capsys: pytest.CaptureFixture[str], word: str) -> None:
    run_id = runs.load(results / NEWEST[0]).get("run_id")
    assert call(results, "report", run_id if word.endswith("-") else word) == 0
    path = Path(capsys.readouterr().out.strip())
    assert path == results / NEWEST[0] / "report.html"
    assert path.stat().st_mode & 0o777 == 0o600
    assert run_id in path.read_text(encoding="utf-8")


def test_report_elsewhere(results: Path, tmp_path: Path) -> None:
    assert call(results, "report", "last", "-o", str(tmp_path / "x.html")) == 0
    assert (tmp_path / "x.html").is_file()


def test_compare_writes_tables_and_a_page(results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(results, "compare", "--output", str(tmp_path / "out")) == 0
    shown = capsys.readouterr().out
    assert "1/3" in next(line for line in shown.splitlines() if line.startswith("redis"))
    with (tmp_path / "out" / "groups.csv").open(encoding="utf-8") as stream:
        groups = {(one["workload"], one["strategy"]): one for one in csv.DictReader(stream)}
    assert float(groups["redis", "full"]["service_median"]) == 2.010688
    assert groups["redis", "full"]["runs"] == "3" and groups["redis", "full"]["migrated"] == "1"
    with (tmp_path / "out" / "runs.csv").open(encoding="utf-8") as stream:
        assert len(list(csv.DictReader(stream))) == 5
    page = (tmp_path / "out" / "compare.html").read_text(encoding="utf-8")
    assert "<ellipse" in page and "memory, postcopy, page_server" in page and "<script" not in page


def test_compare_by_default_beside_the_runs(results: Path) -> None:
    assert call(results, "compare", "last", NEWEST[1]) == 0
    assert len(list(results.glob("compare_*/compare.html"))) == 1


def test_quartiles(results: Path) -> None:
    base = runs.load(results / NEWEST[0])
    found = []
    for number in range(1, 6):
        metrics = {**base.metrics, "downtime": {**base.metrics["downtime"], "service": float(number)}}
        found.append(runs.Run(base.folder, metrics))
    group = comparing.groups(comparing.frame(found)).iloc[0]
    assert [group[f"service_{name}"] for name in ("min", "q1", "median", "q3", "max")] == [1, 2, 3, 4, 5]


def test_how_well_a_downtime_was_predicted_is_compared_too(results: Path) -> None:
    base = runs.load(results / NEWEST[0])
    found = [base]
    for number, error in enumerate((-0.2, 0.1, 0.4), 1):
        prediction = {"downtime": float(number), "actual": 1.0, "error": error}
        rounds = [{"seconds": 1.0}] * number
        found.append(runs.Run(base.folder, {**base.metrics, "prediction": prediction, "pre_dumps": rounds}))
    data = comparing.frame(found)
    assert list(data["rounds"]) == [0, 1, 2, 3]
    group = comparing.groups(data).iloc[0]
    assert (group["predicted_median"], group["prediction_error_median"]) == (2.0, 0.1)
    assert (group["prediction_error_min"], group["prediction_error_max"]) == (-0.2, 0.4)


def test_groups_of_different_sizes_are_said(results: Path) -> None:
    base = runs.load(results / NEWEST[0])
    other = runs.Run(base.folder, {**base.metrics, "workload": {"name": "memory", "params": {"mb_size": 7}}})
    warnings = comparing.mixed(comparing.frame([base, other]))
    assert len(warnings) == 1 and "mb_size" in warnings[0] and "--by" in warnings[0]
    data = comparing.frame([base, other], by=["mb_size"])
    assert len(comparing.groups(data, by=["mb_size"])) == 2


def test_what_was_not_whole_counts_in_no_median(results: Path) -> None:
    base = runs.load(results / NEWEST[0])
    found = []
    for seconds, verified, error in [(1.0, True, None), (2.0, None, None), (50.0, False, None), (60.0, None, "late")]:
        metrics = {**base.metrics, "integrity": {"verified": verified}}
        metrics["downtime"] = {**base.metrics["downtime"], "service": seconds}
        if error:
            metrics["error"] = {"phase": "verify", "message": error, "remedy": None}
        found.append(runs.Run(base.folder, metrics))
    data = comparing.frame(found)
    summary = comparing.groups(data)
    assert (summary.iloc[0]["service_median"], summary.iloc[0]["service_max"]) == (1.5, 2.0)
    head, rows = comparing.table(summary)
    row = dict(zip(head, (cell[0] for cell in rows[0]), strict=True))
    assert row["migrated"] == "4/4" and row["not proven"] == "2"
    page = comparing.html(data, summary, [], "all", [])
    assert "not proven" in page and page.count("<ellipse") == 2 * len(comparing.PICTURES) and ">NO<" in page


@pytest.mark.parametrize(
    ("one", "other", "said"),
    [
        ({"command": "python3 a.py"}, {"command": "python3 b.py"}, "command"),
        ({"command": "a --n=1"}, {"command": "a --n=2"}, "command"),
        ({"ports": [1, 2]}, {"ports": [1, 3]}, "ports"),
        ({"command": "a --n=1"}, {"command": "a --n=1"}, None),
    ],
)
def test_parameters_are_compared_whole(results: Path, one: object, other: object, said: str | None) -> None:
    base = runs.load(results / NEWEST[0])
    found = [runs.Run(base.folder, {**base.metrics, "workload": {"name": "command", "params": params}})
             for params in (one, other)]  # fmt: skip
    warnings = comparing.mixed(comparing.frame(found))
    assert [f"differ in {said}; --by" in text for text in warnings] == ([True] if said else [])


def test_since(results: Path) -> None:
    now = datetime(2026, 11, 21, 10, 0, tzinfo=timezone.utc)
    assert runs.since("2h", now).hour == 8
    assert runs.since("2026-11-21T03:51:30", now) == datetime(2026, 11, 21, 3, 51, 30, tzinfo=timezone.utc)
    after = runs.since("2026-11-21T05", now)
    assert [run.name for run in runs.chosen(runs.every(results), [], [], after)] == NEWEST[:3]
    assert [run.name for run in runs.chosen(runs.every(results), [], ["postcopy"], None)] == [NEWEST[1]]
