"""Rounds of pre-dump that break, that hang, and what a guard before this one has left of its own."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate import iterating, job
from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate.errors import MigrationError
from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate.guard import Guard

from .rounds import PAGE, WHOLE, Node, Still, make


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Node:
    return make(tmp_path, monkeypatch)


@pytest.mark.parametrize("when", ["first", "before", "after"])
def test_a_tree_that_cannot_be_looked_at_moves_in_one_go(
    node: Node, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Still, "gone", when)
    assert node.rounds().run() == ""
    assert node.rec.data["stop_reason"] == "failed: The tree could not be looked at: no such process"
    assert node.rec.data["pre_dumps"] == []


def test_a_round_that_fails_begins_all_anew(node: Node) -> None:
    node.fail(2)
    assert node.rounds().run() == "pre-3"
    assert node.opened == [
        ("pre-1", ""), ("pre-2", "pre-1"), ("pre-1", ""), ("pre-2", "pre-1"), ("pre-3", "pre-2"),
    ]  # fmt: skip
    data = node.rec.data
    assert data["stop_reason"] == "target"
    assert [one["pages_written"] for one in data["pre_dumps"]] == node.pages


def test_after_two_failures_everything_moves_in_one_go(node: Node) -> None:
    node.fail(1, 3)
    assert node.rounds().run() == ""
    assert len(node.calls()) == 3
    assert node.rec.data["pre_dumps"] == []
    assert node.rec.data["stop_reason"].startswith("failed: criu pre-dump ended with 1")
    assert "predicted" not in node.rec.data


FULL = "The destination cannot store the pages: No space left on device"


@pytest.mark.parametrize(("number", "tries"), [(errno.ENOSPC, 1), (errno.EDQUOT, 1), (errno.EIO, 2), (None, 2)])
def test_a_full_destination_is_not_tried_again(node: Node, number: int | None, tries: int) -> None:
    """What it has said is why all memory moves in one go."""
    node.fail(2, 4)
    node.far_error = MigrationError(FULL, "Make space.", {} if number is None else {"errno": number})
    assert node.rounds().run() == ""
    assert node.opened == [("pre-1", ""), ("pre-2", "pre-1")] * tries
    assert (node.rec.data["stop_reason"], node.rec.data["pre_dumps"]) == (f"failed: {FULL}", [])


def test_a_destination_that_is_full_at_the_very_end(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """criu has heard nothing of it."""

    def taken() -> dict[str, Any]:
        raise MigrationError(FULL, "Make space.", {"errno": errno.ENOSPC})

    monkeypatch.setattr(node, "pages_taken", taken)
    assert node.rounds().run() == ""
    assert len(node.calls()) == 1 and node.rec.data["stop_reason"] == f"failed: {FULL}"


def test_a_process_that_has_gone_is_not_tried_again(node: Node) -> None:
    node.fail(1, 2, 3)
    gone = os.fork()
    if gone == 0:
        os._exit(0)
    os.waitpid(gone, 0)
    assert node.rounds(pid=gone).run() == ""
    assert node.calls() == []


def test_a_link_that_stays_cut_ends_in_one_go(node: Node) -> None:
    node.lost = True
    assert node.rounds().run() == ""
    assert node.rec.data["stop_reason"] == "failed: The destination cannot be reached."


def hang(node: Node) -> None:
    """A criu that never ends by itself."""
    (node.folder / "criu").write_text("#!/bin/sh\nexec sleep 60\n", encoding="utf-8")


def at_work(node: Node, cmd: list[str]) -> None:
    """A pre-dump of a guard that was killed, which criu goes on with."""
    guard = Guard(node.rec, node.config())
    guard.start_job("pre-dump", cmd, guard.log_path("criu-pre-dump-2.log"))


def test_a_round_that_takes_too_long_is_ended(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    hang(node)
    monkeypatch.setattr(iterating, "END", 0.0)
    rounds = node.rounds()
    rounds.guard.limits["dump"] = 0.0
    assert rounds.run() == ""
    assert node.rec.data["stop_reason"] == "failed: criu pre-dump has brought nothing for 0 s."
    assert len(node.opened) == 2
    assert job.living("pre-dump", str(node.folder / "run")) == []


def test_a_round_that_takes_long_gives_signs_of_life(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(iterating, "TOUCH", 0.0)
    gate = node.folder / "gate"
    os.mkfifo(gate)
    script = (node.folder / "criu").read_text(encoding="utf-8") + f"timeout 10 cat {gate}\n"
    (node.folder / "criu").write_text(script, encoding="utf-8")

    def ping() -> int:
        node.pings += 1
        if node.pings == 3:
            gate.write_text("go on\n", encoding="utf-8")
        return 0

    monkeypatch.setattr(node, "ping", ping)
    assert node.rounds(iterations=1).run() == "pre-1"
    assert node.pings >= 3


def test_what_an_earlier_guard_has_begun_is_ended_first(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a restart its criu may be at work still, and CRIU cannot seize what another has seized."""
    monkeypatch.setattr(iterating, "END", 0.0)
    at_work(node, ["sleep", "60"])
    job = Guard(node.rec, node.config()).job("pre-dump")
    assert job is not None and job.shell.alive()
    opened = node.open_transfer

    def open_transfer(dump: str = "", parent: str = "") -> None:
        assert not job.shell.alive()
        opened(dump, parent)

    monkeypatch.setattr(node, "open_transfer", open_transfer)
    assert node.rounds().run() == "pre-3"


def test_what_an_earlier_guard_has_begun_may_end_by_itself(node: Node, tmp_path: Path) -> None:
    at_work(node, ["sh", "-c", f"echo ended >{tmp_path}/ended"])
    node.rounds().end_dump()
    assert (tmp_path / "ended").exists()
    node.rounds().end_dump()  # nothing to do any more


def test_rounds_of_an_earlier_guard_count_for_nothing(node: Node) -> None:
    node.rec.note(pre_dumps=[{"bytes": 1}] * 5, stop_reason="target")
    node.rounds(iterations=1).run()
    assert [one["bytes"] for one in node.rec.data["pre_dumps"]] == [WHOLE * PAGE]
    assert node.opened == [("pre-1", "")]
