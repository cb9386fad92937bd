"""The programs that go to nodes as one file have all that they import."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate import payload


def test_every_module_of_the_guard_can_be_imported_from_its_file_alone(tmp_path: Path) -> None:
    packed = tmp_path / "guard.pyz"
    packed.write_bytes(payload.build())
    program = f"import sys, importlib; sys.path.insert(0, {str(packed)!r})\n"
    program += f"for name in {payload.NAMES!r}: importlib.import_module('criu_migrate.' + name)"
    done = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
