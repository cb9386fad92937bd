"""Dumps that are put beside each other on the destination: what is asked for, in which order, and what is refused."""

from __future__ import annotations

import errno
import os
import struct
from pathlib import Path
from typing import Any, cast

import pytest

from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate import held, receiving, record, wire
from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate.cli import UNKNOWN
from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate.destination import DestinationGuard
from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate.errors import (
    CriuError,
    LinkLost,
    MigrationError,
    out_of_space,
)
from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate.page_images import PageImages
from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate.secure import Plain
from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate.source import SourceGuard

from .test_page_images import FORCE_CLOSE, LAZY, PRESENT, Criu, begin, tcp

OWNER = 7 << 8 | 1
ADD, PAGE, IN_PARENT = 6, 4096, 1
WHOLE = 12  # pages of the first dump; those after it bring the first of them again


@pytest.fixture
def far(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DestinationGuard:
    monkeypatch.setattr(record, "RUNS", str(tmp_path))
    (tmp_path / "run").mkdir()
    config = {"run_id": "run", "strategy": "precopy", "images_dir": str(tmp_path / "of" / "run"), "criu_path": "/none",
              "limits": {"connect": 0.05, "dump": 5.0}}  # fmt: skip
    return DestinationGuard(record.Record.create("run", "destination"), config)


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SourceGuard:
    """In a directory of its own."""
    monkeypatch.setattr(record, "RUNS", str(tmp_path / "source"))
    (tmp_path / "source" / "run").mkdir(parents=True)
    config = {"run_id": "run", "strategy": "precopy", "images_dir": str(tmp_path / "of" / "source"),
              "criu_path": "/none", "pid": os.getpid(), "start": 1, "working_dir": str(tmp_path)}  # fmt: skip
    return SourceGuard(record.Record.create("run", "source"), config)


def ask(far: DestinationGuard, dump: str, parent: str) -> dict[str, Any]:
    return far.answer("pages", {"op": "pages", "dump": dump, "parent": parent})


def send(far: DestinationGuard, dump: str, parent: str) -> dict[str, Any]:
    """One whole dump as criu would send it; what the destination says at its end."""
    token = ask(far, dump, parent)["token"]
    near, there = tcp()
    with near:
        far.receive_pages(Plain(there), token)
        assert far.answer("pages_ready", {}) == {}
        criu = Criu(Plain(near))
        begin(criu, OWNER, bool(parent))
        fresh = 1 if parent else WHOLE
        criu.say(ADD | (PRESENT | LAZY) << 16, OWNER, 0x10000, fresh, os.urandom(fresh * PAGE))
        if parent:
            criu.say(ADD | IN_PARENT << 16, OWNER, 0x10000 + PAGE, WHOLE - 1)
        criu.say(FORCE_CLOSE)
        assert criu.hear(4) == struct.pack("<i", 0)
        return far.answer("pages_done", {})


def refused(answer: dict[str, Any]) -> str:
    return str(answer["error"]["message"])


def test_each_dump_lies_beside_its_parent(far: DestinationGuard) -> None:
    assert send(far, "pre-1", "")["result"]["pages"] == WHOLE
    assert send(far, "pre-2", "pre-1")["result"] == pytest.approx({"pages": 1, "bytes": PAGE, "seconds": 0}, abs=5)
    assert send(far, "", "pre-2")["result"]["pages"] == 1
    assert far.rec.state == "receiving"
    images = Path(far.images)
    assert (images / "parent").readlink() == Path("pre-2")
    assert (images / "pre-2" / "parent").readlink() == Path("../pre-1")
    assert not (images / "pre-1" / "parent").exists()
    assert (images / "parent" / "parent" / "pagemap-7.img").samefile(images / "pre-1" / "pagemap-7.img")


def test_asked_twice_is_as_asked_once(far: DestinationGuard) -> None:
    """The answer to the first was lost with the link; whoever holds its token may not come any more."""
    send(far, "pre-1", "")
    old = ask(far, "pre-2", "pre-1")["token"]
    assert ask(far, "pre-2", "pre-1")["token"] != old
    near, there = tcp()
    with near, there, pytest.raises(Exception, match="wrong token"):
        far.receive_pages(Plain(there), old)
    assert send(far, "pre-2", "pre-1")["result"]["pages"] == 1
    first = far.answer("pages_done", {})
    assert far.answer("pages_done", {}) == first
    assert send(far, "pre-3", "pre-2")["result"]["pages"] == 1


def test_what_an_old_connection_has_asked_for_begins_nothing_anew(far: DestinationGuard) -> None:
    """It was cut, or its request has waited behind another one, and the source has long asked again and gone on."""
    old, far.current = (wire.Link(cast(Any, None)) for _end in range(2))
    send(far, "pre-1", "")
    for name in ("pages", "images"):
        with pytest.raises(LinkLost, match="an old one"):
            far.answer(name, {"dump": "pre-1", "parent": ""}, old)
    assert there(far) == WHOLE and far.last()
    assert "token" in far.answer("pages", {"dump": "pre-2", "parent": "pre-1"}, far.current)
    assert "token" in far.answer("token", {}, old), "that one has never said hello"


class Dialled(wire.Link):
    """Says hello and sends an image; at the answer the source has, if `cut`, dialled again."""

    def __init__(self, far: DestinationGuard, cut: bool) -> None:
        self.far, self.cut = far, cut
        self.frames: list[tuple[dict[str, Any], bytes]] = [
            ({"op": "hello", "run_id": "run", "state": "frozen"}, b""),
            ({"op": "image", "name": "mm-7.img", "offset": 0}, b"x"),
            ({"op": "synced"}, b""),
        ]

    def receive(self, limit: float | None = None) -> tuple[dict[str, Any], bytes]:
        if not self.frames:
            raise LinkLost("all was said")
        return self.frames.pop(0)

    def send(self, header: dict[str, Any], body: bytes = b"") -> None:
        if "files" in header and self.cut:
            self.far.current = wire.Link(cast(Any, None))


@pytest.mark.parametrize("cut", [False, True])
def test_images_that_come_once_more_are_looked_at_when_all_are_there(
    far: DestinationGuard, cut: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    send(far, "", "")
    came: list[bool] = []
    monkeypatch.setattr(far, "images_came", lambda: came.append(True))
    with pytest.raises(LinkLost, match="an old one" if cut else "all was said"):
        far.converse(Dialled(far, cut), cast(Any, None))
    assert came == ([] if cut else [True])


@pytest.mark.parametrize("parent", ["pre-1", "pre-3", "pre-9", "../run"])
def test_only_the_last_dump_is_a_parent(far: DestinationGuard, parent: str) -> None:
    send(far, "pre-1", "")
    send(far, "pre-2", "pre-1")
    assert refused(ask(far, "pre-3", parent)) == f"The destination does not have the dump {parent}."


def test_a_dump_that_was_broken_off_is_no_parent(far: DestinationGuard) -> None:
    send(far, "pre-1", "")
    token = ask(far, "pre-2", "pre-1")["token"]
    near, there = tcp()
    far.receive_pages(Plain(there), token)
    near.close()
    assert "closed the link" in refused(far.answer("pages_done", {}))
    assert "does not have the dump pre-2" in refused(ask(far, "pre-3", "pre-2"))


@pytest.fixture(params=[False, True], ids=["room", "tight"])
def tight(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    memory = 0 if request.param else 2 * WHOLE * PAGE
    monkeypatch.setattr(receiving, "available", lambda: memory)
    return bool(request.param)


def there(far: DestinationGuard) -> int:
    """Pages that take memory."""
    return sum(path.stat().st_blocks * 512 for path in Path(far.images).rglob("pages-*.img")) // PAGE


def test_pages_lie_there_twice_only_where_there_is_room(far: DestinationGuard, tight: bool) -> None:
    more = 0 if tight else 1
    send(far, "pre-1", "")
    for name, parent in (("pre-2", "pre-1"), ("pre-3", "pre-2"), ("", "pre-3")):
        assert send(far, name, parent)["result"]["pages"] == 1
        assert there(far) == WHOLE + more


def test_a_dump_whose_successor_was_broken_off(far: DestinationGuard, tight: bool) -> None:
    """It is whole where there was room; else what it lacks is not to be missed by whoever asks for it."""
    send(far, "pre-1", "")
    token = ask(far, "pre-2", "pre-1")["token"]
    near, end = tcp()
    far.receive_pages(Plain(end), token)
    with near:
        criu = Criu(Plain(near))
        begin(criu, OWNER, True)
        criu.say(ADD | (PRESENT | LAZY) << 16, OWNER, 0x10000, 1, os.urandom(PAGE))
    assert "closed the link" in refused(far.answer("pages_done", {}))
    answer = ask(far, "pre-2", "pre-1")
    if tight:
        assert refused(answer) == "The destination does not have the dump pre-1."
    else:
        assert "token" in answer
    assert send(far, "pre-1", "")["result"]["pages"] == WHOLE
    assert there(far) == WHOLE


def test_memory_that_is_set_aside_for_the_process_counts(
    far: DestinationGuard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(receiving, "available", lambda: WHOLE * PAGE)
    send(far, "pre-1", "")
    assert far.is_tight(far.last())
    monkeypatch.setattr(far, "set_aside", lambda: WHOLE * PAGE)
    assert not far.is_tight(far.last())


@pytest.mark.parametrize(
    ("free", "memory", "expected"),
    [(10, 20, False), (9, 20, True), (10, 19, True), (0, 0, True), (1 << 40, 1 << 40, False)],
)
def test_what_is_tight(free: int, memory: int, expected: bool) -> None:
    assert held.tight(10, 10, free, memory) is expected


@pytest.mark.parametrize(("free", "memory", "expected"), [(3, 13, False), (2, 13, True), (3, 12, True)])
def test_what_is_tight_where_less_is_to_come(free: int, memory: int, expected: bool) -> None:
    assert held.tight(10, 3, free, memory) is expected


def broken(far: DestinationGuard, full: bool) -> MigrationError:
    """What the destination says of a round that breaks: no space for its page map, or the link is gone."""
    token = ask(far, "pre-1", "")["token"]
    if full:
        Path(far.images, "pre-1", "pagemap-7.img").symlink_to("/dev/full")
    near, end = tcp()
    far.receive_pages(Plain(end), token)
    with near:
        criu = Criu(Plain(near))
        begin(criu, OWNER, False)
        criu.say(ADD | PRESENT << 16, OWNER, 0x10000, 1, os.urandom(PAGE))
        if full:
            criu.say(FORCE_CLOSE)
    told = far.answer("pages_done", {})["error"]
    return MigrationError(told["message"], told["remedy"], told["details"])


@pytest.mark.parametrize("full", [True, False])
def test_a_source_learns_that_there_is_no_space_left(
    far: DestinationGuard, source: SourceGuard, monkeypatch: pytest.MonkeyPatch, full: bool
) -> None:
    """A link that ends is no cause: what criu says of it tells more."""
    there = broken(far, full)

    def ask(*_request: Any) -> Any:
        raise there

    monkeypatch.setattr(source, "ask", ask)
    here = CriuError("criu pre-dump ended with 1: broken pipe", UNKNOWN)
    found = source.cause_of(here, "pages_done")
    assert out_of_space(found) is full
    if full:
        assert found.message == "The destination cannot store the pages: No space left on device"
    else:
        assert found is here
    known = CriuError("criu pre-dump ended with 1", "End the tracer.")
    assert source.cause_of(known, "pages_done") is known


def test_no_space_for_a_new_directory_is_known_for_that(far: DestinationGuard, monkeypatch: pytest.MonkeyPatch) -> None:
    def makedirs(*_words: Any, **_named: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    send(far, "pre-1", "")
    monkeypatch.setattr(far, "make_images_dir", makedirs)
    told = ask(far, "pre-1", "")["error"]
    assert out_of_space(MigrationError(told["message"], told["remedy"], told["details"]))
    assert told["message"].startswith("No space left on the destination")
    assert "does not have the dump pre-1" in refused(ask(far, "pre-2", "pre-1")), "which may be gone in part"


def test_a_guard_that_was_started_again_has_no_parent(far: DestinationGuard) -> None:
    """What it had of the images of this run is of no use to it: the source begins anew."""
    send(far, "pre-1", "")
    loaded = record.Record.load("run")
    assert loaded is not None
    again = DestinationGuard(loaded, far.config)
    assert "does not have the dump pre-1" in refused(ask(again, "pre-2", "pre-1"))
    assert send(again, "pre-1", "")["result"]["pages"] == WHOLE


def test_a_dump_without_a_parent_begins_anew(far: DestinationGuard) -> None:
    send(far, "pre-1", "")
    send(far, "pre-2", "pre-1")
    send(far, "pre-1", "")
    assert [path.name for path in Path(far.images).iterdir()] == ["pre-1"]
    assert "does not have the dump pre-2" in refused(ask(far, "pre-3", "pre-2"))


@pytest.mark.parametrize("name", ["../x", "a/b", ".", "..", "/tmp/x", ".hidden"])
def test_a_name_that_leads_elsewhere_is_refused(far: DestinationGuard, name: str, tmp_path: Path) -> None:
    send(far, "pre-1", "")
    before = sorted(tmp_path.rglob("*"))
    assert "as the name of a dump" in refused(ask(far, name, "pre-1"))
    assert sorted(tmp_path.rglob("*")) == before


def test_pages_come_only_before_the_restore(far: DestinationGuard) -> None:
    far.rec.enter("restored")
    answer = ask(far, "pre-1", "")
    assert answer["refused"] and "restored, not armed or receiving" in refused(answer)


def test_a_channel_that_does_not_come_is_told(far: DestinationGuard) -> None:
    ask(far, "pre-1", "")
    assert "did not come" in refused(far.answer("pages_ready", {}))
    assert "No pages were expected" in refused(far.answer("pages_done", {}))


def test_a_source_that_is_started_again_in_the_freeze_takes_everything(
    source: SourceGuard, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its soft-dirty bits and the images of the rounds might not belong together any more."""
    guard, rec = source, source.rec
    rec.enter("freezing", parent="pre-3")
    asked: list[dict[str, Any]] = []

    def stop(*_all: Any) -> None:
        raise KeyboardInterrupt  # what is before the freeze is what is looked at

    def ask(request: dict[str, Any], *_more: Any, **_named: Any) -> dict[str, Any]:
        asked.append(request)
        return {"token": "t"}

    monkeypatch.setattr(guard, "ask", ask)
    monkeypatch.setattr(guard, "open_page_channel", lambda dump, parent: asked.append({"dump": dump, "parent": parent}))
    monkeypatch.setattr("ansible_collections.criu.migrate.plugins.module_utils.criu_migrate.proc.stop_tree", stop)
    with pytest.raises(KeyboardInterrupt):
        guard.steps[rec.state]()
    assert {"dump": "", "parent": ""} in asked
    assert rec.data["parent"] == ""


def test_lazy_pages_are_known_without_reading_when_the_whole_dump_has_been_taken_in(far: DestinationGuard) -> None:
    far.lazy = True
    send(far, "pre-1", "")
    assert far.lazily_held(7) is None, "another dump follows"
    send(far, "", "pre-1")
    found = far.lazily_held(7)
    assert found is not None and all(item.path for item in found)
    assert sum(item.end - item.start for item in found) == sum(
        item.end - item.start for item in far.last().held(OWNER) if item.flags & LAZY
    )
    assert far.lazily_held(8) is None
    far.postcopy = True
    assert far.lazily_held(7) is None, "its page maps come from the source"


def test_pages_that_may_not_come_late_are_none_of_them(far: DestinationGuard, tmp_path: Path) -> None:
    images = PageImages(str(tmp_path))
    images.open(OWNER)
    for place, flags in enumerate((PRESENT, PRESENT | LAZY, PRESENT)):
        images.add(0x10000 + place * PAGE, 1, flags)
    images.close()
    far.complete = ("", images)
    assert [item.start for item in far.lazily_held(7) or []] == [0x10000 + PAGE]


def test_what_another_dump_may_be_put_on_is_made_for_it(far: DestinationGuard) -> None:
    """What has not changed since is taken over many runs at a time; of the last dump nothing is."""
    made: list[bool] = []
    for name, parent in (("pre-1", ""), ("pre-2", "pre-1"), ("", "pre-2"), ("", "")):
        send(far, name, parent)
        made.append(bool(far.last()._runs[OWNER]._said))
    assert made == [True, True, False, False]


def test_the_images_go_while_a_thread_asks_for_lazy_pages(
    far: DestinationGuard, monkeypatch: pytest.MonkeyPatch
) -> None:
    send(far, "", "")
    looks = iter([far.complete])
    monkeypatch.setattr(DestinationGuard, "complete", property(lambda _guard: next(looks, None)), raising=False)
    assert far.lazily_held(7)
    assert far.lazily_held(7) is None


def test_the_source_is_told_how_far_a_dump_is(far: DestinationGuard) -> None:
    assert far.pages_so_far() == 0
    send(far, "pre-1", "")
    assert far.pages_so_far() == WHOLE
    ask(far, "pre-2", "pre-1")
    assert far.pages_so_far() == 0, "another begins"
