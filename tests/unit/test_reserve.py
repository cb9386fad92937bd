"""The reserve of memory: what was asked for, within its time and within what is there, and all of it given back."""

from __future__ import annotations

import mmap
import os

import pytest

from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate import reserve

SIZE = 32 << 20


def resident() -> int:
    with open("/proc/self/statm", encoding="ascii") as handle:
        return int(handle.read().split()[1]) * mmap.PAGESIZE


def filled(size: int, seconds: float = 60.0) -> tuple[reserve.Reserve, list[str]]:
    said: list[str] = []
    made = reserve.Reserve(size, seconds, said.append)
    made.wait()
    return made, said


def test_both_shares_are_resident_until_each_is_given_back() -> None:
    before = resident()
    made, said = filled(SIZE)
    assert resident() - before >= 2 * SIZE - (1 << 20)
    assert "reserved 64 MB" in said[0]
    assert made.holds("images") == made.holds("process") == SIZE
    made.give_back("images")
    assert (made.holds("images"), made.holds("process")) == (0, SIZE)
    assert SIZE - (4 << 20) <= resident() - before <= SIZE + (4 << 20)
    made.give_back("images")
    made.give_back("process")
    assert resident() - before <= 4 << 20


def test_no_more_than_leaves_something_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reserve, "available", lambda: (1 << 28) + SIZE)
    before = resident()
    made, said = filled(1 << 40)
    assert resident() - before <= SIZE + (4 << 20)
    assert "reserved 32 MB" in said[0]
    made.give_back("process")


@pytest.mark.parametrize("free", [0, 1 << 28])
def test_nothing_where_nothing_is_to_spare(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    monkeypatch.setattr(reserve, "available", lambda: free)
    made, said = filled(SIZE)
    assert "reserved 0 MB" in said[0]
    made.give_back("images")


def test_its_time_ends_it() -> None:
    made, said = filled(SIZE, seconds=0.0)
    assert made.holds("process") == 0
    assert "reserved 0 MB" in said[0]
    made.give_back("images")


def test_available_is_what_the_kernel_says() -> None:
    assert 0 < reserve.available() <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
