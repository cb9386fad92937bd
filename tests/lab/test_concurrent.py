"""Several migrations between the same two nodes at once do not collide."""

from __future__ import annotations

import pytest

from tests.lab.conftest import Prepare
from tests.lab.harness.nodes import Lab


@pytest.mark.soak
def test_three_of_a_kind_without_a_port(prepare: Prepare) -> None:
    """None of them ends another, neither while that is verified nor afterwards."""
    pairs = [prepare("memory", mb_size=16, interval=0.5, max_memory=32) for _ in range(3)]
    for migration, aftermath in pairs:
        aftermath.others = [other for _run, other in pairs if other is not aftermath]
        migration.start()
    for migration, _aftermath in pairs:
        migration.finish()
        assert migration.metrics()["integrity"]["verified"] is True
    for _migration, aftermath in pairs:
        aftermath.check("destination")


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
