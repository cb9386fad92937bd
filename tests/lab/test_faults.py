"""What breaks and what follows: after every fault one running copy, whole, and nothing left behind.

Every fault is set off by a state that a guard has reached or a line that it has logged, never by a time.
"""

from __future__ import annotations

import pytest

from tests.lab.conftest import Guard
from tests.lab.harness.nodes import Lab

SOURCE_STATES = ("freezing", "frozen", "dumped", "detached", "restored", "committed")
DESTINATION_STATES = ("receiving", "restoring", "restored", "running")


def test_no_fault(guarded: Guard, lab: Lab) -> None:
    run, aftermath = guarded("redis", service_address=lab.service_address(2))
    run.start()
    assert run.finish() == "destination"
    aftermath.check("destination", client=True, resolved=False)


@pytest.mark.parametrize("state", SOURCE_STATES)
def test_the_source_guard_is_killed_and_started_again(guarded: Guard, state: str) -> None:
    run, aftermath = guarded(pause={"source": [state]})
    run.start()
    run.await_paused("source", state)
    run.restart_guard("source", state)
    assert run.finish() == "destination"
    aftermath.check("destination", resolved=False)


@pytest.mark.parametrize("state", DESTINATION_STATES)
def test_the_destination_guard_is_killed_and_started_again(guarded: Guard, state: str) -> None:
    run, aftermath = guarded(pause={"destination": [state]})
    run.start()
    run.await_paused("destination", state)
    run.restart_guard("destination", state)
    assert run.finish() == "destination"
    aftermath.check("destination", resolved=False)
