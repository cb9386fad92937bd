"""Lazy memory that moves about, told of in whatever order the threads get to it."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate.layout import Layout, Piece, Pieces
from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate.lazymap import Range
from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate.uffd import PAGE


def pages(pieces: Iterable[Piece]) -> list[tuple[int, ...]]:
    return [tuple(value // PAGE for value in piece) for piece in pieces]


def some(first: int, last: int, area: tuple[int, int] | None = None) -> Range:
    """Lazy pages, in an area (first, last) of the same size or more."""
    around = (area[0] * PAGE, area[1] * PAGE) if area else None
    return Range(first * PAGE, last * PAGE, area=around)


class Told:
    """A layout in pages."""

    def __init__(self, *ranges: Range) -> None:
        self.layout = Layout(ranges)

    def remap(self, start: int, to: int, length: int) -> None:
        self.layout.remap(start * PAGE, to * PAGE, length * PAGE)

    def unmap(self, start: int, end: int) -> None:
        self.layout.unmap(start * PAGE, end * PAGE)

    def remove(self, start: int, end: int) -> None:
        self.layout.remove(start * PAGE, end * PAGE)

    def now(self) -> list[tuple[int, ...]]:
        return pages(self.layout.pieces)


def test_pieces_are_cut_and_found() -> None:
    pieces = Pieces([Piece(0, 10 * PAGE, 1000 * PAGE)])
    assert pages(pieces.take(2 * PAGE, 4 * PAGE)) == [(2, 4, 1002)]
    assert pieces.find(3 * PAGE) is None and pieces.find(9 * PAGE) == (9 * PAGE, 10 * PAGE, 1009 * PAGE)
    assert pieces.find(0) == (0, 2 * PAGE, 1000 * PAGE) and pieces.find(10 * PAGE) is None
    assert pieces.first() == (0, 2 * PAGE, 1000 * PAGE) and pieces.first().pages == 2
    assert not pieces.overlaps(2 * PAGE, 4 * PAGE) and pieces.overlaps(3 * PAGE, 5 * PAGE)
    assert pieces.overlaps(0, PAGE) and not pieces.overlaps(10 * PAGE, 99 * PAGE)


def test_moved_and_given_up() -> None:
    told = Told(some(0, 10))
    told.remap(2, 20, 4)
    told.unmap(2, 6)  # of that move
    told.remove(21, 22)
    told.unmap(8, 10)
    assert told.now() == [(0, 2, 0), (6, 8, 6), (20, 21, 2), (22, 24, 4)]
    told.remap(20, 8, 4)
    assert told.now() == [(0, 2, 0), (6, 8, 6), (8, 9, 2), (10, 12, 4)] and not told.layout.unsettled


def test_told_too_late_that_the_old_place_was_left() -> None:
    """Thread 1 moves A from 0 to 20 and is held up before it has told that 0 is free; thread 2 moves B there."""
    told = Told(some(0, 4), some(10, 14))
    told.remap(0, 20, 4)
    told.remap(10, 0, 4)
    told.unmap(0, 4)
    told.unmap(10, 14)
    assert told.now() == [(0, 4, 10), (20, 24, 0)]
    told.unmap(0, 4)
    assert told.now() == [(20, 24, 0)], "that one is of munmap(2)"


@pytest.mark.parametrize("filled", [False, True], ids=["lazy", "filled"])
def test_told_too_late_of_the_move_itself(filled: bool) -> None:
    told = Told(some(0, 4), some(10, 14))
    if filled:
        told.layout.pieces.take(0, 4 * PAGE)
    told.remap(10, 0, 4)
    assert told.layout.unsettled and told.layout.pages() == (4 if filled else 8)
    told.remove(1, 2)  # by thread 2, which has its memory there
    told.remap(0, 20, 4)
    assert not told.layout.unsettled
    told.unmap(0, 4)
    told.unmap(10, 14)
    assert told.now() == [(0, 1, 10), (2, 4, 12)] + ([] if filled else [(20, 24, 0)])


def test_told_too_late_of_munmap() -> None:
    told = Told(some(2, 3, area=(0, 4)), some(10, 14))
    told.remap(10, 0, 4)
    told.unmap(10, 14)
    told.unmap(0, 4)
    assert told.now() == [(0, 4, 10)] and not told.layout.unsettled


def test_a_chain_told_backwards() -> None:
    told = Told(some(0, 4), some(10, 14), some(20, 24))
    for start, to in ((20, 10), (10, 0), (0, 30)):
        told.remap(start, to, 4)
    assert told.now() == [(0, 4, 10), (10, 14, 20), (30, 34, 0)]


def test_nobody_has_anything_more_to_tell() -> None:
    """What lay there had gone in a way that nobody tells of."""
    told = Told(some(0, 4), some(10, 14))
    told.remap(10, 2, 4)
    told.layout.settle()
    assert told.now() == [(0, 2, 0), (2, 6, 10)] and not told.layout.unsettled


def test_what_a_child_has() -> None:
    told = Told(some(0, 4), some(10, 14), Range(30 * PAGE, 32 * PAGE, wiped=True))
    told.remap(10, 0, 4)
    told.remap(30, 40, 2)
    child = told.layout.inherited()
    told.remap(0, 20, 4)
    assert told.now() == [(0, 4, 10), (20, 24, 0), (40, 42, 30)]
    assert pages(child.pieces) == [(0, 4, 0)], "MADV_WIPEONFORK: nothing of that for the child"
    child.remap(0, 50 * PAGE, 4 * PAGE)
    assert pages(child.pieces) == [(0, 4, 10), (50, 54, 0)]


def test_what_is_there_already() -> None:
    told = Told(some(0, 10))
    told.remap(4, 20, 4)
    told.layout.forget(3 * PAGE, 6 * PAGE)
    assert told.now() == [(0, 3, 0), (8, 10, 8), (22, 24, 6)]
