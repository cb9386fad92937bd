"""The figures that are read from a ring of heartbeats."""

from __future__ import annotations

import struct

import pytest

from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate.heartbeat import gap_report, ring_order


def ring(*stamps: float) -> bytes:
    return struct.pack(f"<{len(stamps)}d", *stamps)


def ticks(start: float, count: int, step: float = 0.005) -> list[float]:
    return [start + step * place for place in range(count)]


def test_a_ring_that_is_not_full_is_read_up_to_its_first_unused_slot() -> None:
    assert ring_order(ring(1.0, 2.0, 3.0, 0.0, 0.0)) == [1.0, 2.0, 3.0]
    assert ring_order(ring(0.0, 0.0)) == []
    assert ring_order(b"") == []
    assert ring_order(ring(5.0)) == [5.0]


def test_a_full_ring_starts_behind_its_newest_stamp() -> None:
    assert ring_order(ring(105.0, 106.0, 101.0, 102.0, 103.0)) == [101.0, 102.0, 103.0, 105.0, 106.0]
    assert ring_order(ring(1.0, 2.0, 3.0)) == [1.0, 2.0, 3.0]


def test_a_smaller_step_back_of_the_clock_is_not_the_seam() -> None:
    stamps = [*ticks(1000.0, 100, 1.0), *ticks(1098.0, 50, 1.0)]  # the destination is two seconds behind
    written = stamps[90:] + stamps[:90]
    assert ring_order(ring(*written)) == stamps


def test_the_gap_around_the_freeze_is_the_service_gap() -> None:
    stamps = [*ticks(100.0, 201), *ticks(101.25, 200)]
    report = gap_report(stamps, (101.001, 101.2))
    assert report["count"] == 401
    assert report["resolution"] == pytest.approx(0.005)
    assert report["usual_gap"] == pytest.approx(0.005)
    assert report["service"]["seconds"] == pytest.approx(0.25)
    assert report["service"]["from"] == pytest.approx(101.0)
    assert report["service"]["to"] == pytest.approx(101.25)


def test_a_larger_gap_elsewhere_is_the_usual_gap_and_not_the_service_gap() -> None:
    stamps = [*ticks(100.0, 100), *ticks(103.0, 100), *ticks(103.6, 100)]
    report = gap_report(stamps, (103.5, 103.59))
    assert report["service"]["seconds"] == pytest.approx(0.105)
    assert report["usual_gap"] == pytest.approx(2.505)
    assert report["usual_gap_p99_9"] < 0.01


@pytest.mark.parametrize("offset", [-30.0, -0.1, 0.0, 0.1, 3600.0])
def test_two_clocks_become_one(offset: float) -> None:
    freeze, thaw = 101.001, 101.2 + offset
    stamps = [*ticks(100.0, 201), *ticks(101.25 + offset, 2000)]
    report = gap_report(stamps, (freeze, thaw), offset)
    assert report["service"]["seconds"] == pytest.approx(0.25, abs=1e-6)
    assert report["service"]["to"] == pytest.approx(101.25 + offset)
    assert report["usual_gap"] == pytest.approx(0.005, abs=1e-6)


def test_a_stamp_while_the_process_was_being_stopped_is_the_sources() -> None:
    stamps = [*ticks(100.0, 201), 101.004, *ticks(104.25, 200)]  # stopping at 101.001, all still at 101.006, 3 s ahead
    report = gap_report(stamps, (101.001, 104.2), 3.0, 101.006)
    assert report["service"]["seconds"] == pytest.approx(0.246)


def test_nothing_is_claimed_without_stamps_on_both_sides() -> None:
    assert gap_report([], (1.0, 2.0))["service"] is None
    assert gap_report([], None)["resolution"] is None
    assert gap_report(ticks(100.0, 10), (200.0, 201.0))["service"] is None
    assert gap_report(ticks(100.0, 10))["service"] is None
