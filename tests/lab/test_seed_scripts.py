"""Scripts written for the seed framework's contract run unmodified, as workload=command."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.lab.conftest import Prepare
from tests.lab.harness.nodes import Lab, wait_for

SCRIPTS = Path(__file__).with_name("scripts")


def counted(lines: list[str]) -> bool:
    return lines == [str(number) for number in range(len(lines))]


def squared(lines: list[str]) -> bool:
    return lines == [str(number * number) for number in range(len(lines))]


def cubed(lines: list[str]) -> bool:
    return lines == [str(number**3) for number in range(len(lines))]


@pytest.mark.parametrize(
    ("script", "output", "right"),
    [
        ("counter_standalone.py", "output.log", counted),
        ("family_standalone.py", "squares.txt", squared),
        ("threads_standalone.py", "cubes.txt", cubed),
    ],
)
def test_a_script_of_the_seed_framework(
    prepare: Prepare, lab: Lab, script: str, output: str, right: Callable[[list[str]], bool]
) -> None:
    lab.source.path(f"/srv/{script}").write_bytes((SCRIPTS / script).read_bytes())
    command = f"python3 /srv/{script} --working_dir {{working_dir}}"
    migration, aftermath = prepare("command", command=command, wait_ready=True)
    migration.run()
    aftermath.check("destination")
    folder = lab.destination.path(migration.working_dir)
    assert (folder / "checkpoint_ready").read_text() == f"ready:{migration.metrics()['process']['pid']}\n"

    def lines() -> list[str]:
        return (folder / output).read_text().splitlines()

    before = len(lines())
    wait_for("the script to go on", lambda: len(lines()) > before + 3 or None, 20)
    # The contract's end: the script leaves by itself when the flag is gone.
    (folder / "checkpoint_flag").unlink()
    wait_for("the script's last words", lambda: "restore complete" in (folder / "output.log").read_text() or None, 20)
    assert right([line for line in lines() if line != "restore complete"])
