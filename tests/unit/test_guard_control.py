"""What criu_guard does on a node, without a guard: whose the process is, and what may be taken away."""

from __future__ import annotations

import importlib
import threading
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.testing import patch_module_args

from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate import control, guard, net, record, tracing
from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate.errors import MigrationError

TLS = {"ca": "", "cert": "", "key": ""}


@pytest.fixture(autouse=True)
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A node of its own, on which a guard that is started ends at once."""
    monkeypatch.setattr(record, "RUNS", str(tmp_path / "runs"))
    monkeypatch.setattr(control, "ARMING", str(tmp_path / "arming.lock"))
    monkeypatch.setattr(net, "unmute", lambda _run_id: None)
    monkeypatch.setattr(guard, "start", lambda *_words: ["true"])
    return tmp_path


def armed(run_id: str, pid: int = 4242, role: str = "source") -> str:
    config: dict[str, Any] = {"run_id": run_id, "role": role, "pid": pid, "start": 99, "images_dir": f"/none/{run_id}"}
    control.arm(config, TLS)
    return run_id


def test_two_runs_that_are_armed_at_once_do_not_both_begin() -> None:
    """Neither had begun when the other was armed; which one has the process is decided when a guard is started."""
    first, second = armed("first"), armed("second")
    control.start(second, "python3")
    with pytest.raises(MigrationError, match="The run second moves this process already"):
        control.start(first, "python3")
    control.start(second, "python3")  # again, after its guard was killed
    with pytest.raises(MigrationError, match="moves this process already"):
        armed("third")
    assert control.remove(first)
    control.start(armed("other", pid=4243), "python3")


def test_of_many_that_are_started_at_once_one_begins() -> None:
    names = [armed(f"run-{number}") for number in range(8)]
    refused: list[str] = []

    def begin(name: str) -> None:
        try:
            control.start(name, "python3")
        except MigrationError:
            refused.append(name)

    threads = [threading.Thread(target=begin, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(refused) == len(names) - 1, refused


def test_a_process_is_free_again_when_its_run_has_ended() -> None:
    control.start(armed("first"), "python3")
    control.load("first").enter("undone")
    control.start(armed("second"), "python3")


def test_the_destination_may_be_armed_for_both() -> None:
    for name in ("first", "second"):
        control.start(armed(name, role="destination"), "python3")


def test_a_run_that_is_watched_is_seen_to_be() -> None:
    control.start(armed("first"), "python3")
    assert not control.watched("first") and not control.watched("unknown")
    thread = threading.Thread(target=control.watch, args=("first", "python3", 20.0))
    thread.start()
    while not control.watched("first"):  # it ends with the thread's limit
        assert thread.is_alive()
    control.load("first").enter("undone")
    thread.join(20.0)
    assert not control.watched("first")


class Left(Exception):
    """What a module has ended with."""


def module(monkeypatch: pytest.MonkeyPatch, **arguments: Any) -> dict[str, Any]:
    """Run criu_guard in check mode."""

    def leave(_self: AnsibleModule, **result: Any) -> None:
        raise Left(result)

    monkeypatch.setattr(AnsibleModule, "exit_json", leave)
    found = importlib.import_module("ansible_collections.criu.migrate.plugins.modules.criu_guard")
    with patch_module_args({**arguments, "_ansible_check_mode": True}), pytest.raises(Left) as caught:
        found.main()
    result: dict[str, Any] = caught.value.args[0]
    return result


def test_check_mode_only_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A guard that was killed is not started again, and strace is not ended."""
    control.start(armed("first"), "python3")

    def touched(*_words: Any, **_more: Any) -> Any:
        raise AssertionError("something was changed in check mode")

    monkeypatch.setattr(control, "start", touched)
    monkeypatch.setattr(tracing, "end", touched)
    for state in ("watched", "collected", "present"):
        result = module(monkeypatch, run_id="first", state=state)
        assert result["changed"] is False and result["record"]["state"] == "armed", result


def test_a_fence_is_written_down_for_the_guard() -> None:
    control.load(armed("first", role="destination")).enter("restored")
    assert control.fence("first", "python3", 0.0)
    found = control.load("first")
    assert found.state == "restored" and found.data["fencing"], found.data
    found.enter("done")
    assert not control.fence("first", "python3", 0.0)


def iterating(rounds: int, under_way: int, predicted: float | None = control.ROOM) -> record.Record:
    """A source that has made so many rounds; the pre-dump of round `under_way` was started last."""
    rec = record.Record.load(armed("rounds")) or record.Record.create("rounds", "source")
    made = [{"predicted_downtime": predicted}] * rounds
    rec.enter("iterating", pre_dumps=made, jobs={"pre-dump": {"log": f"/x/criu-pre-dump-{under_way}.log"}})
    return rec


@pytest.mark.parametrize(
    ("rounds", "under_way", "predicted", "seen", "shown"),
    [
        (1, 2, control.ROOM, 0, True),
        (11, 12, 99.0, 9, True),
        (1, 1, control.ROOM, 0, False),  # it is still being decided whether another one follows
        (1, 2, control.ROOM, 1, False),
        (1, 2, control.ROOM - 0.1, 0, False),
        (1, 2, None, 0, False),
        (0, 1, None, 0, False),
        (1, 12, 99.0, 0, False),
    ],
)
def test_a_round_is_shown_where_the_next_one_gives_time_for_it(
    rounds: int, under_way: int, predicted: float | None, seen: int, shown: bool
) -> None:
    rec = iterating(rounds, under_way, predicted)
    assert control.may_show(rec, seen) is shown
    rec.enter("freezing")
    assert not control.may_show(rec, seen), "a task that began now would take time from the dump"


def test_who_watches_returns_with_a_round_that_is_new(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounds that are there already were shown; those of before a failure do not hide the ones after it."""
    rec = iterating(2, 3)
    lengths = iter([[2, 3], [1, 2], [2, 3]])

    def change(_run_id: str, _state: str, _limit: float) -> record.Record:
        made, under_way = next(lengths)
        return iterating(made, under_way)

    monkeypatch.setattr(control, "wait_change", change)
    monkeypatch.setattr(control, "alive", lambda _run_id: True)
    found, restarts = control.watch("rounds", "python3", 60.0, until_round=True)
    assert (len(found.data["pre_dumps"]), restarts) == (2, 0)
    assert list(lengths) == []
    assert rec.state == found.state == "iterating"


def test_who_does_not_ask_for_rounds_is_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    iterating(0, 1)

    def change(_run_id: str, _state: str, _limit: float) -> record.Record:
        rec = iterating(1, 2)
        rec.enter("done")
        return rec

    monkeypatch.setattr(control, "wait_change", change)
    monkeypatch.setattr(control, "alive", lambda _run_id: True)
    assert control.watch("rounds", "python3", 60.0, until_filling=True)[0].state == "done"


@pytest.mark.parametrize(
    ("told", "shown"),
    [
        ({"late": True, "needs": 5.0}, True),
        ({"late": True, "needs": 4.9}, False),  # over before a task had begun
        ({"late": False, "needs": 50.0}, False),
        (None, False),
    ],
)
def test_only_a_long_move_that_will_be_late_is_told_of(told: dict[str, Any] | None, shown: bool) -> None:
    rec = iterating(0, 1)
    rec.note(deadline=told)
    assert control.will_be_late(rec) is shown


def test_who_watches_returns_when_it_will_be_late(monkeypatch: pytest.MonkeyPatch) -> None:
    rec = iterating(0, 1)
    monkeypatch.setattr(control, "alive", lambda _run_id: True)
    monkeypatch.setattr(control, "wait_change", lambda *_: rec.note(deadline={"late": True, "needs": 60.0}))
    assert control.watch("rounds", "python3", 60.0, until_late=True)[0].state == "iterating"
