"""Rounds of pre-dump: which are made, why they end, what is noted of them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate import (
    costs,
    dirty,
    iterating,
    iteration,
    record,
)

from .rounds import FIXED, PAGE, PEER, SPEED, WHOLE, Node, Still, make


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Node:
    return make(tmp_path, monkeypatch)


def test_rounds_end_when_the_prediction_meets_the_target(node: Node) -> None:
    assert node.rounds(target=0.3).run() == "pre-3"
    data = node.rec.data
    assert data["stop_reason"] == "target"
    assert node.opened == [("pre-1", ""), ("pre-2", "pre-1"), ("pre-3", "pre-2")]
    predicted = [one["predicted_downtime"] for one in data["pre_dumps"]]
    assert predicted[0] > predicted[1] > 0.3 >= predicted[2] > FIXED
    assert data["predicted"]["downtime"] == predicted[2]
    assert [one["bytes"] for one in data["pre_dumps"]] == [pages * PAGE for pages in node.pages]
    first = data["pre_dumps"][0]
    assert (first["pages_written"], first["pages_scanned"], first["pages_skipped"]) == (WHOLE, WHOLE, 7)
    assert first["frozen"] == 0.01 and first["seconds"] == pytest.approx(WHOLE * PAGE / SPEED)
    written = record.Record.load("run")
    assert written is not None and written.data["pre_dumps"] == data["pre_dumps"], "who watches reads the file"


def test_each_round_is_told_of_the_one_before(node: Node) -> None:
    node.rounds().run()
    calls = node.calls()
    assert [words[0] for words in calls] == ["pre-dump"] * 3
    parents = [words[words.index("--prev-images-dir") + 1] for words in calls if "--prev-images-dir" in words]
    assert parents == ["../pre-1", "../pre-2"]
    assert [os.path.basename(words[words.index("-D") + 1]) for words in calls] == ["pre-1", "pre-2", "pre-3"]
    assert len({words[words.index("-o") + 1] for words in calls}) == 3, "each has a log of its own"
    assert all("--track-mem" in words and "--ps-socket" in words for words in calls)
    assert node.page_channel is None, "with ours open the other end would never see the end"


def test_the_tree_is_looked_at_around_every_round(node: Node) -> None:
    node.fail(2)
    node.rounds().run()
    again = ["first", "after", "before", "after", "before", "after"]
    assert Still.looks == ["first", "after", "before", *again]


@pytest.mark.parametrize(
    ("asked", "pages", "reason", "rounds"),
    [
        ({"target": 0.001, "iterations": 2}, None, "rounds", 2),
        ({"iterations": 1}, None, "rounds", 1),
        ({}, [WHOLE], "not_falling", 2),
        ({"left": 3.0}, [WHOLE, WHOLE // 2], "deadline", 1),
        ({"left": 500.0}, None, "target", 3),
        ({"rule": "phaul"}, [WHOLE, 64, 63], "few_pages", 3),
        ({"rule": "phaul"}, [WHOLE, 100, 131, 163], "more_pages", 4),
        ({"rule": "phaul", "left": 3.0}, [WHOLE, WHOLE // 2], "deadline", 1),
    ],
)
def test_every_rule_ends_rounds(
    node: Node, asked: dict[str, Any], pages: list[int] | None, reason: str, rounds: int
) -> None:
    node.pages = pages or node.pages
    assert node.rounds(**asked).run() == f"pre-{rounds}"
    assert node.rec.data["stop_reason"] == reason
    assert len(node.rec.data["pre_dumps"]) == rounds == len(node.calls())


def test_no_round_at_all(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dirty, "watch", lambda *_: pytest.fail("there is nothing to decide"))
    assert node.rounds(iterations=0).run() == ""
    assert node.calls() == []
    data = node.rec.data
    assert (data["pre_dumps"], data["stop_reason"]) == ([], "rounds")
    assert data["predicted"]["downtime"] == pytest.approx(FIXED + WHOLE * PAGE / SPEED)


def test_a_deadline_that_leaves_no_time_for_one_round(node: Node) -> None:
    assert node.rounds(left=1.0).run() == ""
    assert (node.rec.data["stop_reason"], node.calls()) == ("deadline", [])


def test_a_quick_writer_is_seen_before_the_first_round(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []

    def watch(pid: int, windows: Sequence[float]) -> list[tuple[float, int]]:
        assert pid == os.getpid()
        asked.extend(windows)
        return [(window, int(min(1.0, 20 * window) * WHOLE * PAGE)) for window in windows]

    monkeypatch.setattr(dirty, "watch", watch)
    assert node.rounds().run() == ""
    assert (node.rec.data["stop_reason"], node.calls()) == ("not_falling", [])
    assert asked == pytest.approx([part * WHOLE * PAGE / SPEED for part in iteration.PROBES])


def test_a_process_is_watched_for_a_second_at_most(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[float] = []

    def watch(_pid: int, windows: Sequence[float]) -> list[tuple[float, int]]:
        seen.extend(windows)
        return []

    monkeypatch.setattr(dirty, "watch", watch)
    node.rounds(memory=1000 * WHOLE * PAGE, iterations=1).run()
    assert seen[0] < seen[1] <= iterating.LONGEST


def test_an_interval_means_a_fixed_number_of_rounds(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dirty, "watch", lambda *_: pytest.fail("there is nothing to decide"))
    node.pages = [WHOLE, WHOLE, 1]  # neither a target that is met nor a row that does not fall ends them
    assert node.rounds(interval=45.0, iterations=4).run() == "pre-4"
    assert node.rec.data["stop_reason"] == "rounds"
    assert sum(node.clock.slept) == 3 * 45.0
    assert max(node.clock.slept) <= iterating.TOUCH
    assert node.pings == len(node.clock.slept), "the destination would take a silent source for a dead one"


def test_an_interval_does_not_miss_a_deadline(node: Node) -> None:
    node.rounds(interval=10.0, iterations=50, left=30.0).run()
    assert node.rec.data["stop_reason"] == "deadline"
    assert len(node.calls()) == 3
    assert node.clock.now - 1000.0 < 30.0


def test_a_pause_counts_as_time_in_which_was_written(node: Node) -> None:
    rounds = node.rounds(interval=3.0, iterations=2)
    rounds.run()
    assert [one.waited for one in rounds.rounds] == [pytest.approx(3.0), 0.0]


def test_what_a_move_has_cost_is_kept(node: Node) -> None:
    rounds = node.rounds()
    last = rounds.run()
    data = node.rec.data
    data["times"]["stopping"] = 2000.0
    node.rec.note(parent=last, clock={"offset": 10.0}, page_server={"bytes": int(SPEED / 10)},
                  destination_times={"resumed": 2010.35})  # fmt: skip
    rounds.remember()
    kept = costs.recall(PEER, False, WHOLE * PAGE)
    assert kept.fixed == pytest.approx((FIXED + 0.25) / 2), "0.35 s frozen, 0.1 s of them for bytes"
    assert kept.bandwidth == pytest.approx(SPEED)


@pytest.mark.parametrize("missing", ["parent", "rounds", "resumed"])
def test_what_says_nothing_of_costs_is_not_kept(node: Node, missing: str) -> None:
    rounds = node.rounds()
    last = "" if missing == "parent" else rounds.run()
    if missing == "rounds":
        rounds = node.rounds()  # another guard has made them
    data = node.rec.data
    data["times"]["stopping"] = 2000.0
    there = {} if missing == "resumed" else {"resumed": 2005.0}
    node.rec.note(parent=last, destination_times=there)
    rounds.remember()
    assert costs.recall(PEER, False, WHOLE * PAGE).fixed == pytest.approx(FIXED)
