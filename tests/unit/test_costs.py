"""What moves to another node have cost: kept on the source, taken for the next one's predictions."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate import costs
from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate.planner import Costs

PEER, OTHER = "10.0.0.2", "10.0.0.3"
MB = 1_000_000
USUAL = Costs()


@pytest.fixture
def node(tmp_path: Path) -> Path:
    """The directory that has the file."""
    return tmp_path


def test_of_a_node_that_is_not_known_the_usual_is_taken() -> None:
    known = costs.recall(PEER, True, 500 * MB)
    assert (known.bandwidth, known.fixed) == (costs.UNKNOWN, None)
    once = USUAL.freeze + USUAL.dump + USUAL.images + USUAL.handover
    assert known.usual == pytest.approx(once + USUAL.lazy)
    assert known.after == pytest.approx(USUAL.cleaning + 500 * MB / USUAL.fill_local)
    eager = costs.recall(PEER, False, 500 * MB)
    assert eager.usual == pytest.approx(once + USUAL.eager + 500 * MB * USUAL.eager_byte)
    assert eager.after == pytest.approx(USUAL.cleaning + 500 * MB * USUAL.cleaning_byte)


def test_slow_nodes_are_told_by_a_round_in_which_nothing_moves() -> None:
    known = costs.recall(PEER, True, 500 * MB)
    assert known.fixed_after(USUAL.lead / 10) == known.fixed_after(0.0) == known.usual
    assert known.fixed_after(4 * USUAL.lead) == pytest.approx(4 * known.usual)
    costs.remember(PEER, True, 500 * MB, 0.2, 90.0 * MB)
    measured = costs.recall(PEER, True, 500 * MB)
    assert measured.fixed_after(0.0) == measured.fixed_after(50.0) == 0.2, "what was seen needs no guess"


def test_the_middle_of_what_was_seen_counts() -> None:
    for fixed, speed in ((0.2, 80.0 * MB), (9.0, 1.0 * MB), (0.3, 100.0 * MB)):
        costs.remember(PEER, True, 500 * MB, fixed, speed)
    known = costs.recall(PEER, True, 500 * MB)
    assert (known.fixed, known.bandwidth) == (0.3, 80.0 * MB)
    assert costs.recall(OTHER, True, 500 * MB).fixed is None


def test_moves_of_another_kind_or_size_tell_the_bandwidth_only() -> None:
    costs.remember(PEER, False, 500 * MB, 0.7, 80.0 * MB)
    for lazy, memory in ((True, 500 * MB), (False, 2001 * MB), (False, 124 * MB)):
        known = costs.recall(PEER, lazy, memory)
        assert known.fixed is None, (lazy, memory)
        assert known.bandwidth == 80.0 * MB
    for memory in (1999 * MB, 126 * MB):
        assert costs.recall(PEER, False, memory).fixed is not None


def test_an_eager_restore_takes_longer_with_more_memory_and_never_less_than_nothing() -> None:
    costs.remember(PEER, False, 500 * MB, 0.7, 80.0 * MB)
    assert costs.recall(PEER, False, 1000 * MB).fixed == pytest.approx(0.7 + 500 * MB * USUAL.eager_byte)
    costs.remember(OTHER, False, 500 * MB, 0.1, 80.0 * MB)
    assert costs.recall(OTHER, False, 130 * MB).fixed == 0.0
    costs.remember(PEER, True, 500 * MB, 0.2, 80.0 * MB)
    assert costs.recall(PEER, True, 1000 * MB).fixed == 0.2


def test_the_latest_few_of_each_kind_are_kept(node: Path) -> None:
    costs.remember(PEER, False, MB, 5.0, None)
    for number in range(20):
        costs.remember(PEER, True, MB, float(number), None)
    moves = json.loads((node / costs.NAME).read_text(encoding="utf-8"))[PEER]
    assert [one["fixed"] for one in moves if one["lazy"]] == [15.0, 16.0, 17.0, 18.0, 19.0]
    assert [one["fixed"] for one in moves if not one["lazy"]] == [5.0]
    assert costs.recall(PEER, True, MB).bandwidth == costs.UNKNOWN, "no round has told of it"


@pytest.mark.parametrize("text", ["", "{", "\x00"])
def test_a_file_that_cannot_be_read_is_as_none(node: Path, text: str) -> None:
    (node / costs.NAME).write_text(text, encoding="utf-8")
    assert costs.recall(PEER, True, MB).fixed is None
    costs.remember(PEER, True, MB, 1.0, 2.0)
    assert costs.recall(PEER, True, MB).fixed == 1.0


@pytest.mark.parametrize(
    "wrong", [{"memory": None}, {"fixed": "0.2"}, {"bandwidth": -1.0}, {"bandwidth": "x"}, {"fixed": float("nan")}]
)
def test_numbers_that_cannot_be_are_as_none(node: Path, wrong: dict[str, object]) -> None:
    costs.remember(PEER, True, MB, 0.2, 80.0 * MB)
    moves = [{"lazy": True, "memory": MB, "fixed": 1.0, "bandwidth": 2.0, **wrong}]
    kept = json.loads((node / costs.NAME).read_text(encoding="utf-8"))[PEER]
    (node / costs.NAME).write_text(json.dumps({PEER: kept + moves, OTHER: moves}), encoding="utf-8")
    known = costs.recall(PEER, True, MB)
    assert (known.fixed, known.bandwidth) == (0.2, 80.0 * MB)
    assert costs.recall(OTHER, True, MB).fixed is None and list(costs.speeds()) == [PEER]


def test_a_file_that_cannot_be_written_costs_a_prediction_only(node: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (node / "file").touch()
    monkeypatch.setattr(costs, "FOLDER", str(node / "file" / "there"))
    costs.remember(PEER, True, MB, 1.0, 2.0)
    assert costs.recall(PEER, True, MB).fixed is None


def test_it_is_private_and_made_where_there_is_none(node: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = node / "cache" / "criu-migrate"
    monkeypatch.setattr(costs, "FOLDER", str(folder))
    costs.remember(PEER, True, MB, 1.0, 2.0)
    assert costs.speeds() == {PEER: 2.0}
    assert folder.stat().st_mode & 0o777 == 0o700
