"""Pages that have changed their frame without the kernel's bits telling of it; the kernel's tables are made up."""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path

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

    def touch(self, pid: int, addresses: Iterable[int]) -> None:
        self.touched.extend((pid, address) for address in addresses)

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


def test_pages_of_two_processes_are_each_their_own(kernel: Kernel) -> None:
    kernel.memory[8, 3] = {0: (400, True)}
    looks = Moved()
    a_round(kernel, looks, first=True, pids=[7, 8])
    kernel.memory[7, 4] = kernel.memory.pop((7, 9))
    kernel.memory[8, 5] = kernel.memory.pop((8, 3))
    assert looks.at_freeze([7, 8]) == 2
    assert sorted(kernel.touched) == [(7, at(4, 0)), (8, at(5, 0))]


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


def own_copy(address: int) -> bool:
    """Whether the page there is memory of this process and no longer the file's (pagemap: bit 61 is the file's)."""
    with open("/proc/self/pagemap", "rb", buffering=0) as pagemap:
        entry = int.from_bytes(os.pread(pagemap.fileno(), 8, address // PAGE * 8), "little")
    return bool(entry & THERE) and not entry & 1 << 61


def test_what_is_written_is_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To memory that may only be read as well, and with one descriptor for all pages."""
    contents = os.urandom(4 * PAGE)
    (tmp_path / "file").write_bytes(contents)
    opened: list[str] = []
    really = os.open
    with (tmp_path / "file").open("rb") as handle:
        area = mmap.mmap(handle.fileno(), 4 * PAGE, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ)
    assert area[:] == contents
    maps = Path("/proc/self/maps").read_text(encoding="utf-8")
    start = next(int(line.split("-")[0], 16) for line in maps.splitlines() if line.endswith(str(tmp_path / "file")))
    assert not any(own_copy(start + page * PAGE) for page in range(4))

    def noted(path: str, flags: int) -> int:
        opened.append(path)
        return really(path, flags)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", noted)
        moved._touch(os.getpid(), [start, start + 3 * PAGE])
    assert opened == [f"/proc/{os.getpid()}/mem"]
    assert [own_copy(start + page * PAGE) for page in range(4)] == [True, False, False, True]
    assert area[:] == contents
