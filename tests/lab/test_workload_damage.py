"""A proof that cannot fail proves nothing: damage what programs hold, and see that they say so."""

from __future__ import annotations

import json
import secrets
from pathlib import Path
from typing import Any

import pytest

from tests.lab.conftest import Guard
from tests.lab.harness.aftermath import read_json
from tests.lab.harness.guarded import Guarded
from tests.lab.harness.nodes import wait_for
from tests.lab.test_workloads import LOSE

# A second client of the same kernel.
STRANGER = """
import sys
from jupyter_client import BlockingKernelClient
client = BlockingKernelClient(connection_file=sys.argv[1])
client.load_connection_file()
client.start_channels()
reply = client.execute(sys.argv[2], silent=True, reply=True, timeout=30)
assert reply["content"]["status"] == "ok", reply
"""
SMALL = ["--resolution=320x240", "--fps=25"]


def begin(guarded: Guard, name: str, *options: str) -> Guarded:
    run, _aftermath = guarded(name)
    run.program = ["python3", f"{run.working_dir}/{name}_standalone.py", f"--working_dir={run.working_dir}", *options]
    run.begin_workload()
    return run


def proof(run: Guarded) -> dict[str, Any]:
    folder = run.lab.source.path(run.working_dir)
    token = secrets.token_hex(4)
    (folder / "verify_request.new").write_text(token, encoding="utf-8")
    (folder / "verify_request.new").replace(folder / "verify_request")

    def answer() -> dict[str, Any] | None:
        found = read_json(folder / "verify_result.json")
        return found if found.get("token") == token else None

    return wait_for("the workload's proof", answer, 60)


def damage(path: Path) -> None:
    """Turn some bytes in the middle of a file around, more than a packet of MPEG-TS has that mean nothing."""
    with path.open("r+b") as stream:
        middle = path.stat().st_size // 2
        stream.seek(middle)
        data = stream.read(188)
        stream.seek(middle)
        stream.write(bytes(byte ^ 0xFF for byte in data))


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ("data_0[7, 3] += 1", "wrong"),
        ("del result_0", "wrong"),
        ("total += 1", "total"),
        ("tick += 1", "errors"),
        ("get_ipython().history_manager.input_hist_raw[2] = 'x'", "history"),
    ],
)
def test_a_changed_variable_is_found(guarded: Guard, change: str, where: str) -> None:
    run = begin(guarded, "jupyter", "--cell_interval=0.3", "--num_cells=12", "--rows=4096")
    whole = proof(run)
    assert whole["verified"] is True, whole
    run.lab.source.run("python3", "-c", STRANGER, f"{run.working_dir}/kernel.json", change)
    found = proof(run)
    assert found["verified"] is False, found
    assert found["details"][where] != whole["details"][where]


def test_a_damaged_segment_is_found(guarded: Guard) -> None:
    run = begin(guarded, "video", *SMALL)
    folder = run.lab.source.path(run.working_dir)
    wait_for("two finished segments", lambda: (folder / "segment_000002.ts").exists() or None, 30)
    assert proof(run)["verified"] is True
    damage(folder / "segment_000001.ts")
    found = proof(run)
    assert found["verified"] is False, found


def test_a_missing_segment_is_found(guarded: Guard) -> None:
    run = begin(guarded, "video", *SMALL)
    folder = run.lab.source.path(run.working_dir)
    wait_for("three finished segments", lambda: (folder / "segment_000003.ts").exists() or None, 30)
    (folder / "segment_000001.ts").unlink()
    assert "a segment is missing" in proof(run)["details"]["wrong"]


def test_a_damaged_recording_is_found(guarded: Guard) -> None:
    run = begin(guarded, "video", *SMALL, "--video_mode=file", "--duration=6")
    folder = run.lab.source.path(run.working_dir)
    growing = proof(run)
    assert growing["verified"] is True, growing
    log = folder / "output.log"
    wait_for("the end of the recording", lambda: ", complete" in log.read_text() or None, 30)
    complete = proof(run)
    assert complete["verified"] is True and complete["details"]["frames"] == 6 * 25, complete
    damage(folder / "recording.mp4")
    found = proof(run)
    assert found["verified"] is False, found


def test_a_lost_weight_is_found(guarded: Guard) -> None:
    """Of the network itself, when its training has ended."""
    params = {"model_size": "small", "dataset_size": 640, "batch_size": 32, "epochs": 2}
    run = begin(guarded, "ml_training", *(f"--{name}={value}" for name, value in params.items()))
    source = run.lab.source
    log = source.path(f"{run.working_dir}/output.log")
    wait_for("the end of the training", lambda: "step 40, epoch 2" in log.read_text() or None, 60)
    assert proof(run)["verified"] is True
    words = ("ml_training", run.working_dir, str(run.pid), json.dumps(params))
    assert int(source.python(LOSE.read_text(encoding="utf-8"), *words)) > 0
    found = proof(run)
    assert found["verified"] is False
    assert not all(part["same_state"] for part in found["details"]["done_again"]), found
