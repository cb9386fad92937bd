"""Dumps that are put beside each other on the destination: what is asked for, in which order, and what is refused."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate import record
from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate.destination import DestinationGuard
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
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its soft-dirty bits and the images of the rounds might not belong together any more."""
    monkeypatch.setattr(record, "RUNS", str(tmp_path))
    (tmp_path / "run").mkdir()
    config = {"run_id": "run", "strategy": "precopy", "images_dir": str(tmp_path / "of" / "run"), "criu_path": "/none",
              "pid": os.getpid(), "start": 1, "working_dir": str(tmp_path)}  # fmt: skip
    rec = record.Record.create("run", "source")
    rec.enter("freezing", parent="pre-3")
    guard = SourceGuard(rec, config)
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
