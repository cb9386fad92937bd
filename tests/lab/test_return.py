"""A workload that has moved is moved back as a process: nobody says which one it is, and it is proved all the same."""

from __future__ import annotations

import secrets
from pathlib import Path

from benchmarks.moves import Nodes
from tests.lab.conftest import Prepare
from tests.lab.harness.migration import Migration
from tests.lab.harness.nodes import Lab
from tests.lab.test_migrate import SMALL, check_metrics


def test_there_and_back(prepare: Prepare, lab: Lab, tmp_path: Path) -> None:
    folder = f"/srv/criu-migrate/memory-20260101-000000-{secrets.token_hex(2)}"  # a name as runs give it
    out, aftermath = prepare("memory", working_dir=folder, **SMALL["memory"])
    out.run()
    pid = check_metrics(out, verified=True)["process"]["pid"]
    lab.destination.path(f"{folder}/stale").touch()
    back = Migration(lab, tmp_path, "process", pid=pid, working_dir="", migration_strategy="postcopy")
    back.inventories = [Nodes(lab.inventory, tmp_path).back]
    try:
        back.run()
    finally:
        back.close()
    metrics = check_metrics(back, verified=True)
    assert metrics["integrity"]["details"]["checksums"] > 0
    assert metrics["process"]["node"] == lab.source.name and metrics["process"]["pid"] == pid
    assert metrics["downtime"]["service"] > 0
    assert lab.source.path(f"{folder}/stale").exists()
    assert not lab.destination.path(folder).exists()
    aftermath.check("source")
