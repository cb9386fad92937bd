"""Pages that have changed their frame without the kernel's bits telling of it; the kernel's tables are made up."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator

import pytest

from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate import moved
from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate.moved import TABLE, Moved
from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate.uffd import PAGE

THERE, SWAPPED, DIRTY = 1 << 63, 1 << 62, 1 << 55


class Kernel:
    """Page tables by PID and number; each page is (frame, soft-dirty)."""

    def __init__(self) -> None:
        self.memory: dict[tuple[int, int], dict[int, tuple[int, bool]]] = {}
        self.touched: list[tuple[int, int]] = []
        self.told = True

    def tables(self, pid: int) -> Iterator[tuple[int, bytes]]:
        if pid not in {owner for owner, _table in self.memory} | {1}:
            raise FileNotFoundError(pid)
        for (owner, table), pages in sorted(self.memory.items()):
            if owner == pid:
                entries = [0] * TABLE
                for page, (frame, changed) in pages.items():
                    entries[page] = THERE | frame | DIRTY * changed
                yield table, struct.pack(f"<{TABLE}Q", *entries)

    def touch(self, pid: int, address: int) -> None:
        self.touched.append((pid, address))

    def clear(self) -> None:
        """A round: what looks changed was sent, and the bits are gone."""
        for pages in self.memory.values():
            pages.update({page: (frame, False) for page, (frame, _changed) in pages.items()})


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    made = Kernel()
    made.memory[7, 3] = {0: (100, True), 5: (105, True), 511: (111, True)}
    made.memory[7, 9] = {0: (200, True)}
    monkeypatch.setattr(moved, "_tables", made.tables)
    monkeypatch.setattr(moved, "_touch", made.touch)
    monkeypatch.setattr(moved, "_visible", lambda: made.told)
    return made


def a_round(kernel: Kernel, looks: Moved, first: bool = False, pids: Iterable[int] = (7,)) -> None:
    looks.before_round(pids, first)
    kernel.clear()
    looks.after_round(pids)


def at(table: int, page: int) -> int:
    return (table * TABLE + page) * PAGE


def test_memory_that_stays_where_it_is(kernel: Kernel) -> None:
    looks = Moved()
    a_round(kernel, looks, first=True)
    kernel.memory[7, 3][5] = (105, True)
    a_round(kernel, looks)
    assert looks.at_freeze([7]) == 0


def test_a_table_that_moved(kernel: Kernel) -> None:
    looks = Moved()
    a_round(kernel, looks, first=True)
    kernel.memory[7, 9] = kernel.memory.pop((7, 3))
    assert looks.at_freeze([7]) == 3
    assert kernel.touched == [(7, at(9, 0)), (7, at(9, 5)), (7, at(9, 511))]


def test_what_looks_changed_is_sent_anyway(kernel: Kernel) -> None:
    looks = Moved()
    a_round(kernel, looks, first=True)
    kernel.memory[7, 9] = {0: (300, True), 1: (301, False)}
    assert looks.at_freeze([7]) == 1
    assert kernel.touched == [(7, at(9, 1))]


def test_a_move_before_a_later_round_is_not_forgotten(kernel: Kernel) -> None:
    looks = Moved()
    a_round(kernel, looks, first=True)
    kernel.memory[7, 9] = {0: (100, False), 1: (101, True)}
    a_round(kernel, looks)  # which sends the second page only
    a_round(kernel, looks)
    assert looks.at_freeze([7]) == 1
    assert kernel.touched == [(7, at(9, 0))]


def test_a_move_during_a_round(kernel: Kernel) -> None:
    looks = Moved()
    looks.before_round([7], True)
    kernel.clear()
    kernel.memory[7, 9] = {0: (100, False)}
    looks.after_round([7])
    assert looks.at_freeze([7]) == 1


def test_what_moved_is_trusted_once_it_was_sent(kernel: Kernel) -> None:
    looks = Moved()
    a_round(kernel, looks, first=True)
    kernel.memory[7, 9] = {0: (100, False)}
    looks.after_round([7])
    kernel.memory[7, 9] = {0: (100, True)}
    a_round(kernel, looks)
    assert looks.at_freeze([7]) == 0


def test_memory_that_was_gone_for_a_while(kernel: Kernel) -> None:
    looks = Moved()
    a_round(kernel, looks, first=True)
    kept = kernel.memory.pop((7, 3))
    a_round(kernel, looks)
    kernel.memory[7, 3] = kept
    kernel.memory[7, 3][5] = (999, False)
    assert looks.at_freeze([7]) == 1
    assert kernel.touched == [(7, at(3, 5))]


def test_a_new_process_is_left_alone(kernel: Kernel) -> None:
    looks = Moved()
    a_round(kernel, looks, first=True)
    kernel.memory[8, 3] = {0: (100, False)}
    assert looks.at_freeze([7, 8]) == 0


def test_a_process_that_is_gone(kernel: Kernel) -> None:
    looks = Moved()
    with pytest.raises(OSError):
        looks.before_round([7, 8], True)


def test_a_kernel_that_hides_frames(kernel: Kernel) -> None:
    kernel.told = False
    with pytest.raises(PermissionError):
        Moved().before_round([7], True)
