"""Which pages were written to: the bits of a page map, and where there are such bits, a real process's."""

from __future__ import annotations

import mmap
import os
import random
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate import dirty, proc
from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate.uffd import PAGE

PRESENT, SWAPPED, SOFT_DIRTY, EXCLUSIVE = 1 << 63, 1 << 62, 1 << 55, 1 << 56
COUNT = 2048  # pages that the child writes to
# Says that it is there, then writes to so many pages for each line that it is sent.
WRITER = """
import mmap, sys
area = mmap.mmap(-1, 4 * {count} * {page})
for place in range(0, len(area), {page}):
    area[place] = 1
print(flush=True)
for line in sys.stdin:
    for place in range(0, {count} * {page}, {page}):
        area[place] = 2
    print(flush=True)
"""


def entries(*values: int) -> bytes:
    return struct.pack(f"<{len(values)}Q", *values)


@pytest.mark.parametrize(
    ("value", "counts"),
    [
        (0, 0),
        (SOFT_DIRTY, 0),  # a page that is not there, in an area that is new
        (PRESENT, 0),
        (SWAPPED, 0),
        (PRESENT | EXCLUSIVE | 0x1234, 0),
        (PRESENT | SOFT_DIRTY, 1),
        (SWAPPED | SOFT_DIRTY, 1),
        (PRESENT | SOFT_DIRTY | EXCLUSIVE | (1 << 55) - 1, 1),
        (PRESENT | ~SOFT_DIRTY & (1 << 62) - 1, 0),
    ],
)
def test_a_page_counts_that_is_there_and_was_written_to(value: int, counts: int) -> None:
    assert dirty._dirty(entries(value)) == counts
    assert dirty._dirty(entries(0, value, 0, value)) == 2 * counts, "its neighbours' bits are not its own"


def test_many_pages_are_counted_as_one_by_one() -> None:
    dice = random.Random(7)  # noqa: S311
    values = [dice.getrandbits(64) for _ in range(5000)]
    single = sum(1 for value in values if value & SOFT_DIRTY and value & (PRESENT | SWAPPED))
    assert dirty._dirty(entries(*values)) == single > 500
    assert dirty._dirty(b"") == 0


MAPS = """\
10000-12000 rw-p 00000000 00:00 0 [heap]
20000-22000 r--p 00000000 08:01 7 /lib/x.so
30000-33000 rw-s 00000000 08:01 7 /srv/a file
40000-44000 rw-s 00000000 00:01 99 /dev/zero (deleted)
50000-55000 rw-p 00001000 08:01 7 /lib/x.so
60000-66000 -w-s 00000000 00:01 0 /none
"""


def test_memory_is_looked_at_that_a_dump_holds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What is shared with a file is the file's, and is not in the images."""
    (tmp_path / "maps").write_text(MAPS, encoding="utf-8")
    opened = open
    monkeypatch.setattr("builtins.open", lambda path, *rest, **more: opened(tmp_path / "maps", *rest, **more))
    found = [start for start, _end in dirty.areas(1)]
    assert found == [0x10000, 0x40000, 0x50000, 0x60000]


def test_a_page_map_that_is_long_is_read_in_pieces(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "pagemap").write_bytes(entries(*[0] * 8, *[PRESENT | SOFT_DIRTY] * 100, PRESENT, SOFT_DIRTY))
    opened = open
    monkeypatch.setattr("builtins.open", lambda path, *rest, **more: opened(tmp_path / "pagemap", *rest, **more))
    monkeypatch.setattr(dirty, "areas", lambda _pid: [(4 * PAGE, 60 * PAGE), (80 * PAGE, 200 * PAGE)])
    monkeypatch.setattr(dirty, "_PIECE", 24)
    assert dirty.written(1) == (52 + 28) * PAGE, "the file ends before the second area does"


@pytest.fixture
def writer() -> Iterator[subprocess.Popen[str]]:
    program = WRITER.format(count=COUNT, page=PAGE)
    child = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with child:
        assert child.stdout is not None and child.stdout.readline()
        yield child
        child.kill()


def tracked() -> bool:
    """This kernel has such bits, by those of memory that has just been written to."""
    area = mmap.mmap(-1, 64 * PAGE)
    area.write(bytes(64 * PAGE))
    return dirty.written(os.getpid()) >= 64 * PAGE


def test_what_a_process_writes_is_seen(writer: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Both windows count from one beginning."""
    assert writer.stdin is not None and writer.stdout is not None
    if not tracked():
        assert dirty.watch(writer.pid, [0.0, 0.0]) == []
        pytest.skip("this kernel does not track changed pages: watch() has said so")
    before = dirty.watch(writer.pid, [0.0])
    assert len(before) == 1 and before[0][1] < COUNT * PAGE

    def write(_seconds: float) -> None:
        writer.stdin.write("on\n")  # type: ignore[union-attr]
        writer.stdin.flush()  # type: ignore[union-attr]
        writer.stdout.readline()  # type: ignore[union-attr]

    monkeypatch.setattr("time.sleep", write)
    (first, size), (second, again) = dirty.watch(writer.pid, [0.01, 0.02])
    assert COUNT * PAGE <= size <= again < 2 * COUNT * PAGE, "what is written to twice counts once"
    assert first < second


def test_a_kernel_without_such_bits_says_nothing(
    writer: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Zeros would be taken for those of an idle process."""
    monkeypatch.setattr(dirty, "_dirty", lambda _entries: 0)
    assert dirty.watch(writer.pid, [0.0, 0.0]) == []


def test_an_idle_process_is_told_from_no_word(writer: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dirty, "written", lambda pid: 4096 if pid == os.getpid() else 0)
    found = dirty.watch(writer.pid, [0.0, 0.0])
    assert [size for _seconds, size in found] == [0, 0]


def test_a_process_that_has_gone_says_nothing(writer: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dirty, "written", lambda pid: 4096)
    there = proc.tree(writer.pid)
    writer.kill()
    writer.wait()
    assert dirty.watch(writer.pid, [0.0]) == []
    monkeypatch.setattr(proc, "tree", lambda _pid: there)  # it goes after it was looked for
    assert dirty.watch(writer.pid, [0.0]) == []
