"""The lazy channel: memory of a stopped process over real TLS into the store."""

from __future__ import annotations

import errno
import os
import select
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate import lazy_source
from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate.errors import LinkLost, MigrationError
from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate.lazy_file import PageFile, lay_out
from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate.lazy_source import COMPLETE, FRAME, GET, PAGE
from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate.lazy_store import RemoteStore
from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate.secure import Secure
from tests.unit.channel import PAGES, Child, background, content
from tests.unit.waiting import wait_for


def check_all(store: RemoteStore, child: Child) -> None:
    for start, end in child.ranges()[child.pid]:
        for vaddr in range(start, end, PAGE):
            assert store.read(child.pid, vaddr, 1) == content((vaddr - child.start) // PAGE)


def asked_for(link: Secure) -> tuple[int, int]:
    """The next request that a store sent: address, pages."""
    data = b""
    while len(data) < FRAME.size:
        piece = bytearray(FRAME.size - len(data))
        data += piece[: link.recv_into(memoryview(piece))]
    kind, _pid, vaddr, pages = FRAME.unpack(data)
    assert kind == GET
    return vaddr, pages


def answer(link: Secure, child: Child, vaddr: int, pages: int) -> None:
    first = (vaddr - child.start) // PAGE
    body = b"".join(content(page) for page in range(first, first + pages))
    link.sendall(FRAME.pack(lazy_source.PAGES, child.pid, vaddr, pages) + body)


def test_everything_comes_and_both_sides_have_the_counts(child: Child, dial: Any) -> None:
    source, destination = dial()
    said: list[str] = []
    store = RemoteStore(child.ranges(), said.append)
    total = 1 + 7 + 1 + PAGES - 30
    assert (store.pages_total, store.left(), store.complete.is_set()) == (total, total, False)
    thread, outcome = background(lambda: lazy_source.serve(source, lambda: {child.pid}, said.append))
    counts = store.attach(destination)
    thread.join()
    assert outcome == [counts]
    assert counts["pages_transferred"] == counts["pages_total"] == total
    assert counts["bytes_per_second"] == pytest.approx(total * PAGE / counts["seconds"])
    assert (store.left(), store.complete.is_set(), len(said)) == (0, True, 2)
    check_all(store, child)
    assert len(store.read(child.pid, child.address(2), 64)) == 7 * PAGE, "ranges that touch are one"
    for vaddr in (child.address(1), child.address(21), child.address(PAGES), 0):
        with pytest.raises(KeyError):
            store.read(child.pid, vaddr, 1)
    with pytest.raises(KeyError):
        store.read(1, child.address(0), 1)


@pytest.mark.parametrize("kept", [False, True])
def test_a_cut_link_is_gone_on_with_and_so_is_a_restarted_guard(
    child: Child, dial: Any, tmp_path: Path, kept: bool
) -> None:
    path = str(tmp_path / "lazy-pages.img") if kept else None
    source, destination = dial()
    store = RemoteStore(child.ranges(), print, path)
    thread, outcome = background(lambda: store.attach(destination))
    for _ in range(3):
        answer(source, child, *asked_for(source))
    wait_for(lambda: store.pages_transferred == 9)
    source.close()
    thread.join()
    assert isinstance(outcome[0], LinkLost)
    assert store.read(child.pid, child.address(2), 1, urgent=True) == content(2)
    if kept:
        store = RemoteStore(child.ranges(), print, path)
        assert store.pages_transferred == 9
    reader, got = background(lambda: store.read(child.pid, child.address(PAGES - 1), 1, urgent=True))
    source, destination = dial()
    thread, outcome = background(lambda: lazy_source.serve(source, lambda: {child.pid}))
    assert store.attach(destination)["pages_transferred"] == store.pages_total
    for each in (thread, reader):
        each.join()
    assert got == [content(PAGES - 1)]
    check_all(store, child)
    if kept:
        assert RemoteStore(child.ranges(), print, path).complete.is_set()
        others = RemoteStore({child.pid: [(PAGE, PAGES * PAGE)]}, print, path)
        assert others.pages_transferred == 0, "what lies there belongs to other ranges"


@pytest.mark.parametrize("kept", [False, True])
def test_what_is_in_the_process_takes_no_memory_here(child: Child, dial: Any, tmp_path: Path, kept: bool) -> None:
    path = str(tmp_path / "lazy-pages.img") if kept else None
    source, destination = dial()
    store = RemoteStore(child.ranges(), print, path)
    thread, _outcome = background(lambda: lazy_source.serve(source, lambda: {child.pid}))
    store.attach(destination)
    thread.join()
    before = os.fstat(store.fd).st_blocks
    store.release(child.pid, child.address(100), 1000)
    store.release(child.pid, child.address(2), 7)
    store.release(child.pid, child.address(50), 100)
    assert before - os.fstat(store.fd).st_blocks >= 1000 * PAGE // 512
    if kept:
        store = RemoteStore(child.ranges(), print, path)
    assert (store.complete.is_set(), store.counts()["pages_transferred"]) == (True, store.pages_total)
    borders = [(2, 9), (50, 1100)]
    assert store.released(child.pid) == [(child.address(low), child.address(high)) for low, high in borders]
    assert store.released(1) == []
    assert store.read(child.pid, child.address(1100), 1) == content(1100)
    assert store.read(child.pid, child.address(30), 64) == b"".join(content(page) for page in range(30, 50))
    with pytest.raises(KeyError):
        store.read(child.pid, child.address(500), 1, urgent=True)


def test_a_demand_overtakes_the_prefetch_and_nothing_is_asked_twice(child: Child, dial: Any) -> None:
    source, destination = dial()
    store = RemoteStore(child.ranges(), print)
    thread, outcome = background(lambda: store.attach(destination))
    asked = [asked_for(source) for _ in range(6)]  # three short ranges, then pieces of 64 pages
    wait_for(lambda: store._in_flight > 500 << 10)
    assert store.there(child.pid, child.address(1000), 1) == 0
    assert not select.select([store.arrivals], [], [], 0)[0]
    reader, got = background(lambda: store.read(child.pid, child.address(1000), 1, urgent=True))
    while asked[-1][0] != child.address(1000):
        asked.append(asked_for(source))
    assert len(asked) <= 11
    asked.append(asked_for(source))
    assert asked[-2:] == [(child.address(1000), 1), (child.address(1001), 15)]
    for request in asked:
        answer(source, child, *request)
    reader.join(10)
    assert got == [content(1000)]
    assert select.select([store.arrivals], [], [], 0)[0]
    wait_for(lambda: store.there(child.pid, child.address(1000), 99) == 16)
    assert not store.complete.is_set()
    while sum(pages for _vaddr, pages in asked) < store.pages_total:
        asked.append(asked_for(source))
        answer(source, child, *asked[-1])
    pages = [vaddr + n * PAGE for vaddr, count in asked for n in range(count)]
    assert len(pages) == len(set(pages)) == store.pages_total
    end = bytearray(FRAME.size)
    source.recv_into(memoryview(end))
    assert FRAME.unpack(end)[0] == COMPLETE
    source.sendall(FRAME.pack(COMPLETE, 0, 0, 0))
    thread.join(10)
    assert outcome[0]["pages_transferred"] == store.pages_total
    check_all(store, child)


def test_the_rest_of_a_short_answer_is_asked_for_again(child: Child, dial: Any) -> None:
    source, destination = dial()
    store = RemoteStore({child.pid: [(child.address(0), child.address(10))]}, print)
    thread, outcome = background(lambda: store.attach(destination))
    assert asked_for(source) == (child.address(0), 10)
    reader, got = background(lambda: store.read(child.pid, child.address(7), 9, urgent=True))
    wait_for(lambda: store._urgent)
    answer(source, child, child.address(0), 3)
    assert asked_for(source) == (child.address(7), 3), "what is waited for comes first"
    answer(source, child, child.address(7), 3)
    assert asked_for(source) == (child.address(3), 4)
    reader.join(10)
    assert got == [b"".join(content(page) for page in (7, 8, 9))]
    source.close()
    thread.join(10)
    assert isinstance(outcome[0], LinkLost)
    assert store.left() == 4


def test_a_process_of_somebody_else_is_refused(child: Child, dial: Any) -> None:
    source, destination = dial()
    store = RemoteStore(child.ranges(), print)
    thread, outcome = background(lambda: lazy_source.serve(source, lambda: {1}))
    with pytest.raises(LinkLost):
        store.attach(destination)
    thread.join()
    assert "not part of this migration" in str(outcome[0])
    assert store.pages_transferred == 0


def test_pages_that_the_source_cannot_read_are_named_and_the_others_come(child: Child, dial: Any) -> None:
    source, destination = dial()
    store = RemoteStore({child.pid: [(child.address(PAGES - 3), child.address(PAGES + 1))]}, print)
    thread, outcome = background(lambda: lazy_source.serve(source, lambda: {child.pid}))
    reader, got = background(lambda: store.read(child.pid, child.address(PAGES), 1, urgent=True))
    with pytest.raises(MigrationError, match=r"1 lazy pages could not be read.*Input/output error"):
        store.attach(destination)
    reader.join(10)
    assert isinstance(got[0], OSError) and got[0].errno == errno.EIO
    with pytest.raises(OSError, match="on the source"):
        store.there(child.pid, child.address(PAGES), 1)
    assert store.left() == 1 and not store.complete.is_set()
    assert store.read(child.pid, child.address(PAGES - 1), 4) == content(PAGES - 1)
    destination.close()
    thread.join()
    assert isinstance(outcome[0], LinkLost)


@pytest.mark.parametrize("error", [None, MigrationError("undone")])
def test_who_waits_is_told_when_nothing_will_come(child: Child, dial: Any, error: MigrationError | None) -> None:
    _source, destination = dial()
    store = RemoteStore(child.ranges(), print)
    waiting = [
        background(lambda: store.attach(destination)),
        background(lambda: store.read(child.pid, child.address(0), 1)),
        background(lambda: store.read(child.pid, child.address(99), 1, urgent=True)),
    ]
    wait_for(lambda: store._urgent)
    if error:
        store.refuse(error)
    else:
        store.close()
    for thread, outcome in waiting:
        thread.join(10)
        assert isinstance(outcome[0], MigrationError if error else OSError)
    assert select.select([store.arrivals], [], [], 0)[0]
    with pytest.raises(MigrationError if error else OSError):
        store.there(child.pid, child.address(0), 1)


def test_a_store_without_room_says_so(child: Child, dial: Any, tmp_path: Path) -> None:
    source, destination = dial()
    path = str(tmp_path / "pages")
    store = RemoteStore(child.ranges(), print, path)
    full = os.open("/dev/full", os.O_RDWR)
    os.dup2(full, store.fd)
    os.close(full)
    thread, _outcome = background(lambda: lazy_source.serve(source, lambda: {child.pid}))
    with pytest.raises(MigrationError, match="cannot store"):
        store.attach(destination)
    assert (store.pages_transferred, store.complete.is_set()) == (0, False)
    destination.close()
    thread.join()


def test_ranges_are_laid_out_without_gaps() -> None:
    runs = lay_out({7: [(8 * PAGE, 9 * PAGE)], 3: [(4 * PAGE, 6 * PAGE), (PAGE, 2 * PAGE), (6 * PAGE, 7 * PAGE)]})
    assert [tuple(run) for run in runs] == [(3, PAGE, 0, 1), (3, 4 * PAGE, 1, 3), (7, 8 * PAGE, 4, 1)]
    assert RemoteStore({}, print).complete.is_set()


def test_what_is_wanted_soon_lies_first_and_finds_its_way_back() -> None:
    ranges = {7: [(PAGE, 3 * PAGE), (3 * PAGE, 4 * PAGE)], 3: [(PAGE, 2 * PAGE), (5 * PAGE, 6 * PAGE)]}
    soon = {(7, 3 * PAGE), (3, 5 * PAGE)}
    runs = lay_out(ranges, soon)
    assert [tuple(run) for run in runs] == [(3, 5 * PAGE, 0, 1), (7, 3 * PAGE, 1, 1), (3, PAGE, 2, 1), (7, PAGE, 3, 2)]
    file = PageFile(ranges, None, soon)
    assert file.soon == 2
    assert [file.place(7, at * PAGE, 9) for at in (1, 2, 3)] == [(3, 2), (4, 1), (1, 1)]
    assert [file.address(page)[:2] for page in range(5)] == [
        (3, 5 * PAGE), (7, 3 * PAGE), (3, PAGE), (7, PAGE), (7, 2 * PAGE),
    ]  # fmt: skip


def test_before_the_process_runs_only_what_it_wants_soon_is_fetched(child: Child, dial: Any) -> None:
    source, destination = dial()
    soon = {(child.pid, child.address(20)), (child.pid, child.address(0))}
    store = RemoteStore(child.ranges(), print, ahead=False, soon=soon)
    serving, _outcome = background(lambda: lazy_source.serve(source, lambda: {child.pid}))
    fetching, done = background(lambda: store.attach(destination))
    wait_for(lambda: store.pages_transferred == 2)
    assert store.there(child.pid, child.address(20), 1) and not store.there(child.pid, child.address(2), 1)
    assert store.read(child.pid, child.address(40), 1, urgent=True) == content(40), "what is asked for comes as well"
    assert store.left() > 1000 and not done
    store.go()
    fetching.join(10)
    serving.join(10)
    assert done[0]["pages_transferred"] == store.pages_total
    check_all(store, child)


def test_while_a_process_comes_back_to_life_nothing_is_fetched_ahead_of_its_demands() -> None:
    store = RemoteStore({1: [(0, 1000 * PAGE)]}, lambda _text: None, ahead=False)
    store.go()
    asked: list[int] = []
    link = cast(Secure, SimpleNamespace(sendall=lambda data: asked.extend(item[3] for item in FRAME.iter_unpack(data))))
    store.want(1, 500 * PAGE, 1)
    store._ask(link)
    assert len(asked) == 2, "the page, and what is beside it"

    def more() -> bool:
        store._ask(link)
        return len(asked) > 2

    wait_for(more)  # soon after the last demand


def test_a_page_that_comes_while_a_reader_is_about_to_wait_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """With nothing asked for ahead no later page would wake the reader."""
    store = RemoteStore({1: [(0x10000, 0x10000 + PAGE)]}, lambda _text: None, ahead=False)
    demand = store._demand

    def quick(page: int, pages: int) -> None:
        demand(page, pages)
        store._ask(cast(Secure, Sink()))
        store.write(memoryview(b"x" * PAGE), 0)
        store.arrived(1)

    monkeypatch.setattr(store, "_demand", quick)
    found: list[tuple[int, int]] = []
    reader = threading.Thread(target=lambda: found.append(store.find(1, 0x10000, 1, urgent=True)), daemon=True)
    reader.start()
    reader.join(10)
    assert found == [(0, 1)]


class Sink:
    def sendall(self, data: bytes) -> None:
        pass
