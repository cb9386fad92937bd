"""The workloads' roles keep to one shape, and their programs know their parameters."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
ROLES = sorted(path.name for path in (ROOT / "roles").glob("workload_*"))


def load(role: str, name: str) -> dict[str, Any]:
    found = yaml.safe_load((ROOT / "roles" / role / name).read_text(encoding="utf-8"))
    assert isinstance(found, dict)
    return found


def options(role: str) -> dict[str, Any]:
    found = load(role, "meta/argument_specs.yml")["argument_specs"]["main"]["options"]
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize("role", ROLES)
def test_entry_points_and_readme(role: str) -> None:
    for name in ("install", "start", "verify", "stop"):
        assert (ROOT / "roles" / role / "tasks" / f"{name}.yml").is_file()
    readme = (ROOT / "roles" / role / "README.md").read_text(encoding="utf-8")
    assert all(f"`{name}`" in readme for name in options(role))


@pytest.mark.parametrize("role", ROLES)
def test_parameters_are_described_and_in_their_ranges(role: str) -> None:
    specified = options(role)
    ranges = load(role, "vars/main.yml").get(f"{role}_ranges", {})
    numeric = {name for name, option in specified.items() if option["type"] in ("int", "float")}
    assert set(ranges) == numeric
    for name, option in specified.items():
        assert option["description"]
        assert ("default" in option) != option.get("required", False)
        if name in ranges and "default" in option:
            least, most = ranges[name]
            assert least <= option["default"] <= most


@pytest.mark.parametrize("role", ROLES)
def test_programs_exist_and_take_every_parameter(role: str) -> None:
    definition = load(role, "vars/main.yml")[f"{role}_definition"]
    for name in definition["programs"]:
        assert (ROOT / "workloads" / name).is_file()
    if "program" in definition:
        command = [sys.executable, str(ROOT / "workloads" / definition["program"]), "--help"]
        text = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout
        assert all(f"--{name}" in text for name in [*options(role), "working_dir", "heartbeat_interval"])
