"""The example of a new workload in docs/workloads.md, put into a copy of the repository and migrated."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from tests.conftest import ROOT
from tests.lab.conftest import Prepare
from tests.lab.test_migrate import check_metrics

BLOCK = re.compile(r"^`(\S+)`:\n\n```\w+\n(.*?)^```$", re.M | re.S)


def copy_with_example(tree: Path) -> list[str]:
    """Copy the repository and add the blocks that bear a path; returns those paths."""
    left_out = shutil.ignore_patterns(".git", ".venv", ".ansible", ".*_cache", "__pycache__", "results", "build")
    shutil.copytree(ROOT, tree, symlinks=True, ignore=left_out)
    blocks = dict(BLOCK.findall((ROOT / "docs/workloads.md").read_text(encoding="utf-8")))
    for name, text in blocks.items():
        assert not (tree / name).exists(), name
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(text, encoding="utf-8")
    return list(blocks)


def test_the_documented_workload_migrates(prepare: Prepare, tmp_path: Path) -> None:
    tree = tmp_path / "copy"
    added = copy_with_example(tree)
    assert "workloads/ledger_standalone.py" in added and "roles/workload_ledger/vars/main.yml" in added
    migration, aftermath = prepare("ledger", first_entries=500)
    migration.cwd = tree
    migration.run()
    details = check_metrics(migration, verified=True)["integrity"]["details"]
    assert details["entries"] > 500
    aftermath.check("destination")
