"""Wrong input: one clear message, an exit code that is not 0, and nothing started on the nodes."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from tests.lab.conftest import Prepare
from tests.lab.harness.harm import TRACER, running
from tests.lab.harness.nodes import Lab

MEMORY = {"mb_size": 16}


@pytest.mark.parametrize(
    ("workload", "params", "message"),
    [
        ("reddis", {}, "workload=reddis: there is no such workload; did you mean redis?"),
        ("memory", {"migration_strategy": "fast"}, "migration_strategy=fast"),
        ("memory", {"strategy": "full"}, "migration_strategy"),
        ("redis", {"num_keys": -1}, "num_keys=-1"),
        ("redis", {"num_keyz": 5}, "num_keyz"),
        ("process", {"pid": 4000000}, "4000000"),
        ("memory", {"transfer": "pigeon"}, "transfer=pigeon"),
        ("redis", {"service_address": "10.0.0.300"}, "10.0.0.300"),
    ],
    ids=lambda value: value if isinstance(value, str) and " " not in value else "",
)
def test_wrong_input(prepare: Prepare, workload: str, params: dict[str, Any], message: str) -> None:
    migration, aftermath = prepare(workload, **params)
    migration.run(rc=None)
    assert message in migration.output(), migration.output()
    assert migration.output().count("FAILED!") == 1, migration.output()
    aftermath.check_untouched()


@pytest.mark.parametrize("other_name", [False, True])
def test_the_destination_is_the_source(prepare: Prepare, lab: Lab, other_name: bool) -> None:
    migration, aftermath = prepare("memory", **MEMORY)
    content = yaml.safe_load(lab.inventory.read_text(encoding="utf-8"))
    groups = content["all"]["children"]
    name, values = next(iter(groups["source"]["hosts"].items()))
    groups["destination"]["hosts"] = {"node-9" if other_name else name: values}
    content["all"]["children"] = {"source": groups["source"], "destination": groups["destination"]}
    content["all"]["vars"]["ansible_ssh_common_args"] = f"-F {lab.inventory.parent}/ssh.cfg"
    inventory = migration.tmp / "hosts.yml"
    inventory.write_text(yaml.safe_dump(content), encoding="utf-8")
    migration.inventories = [inventory]
    migration.run(rc=None)
    assert "The destination is the source" in migration.output(), migration.output()
    aftermath.check_untouched()


def test_a_process_with_a_tracer_is_refused(prepare: Prepare, lab: Lab) -> None:
    lab.source.ssh("cd /; setsid sleep 600 & echo $! >/run/traced")
    pid = int(lab.source.path("/run/traced").read_text())
    with running(lab.source, TRACER, str(pid)):
        migration, aftermath = prepare("process", own_pid=pid, pid=pid)
        migration.run(rc=None)
        assert "trace" in migration.output(), migration.output()
        aftermath.check_untouched()
