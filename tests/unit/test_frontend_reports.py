"""report.html and its pictures, made of metrics that real runs have left."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from typing import Any

import jsonschema
import pytest

from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate import report, report_pictures
from criu_migrate_cli import runs
from tests.conftest import ROOT

RUNS = ROOT / "tests" / "unit" / "data" / "runs"
NAMES = sorted(path.name for path in RUNS.iterdir())
EMPTY = {"meta", "link", "br"}


class Balance(HTMLParser):
    """Takes note of what is opened and closed, and of everything that a browser would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.fetched: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in EMPTY:
            self.open.append(tag)
        self.fetched += [str(value) for name, value in attrs if name in ("src", "href") and value != "data:,"]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Nothing stays open."""

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()


def check_page(page: str) -> None:
    parser = Balance()
    parser.feed(page)
    assert parser.open == []
    assert parser.fetched == []
    assert not re.search(r"url\(|@import|<script", page)
    widths = [float(one) for one in re.findall(r'(?:x|x1|x2|cx|width)="([\d.]+)%"', page)]
    assert widths and all(0 <= one <= 100 for one in widths)


def load(name: str) -> runs.Run:
    return runs.load(RUNS / name)


@pytest.mark.parametrize("name", [name for name in NAMES if "exception" not in name])
def test_the_page_is_whole_and_fetches_nothing(name: str) -> None:
    run = load(name)
    page = report.html(run.metrics, runs.logs(run.folder), str(run.folder))
    check_page(page)
    assert run.metrics["run_id"] in page
    assert str(ROOT) not in page


def test_steps_fill_the_freeze_without_a_gap() -> None:
    picture = report_pictures.freeze(load("redis_20261121_054636").metrics)
    assert picture is not None
    steps = [row["bars"][0] for row in picture["rows"][1:]]
    for one, following in zip(steps, steps[1:]):
        assert one["left"] + one["width"] == pytest.approx(following["left"], abs=0.01)
    frozen = picture["rows"][0]["bars"][1]
    assert steps[0]["left"] == pytest.approx(frozen["left"], abs=0.01)
    assert steps[-1]["left"] + steps[-1]["width"] == pytest.approx(frozen["left"] + frozen["width"], abs=0.01)


def test_parts_add_up_to_the_frozen_time() -> None:
    picture = report_pictures.parts(load("redis_20261121_054636").metrics)
    assert picture is not None
    assert sum(bar["width"] for bar in picture["rows"][0]["bars"]) == pytest.approx(100, abs=0.1)
    assert [one["label"] for one in picture["legend"]][:4] == ["Dump", "Transfer", "Restore", "Handover"]


def test_memory_that_follows_is_shown() -> None:
    metrics = load("memory_20261121_074229").metrics
    whole, pages = report_pictures.whole_run(metrics), report_pictures.rounds(metrics)
    assert whole is not None and pages is not None
    assert next(row["value"] for row in whole["rows"] if row["label"] == "Memory still coming") == "9.80 s"
    assert [row["label"] for row in pages["rows"]] == ["After the restore"]
    assert pages["rows"][0]["value"] == "264,121 pages, 1,032 MB"


def test_rounds_of_pre_dumps_are_shown() -> None:
    one = {"seconds": 1.0, "frozen": 0.01, "pages_scanned": 4000, "pages_written": 4000}
    two = {**one, "pages_written": 100}
    two["predicted_downtime"] = 0.25
    prediction = {"downtime": 0.25, "actual": 0.2, "error": 0.25}
    metrics = {**load("redis_20261121_054636").metrics, "pre_dumps": [one, two], "stop_reason": "target",
               "prediction": prediction, "dump": {"pages_written": 50, "pages_scanned": 4000}}  # fmt: skip
    pages = report_pictures.rounds(metrics)
    assert pages is not None
    assert [row["label"] for row in pages["rows"]] == ["Round 1", "Round 2", "Final dump"]
    assert [row["value"] for row in pages["rows"][:2]] == [
        "4,000 pages, 15.6 MB, frozen 10 ms",
        "100 pages, 0.4 MB, frozen 10 ms; downtime predicted 250 ms",
    ]
    assert [bar["width"] for bar in pages["rows"][1]["bars"]] == [100.0, 2.5], "looked at, and moved"
    page = report.html(metrics, {})
    assert "No further round: the predicted downtime meets the target" in page
    assert "Downtime predicted: 0.250s, it was 0.200s (+25%)" in page


def test_rounds_have_their_place_in_the_whole_run() -> None:
    metrics = load("redis_20261121_054636").metrics
    marks = {**metrics["marks"], "iterating": metrics["marks"]["stopping"] - 1.5}
    whole = report_pictures.whole_run({**metrics, "marks": marks})
    assert whole is not None
    assert next(row["value"] for row in whole["rows"] if row["label"] == "Rounds of pre-dump") == "1.50 s"


def test_a_roll_back_says_why_and_shows_the_logs() -> None:
    run = load("redis_20261121_035059_failed")
    page = report.html(run.metrics, runs.logs(run.folder), run.name)
    assert "rolled back, goes on on the source" in page
    assert "192.0.2.202 is already on the destination." in page
    assert "Take it off there, then migrate again." in page
    assert "dest/guard.log" in page
    assert "Undo" in page
    assert "no verdict: it did not move" in page


def test_a_run_without_a_freeze_has_no_pictures() -> None:
    run = load("redis_20261121_035141_exception")
    page = report.html(run.metrics, {}, run.name)
    assert "The process was not stopped" in page
    assert "<svg" not in page


def test_what_others_wrote_is_escaped() -> None:
    metrics = load("redis_20261121_035059_failed").metrics
    metrics["error"]["message"] = "<script>alert(1)</script>"
    page = report.html(metrics, {"source/guard.log": "error: </pre><img src=x onerror=alert(2)>"}, "x")
    assert "<script" not in page and "<img" not in page
    assert "&lt;script&gt;alert(1)" in page


def test_an_excerpt_has_what_tells_and_the_end() -> None:
    lines = [f"(00.{number:03}) page-xfer: Adding" for number in range(500)]
    lines[100] = "(00.100) Error (criu/tcp.c:1): Can't bind"
    found = report.excerpt("\n".join(lines))
    assert found[0] == (101, lines[100])
    assert [number for number, _line in found[1:]] == [496, 497, 498, 499, 500]


@pytest.mark.parametrize(
    ("value", "words"),
    [(None, "not measured"), (0, "0.0 ms"), (0.00008, "80 µs"), (0.0042, "4.2 ms"), (0.131, "131 ms"),
     (2.0061, "2.01 s"), (1234.5, "1,234 s")],
)  # fmt: skip
def test_durations(value: float | None, words: str) -> None:
    assert report_pictures.duration(value) == words


@pytest.mark.parametrize(("first", "last"), [(0, 28.6), (-0.12, 2.1), (0, 0.0031), (5, 5), (0, 7200)])
def test_ticks_are_few_round_and_within(first: float, last: float) -> None:
    found = report_pictures.ticks(first, last)
    assert 1 <= len(found) <= 6
    assert all(first - 1e-9 <= one <= last + 1e-9 for one in found)


@pytest.mark.parametrize("name", NAMES)
def test_recorded_metrics_fit_the_schema(name: str) -> None:
    schema: dict[str, Any] = json.loads((ROOT / "schemas" / "metrics.schema.json").read_text(encoding="utf-8"))
    jsonschema.validate(load(name).metrics, schema, jsonschema.Draft202012Validator)
