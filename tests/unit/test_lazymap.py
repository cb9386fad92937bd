"""Lazy pages in CRIU's images: which they are, where their contents lie."""

from __future__ import annotations

import json
import os
import sys
import threading
import types
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate import lazymap, stats, store
from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate.errors import MigrationError
from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate.held import Held
from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate.lazymap import Range
from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate.uffd import PAGE
from tests.unit.waiting import wait_for

BASE = 0x7F0000000000


def at(index: int) -> int:
    return BASE + index * PAGE


def entry(index: int, pages: int, flags: Any) -> dict[str, Any]:
    return {"vaddr": hex(at(index)), "nr_pages": pages, "flags": flags}


def area(first: int, last: int, **more: Any) -> dict[str, Any]:
    return {"start": hex(at(first)), "end": hex(at(last)), **more}


MAP = [
    entry(0, 2, "PE_PRESENT"),
    entry(2, 6, "PE_LAZY | PE_PRESENT"),
    entry(8, 3, "PE_PARENT"),
    entry(11, 1, "PE_PRESENT"),
    entry(12, 4, 6),
    entry(40, 2, "PE_LAZY"),
    entry(50, 1, "PE_LAZY | PE_PRESENT"),
    {"vaddr": at(60), "compat_nr_pages": 1, "in_parent": True},
]
AREAS = [area(0, 4), area(4, 9), area(9, 20), area(40, 42, madv=hex(1 << 18)), area(50, 70, madv="0x400")]


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two processes; what their images say is made up, as this machine may have no CRIU."""
    said: dict[str, list[dict[str, Any]]] = {
        "pagemap-5.img": [{"pages_id": 3}, *MAP],
        "mm-5.img": [{"vmas": AREAS}],
        "pagemap-6.img": [],
        "mm-6.img": [{"vmas": AREAS}],
    }
    for name in said:
        (tmp_path / name).touch()
    numbers = [0, 1, 2, 3, 4, 5, 6, 7, 11, 12, 13, 14, 15, 50]
    (tmp_path / "pages-3.img").write_bytes(b"".join(bytes([number]) * PAGE for number in numbers))
    monkeypatch.setattr(stats, "decode", lambda path: said.get(os.path.basename(path), []))
    return tmp_path


def test_ranges_are_cut_at_the_borders_of_areas(images: Path) -> None:
    path = f"{images}/pages-3.img"
    assert lazymap.ranges(str(images), 5) == [
        Range(at(2), at(4), path, 2 * PAGE, area=(at(0), at(4))),
        Range(at(4), at(8), path, 4 * PAGE, area=(at(4), at(9))),
        Range(at(12), at(16), path, 9 * PAGE, area=(at(9), at(20))),
        Range(at(40), at(42), wiped=True, area=(at(40), at(42))),
        Range(at(50), at(51), path, 13 * PAGE, area=(at(50), at(70))),
    ]


class Message:
    """Stands for CRIU's protobuf classes: the messages are JSON here."""

    def __init__(self, given: dict[str, Any]) -> None:
        self.given = given

    def __getattr__(self, name: str) -> Any:
        value = self.given.get(name, 0)
        return [Message(item) for item in value] if isinstance(value, list) else lazymap._number(value)

    def HasField(self, name: str) -> bool:  # noqa: N802
        return name in self.given

    @classmethod
    def FromString(cls, data: bytes) -> Message:  # noqa: N802
        return cls(json.loads(data))


def image(path: Path, *messages: dict[str, Any]) -> None:
    texts = [json.dumps(message).encode() for message in messages]
    path.write_bytes(b"12345678" + b"".join(len(text).to_bytes(4, "little") + text for text in texts))


def test_the_quick_way_says_the_same(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = lazymap.ranges(str(images), 5)
    kinds = {"pagemap_head": Message, "pagemap_entry": Message, "mm_entry": Message}
    module = types.SimpleNamespace(pagemap_pb2=types.SimpleNamespace(**kinds), mm_pb2=types.SimpleNamespace(**kinds))
    monkeypatch.setitem(sys.modules, "pycriu", types.SimpleNamespace(images=module))
    monkeypatch.setitem(sys.modules, "pycriu.images", module)
    monkeypatch.delattr(stats, "decode")
    entries = [{**item, "flags": lazymap._flags(item)} if "flags" in item else item for item in MAP]
    image(images / "pagemap-5.img", {"pages_id": 3}, *entries)
    image(images / "mm-5.img", {"vmas": AREAS})
    assert lazymap.ranges(str(images), 5) == expected
    with pytest.raises(MigrationError, match="cut off"):
        lazymap.ranges(str(images), 6)
    os.truncate(images / "pagemap-5.img", 200)
    with pytest.raises(MigrationError, match="cut off"):
        lazymap.ranges(str(images), 5)


def test_images_that_cannot_be_read(images: Path) -> None:
    with pytest.raises(FileNotFoundError):
        lazymap.ranges(str(images), 7)
    with pytest.raises(MigrationError, match="cannot be read"):
        lazymap.ranges(str(images), 6)


def test_contents_from_the_images(images: Path) -> None:
    pages = store.ImageStore(str(images))
    for index in (2, 3, 4, 7, 12, 15, 50):
        assert pages.read(5, at(index), 1) == bytes([index]) * PAGE
    assert pages.read(5, at(2), 64) == b"".join(bytes([index]) * PAGE for index in (2, 3)), "to the end of its range"
    for index in (0, 1, 8, 11, 16, 39, 60, 1000):
        with pytest.raises(KeyError):
            pages.read(5, at(index), 1)
    with pytest.raises(OSError, match="do not hold"):
        pages.read(5, at(40), 1)
    pages.close()


def test_images_that_are_cut_off(images: Path) -> None:
    os.truncate(images / "pages-3.img", 10 * PAGE + 5)
    pages = store.ImageStore(str(images))
    assert pages.read(5, at(12), 4) == bytes([12]) * PAGE
    with pytest.raises(OSError, match="cut off"):
        pages.read(5, at(13), 1)
    pages.close()


def test_what_is_known_is_given_out_without_a_look_at_the_images(tmp_path: Path) -> None:
    """While criu restores, which is when its daemon asks; the areas are needed for the fill only."""
    (tmp_path / "pages-1.img").write_bytes(b"".join(bytes([number]) * PAGE for number in range(8)))
    path = str(tmp_path / "pages-1.img")
    known = [Held(at(2), at(4), 2, path, PAGE), Held(at(4), at(5), 2, path, 6 * PAGE), Held(at(8), at(9), 2, path, 0)]
    asked: list[int] = []

    def pieces(pid: int) -> list[Held]:
        asked.append(pid)
        return known

    pages = store.ImageStore(str(tmp_path), pieces)
    assert pages.read(5, at(3), 9) == bytes([2]) * PAGE, "what is behind lies elsewhere in the file"
    assert pages.read(5, at(4), 9) == bytes([6]) * PAGE and pages.read(5, at(8), 1) == bytes(PAGE)
    assert pages.locate(5, at(2), 9)[1:] == (PAGE, 2) and pages.locate(5, at(3), 9)[1:] == (2 * PAGE, 1)
    for page in (0, 1, 5, 7, 9):
        with pytest.raises(KeyError, match="no lazy page"):
            pages.holds(5, at(page))
    assert asked == [5], "once"
    with pytest.raises(FileNotFoundError):
        pages.ranges(5)
    pages.close()


def test_two_who_ask_for_ranges_at_once_have_them_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second one takes as long as the rest of it, not as long as all of it."""
    begun, on = threading.Event(), threading.Event()
    reads: list[int] = []

    def slow(_images: str, pid: int, _known: object) -> list[Range]:
        reads.append(pid)
        begun.set()
        assert on.wait(10)
        return [Range(at(2), at(4))]

    monkeypatch.setattr(lazymap, "ranges", slow)
    pages = store.ImageStore(str(tmp_path))
    found: list[list[Range]] = []
    threads = [threading.Thread(target=lambda: found.append(pages.ranges(5))) for _number in range(2)]
    threads[0].start()
    assert begun.wait(10)
    threads[1].start()
    wait_for(lambda: len(reads) == 2 or pages._reading.locked())
    on.set()
    for thread in threads:
        thread.join(10)
    assert reads == [5] and found[0] is found[1]
