"""Every fault of the hand-over (tests/lab/test_faults.py) with pre-copy and with hybrid, on nodes whose kernels can."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

from tests.lab import test_faults as faults
from tests.lab.conftest import Guard
from tests.lab.harness import nodes
from tests.lab.harness.aftermath import Aftermath
from tests.lab.harness.guarded import Guarded
from tests.lab.harness.machine import MachineLab
from tests.vm.test_vm_campaign import LIMITS, ROUNDS, STRETCH

pytestmark = pytest.mark.vm
LOST = "The guard that made the rounds was killed"  # before its dump: all of it is sent again
SLOWER = 4  # how many times longer than on a lab of namespaces a guard waits before it gives up

def who_has_the_pages(guarded: Guard, state: str, keeper: bool) -> None:
    """What rounds have brought is whole, and of a dump by hybrid the source still has everything: it goes on."""
    run, aftermath = faults.who_has_the_pages_is_killed(guarded, state, keeper)
    where, state = ("destination", "done") if run.postcopy else ("source", "undone")
    assert run.finish(state) == where
    aftermath.check(where, resolved=False)


CASES: dict[str, Callable[..., None]] = {
    "no fault": faults.test_no_fault,
    **{
        f"the {role}'s guard, {state}": partial(faults.test_a_guard_is_killed, role=role, state=state, keeper=keeper)
        for role, states in (("source", faults.SOURCE_STATES), ("destination", faults.DESTINATION_STATES))
        for state, keeper in zip(states, [False, True] * 3)
    },
    **{
        f"who has the pages, {state}": partial(who_has_the_pages, state=state, keeper=keeper)
        for state, keeper in (("dumped", True), ("detached", False))
    },
    "both guards": faults.test_both_guards_are_killed,
    **{
        f"the dump loses an end: {victim}": partial(faults.test_the_dump_loses_an_end, victim=victim, encryption="tls")
        for victim in ("receiving guard", "dump")
    },
    "no space": partial(faults.test_the_destination_has_no_space_left, transfer="page_server"),
    "a tracer": faults.test_a_tracer_comes_while_it_is_frozen,
    "an open file is missing": faults.test_an_open_file_is_missing_on_the_destination,
    "a pid is taken": faults.test_a_pid_is_taken_on_the_destination,
    "a port is taken": faults.test_the_port_is_taken_on_the_destination,
    "the address is taken": faults.test_the_address_is_on_the_destination_already,
    "the stopped copy dies": faults.test_the_stopped_copy_dies_before_the_commit,
    **{
        f"the {role}'s guard undoes": partial(faults.test_a_guard_is_killed_while_it_undoes, role=role)
        for role in ("source", "destination")
    },
    **{
        f"a cut, {state}": partial(faults.test_a_cut_is_only_a_stall, state=state)
        for state in ("frozen", "detached", "committed")
    },
    "a long cut": faults.test_a_long_cut_while_pages_come_is_only_a_stall,
    **{
        f"an answer is lost, {state}": partial(faults.test_the_answer_of_the_destination_is_lost, state=state)
        for state in ("restored", "running")
    },
    **{
        f"a cut past the limit, {state}": partial(faults.test_a_cut_past_the_limit_is_undone, role=role, state=state)
        for role, state in (("source", "detached"), ("destination", "restored"))
    },
    "no guard at the destination": faults.test_the_destination_guard_stays_dead_before_the_commit,
    "no guard at the destination, committed": faults.test_the_destination_guard_stays_dead_after_the_commit,
}


@pytest.fixture(params=ROUNDS)
def guarded(machines: MachineLab, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Guard]:
    """As in tests/lab, with rounds before the freeze; the run is seen to have made them."""
    monkeypatch.setattr(nodes, "stretch", STRETCH)
    machines.keep_pids_apart()
    made: list[Aftermath] = []

    def make(workload: str = "memory", **config: Any) -> tuple[Guarded, Aftermath]:
        limits = {name: SLOWER * seconds for name, seconds in config.pop("limits", {}).items()}
        run = Guarded(machines, workload, limits={**LIMITS, **limits}, **ROUNDS[request.param], **config)
        made.append(Aftermath(run, run.address))
        return run, made[-1]

    yield make
    records = [aftermath.migration.record("source") for aftermath in made]
    for aftermath in made:
        aftermath.clean()
    for record in records:
        assert record.get("pre_dumps") or LOST in str(record.get("stop_reason")), "it was moved without rounds"


@pytest.mark.parametrize("case", CASES)
def test_a_fault_of_the_hand_over_after_rounds(guarded: Guard, machines: MachineLab, case: str) -> None:
    def with_client(**config: Any) -> tuple[Guarded, Aftermath]:
        return guarded("redis", service_address=machines.service_address(2), **config)

    given = {"guarded": guarded, "with_client": with_client, "lab": machines}
    CASES[case](**{name: given[name] for name in inspect.signature(CASES[case]).parameters if name in given})
