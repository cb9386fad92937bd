"""Every workload over every transfer: moved, whole, once, and nothing left behind."""

from __future__ import annotations

import json
import shlex
from typing import Any

import jsonschema
import pytest

from tests.conftest import ROOT
from tests.lab.conftest import Prepare
from tests.lab.harness.migration import Migration
from tests.lab.harness.nodes import Lab, Node, wait_for

TRANSFERS = ("page_server", "rsync")
SMALL: dict[str, dict[str, Any]] = {
    "redis": {"num_keys": 20000, "redis_port": 7001},
    "memory": {"mb_size": 16, "interval": 1.0, "max_memory": 64},
}
# Counts in a file in its working directory: a copy that lost its memory would begin again, two would mix.
COUNTER = """
import sys, time
with open(sys.argv[1], "a", buffering=1) as out:
    number = 0
    while True:
        out.write(f"{number}\\n")
        number += 1
        time.sleep(0.01)
"""


def schema_errors(metrics: dict[str, Any]) -> list[str]:
    schema = json.loads((ROOT / "schemas/metrics.schema.json").read_text(encoding="utf-8"))
    validator = jsonschema.Draft202012Validator(schema)
    return [error.message for error in validator.iter_errors(metrics)]


def check_metrics(migration: Migration, verified: bool | None) -> dict[str, Any]:
    metrics = migration.metrics()
    assert metrics["status"] == "migrated"
    assert metrics["integrity"]["verified"] is verified
    assert schema_errors(metrics) == []
    return metrics


def check_counter(node: Node, path: str) -> None:
    """Every number once and in order, and it goes on."""
    numbers = [int(line) for line in node.path(path).read_text().splitlines()]
    assert numbers == list(range(len(numbers)))
    wait_for("the counter to go on", lambda: node.path(path).read_text().count("\n") > len(numbers) + 3 or None, 10)


@pytest.mark.parametrize("transfer", TRANSFERS)
def test_memory(prepare: Prepare, transfer: str) -> None:
    migration, aftermath = prepare("memory", transfer=transfer, **SMALL["memory"])
    migration.run()
    check_metrics(migration, verified=True)
    aftermath.check("destination")


@pytest.mark.parametrize("transfer", TRANSFERS)
def test_redis_keeps_its_outside_client(prepare: Prepare, lab: Lab, transfer: str) -> None:
    migration, aftermath = prepare("redis", transfer=transfer, service_address=lab.service_address(1), **SMALL["redis"])
    migration.run()
    metrics = check_metrics(migration, verified=True)
    assert 0 < metrics["downtime"]["service"] < 30
    aftermath.check("destination", client=True)


def test_redis_over_a_trusted_link(prepare: Prepare, lab: Lab) -> None:
    migration, aftermath = prepare(
        "redis", transfer_encryption="none", service_address=lab.service_address(1), **SMALL["redis"]
    )
    migration.run()
    assert check_metrics(migration, verified=True)["transfer"]["encryption"] == "none"
    aftermath.check("destination", client=True)


def test_redis_without_outside_connections(prepare: Prepare) -> None:
    migration, aftermath = prepare("redis", service_address="", **SMALL["redis"])
    migration.run()
    check_metrics(migration, verified=True)
    aftermath.check("destination")


@pytest.mark.parametrize("transfer", TRANSFERS)
def test_any_command_line(prepare: Prepare, lab: Lab, transfer: str) -> None:
    lab.source.path("/srv/counter.py").write_text(COUNTER, encoding="utf-8")
    migration, aftermath = prepare(
        "command", transfer=transfer, command="python3 /srv/counter.py {working_dir}/numbers"
    )
    migration.run()
    check_metrics(migration, verified=None)
    aftermath.check("destination")
    check_counter(lab.destination, f"{migration.working_dir}/numbers")


@pytest.mark.parametrize("transfer", TRANSFERS)
def test_a_process_that_already_runs(prepare: Prepare, lab: Lab, transfer: str) -> None:
    folder = "/srv/own"
    lab.source.run("mkdir", "-p", folder)
    lab.source.path(f"{folder}/counter.py").write_text(COUNTER, encoding="utf-8")
    # by ssh, as what is started from outside is in cgroups that the node does not see
    inner = f"echo $$ >{folder}/pid; exec python3 counter.py {folder}/numbers </dev/null >{folder}/out 2>&1"
    lab.source.ssh(f"cd {folder}; setsid sh -c {shlex.quote(inner)} &")
    begun = lab.source.path(f"{folder}/numbers")
    wait_for("the counter to count", lambda: begun.exists() and begun.stat().st_size > 0, 20)
    pid = int(lab.source.path(f"{folder}/pid").read_text())
    migration, aftermath = prepare("process", own_pid=pid, transfer=transfer, pid=pid, working_dir=folder)
    migration.run()
    check_metrics(migration, verified=None)
    aftermath.check("destination")
    check_counter(lab.destination, f"{folder}/numbers")
