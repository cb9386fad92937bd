"""Every workload at a small size: moved, its state proved, and a proof that fails when a page is lost."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.lab.conftest import Prepare
from tests.lab.harness.aftermath import Aftermath
from tests.lab.harness.migration import Migration
from tests.lab.harness.nodes import Lab, Node, wait_for
from tests.lab.test_logs import MOVED, check_files
from tests.lab.test_migrate import check_metrics

# A new workload: its small parameters here; and in harness/lose.py what to wipe, or no name in WIPED.
SMALL: dict[str, dict[str, Any]] = {
    "memory": {"mb_size": 16, "interval": 1.0, "max_memory": 64},
    "redis": {"num_keys": 5000, "redis_port": 7001},
    "matmul": {"matrix_size": 512, "interval": 0.2},
    "ml_training": {"model_size": "small", "dataset_size": 2000, "batch_size": 32},
    "dataproc": {"num_rows": 20000, "num_cols": 10, "interval": 0.1},
    "jupyter": {"cell_interval": 0.5},
    "video": {"resolution": "320x240", "fps": 25},
}
WIPED = ("memory", "matmul", "ml_training", "dataproc")
LOSE = Path(__file__).with_name("harness") / "lose.py"
DO_AGAIN_SINCE_THE_MOVE = ("ml_training", "dataproc")
# What the destination leaves beside the logs of every move
STRATEGIES = {"full": {"dest/criu-page-server.log"}, "postcopy": {"dest/criu-lazy-pages.log"}}


def move(migration: Migration) -> None:
    """Run the play; a proof computes for many seconds, and for longer where others compute too."""
    migration.start().finish(limit=900)


def pid_of(aftermath: Aftermath, node: Node) -> int:
    """The root of the workload's tree."""
    found = aftermath.copies(node.look())
    inner = {item["pid"] for item in found}
    return int(next(item["pid"] for item in found if item["ppid"] not in inner))


def threads(node: Node, pid: int) -> int:
    status = node.run("cat", f"/proc/{pid}/status")
    return int(re.findall(r"^Threads:\s+(\d+)", status, re.M)[0])


def last_line(node: Node, folder: str, beginning: str) -> str:
    """The newest line of a program's output that begins so, without its time."""
    lines = [line[20:] for line in node.path(f"{folder}/output.log").read_text().splitlines()]
    return next((line for line in reversed(lines) if line.startswith(beginning)), "")


def wipe(migration: Migration, aftermath: Aftermath, node: Node) -> None:
    """Wipe a piece of the data behind the program's back."""
    words = (migration.workload, migration.working_dir, str(pid_of(aftermath, node)), json.dumps(migration.params))
    assert int(node.python(LOSE.read_text(encoding="utf-8"), *words)) > 0


def lose_a_page(migration: Migration, aftermath: Aftermath, node: Node) -> None:
    """The next proof has to fail."""
    wipe(migration, aftermath, node)
    assert aftermath.proof(node)["verified"] is False


def move_and_prove(
    prepare: Prepare, lab: Lab, workload: str, logs: set[str], **how: str
) -> tuple[Migration, Aftermath]:
    """Moved, proven, and every file of both nodes is there; redis keeps the client that it has outside."""
    outside = workload == "redis"
    where = {"service_address": lab.service_address(1)} if outside else {}
    migration, aftermath = prepare(workload, **how, **where, **SMALL[workload])
    move(migration)
    metrics = check_metrics(migration, verified=True)
    assert metrics["strategy"] == how["migration_strategy"]
    if workload in DO_AGAIN_SINCE_THE_MOVE:
        assert metrics["integrity"]["details"]["moved_at"] not in (None, [])
    check_files(migration, MOVED | logs)
    aftermath.check("destination", client=outside)
    return migration, aftermath


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("workload", SMALL)
def test_workload(prepare: Prepare, lab: Lab, workload: str, strategy: str) -> None:
    migration, aftermath = move_and_prove(prepare, lab, workload, STRATEGIES[strategy], migration_strategy=strategy)
    if workload in WIPED:
        lose_a_page(migration, aftermath, lab.destination)


def test_a_proof_that_fails_is_no_success(prepare: Prepare, lab: Lab) -> None:
    """The process has moved, and that is what the status says; its folder and the summary say that it is not whole."""
    migration, aftermath = prepare(
        "memory", migration_strategy="full", migration_pause_at={"destination": ["restored"]}, **SMALL["memory"]
    )
    migration.start()
    migration.await_paused("destination", "restored")
    wipe(migration, aftermath, lab.destination)
    migration.go("destination", "restored")
    migration.finish(None)
    metrics = migration.metrics()
    assert (metrics["status"], metrics["integrity"]["verified"]) == ("migrated", False)
    assert "MIGRATED, BUT NOT WHOLE" in migration.output()
    folder = check_files(migration, MOVED | STRATEGIES["full"])
    assert folder.name.endswith("_failed")
    aftermath.check("destination", verify=False)


@pytest.mark.soak
@pytest.mark.parametrize("workload", SMALL)
def test_workload_over_rsync(prepare: Prepare, lab: Lab, workload: str) -> None:
    logs = {"source/rsync.log", "dest/rsync.log"}
    move_and_prove(prepare, lab, workload, logs, migration_strategy="full", transfer="rsync")


def test_video_in_one_file(prepare: Prepare) -> None:
    migration, aftermath = prepare("video", video_mode="file", duration=120, **SMALL["video"])
    move(migration)
    check_metrics(migration, verified=True)
    aftermath.check("destination")


def test_matmul_keeps_the_threads_of_its_library(prepare: Prepare, lab: Lab) -> None:
    migration, aftermath = prepare("matmul", **SMALL["matmul"])
    move(migration)
    check_metrics(migration, verified=True)
    processors = int(lab.destination.run("nproc"))
    assert threads(lab.destination, pid_of(aftermath, lab.destination)) >= processors
    done = last_line(lab.destination, migration.working_dir, "product")
    wait_for(
        "further products",
        lambda: last_line(lab.destination, migration.working_dir, "product") != done or None,
        10,
    )
    aftermath.check("destination")


def test_ml_training_with_all_its_threads(prepare: Prepare, lab: Lab) -> None:
    migration, aftermath = prepare("ml_training", threads=0, **SMALL["ml_training"])
    move(migration)
    details = check_metrics(migration, verified=True)["integrity"]["details"]
    assert details["threads"] == int(lab.destination.run("nproc"))
    aftermath.check("destination")


def test_ml_training_has_the_losses_of_a_run_that_was_not_moved(prepare: Prepare, lab: Lab) -> None:
    """Also after the move: it goes on to the end of its epochs, as the other does without a move."""
    migration, aftermath = prepare("ml_training", epochs=150, **SMALL["ml_training"])
    move(migration)
    check_metrics(migration, verified=True)
    folder, steps = migration.working_dir, 150 * 63
    moved = wait_for(
        "the last epoch", lambda: last_line(lab.destination, folder, f"step {steps}, epoch 150:") or None, 120
    )
    other = f"{folder}/unmoved"
    lab.destination.run("mkdir", "-p", other)
    lab.destination.path(f"{other}/checkpoint_flag").touch()  # without it a program ends at once
    options = " ".join(f"--{name}={value}" for name, value in SMALL["ml_training"].items())
    words = f"python3 {folder}/ml_training_standalone.py --working_dir={other} --epochs=150 {options}"
    lab.destination.ssh(f"cd {other}; {words} >output.log &")
    unmoved = wait_for("the other run", lambda: last_line(lab.destination, other, f"step {steps}, ") or None, 120)
    lab.destination.path(f"{other}/checkpoint_flag").unlink()
    wait_for("its end", lambda: not lab.destination.run("pgrep", "-f", f"working_dir={other}", check=False), 20)
    assert unmoved == moved
    aftermath.check("destination")


@pytest.mark.parametrize(
    ("workload", "params", "message"),
    [
        ("matmul", {"matrix_size": 1}, "matrix_size=1"),
        ("matmul", {"matrix_sise": 64}, "did you mean matrix_size?"),
        ("ml_training", {"model_size": "huge"}, "model_size=huge"),
        ("ml_training", {"batch_size": 0}, "batch_size=0"),
        ("dataproc", {"num_rows": "many"}, "num_rows=many"),
        ("jupyter", {"num_cells": -1}, "num_cells=-1"),
        ("video", {"video_mode": "tape"}, "video_mode=tape"),
        ("video", {"fps": 0}, "fps=0"),
    ],
)
def test_wrong_parameter(prepare: Prepare, workload: str, params: dict[str, Any], message: str) -> None:
    migration, aftermath = prepare(workload, **params)
    migration.run(rc=None)
    assert message in migration.output(), migration.output()
    aftermath.check_untouched()
