"""What of the benchmark of deadlines needs no node: which moves it makes, and what it concludes from them."""

from __future__ import annotations

from typing import Any

from benchmarks import deadlines
from benchmarks.deadlines import UNSHAPED, at_least, markdown, rows, ways


def move(variant: str, used: float | None, strategy: str = "full", lazy: bool = False, **more: Any) -> dict[str, Any]:
    return {
        "link": "1gbit", "megabytes": 1024, "variant": variant, "strategy": strategy, "lazy_restore": lazy, "rc": 0,
        "status": "migrated", "verified": True, "deadlines": {"aws": {"used": used}}, **more,
    }  # fmt: skip


def test_bytes_alone_need_so_long() -> None:
    assert at_least("100mbit", 1024) == (1024 << 20) * 8 / 1e8
    assert at_least(UNSHAPED, 1 << 20) == 0


def test_all_are_run_but_where_no_budget_can_be_met() -> None:
    assert [*ways("1gbit", 4096)] == ["full", "full, lazy restore", "auto, gcp", "auto, aws", "postcopy"]
    assert ways("100mbit", 4096) == {"auto, aws": {"migration_strategy": "auto", "deadline": "aws"}}


def test_a_rejected_one_that_would_have_been_in_time_is_told() -> None:
    moves = [
        move("full", 31.0), move("full, lazy restore", 28.0, lazy=True), move("postcopy", 33.0, "postcopy"),
        move("auto, gcp", 31.5), move("auto, aws", 29.0, lazy=True),
    ]  # fmt: skip
    gcp, aws = rows(moves)
    assert (gcp["chosen"], gcp["met"], gcp["better"]) == ("full", False, ["full, lazy restore"])
    assert gcp["rejected"] == {"full, lazy restore": 28.0, "postcopy": 33.0}
    assert (aws["chosen"], aws["met"], aws["better"]) == ("full, lazy restore", True, [])
    text = markdown([gcp, aws])
    assert "**would have met it**" in text and text.endswith(
        "1 of 2 met; in 1 a rejected one would have met what was missed."
    )


def test_what_did_not_arrive_is_not_in_the_table() -> None:
    assert rows([move("auto, gcp", None, status="rolled_back"), move("auto, aws", None, rc=2)]) == []


def test_one_move_stands_for_both_budgets_where_none_can_be_met() -> None:
    found = rows([move("auto, aws", 360.0, link="100mbit", megabytes=4096)])
    assert [(row["limit"], row["met"]) for row in found] == [(30.0, False), (120.0, False)]
    assert "none could: the bytes alone need 344 s" in markdown(found)
    assert deadlines.used({"deadlines": None}) is None
