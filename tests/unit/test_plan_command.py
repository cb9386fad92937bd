"""criu-migrate plan: what it prints for people and for programs, and its one message for what is wrong."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from criu_migrate_cli import planning
from criu_migrate_cli.main import main
from criu_migrate_cli.places import CommandError
from tests.conftest import ROOT

RUNS = ROOT / "tests" / "unit" / "data" / "runs"
Captured = pytest.CaptureFixture[str]


def data(capsys: Captured, *words: str) -> dict[str, Any]:
    assert main(["plan", "--json", *words]) == 0
    shown = capsys.readouterr()
    assert not shown.err
    return dict(json.loads(shown.out))


@pytest.mark.parametrize("text, value", [
    ("512M", 512 << 20), ("4G", 4 << 30), ("1.5g", 3 << 29), ("100", 100), ("64KiB", 65536), ("2 MB", 2 << 20),
])  # fmt: skip
def test_sizes(text: str, value: float) -> None:
    assert planning.size(text, "--memory") == value


@pytest.mark.parametrize("text, value", [
    ("50M/s", 50 << 20), ("1Gbit", 125e6), ("100Mbit/s", 12.5e6), ("0", 0), ("110MB/s", 110 << 20), ("8bit", 1),
])  # fmt: skip
def test_rates(text: str, value: float) -> None:
    assert planning.rate(text, "--bandwidth") == value


@pytest.mark.parametrize("text", ["", "M", "-1M", "1X", "1Mbit", "0", "nan", "1e9", "9" * 400])
def test_no_sizes(text: str) -> None:
    with pytest.raises(CommandError, match="--memory"):
        planning.size(text, "--memory")


def test_all_ways_are_shown_and_one_is_marked(capsys: Captured) -> None:
    words = ["--memory", "512M", "--dirty-rate", "20M/s", "--bandwidth", "1Gbit", "--deadline", "gcp"]
    assert main(["plan", *words]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "512 MB that writes to 20 MB/s; link of 1 Gbit/s, 30 s from the notice"
    assert sum(line.startswith("*  precopy + lazy restore") for line in lines) == 1
    assert sum(" tls " in line for line in lines) == 4
    assert "postcopy" not in "".join(lines)
    assert lines[-1].startswith("precopy + lazy restore: ")


def test_json_says_the_same_in_bytes_and_seconds(capsys: Captured) -> None:
    found = data(capsys, "--memory", "512M", "--dirty-rate", "20M/s", "--bandwidth", "1Gbit", "--deadline", "gcp")
    assert found["deadline"] == 30 and found["costs"]["bandwidth"] == 125e6
    plan = found["plans"][0]
    assert plan["memory"] == 512 << 20 and plan["dirty_rate"] == 20 << 20 and plan["fits"] is True
    assert (plan["taken"]["strategy"], plan["taken"]["lazy_restore"]) == ("precopy", True)
    assert len(plan["rejected"]) == 3
    assert plan["taken"]["bytes"] == pytest.approx(sum(one["bytes"] for one in plan["taken"]["rounds"]), rel=0.1)
    assert data(capsys, "--memory", "1M")["costs"]["bandwidth"] is None  # no JSON has an infinity


def test_what_the_nodes_cannot_do_is_not_planned(capsys: Captured) -> None:
    def ways(*words: str) -> set[str]:
        plan = data(capsys, "--memory", "512M", "--bandwidth", "1Gbit", *words)["plans"][0]
        return {one["strategy"] + "+lazy" * one["lazy_restore"] for one in [plan["taken"], *plan["rejected"]]}

    assert ways("--no-soft-dirty", "--no-userfaultfd", "--allow-postcopy") == {"full"}
    assert ways("--no-soft-dirty") == {"full", "full+lazy"}
    assert ways("--allow-postcopy") >= {"postcopy", "hybrid"}


def test_several_sizes_are_a_line_each(capsys: Captured) -> None:
    assert main(["plan", "--memory", "128M", "--memory", "4G", "--bandwidth", "100Mbit", "--deadline", "aws"]) == 0
    lines = capsys.readouterr().out.splitlines()
    small, large = (next(line for line in lines if line.startswith(start)) for start in ("128 MB", "4,096 MB"))
    assert " yes " in small
    assert " NO " in large and "needs 3" in large and "at 0.1 Gbit/s, 120 s left" in large


def test_each_size_may_have_its_own_rate(capsys: Captured) -> None:
    words = [
        "--memory",
        "1G",
        "--memory",
        "2G",
        "--dirty-rate",
        "1M/s",
        "--dirty-rate",
        "900M/s",
        "--bandwidth",
        "1Gbit",
    ]
    first, second = data(capsys, *words)["plans"]
    assert first["taken"]["strategy"] == "precopy" and second["taken"]["strategy"] == "full"


def test_ten_processes_leave_within_a_notice(capsys: Captured) -> None:
    words = ["--memory", "256M", "--processes", "10", "--nodes", "2", "--free-memory", "8G"]
    words += ["--bandwidth", "1Gbit", "--deadline", "gcp"]
    found = data(capsys, *words)["evacuation"]
    assert [one["saved"] for one in found["processes"]] == [True] * 10
    assert {one["destination"] for one in found["processes"]} == {"node 1", "node 2"}
    assert found["busy"] >= 0.8 and found["seconds"] <= 30
    assert main(["plan", *words]) == 0
    assert "10 of 10 saved in" in capsys.readouterr().out.splitlines()[-1]


def test_memory_of_the_others_is_a_limit(capsys: Captured) -> None:
    words = ["--memory", "1G", "--processes", "3", "--free-memory", "3G", "--deadline", "aws"]
    found = data(capsys, *words)["evacuation"]["processes"]
    assert [one["saved"] for one in found] == [True, True, False]
    assert "no node has" in found[2]["reason"]


def test_recorded_runs_are_predicted_from_each_other(capsys: Captured) -> None:
    found = data(capsys, "--results", str(RUNS))
    assert found["recorded_runs"] == 3 == len(found["runs"]) == sum(one["runs"] for one in found["checked"])
    assert "plans" not in found
    for one in found["runs"]:
        raw = json.loads((RUNS / one["run"] / "metrics.json").read_text(encoding="utf-8"))
        assert one["downtime"]["measured"] == raw["downtime"]["frozen"]
        error = abs(one["downtime"]["predicted"] - raw["downtime"]["frozen"]) / raw["downtime"]["frozen"]
        strategy = next(each for each in found["checked"] if each["strategy"].startswith(f"{one['strategy']},"))
        assert strategy["downtime_error"]["median"] == pytest.approx(error)  # each strategy has one run here
    assert main(["plan", "--results", str(RUNS), "--deadline", "aws"]) == 0
    shown = capsys.readouterr().out
    assert "full + lazy restore, tls" in shown and "all " in shown and " yes " in shown
    assert "by its guard" not in shown, "none of these had predicted anything"


def test_what_guards_had_predicted_is_compared_with_what_it_was(tmp_path: Path, capsys: Captured) -> None:
    shutil.copytree(RUNS, tmp_path / "runs")
    path = tmp_path / "runs" / "redis_20261121_054636" / "metrics.json"
    raw = json.loads(path.read_text(encoding="utf-8"))
    frozen = raw["downtime"]["frozen"]
    raw["prediction"] = {"downtime": 1.25 * frozen, "actual": frozen, "error": 0.25}
    path.write_text(json.dumps(raw), encoding="utf-8")
    found = data(capsys, "--results", str(tmp_path))
    predicted = {one["run"]: one["downtime"]["by_guard"] for one in found["runs"]}
    assert predicted.pop("redis_20261121_054636") == 1.25 * frozen
    assert set(predicted.values()) == {None}
    errors = [one["guard_error"] for one in found["checked"] if one["guard_error"]]
    assert [one["median"] for one in errors] == [pytest.approx(0.25)]
    assert main(["plan", "--results", str(tmp_path)]) == 0
    assert "downtime by its guard: error" in capsys.readouterr().out


def test_runs_are_named_as_elsewhere_and_counted_once(capsys: Captured) -> None:
    words = ["redis_20261121_054636", "last", "memory_20261121_090820", "--results-dir", str(RUNS)]
    assert data(capsys, *words)["recorded_runs"] == 2


def test_plans_are_made_with_the_costs_of_the_recorded_runs(capsys: Captured) -> None:
    words = ["--memory", "512M", "--no-soft-dirty"]
    alone, beside = data(capsys, *words), data(capsys, *words, "--results", str(RUNS))
    assert alone["costs"] != beside["costs"] and alone["plans"] != beside["plans"]


def test_broken_runs_are_said_and_left_out(tmp_path: Path, capsys: Captured) -> None:
    shutil.copytree(RUNS, tmp_path / "deep" / "runs")
    (tmp_path / "deep" / "runs" / "redis_20261121_054636" / "metrics.json").write_text("{", encoding="utf-8")
    assert main(["plan", "--json", "--results", str(tmp_path)]) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out)["recorded_runs"] == 2
    assert shown.err.count("\n") == 1 and "left out" in shown.err


@pytest.mark.parametrize("words, text", [
    ([], "--memory 512M"),
    (["--memory", "4X"], "--memory 4X: it must be a size"),
    (["--memory", "1G", "--dirty-rate", "-5"], "--dirty-rate -5: it must be a rate"),
    (["--memory", "1G", "--dirty-rate", "fast"], "--dirty-rate fast: it must be a rate"),
    (["--memory", "1G", "--dirty-rate", "1M", "--dirty-rate", "2M"], "--dirty-rate is given 2 times"),
    (["--memory", "1G", "--bandwidth", "0"], "--bandwidth 0: it must be above 0"),
    (["--memory", "1G", "--deadline", "soon"], "--deadline soon: it must be aws"),
    (["--memory", "1G", "--deadline", "nan"], "--deadline nan: it must be"),
    (["--memory", "1G", "--deadline", "inf"], "--deadline inf: it must be"),
    (["--memory", "1G", "--target", "short"], "--target short: it must be seconds"),
    (["--memory", "1G", "--target", "nan"], "--target nan: it must be seconds"),
    (["--memory", "1G", "--rounds", "0"], "--rounds 0: it must be a whole number"),
    (["--memory", "1G", "--processes", "3"], "need --memory and --deadline"),
    (["--memory", "1G", "--processes", "x", "--deadline", "aws"], "--processes x: it must be a whole number"),
    (["--memory", "1G", "--memory", "2G", "--processes", "900", "--deadline", "aws"], "more than 1000"),
    (["--memory", "1G", "--nodes", "2", "--deadline", "9", "--encryption", "tls", "--encryption", "none"], "name one"),
    (["--memory", "1G", "--encryption", "rot13"], "invalid choice"),
    (["--results", "no-such-folder"], "--results no-such-folder: there is no such folder"),
    (["no-such-run"], "no-such-run: there is no such run"),
])  # fmt: skip
def test_what_is_wrong_is_said_once(words: list[str], text: str, capsys: Captured) -> None:
    try:
        status = main(["plan", *words])
    except SystemExit as ended:  # what argparse itself finds
        status = int(ended.code or 0)
    assert status == 2
    shown = capsys.readouterr()
    assert not shown.out
    assert text in shown.err.splitlines()[-1]


def test_runs_that_moved_nothing_are_not_enough(capsys: Captured) -> None:
    assert main(["plan", str(RUNS / "redis_20261121_035059_failed")]) == 2
    assert "nothing to compare with" in capsys.readouterr().err
