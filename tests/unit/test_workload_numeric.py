"""The numerical workloads: the same seed gives the same, and one wrong byte makes the proof fail.

ml_training needs torch: tests/lab/test_workloads.py runs its tests where the distribution's is.
"""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import dataproc_standalone
import matmul_standalone
import ml_training_standalone
import numpy as np
import pytest
import steps
from contract import SLOT, Contract

SIZES = (2, 3, 65, 128)


def nothing() -> None:
    """Nobody waits for a heartbeat here."""


def product(size: int = 65, done: int = 3) -> matmul_standalone.Product:
    found = matmul_standalone.Product(size, "seed")
    for _ in range(done):
        found.step()
    return found


def table(rows: int = 500, columns: int = 3, done: int = 30) -> dataproc_standalone.Table:
    found = dataproc_standalone.Table(rows, columns, "seed")
    for _ in range(done):
        found.step()
    return found


# --- steps ---------------------------------------------------------------------------------------------------------


class Clock:
    """The two clocks of a process, of which a move changes one."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.since_boot = 1000.0, 10.0
        monkeypatch.setattr(time, "time", lambda: self.now)
        monkeypatch.setattr(time, "monotonic", lambda: self.since_boot)


def test_a_move_is_noticed_by_the_clocks(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    moves = steps.Moves()
    clock.now, clock.since_boot = 1600.0, 610.0  # a long step
    assert not moves.happened()
    clock.now += 0.4  # frozen meanwhile
    assert moves.happened()
    assert not moves.happened() and moves.count == 1


def test_a_move_is_noticed_where_the_other_clock_hides_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The destination's clock is behind by just the downtime."""
    boot = tmp_path / "boot_id"
    boot.write_text("one\n", encoding="ascii")
    monkeypatch.setattr(steps, "BOOT", str(boot))
    Clock(monkeypatch)
    moves = steps.Moves()
    assert not moves.happened()
    boot.write_text("two\n", encoding="ascii")
    assert moves.happened() and not moves.happened()


class Counting:
    """Work that says when it was done."""

    def __init__(self) -> None:
        self.done = 0
        self.at: list[float] = []

    def step(self) -> None:
        self.at.append(time.monotonic())
        self.done += 1

    def prove(self, beat: Callable[[], None]) -> steps.Proof:
        beat()
        return steps.Proof(True, "counted", {"done": self.done})

    def line(self) -> str:
        return f"step {self.done}"


def test_steps_keep_their_period_and_answer_meanwhile(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "checkpoint_flag").touch()
    (tmp_path / "verify_request").write_text("t1", encoding="utf-8")
    contract, work = Contract(str(tmp_path)), Counting()
    running = threading.Thread(target=steps.run, args=(contract, work), kwargs={"limit": 3, "period": 0.1})
    running.start()
    deadline = time.monotonic() + 10
    while work.done < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.15)  # time for a fourth step
    (tmp_path / "checkpoint_flag").unlink()
    running.join(10)
    assert work.done == 3 and min(np.diff(work.at)) >= 0.1
    assert (tmp_path / "checkpoint_ready").is_file()
    answer = json.loads((tmp_path / "verify_result.json").read_text(encoding="utf-8"))
    assert answer == {"token": "t1", "verified": True, "method": "counted", "details": {"done": 1}}
    beats = [item[0] for item in SLOT.iter_unpack((tmp_path / "heartbeat.bin").read_bytes()) if item[0]]
    assert len(beats) > 20  # also between the steps
    assert "step 3" in capsys.readouterr().out


# --- matmul --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
def test_matmul_the_factor_loses_nothing(size: int) -> None:
    found = product(size, 0)
    assert np.allclose(found.factor @ found.factor.T, np.eye(size), atol=1e-12)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("done", [0, 1, 2, 200])
def test_matmul_proves_what_plain_products_give(size: int, done: int) -> None:
    found = product(size, done)
    start = product(size, 0)
    plain = start.product @ np.linalg.matrix_power(start.factor, done)
    assert np.allclose(found.product, plain, atol=1e-10)
    proof = found.prove(nothing)
    assert proof.verified, proof
    assert proof.details["products"] == done
    assert proof.details["bytes"] == 3 * size * size * 8


@pytest.mark.parametrize("matrix", ["product", "before", "factor"])
@pytest.mark.parametrize("value", [0.0, float("nan"), None])
def test_matmul_a_lost_number_is_noticed(matrix: str, value: float | None) -> None:
    found = product()
    numbers = getattr(found, matrix)
    numbers[64, 64] = numbers[64, 64] + 1e-9 if value is None else value
    proof = found.prove(nothing)
    assert not proof.verified
    assert proof.details["wrong_rows_from"] == [64]
    json.dumps(proof.details, allow_nan=False)


def test_matmul_a_lost_number_is_noticed_many_products_later() -> None:
    found = product()
    found.product[1, 2] = 0.0
    for _ in range(500):
        found.step()
    proof = found.prove(nothing)
    assert proof.details["checksum_right"]
    assert not proof.verified and proof.details["wrong_rows_from"] == [0]


# --- dataproc ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (7, 2), (500, 12)])
def test_dataproc_proves_itself(rows: int, columns: int) -> None:
    found = table(rows, columns)
    proof = found.prove(nothing)
    assert proof.verified, proof
    assert proof.details["operations"] == 30
    assert found.journal == table(rows, columns).journal


def test_dataproc_does_all_operations_on_the_table() -> None:
    found = table(1000, 4, 0)
    chance = np.random.default_rng
    results = {kind: getattr(found, kind)(chance(5)) for kind in dataproc_standalone.KINDS}
    names = found.pick(chance(5), 5)
    first = found.values[int(names[0][1:])]
    assert len(results["filter"]) < 1000 and set(results["filter"].columns) == {*found.names, "category"}
    assert np.allclose(results["aggregate"]["mean"][0], first.mean())
    assert np.all(np.abs(np.diff(np.sign(np.diff(results["sort"][names[0]])))) == 0)
    assert len(results["group_aggregate"]) == 3 * len(np.unique(found.groups))
    assert np.allclose(results["join"]["weight"], found.groups / 99)
    assert np.allclose(results["transform"].std(), 1)
    assert np.isclose(results["window"].iloc[-1], first[-100:].mean())


@pytest.mark.parametrize("harm", ["value", "group", "result", "old_result"])
def test_dataproc_a_lost_value_is_noticed(harm: str) -> None:
    found = table(done=300)
    if harm == "value":
        found.values[2, 400] = 0.0
    elif harm == "group":
        found.frame.loc[3, "category"] = 100
    else:
        number = -2 if harm == "result" else 13
        found.journal[number] = (found.journal[number][0], found.journal[number][1] ^ 1)
    proof = found.prove(nothing)
    assert not proof.verified, proof
    assert (harm == "value") == (proof.details["wrong_columns"] == ["c2"])


def test_dataproc_sees_a_move_without_another_operation(monkeypatch: pytest.MonkeyPatch) -> None:
    found = table(done=3)
    clock = Clock(monkeypatch)
    found.moves = steps.Moves()
    clock.now += 1.0
    assert found.prove(nothing).details["moved_at"] == [2]


def test_dataproc_an_operation_that_met_a_lost_value_is_done_again(monkeypatch: pytest.MonkeyPatch) -> None:
    found = table(done=40)
    kept = found.values.copy()
    clock = Clock(monkeypatch)
    found.moves = steps.Moves()
    clock.now += 1.0
    found.values[:] = 0.0
    found.step()  # on lost pages, which come back later
    found.values[:] = kept
    for _ in range(200):
        found.step()
    proof = found.prove(nothing)
    assert proof.details["moved_at"] == [40] and proof.details["wrong_columns"] == []
    assert not proof.verified and proof.details["wrong_operations"] == [40]


# --- ml_training without torch -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "available", "plugin", "tool", "expected"),
    [
        ("auto", False, False, False, "cpu"),
        ("cpu", True, False, False, "cpu"),
        ("auto", True, True, True, "cuda"),
        ("cuda", False, True, True, "torch finds no GPU"),
        ("auto", True, False, True, "cuda_plugin.so is missing"),
        ("auto", True, True, False, "cuda-checkpoint is missing"),
    ],
)
def test_a_gpu_is_used_where_criu_can_move_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
    wanted: str, available: bool, plugin: bool, tool: bool, expected: str,
) -> None:  # fmt: skip
    path = tmp_path / "cuda_plugin.so"
    if plugin:
        path.touch()
    monkeypatch.setattr(ml_training_standalone, "CUDA_PLUGIN", (str(path),))
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}" if tool else None)
    if expected in ("cpu", "cuda"):
        assert ml_training_standalone.choose_device(wanted, available) == expected
    else:
        with pytest.raises(ValueError, match=expected) as error:
            ml_training_standalone.choose_device(wanted, available)
        assert "Remedy" in str(error.value)
