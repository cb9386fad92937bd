"""What of the benchmark of all workloads needs no node: its schedule, its file, its swapped inventory, its tables."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks import moves_table, workloads
from benchmarks.moves import VARIANTS, Mover, Nodes, Traveller, good


def move(workload: str = "redis", variant: str = "full", **more: Any) -> dict[str, Any]:
    known = {"rc": 0, "status": "migrated", "verified": True, "direction": "out", "service": 0.5, "total": 9.0}
    rest = {"bytes": 2_000_000, "usual_gap": 0.1, "results": "/r", "run_id": "id", "pid": 77}
    return {"workload": workload, "variant": variant, **known, **rest, **more}


def test_each_variant_goes_both_ways_as_often() -> None:
    planned = workloads.schedule(10)
    assert Counter(planned) == dict.fromkeys(VARIANTS, 10)
    ways = Counter((variant, place % 2) for place, variant in enumerate(planned))
    assert set(ways.values()) == {5}


def test_what_was_tried_is_not_tried_again() -> None:
    made = [move(variant="first"), *(move(variant=name) for name in workloads.schedule(2)[:3]), move("memory")]
    assert workloads.remaining(made, "redis", 2) == workloads.schedule(2)[3:]
    assert len(workloads.remaining(made, "memory", 1)) == len(VARIANTS) - 1


def test_a_line_that_broke_off_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "moves.jsonl"
    assert workloads.read(path) == []
    path.write_text(json.dumps(move()) + "\n" + json.dumps(move())[:20], encoding="utf-8")
    assert workloads.read(path) == [move()]
    workloads.Record(tmp_path).add(move("memory"), 0)
    assert workloads.read(path) == [move(), move("memory")]


def test_the_way_back_swaps_the_nodes(tmp_path: Path) -> None:
    lab, private = tmp_path / "lab", tmp_path / "private"
    lab.mkdir()
    private.mkdir()
    hosts: dict[str, Any] = {
        "source": {"hosts": {"a": {}}},
        "destination": {"hosts": {"b": {}}},
        "client": {"hosts": {"c": {}}},
    }
    (lab / "hosts.yml").write_text(yaml.safe_dump({"all": {"children": hosts, "vars": {"x": 1}}}), encoding="utf-8")
    (lab / "ssh.cfg").touch()
    nodes = Nodes(lab / "hosts.yml", private)
    for path, source, destination in ((nodes.out, "a", "b"), (nodes.back, "b", "a")):
        found = yaml.safe_load(path.read_text(encoding="utf-8"))["all"]
        groups = {name: list(group["hosts"]) for name, group in found["children"].items()}
        assert groups == {"source": [source], "destination": [destination]}
        assert found["vars"] == {"x": 1} and (path.parent / "ssh.cfg").exists()


class Fake(Mover):
    """Moves nothing; the `bad` calls go wrong."""

    def __init__(self, bad: set[int]) -> None:
        self.bad, self.calls, self.ended = bad, 0, 0

    def _made(self, workload: str, variant: str) -> dict[str, Any]:
        self.calls += 1
        return move(workload, variant, **({"status": "failed", "rc": 2} if self.calls in self.bad else {}))

    def start(self, workload: str, how: dict[str, Any] | None = None) -> tuple[dict[str, Any], Traveller | None]:
        return self._made(workload, workloads.FIRST), Traveller(workload, 7, "/d")

    def move(self, traveller: Traveller, variant: str, how: dict[str, Any] | None = None) -> dict[str, Any]:
        return self._made(traveller.workload, variant)

    def end(self, traveller: Traveller | None, bad: dict[str, Any] | None = None) -> None:
        self.ended += 1


@pytest.mark.parametrize(("bad", "started", "made"), [(set(), 1, 9), ({3}, 2, 10), ({1, 2, 3}, 3, 3)])
def test_after_a_failure_a_fresh_one_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], bad: set[int], started: int, made: int
) -> None:
    mover, record = Fake(bad), workloads.Record(tmp_path)
    workloads.move_about(mover, record, "redis", 2, float("inf"))
    variants = [item["variant"] for item in record.moves]
    assert (variants.count(workloads.FIRST), len(variants), mover.ended) == (started, made, started)
    assert workloads.read(record.path) == record.moves
    assert capsys.readouterr().out.count("NOT WHOLE") == len(bad)


def test_no_move_begins_when_time_is_up(tmp_path: Path) -> None:
    mover = Fake(set())
    workloads.move_about(mover, workloads.Record(tmp_path), "redis", 2, 0.0)
    assert mover.calls == 0


def test_only_a_move_that_was_proved_is_good() -> None:
    assert good(move())
    for change in ({"rc": 2}, {"status": "rolled_back"}, {"verified": None}, {"verified": False}):
        assert not good(move(**change))


def test_the_tables() -> None:
    moves = [
        move(variant="first", service=9.0),
        move(service=1.0, direction="back"),
        move(service=3.0),
        move(service=None),
        move(status="rolled_back", rc=2),
        move(status="failed", rc=2, usual_gap=5.0),
        move(status="failed", rc=2, error={"phase": "preflight"}),
    ]
    text = moves_table.markdown(moves)
    assert "| redis | full | 3 | 2.00 (1.50-2.50; 1.00-3.00) of 2 | 9.0 (9.0-9.0; 9.0-9.0) | 2 (2-2; 2-2) |" in text
    assert "| redis | 1 | 7 | 6 | 1 | 4 | 1 | 1 | 1 | 0.10 |" in text
