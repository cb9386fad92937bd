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


@pytest.mark.parametrize("first", [-3600.0, -2.0, 0.0, 2.0, 3600.0])
@pytest.mark.parametrize("second", [-30.0, -0.1, 0.0, 0.1, 30.0])
def test_the_gap_of_an_earlier_move_is_not_usual(first: float, second: float) -> None:
    """A to B, which is `first` ahead, then to C, which is `second` ahead of B; the first move took 4 s."""
    begun = 104.0 + first  # on B
    stamps = [*ticks(98.0, 400), *ticks(begun, 2000), *ticks(begun + 10.25 + second, 400)]
    freeze, thaw = begun + 9.996, begun + 10.24 + second
    report = gap_report(stamps, (freeze, thaw), second, since=begun - 0.001)
    assert report["usual_gap"] == pytest.approx(0.005, abs=1e-5)
    assert report["service"]["seconds"] == pytest.approx(0.255, abs=1e-5)


def test_what_was_usual_since_the_earlier_move_counts() -> None:
    stamps = [100.0, 104.0, 105.0, 107.0, 109.0]
    report = gap_report(stamps, (107.5, 108.5), since=103.9)
    assert report["usual_gap"] == pytest.approx(2.0)
