"""What the source's guard says of its deadline before anything is stopped, and what a move tells of the link."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate import costs, forecast, proc, record
from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate.errors import LinkLost, MigrationError
from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate.guard import Guard
from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate.planner import NEVER, Costs
from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate.source import SourceGuard

PEER = "10.0.0.2"
MB = 1_000_000
GBIT = 125.0 * MB  # bytes/s
OURS = Costs().fill_tls  # bytes/s that guards send by themselves


@pytest.fixture(autouse=True)
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "RUNS", str(tmp_path))
    (tmp_path / "run").mkdir()


def guard(left: float | None = 30.0, memory: int = 1000 * MB, **config: Any) -> Guard:
    rec = record.Record.create("run", "source")
    rec.data["times"].update(armed=time.time(), frozen=100.0, dumped=104.0)
    given = {
        "run_id": "run",
        "criu_path": "criu",
        "images_dir": "/nowhere",
        "forecast": True,
        "strategy": "full",
        "lazy_restore": False,
    }
    return Guard(rec, {**given, "pre_copy": {"left": left, "memory": memory}, **config})


def test_what_fits_is_only_noted(capfd: pytest.CaptureFixture[str]) -> None:
    one = guard()
    forecast.look_ahead(one, PEER, GBIT / 2)
    found = one.rec.data["deadline"]
    assert not found["late"] and 16.0 < found["needs"] < 18.0 and "text" not in found
    assert capfd.readouterr().out == ""


def test_what_does_not_fit_says_what_it_needs_and_what_would_do(capfd: pytest.CaptureFixture[str]) -> None:
    one = guard(left=12.0, lazy_restore=True)
    forecast.look_ahead(one, PEER, GBIT / 2)
    found = one.rec.data["deadline"]
    assert found["late"] and found["needs"] > 12.0 >= found["left"]
    told = "The deadline will be missed: full + lazy restore needs 17 s at 0.5 Gbit/s, 11 s left"
    assert found["text"].startswith(told)
    assert found["text"] in capfd.readouterr().out


@pytest.mark.parametrize("config", [{"forecast": False}, {"left": None}, {"memory": 0}])
def test_nothing_is_said_where_there_is_no_deadline_or_nothing_is_known(config: dict[str, Any]) -> None:
    one = guard(**config)
    forecast.look_ahead(one, PEER, 1.0)
    assert "deadline" not in one.rec.data


@pytest.mark.parametrize("wrong", [LinkLost("The link is gone.", ""), OSError("no"), 0.0, float("nan")])
def test_a_forecast_hinders_no_move(
    wrong: Exception | float, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    told = guard()
    start = (proc.stat(os.getpid()) or ("", 0, 0))[2]
    source = SourceGuard(told.rec, {**told.config, "pid": os.getpid(), "start": start, "peer": {"host": PEER}})

    def measure() -> float:
        if isinstance(wrong, Exception):
            raise wrong
        return wrong

    for name in ("measure_clock", "send_roots", "open_transfer"):
        monkeypatch.setattr(source, name, lambda: None)
    monkeypatch.setattr(source, "measure_bandwidth", measure)
    source.prepare()
    assert source.rec.state == "freezing" and "deadline" not in source.rec.data
    assert "is not known" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("config", "asked"),
    [
        ({}, ["probe"]),
        ({"strategy": "precopy"}, ["probe"]),
        ({"strategy": "hybrid"}, ["probe"]),
        ({"strategy": "postcopy"}, []),
        ({"transfer": "rsync"}, []),
    ],
)
def test_what_cannot_be_tried_out_as_pages_cross_is_by_the_guards_own_link(
    config: dict[str, Any], asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    told = guard(**config)
    source = SourceGuard(told.rec, {**told.config, "pid": 1, "start": 1, "peer": {"host": PEER}})
    opened: list[str] = []

    def refuse(name: str) -> None:
        opened.append(name)
        raise MigrationError("no channel", "")

    monkeypatch.setattr(source, "open_transfer", refuse)
    monkeypatch.setattr(source, "ask", lambda *_args, **_more: time.sleep(0.06))
    assert 0 < source.measure_bandwidth() < 1e9
    assert opened == asked


def test_the_way_counts_as_it_was_decided() -> None:
    needed = []
    ways: list[dict[str, Any]] = [
        {}, {"strategy": "postcopy"}, {"transfer_encryption": "none"}, {"transfer": "rsync"},
    ]  # fmt: skip
    for config in ways:
        one = guard(**config)
        forecast.look_ahead(one, PEER, OURS)
        needed.append(one.rec.data["deadline"]["needs"])
    full, postcopy, none, rsync = needed
    assert none < full < rsync < postcopy, "post-copy is over with its last page"


def test_a_quick_link_is_told_by_earlier_moves_and_not_by_what_guards_can_do() -> None:
    assert forecast.link(GBIT / 10, GBIT) == GBIT / 10, "it has become slower"
    assert forecast.link(OURS, None) == NEVER
    assert forecast.link(OURS, 3 * OURS) == 3 * OURS
    assert forecast.link(OURS, OURS / 3) == OURS, "it has become quicker"


def speed_after(one: Guard) -> float | None:
    forecast.remember_link(one, PEER)
    return costs.speeds().get(PEER)


def test_a_move_tells_of_the_link() -> None:
    one = guard()
    one.rec.data["page_server"] = {"bytes": 400 * MB}
    assert speed_after(one) == 100 * MB
    assert costs.recall(PEER, False, 400 * MB).fixed is None, "only of the link"


def test_a_post_copy_tells_of_the_link_where_that_has_held_it_up() -> None:
    one = guard(strategy="postcopy")
    one.rec.data["lazy"] = {"pages_fetched": 400 * MB // 4096, "seconds": 1.0}
    assert speed_after(one) is None
    one.rec.data["lazy"]["seconds"] = 40.0
    assert speed_after(one) == pytest.approx(10 * MB, rel=0.001)


@pytest.mark.parametrize("told", [{}, {"page_server": {"bytes": forecast.TELLING - 1}}])
def test_a_small_one_tells_nothing(told: dict[str, Any]) -> None:
    one = guard()
    one.rec.data.update(told)
    assert speed_after(one) is None


def test_the_latest_moves_count() -> None:
    for seconds in (1.0, 1.0, 1.0, 40.0, 40.0, 40.0):
        one = guard()
        one.rec.data["times"]["dumped"] = 100.0 + seconds
        one.rec.data["page_server"] = {"bytes": 400 * MB}
        forecast.remember_link(one, PEER)
    assert costs.speeds()[PEER] == 10 * MB
