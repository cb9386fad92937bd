"""docs/checklist.md says what is here: every parameter that it names exists, with the default that it gives."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "checklist.md").read_text(encoding="utf-8")


def tables() -> list[list[dict[str, str]]]:
    """Every table as rows of cells by their heading."""
    found: list[list[dict[str, str]]] = []
    for block in re.findall(r"(?:^\|.*\n)+", TEXT, re.MULTILINE):
        rows = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in block.splitlines()]
        assert all(len(row) == len(rows[0]) for row in rows), block
        found.append([dict(zip(rows[0], row, strict=True)) for row in rows[2:]])
    return found


ROWS = [row for table in tables() for row in table if "Role" in row]


def options(role: str) -> dict[str, Any]:
    path = ROOT / "roles" / role / "meta" / "argument_specs.yml"
    specs = yaml.safe_load(path.read_text(encoding="utf-8"))["argument_specs"]
    return {name: option for entry in specs.values() for name, option in (entry.get("options") or {}).items()}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row['Role']}-{row['Here'].strip('`')}")
def test_the_parameter_exists(row: dict[str, str]) -> None:
    name = row["Here"].strip("`")
    option = options(row["Role"])[name]
    default = option.get("default")
    shown = str(default).lower() if isinstance(default, bool) else "" if default is None else str(default)
    assert row["Default"].strip("`") == shown


def test_every_parameter_of_the_documents_workloads_is_there() -> None:
    """A workload that the documents have has no parameter that the checklist forgets, but our own."""
    own = {("workload_ml_training", "device"), ("workload_ml_training", "threads")}
    named = {(row["Role"], row["Here"].strip("`")) for row in ROWS}
    roles = {role for role, _name in named if role != "migration"}
    assert len(roles) == 7
    assert {(role, name) for role in roles for name in options(role)} - named == own


def test_every_file_that_is_named_exists() -> None:
    for path in re.findall(r"`((?:roles|plugins|inventories|tests)/[\w/.]+)`", TEXT):
        assert "NAME" in path or (ROOT / path).exists(), path
