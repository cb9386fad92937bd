"""Each kind of workload over each transfer: moved, whole, once, and nothing left behind."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest

from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate.inspect_node import IMAGES_DISK
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
    assert metrics["dump"] and metrics["restore"], "CRIU's own figures are missing"
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
    metrics = check_metrics(migration, verified=True)
    assert metrics["dump"]["pages_written"] > 0
    assert (metrics["strategy"], metrics["lazy_restore"]) == ("full", True)
    assert "post-copy only when asked for" in metrics["strategy_reason"]
    aftermath.check("destination")


def test_images_on_disk_that_are_kept(prepare: Prepare, lab: Lab) -> None:
    migration, aftermath = prepare("memory", image_storage="disk", keep_images=True, **SMALL["memory"])
    migration.run()
    metrics = check_metrics(migration, verified=True)
    assert not metrics["lazy_restore"]
    assert "images do not lie in memory" in metrics["strategy_reason"]
    aftermath.check("destination")
    kept = {node: node.path(f"{IMAGES_DISK}/{metrics['run_id']}") for node in (lab.source, lab.destination)}
    pages = sum(path.stat().st_size for path in kept[lab.destination].glob("pages-*.img"))
    assert pages >= metrics["dump"]["pages_written"] * 4096 > 16 << 20
    for node, folder in kept.items():
        assert (folder / "inventory.img").is_file(), f"no images on {node.name}"
        assert folder.stat().st_mode & 0o077 == 0
        shutil.rmtree(folder)


@pytest.fixture
def bare(lab: Lab) -> Iterator[Node]:
    """The destination, its criu under another name."""
    node = lab.destination
    criu = node.path(node.run("sh", "-c", "command -v criu").strip())
    aside = criu.with_name("criu.aside")
    criu.rename(aside)
    yield node
    aside.rename(criu)


def test_a_check_says_what_would_be_installed(prepare: Prepare, bare: Node) -> None:
    migration, aftermath = prepare("memory", **SMALL["memory"])
    migration.arguments = ["--check"]
    migration.run()
    said = " ".join(migration.output().split())  # Ansible breaks lines
    assert "CRIU is not installed. Would be installed: the distribution" in said, said
    assert f"[{bare.name}] CRIU is not installed yet" in said, said
    migration.playbook, migration.arguments = "playbooks/preflight.yml", []
    migration.run()
    said = " ".join(migration.output().split())
    assert f"[{bare.name}] CRIU is not installed yet" in said, said
    aftermath.check_untouched()


@pytest.mark.parametrize("transfer", TRANSFERS)
def test_redis_keeps_its_outside_client(prepare: Prepare, lab: Lab, transfer: str) -> None:
    migration, aftermath = prepare("redis", transfer=transfer, service_address=lab.service_address(1), **SMALL["redis"])
    migration.run()
    metrics = check_metrics(migration, verified=True)
    assert metrics["dump"]["pages_written"] > 0
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
