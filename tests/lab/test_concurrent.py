"""Several migrations between the same two nodes at once do not collide."""

from __future__ import annotations

from tests.lab.conftest import Prepare
from tests.lab.harness.nodes import Lab


def test_three_migrations_at_once(prepare: Prepare, lab: Lab) -> None:
    pairs = [
        prepare("redis", service_address=lab.service_address(10 + number), redis_port=7010 + number, num_keys=10000)
        for number in range(3)
    ]
    for migration, aftermath in pairs:
        aftermath.others = [other for _run, other in pairs if other is not aftermath]
        migration.start()
    for migration, _aftermath in pairs:
        migration.finish()
    for migration, aftermath in pairs:
        metrics = migration.metrics()
        assert (metrics["status"], metrics["integrity"]["verified"]) == ("migrated", True)
        aftermath.check("destination", client=True)
