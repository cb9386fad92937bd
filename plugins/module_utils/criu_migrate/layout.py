"""Where the lazy memory of a process lies while the process moves it about."""

from __future__ import annotations

import bisect
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from .lazymap import Range
from .uffd import PAGE


class Piece(NamedTuple):
    """Memory from `start` to before `end` that was at `image` at dump time; bytes."""

    start: int
    end: int
    image: int

    @property
    def pages(self) -> int:
        return (self.end - self.start) // PAGE

    def moved(self, offset: int) -> Piece:
        return Piece(self.start + offset, self.end + offset, self.image)


def count(pieces: Iterable[Piece]) -> int:
    """Pages of all of them."""
    return sum(piece.pages for piece in pieces)


class Pieces:
    """Pieces without overlaps, in order of address."""

    def __init__(self, items: Iterable[Piece] = ()) -> None:
        self._items = sorted(items)

    def __iter__(self) -> Iterator[Piece]:
        return iter(self._items)

    def __bool__(self) -> bool:
        return bool(self._items)

    def first(self) -> Piece:
        """The lowest one; IndexError when there is none."""
        return self._items[0]

    def find(self, address: int) -> Piece | None:
        """A piece from this address on; None when there is nothing at it."""
        index = bisect.bisect_left(self._items, (address + 1,)) - 1
        if index < 0 or self._items[index].end <= address:
            return None
        start, end, image = self._items[index]
        return Piece(address, end, image + address - start)

    def overlaps(self, start: int, end: int) -> bool:
        index = bisect.bisect_left(self._items, (end,)) - 1
        return index >= 0 and self._items[index].end > start

    def take(self, start: int, end: int) -> list[Piece]:
        """Take out what lies in between."""
        first = self._cut(start)
        last = self._cut(end)
        found = self._items[first:last]
        del self._items[first:last]
        return found

    def put(self, items: Sequence[Piece]) -> None:
        """Put in what belongs together, where nothing is."""
        if items:
            at = bisect.bisect_left(self._items, items[0])
            self._items[at:at] = items

    def _cut(self, address: int) -> int:
        """Make a border there; the index of the first piece behind it."""
        index = bisect.bisect_left(self._items, (address,))
        if index and self._items[index - 1].end > address:
            low = self._items[index - 1]
            high = Piece(address, low.end, low.image + address - low.start)
            self._items[index - 1 : index] = [low._replace(end=address), high]
        return index


class _Late(NamedTuple):
    """Memory that has been moved to a place which other memory has left, though we have not been told yet."""

    start: int
    end: int
    pieces: list[Piece]
    areas: list[Piece]


class Layout:
    """Lazy memory of one process as it lies now.

    Events come one by one, but those of two threads not always in the order in which things have happened: a thread
    tells what it has done only when it has let go of the memory map. So memory may be moved to where something lies
    still, by all we know; it waits until that has gone, or until no event is outstanding (`settle`). And an
    mremap(2) tells of two things, the move and, later, that nothing is left at the old place; what another thread may
    have put there meanwhile must not be given up for that.
    """

    def __init__(self, ranges: Iterable[Range] = ()) -> None:
        """As it was dumped."""
        ranges = list(ranges)
        self.pieces = Pieces(Piece(item.start, item.end, item.start) for item in ranges)
        areas = {item.area or (item.start, item.end) for item in ranges}
        self._areas = Pieces(Piece(start, end, 0) for start, end in areas)  # all that is behind the userfaultfd
        self._wiped = [(item.start, item.end) for item in ranges if item.wiped]  # a child does not inherit these
        self._late: list[_Late] = []
        self._left: Counter[tuple[int, int]] = Counter()  # old places of moves that are to be heard of again
        self.given_up = 0  # pages whose memory the process has given up or taken away

    @property
    def unsettled(self) -> bool:
        return bool(self._late)

    def pages(self) -> int:
        return count(self.pieces) + sum(count(item.pieces) for item in self._late)

    def remap(self, start: int, to: int, length: int) -> None:
        end, offset = start + length, to - start
        pieces = [piece.moved(offset) for piece in self.pieces.take(start, end)]
        areas = [area.moved(offset) for area in self._areas.take(start, end)]
        self._left[start, end] += 1
        self._late.append(_Late(to, to + length, pieces, areas))
        self._place()

    def unmap(self, start: int, end: int) -> None:
        if self._left[start, end]:
            self._left[start, end] -= 1
            return
        self._give_up(self.pieces, start, end)
        self._areas.take(start, end)
        self._place()

    def remove(self, start: int, end: int) -> None:
        """Its contents are given up; the memory stays."""
        late = [item for item in self._late if item.start < end and start < item.end]
        for item in late:
            kept = Pieces(item.pieces)
            self._give_up(kept, start, end)
            item.pieces[:] = kept
        if not late:
            self._give_up(self.pieces, start, end)

    def settle(self) -> None:
        """No event is outstanding: what lies where something has been moved to is not there any more."""
        for item in self._late:
            self._give_up(self.pieces, item.start, item.end)
            self._areas.take(item.start, item.end)
            self._put(item)
        self._late = []

    def forget(self, low: int, high: int) -> int:
        """Leave out what was between these addresses at dump time: it is there. How many pages that was."""
        pages = 0
        for start, end, image in list(self.pieces):
            if image < high and low < image + end - start:
                pages += count(self.pieces.take(start + max(0, low - image), min(end, start + high - image)))
        return pages

    def inherited(self) -> Layout:
        """What a child has of it after fork(2)."""
        child = Layout()
        child.pieces = Pieces(self._kept(self.pieces))
        child._areas = Pieces(self._areas)
        child._wiped = self._wiped
        child._late = [item._replace(pieces=self._kept(item.pieces), areas=list(item.areas)) for item in self._late]
        return child

    def _give_up(self, pieces: Pieces, start: int, end: int) -> None:
        self.given_up += count(pieces.take(start, end))

    def _kept(self, pieces: Iterable[Piece]) -> list[Piece]:
        return [item for item in pieces if not any(low <= item.image < high for low, high in self._wiped)]

    def _place(self) -> None:
        """Put what has been moved to its place, where that is free."""
        waiting = self._late
        self._late = []
        for item in waiting:
            if self._areas.overlaps(item.start, item.end):
                self._late.append(item)
            else:
                self._put(item)

    def _put(self, item: _Late) -> None:
        self.pieces.put(item.pieces)
        self._areas.put(item.areas)
