"""What a guard decides alone: the source's after a reboot, the destination's on a person's word."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate import control, guard, lazy_file, proc, record
from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate.destination import DestinationGuard
from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate.errors import MigrationError
from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate.source import SourceGuard


@pytest.fixture(autouse=True)
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(record, "RUNS", str(tmp_path))
    (tmp_path / "run").mkdir()
    return tmp_path


def config(tmp_path: Path, strategy: str) -> dict[str, Any]:
    return {"run_id": "run", "strategy": strategy, "images_dir": str(tmp_path / "images"), "pid": 1, "start": 1,
            "criu_path": "/none/criu"}  # fmt: skip


@pytest.mark.parametrize("strategy", ["full", "postcopy"])
@pytest.mark.parametrize(
    ("state", "incomplete", "then"),
    [
        ("restored", False, "committed"),
        ("running", False, "committed"),
        ("restored", True, "undoing"),
        ("receiving", False, "undoing"),
        ("undone", False, "undoing"),
    ],
)
def test_a_source_that_was_started_anew_asks_what_there_is(
    node: Path, monkeypatch: pytest.MonkeyPatch, strategy: str, state: str, incomplete: bool, then: str
) -> None:
    """The stopped copy on the destination is the process, if it is whole: with post-copy as well."""
    rec = record.Record.create("run", "source")
    rec.enter("restored")
    guard = SourceGuard(rec, config(node, strategy))
    monkeypatch.setattr(guard, "rebooted", lambda: True)
    answers = iter([MigrationError("not yet", "ask again"), {"state": state, "incomplete": incomplete}])

    def ask(request: dict[str, Any], *_more: Any) -> Any:
        assert request == {"op": "state"}
        found = next(answers)
        if isinstance(found, MigrationError):
            raise found
        return found

    monkeypatch.setattr(guard, "ask", ask)
    monkeypatch.setattr("time.sleep", lambda _seconds: None)
    guard.after_reboot()
    assert rec.state == then


@pytest.fixture
def destination(node: Path, monkeypatch: pytest.MonkeyPatch) -> DestinationGuard:
    """Holds a stopped copy of post-copy; what a guard would do to processes is only noted."""
    rec = record.Record.create("run", "destination")
    rec.enter("restored", procs=[])
    side = DestinationGuard(rec, config(node, "postcopy"))
    monkeypatch.setattr(side.filling, "recover", lambda: None)
    monkeypatch.setattr(side, "let_run", lambda: None)
    monkeypatch.setattr(side, "undo", lambda why="": side.rec.enter("undone", why=why))
    return side


def test_whole_and_not_whole_are_told(destination: DestinationGuard, monkeypatch: pytest.MonkeyPatch) -> None:
    assert destination.answer("state", {}) == {"state": "restored", "incomplete": True}
    monkeypatch.setattr(lazy_file, "all_came", lambda _images: True)
    assert destination.answer("state", {}) == {"state": "restored", "incomplete": False}
    destination.rec.enter("restoring")
    assert destination.answer("state", {}) == {"state": "restoring", "incomplete": True}


@pytest.mark.parametrize(("whole", "then"), [(True, "running"), (False, "undone")])
def test_a_person_s_word_is_obeyed_by_the_guard(
    destination: DestinationGuard, monkeypatch: pytest.MonkeyPatch, whole: bool, then: str
) -> None:
    monkeypatch.setattr(lazy_file, "all_came", lambda _images: whole)
    destination.take_up()
    assert destination.rec.state == "restored", "nobody has said anything yet"
    destination.rec.note(fencing=True)
    destination.take_up()
    assert destination.rec.state == then
    assert destination.rec.data.get("fenced", False) is whole


def test_a_fenced_run_ends_when_its_memory_has_come(
    destination: DestinationGuard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lazy_file, "all_came", lambda _images: True)
    destination.rec.note(fencing=True)
    destination.take_up()
    assert not destination.given_up() and destination.rec.state == "running"
    assert destination.rec.data["lazy"]["done"] is False, "how much has come is told"
    destination.filling.done.set()
    assert not destination.given_up(), "it stays to answer a source that comes back"
    assert destination.rec.state == "done"


@pytest.mark.parametrize(
    ("state", "alive", "resumed", "rebooted", "died", "unseen"),
    [
        ("restored", False, False, False, False, False),
        ("running", True, False, False, False, False),
        ("running", False, False, False, True, True),
        ("running", False, True, False, False, False),  # it has run, and has ended by itself
        ("running", False, False, True, False, True),  # told as rebooted, not as died
        ("running", False, True, True, False, True),
        ("done", False, False, False, False, False),
        ("done", False, True, True, False, True),
        ("undone", False, False, True, False, False),
    ],
)
def test_a_copy_that_died_before_anybody_let_it_run(
    node: Path, monkeypatch: pytest.MonkeyPatch, state: str, alive: bool, resumed: bool, rebooted: bool, died: bool,
    unseen: bool,
) -> None:  # fmt: skip
    """The guard and those who look at its record say the same of it."""
    monkeypatch.setattr(guard, "read_config", lambda _run_id: config(node, "full"))
    monkeypatch.setattr(proc.Proc, "alive", lambda _self: alive)
    rec = record.Record.create("run", "destination", procs=[{"pid": 7, "start": 1}])
    rec.enter(state)
    if resumed:
        rec.data["times"]["resumed"] = 1.0
    if rebooted:
        rec.data["boot_id"] = "an earlier one"
    assert DestinationGuard(rec, config(node, "full")).died_unseen() is unseen
    health = control.health(rec)
    assert (health["died"], health["rebooted"]) == (died, rebooted)
