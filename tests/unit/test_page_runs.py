"""Dumps of a memory full of gaps, one on another: what is taken over at once, and what page by page."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import cast

import pytest

from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate import lazymap, page_images, page_runs, stats
from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate.errors import MigrationError
from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate.held import Held
from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate.page_runs import HEADER, IN_PARENT, PAGE, Runs
from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate.secure import Secure

from .test_page_images import ADD, LAZY, PRESENT, Criu, begin, decode, pages_there, take

OWNER = 7 << 8 | 1
BASE = 0x7F0000000000
Memory = dict[int, tuple[bytes, int]]  # by number of the page: what it holds, and whether it may come late


def runs(pages: list[tuple[int, int]]) -> Iterator[tuple[int, int, int]]:
    """First page, number of pages and flags of neighbours that share their flags."""
    begun: tuple[int, int, int] | None = None
    for page, flags in pages:
        if begun and page == begun[0] + begun[1] and flags == begun[2]:
            begun = (begun[0], begun[1] + 1, flags)
        else:
            if begun:
                yield begun
            begun = (page, 1, flags)
    if begun:
        yield begun


def say(memory: Memory, fresh: set[int], criu: Criu) -> None:
    """As criu does: what has changed with its pages, and of the rest that it is in the parent, in order of address."""
    begin(criu, OWNER, inherits=fresh != set(memory))
    told = [(page, PRESENT | memory[page][1] if page in fresh else IN_PARENT) for page in sorted(memory)]
    for first, count, flags in runs(told):
        data = b"".join(memory[first + number][0] for number in range(count)) if flags & PRESENT else b""
        criu.say(ADD | flags << 16, OWNER, BASE + first * PAGE, count, data)


def change(chance: random.Random, memory: Memory) -> set[int]:
    """Some pages are written to, some go, some are new; those that the next dump has to send."""
    fresh = set()
    for page in chance.sample(sorted(memory), len(memory) // 10):
        memory[page] = (os.urandom(16) * (PAGE // 16), memory[page][1])
        fresh.add(page)
    for page in chance.sample(sorted(memory), len(memory) // 20):
        del memory[page]
        fresh.discard(page)
    for page in chance.sample(range(4000), 40):
        if page not in memory:
            memory[page] = (os.urandom(16) * (PAGE // 16), LAZY)
            fresh.add(page)
    return fresh


@pytest.mark.parametrize("seed", range(6))
def test_rounds_on_a_memory_full_of_gaps(tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stats, "decode", decode)
    chance = random.Random(seed)  # noqa: S311  no secret
    memory: Memory = {
        page: (os.urandom(16) * (PAGE // 16), LAZY if page < 2500 else 0) for page in range(3000) if page % 6 != 5
    }
    images = None
    for number in range(4):
        fresh = change(chance, memory) if number else set(memory)
        folder = tmp_path / f"pre-{number}"
        before, last = images, number == 3
        images = take(folder, tmp_path / "log", before, partial(say, memory, fresh), late=last)
        if before is not None:
            (folder / "parent").symlink_to(f"../pre-{number - 1}")
        assert images.count == len(fresh)
        assert contents(images) == {page: data for page, (data, _late) in memory.items()}
        assert images.size() == len(memory) * PAGE
        late = {page for page, (_data, late) in memory.items() if late}
        assert from_page_map(folder, images, last) == (late if last else set(memory))
        if before is not None:
            images.forget_parent()
            assert contents(images) == {page: data for page, (data, _late) in memory.items()}


class Told:
    """A link by which all of a dump has come at once."""

    def __init__(self, words: bytes) -> None:
        self.words = words

    def recv_into(self, room: memoryview) -> int:
        part, self.words = self.words[: len(room)], self.words[len(room) :]
        room[: len(part)] = part
        return len(part)

    def sendall(self, data: bytes) -> None:
        assert data in (bytes(4), b"\1")


def test_of_a_dump_in_which_little_has_changed_few_words_are_taken_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = page_images.PageImages(str(tmp_path))
    images.open(OWNER)
    for first, pages in SCATTERED:
        images.add(BASE + first * PAGE, pages, PRESENT)
    images.close()
    (tmp_path / "next").mkdir()
    following = page_images.PageImages(str(tmp_path / "next"), images, late=True, last=True)
    alone: list[int] = []
    add = following.add

    def seen(at: int, pages: int, flags: int) -> None:
        alone.append(at)
        add(at, pages, flags)

    monkeypatch.setattr(following, "add", seen)
    words: list[bytes | memoryview] = [HEADER.pack(page_runs.OPEN, 0, 0, OWNER), unchanged(*SCATTERED[:100])]
    words += [HEADER.pack(ADD | PRESENT << 16, 5, BASE + 600 * PAGE, OWNER), bytes(5 * PAGE)]
    words += [unchanged(*SCATTERED[101:]), HEADER.pack(page_images.CLOSES[0], 0, 0, 0)]
    page_images.receive(cast(Secure, Told(b"".join(words))), following, print)
    assert alone == [BASE + 600 * PAGE]
    assert following.size() == images.size() and following.count == 5


def test_pages_of_a_process_that_has_ended_are_given_back(tmp_path: Path) -> None:
    made: list[page_images.PageImages] = []
    for number, owners in enumerate(([OWNER, 8 << 8 | 1, 1 << 8 | 2], [OWNER])):
        (tmp_path / f"pre-{number}").mkdir()
        made.append(page_images.PageImages(str(tmp_path / f"pre-{number}"), made[-1] if made else None))
        for owner in owners:
            made[-1].open(owner)
            made[-1].add(0x10000, 3, IN_PARENT if number else PRESENT)
            os.write(made[-1].pages, b"x" * PAGE * (0 if number else 3))
        made[-1].close()
    made[1].forget_parent()
    assert pages_there(tmp_path) == [3, 0, 0, 0] and Path(made[1].held(OWNER)[0].path).read_bytes() == b"x" * PAGE * 3


def contents(images: page_images.PageImages) -> dict[int, bytes]:
    """Each page, out of the files."""
    found = {}
    for item in images.held(OWNER):
        with open(item.path, "rb") as handle:
            for place in range(0, item.end - item.start, PAGE):
                found[(item.start + place - BASE) // PAGE] = os.pread(handle.fileno(), PAGE, item.offset + place)
    return found


def from_page_map(folder: Path, images: page_images.PageImages, last: bool) -> set[int]:
    """Pages as who reads the page maps finds them: those that may come late, or of earlier dumps all."""
    (folder / "mm-7.img").touch()
    if not last:
        (folder / "copy").mkdir()
        (folder / "copy" / "pagemap-7.img").write_bytes(images.page_map(OWNER))
        entries = lazymap.page_map(str(folder / "copy" / "pagemap-7.img"))[1]
        told = lazymap.page_map(str(folder / "pagemap-7.img"))[1]
        assert pages_of(entries) == pages_of(told)
        assert not any(entry.flags & page_runs.HERE for entry in told), "a dump that another is put on"
        return pages_of(entries)
    entries = lazymap.page_map(str(folder / "pagemap-7.img"))[1]
    assert all(bool(entry.flags & IN_PARENT) != bool(entry.flags & (LAZY | PRESENT)) for entry in entries)
    return pages_of([entry for entry in entries if entry.flags & LAZY])


def pages_of(entries: list[lazymap.Entry]) -> set[int]:
    return {(entry.vaddr - BASE) // PAGE + number for entry in entries for number in range(entry.pages)}


def piece(first: int, pages: int, flags: int = LAZY, path: str = "a") -> Held:
    return Held(BASE + first * PAGE, BASE + (first + pages) * PAGE, flags, path, 0)


def made(*pieces: Held, followed: bool = True) -> Runs:
    found = Runs(OWNER, followed)
    for one in pieces:
        found.add(one)
    found.close()
    return found


def unchanged(*which: tuple[int, int]) -> memoryview:
    return memoryview(
        b"".join(HEADER.pack(ADD | IN_PARENT << 16, pages, BASE + first * PAGE, OWNER) for first, pages in which)
    )


SCATTERED = [(6 * number, 5) for number in range(300)]


def test_runs_that_have_not_changed_are_taken_over_at_once() -> None:
    parent = made(*(piece(first, pages) for first, pages in SCATTERED))
    mine = Runs(OWNER)
    size, entries = mine.take_over(parent, unchanged(*SCATTERED), late=False)
    mine.close()
    assert size == 300 * HEADER.size
    assert entries == b"".join(page_runs.entry(BASE + first * PAGE, IN_PARENT, pages) for first, pages in SCATTERED)
    assert mine.all() == parent.all()
    assert [item.path for item in parent.not_in(mine)] == ["a", "a"]  # both ends could have grown


@pytest.mark.parametrize("late", [False, True])
def test_what_was_taken_over_is_taken_over_again(late: bool) -> None:
    """By the dump after the next one, all at once, and its page map says the same."""
    pieces = [piece(first, pages, LAZY if first % 4 else 0) for first, pages in SCATTERED]
    parent, child = made(*pieces), Runs(OWNER)
    said, entries = child.take_over(parent, unchanged(*SCATTERED), late=False)
    child.close()
    assert Runs(OWNER).take_over(child, unchanged(*SCATTERED), late) == (said, each(pieces, late))
    for (first, pages), one in zip(SCATTERED, pieces):
        found = child.between(BASE + first * PAGE, BASE + (first + pages) * PAGE, late)
        assert found == ([one], page_runs.inherited([one], late))
    assert entries == each(pieces, late=False)


def each(pieces: list[Held], late: bool) -> bytes:
    return b"".join(page_runs.inherited([one], late) for one in pieces)


@pytest.mark.parametrize("wrong", [0, 1, 15, 16, 17, 47, 48, 49, 299])
def test_they_are_taken_over_up_to_the_first_that_is_another(wrong: int) -> None:
    parent = made(*(piece(first, pages) for first, pages in SCATTERED))
    words = list(SCATTERED)
    words[wrong] = (words[wrong][0], 4)
    size, _entries = Runs(OWNER).take_over(parent, unchanged(*words), late=True)
    assert size == wrong * HEADER.size
    other = unchanged(*words).tobytes().replace(OWNER.to_bytes(8, "little"), (9 << 8 | 1).to_bytes(8, "little"))
    assert Runs(OWNER).take_over(parent, memoryview(other), late=True) == (0, b"")


@pytest.mark.parametrize("wrong", [0, 15, 16, 299, 300])
def test_what_lies_between_the_fields_of_a_word_means_nothing(wrong: int) -> None:
    """CRIU fills in the fields of a struct on its stack and sends all of it (write_pagemap_to_server)."""
    parent = made(*(piece(first, pages) for first, pages in SCATTERED))
    words = [(first, pages - (number == wrong)) for number, (first, pages) in enumerate(SCATTERED)]
    said = bytearray(unchanged(*words))
    for number in range(0, 300, 2):
        said[number * HEADER.size + 4 : number * HEADER.size + 8] = (number + 1 << 15).to_bytes(4, "little")
    assert Runs(OWNER).take_over(parent, memoryview(said), late=True)[0] == wrong * HEADER.size


@pytest.mark.parametrize("tail", [0, 1, 4, 17, 31])
def test_no_byte_of_a_field_may_be_another(tail: int) -> None:
    parent = made(*(piece(first, pages) for first, pages in SCATTERED))
    whole = unchanged(*SCATTERED[:21]).tobytes()[: 20 * HEADER.size + tail]
    for place in range(20 * HEADER.size):
        word, byte = divmod(place, HEADER.size)
        said = bytearray(whole)
        said[4:8] = b"\xa5" * 4  # else no byte between fields is looked at
        said[place] ^= 1
        same = 20 if 4 <= byte < 8 else word
        assert Runs(OWNER).take_over(parent, memoryview(said), late=True)[0] == same * HEADER.size, place


@pytest.mark.parametrize("size", [0, 1, 31, 33, 511, 513, 1535, 1537])
def test_a_word_of_which_a_part_is_here_is_left(size: int) -> None:
    parent = made(*(piece(first, pages) for first, pages in SCATTERED))
    found, _entries = Runs(OWNER).take_over(parent, unchanged(*SCATTERED)[:size], late=True)
    assert found == size // HEADER.size * HEADER.size


def test_neighbours_become_one_run() -> None:
    parent = made(piece(2, 3), piece(8, 2))
    mine = Runs(OWNER)
    mine.add(piece(0, 2, path="b"))
    assert mine.take_over(parent, unchanged((2, 3), (8, 2)), late=False)[0] == 2 * HEADER.size
    mine.add(piece(10, 1, path="b"))
    mine.close()
    found, entries = Runs(OWNER).take_over(mine, unchanged((0, 5), (8, 3)), late=True)
    assert found == 2 * HEADER.size
    here = LAZY | page_runs.HERE
    assert entries == page_runs.entry(BASE, here, 5) + page_runs.entry(BASE + 8 * PAGE, here, 3)


def test_a_run_of_which_a_part_may_come_late_has_two_entries() -> None:
    parent = made(piece(0, 2), piece(2, 2, 0), followed=True)
    pieces, entries = parent.between(BASE, BASE + 4 * PAGE, late=True)
    assert len(pieces) == 2
    two = page_runs.entry(BASE + 2 * PAGE, IN_PARENT, 2)
    assert entries == page_runs.entry(BASE, LAZY | page_runs.HERE, 2) + two
    assert parent.between(BASE + 2 * PAGE, BASE + 4 * PAGE, late=True)[1] == two
    with pytest.raises(MigrationError, match="lack pages"):
        parent.between(BASE + 3 * PAGE, BASE + 5 * PAGE, late=True)


@pytest.mark.parametrize(("first", "pages"), [(1, 9), (6, 4), (7, 3), (4, 2), (5, 1), (8, 3), (10, 1), (0, 10)])
def test_a_gap_in_the_parent_is_never_taken_for_pages(first: int, pages: int) -> None:
    """Also where the word ends with a run, or begins with one."""
    parent = made(piece(0, 5), piece(8, 2))
    with pytest.raises(MigrationError, match="lack pages"):
        parent.between(BASE + first * PAGE, BASE + (first + pages) * PAGE, late=True)
    assert Runs(OWNER).take_over(parent, unchanged((first, pages)), late=True) == (0, b"")


def test_the_last_dump_of_all_is_still_looked_at() -> None:
    last = made(piece(0, 2), piece(4, 2), followed=False)
    assert last.between(BASE, BASE + 2 * PAGE, late=True)[0] == [piece(0, 2)]
    assert last.size() == 4 * PAGE


@pytest.mark.parametrize("value", [0, 1, 127, 128, 1 << 14, (1 << 21) - 1, 1 << 21, BASE, BASE | 0x123000, 1 << 63])
def test_numbers_are_those_of_protobuf(value: int) -> None:
    encoded = page_runs._varint(value)
    assert sum((byte & 0x7F) << 7 * place for place, byte in enumerate(encoded)) == value
    assert [byte >> 7 for byte in encoded] == [1] * (len(encoded) - 1) + [0]
    assert len(encoded) == max(1, -(-value.bit_length() // 7))
