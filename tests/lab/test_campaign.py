"""Random faults: any process of ours or of CRIU's killed, the link cut, or a node without power, at any moment.

The seed of each is in its name and in its message; CRIU_MIGRATE_SEED=N,... repeats some. --faults says how many.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from tests.lab.conftest import Guard
from tests.lab.harness.aftermath import Aftermath
from tests.lab.harness.chance import KINDS, STATES, Draw, End, ended, outage, strike
from tests.lab.harness.guarded import PROGRAMS, Guarded
from tests.lab.harness.nodes import Lab, wait_for

DELAY = 0.25  # seconds after a state was reached within which the fault strikes
TABLE = os.environ.get("CRIU_MIGRATE_FAULTS", "")  # a file to which a line a fault is added
FIRST = int(os.environ.get("CRIU_MIGRATE_FIRST", "0"))  # seed


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    given = [int(seed) for seed in os.environ.get("CRIU_MIGRATE_SEED", "").split(",") if seed]
    count = int(metafunc.config.getoption("faults"))
    first = FIRST or (1000 if count > 12 else 0)
    metafunc.parametrize("seed", given or list(range(first, first + count)))


def test_a_random_fault(guarded: Guard, lab: Lab, seed: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    options = ["--mb_size=96", "--interval=0.5", "--max_memory=128"]  # so that there is time while its memory comes
    monkeypatch.setitem(PROGRAMS, "memory", ("memory_standalone.py", options))
    draw = Draw.of(seed, DELAY)
    address = {"service_address": lab.service_address(2)} if draw.with_address else {}
    run, aftermath = guarded(draw.workload, limits={"connect": 3, "link": 6, "undo": 6}, **address, **KINDS[draw.kind])
    bring_about(draw, run, aftermath, tmp_path)


def bring_about(draw: Draw, run: Guarded, aftermath: Aftermath, tmp: Path) -> None:
    """One migration with its fault, looked at afterwards and noted."""
    run.start()
    run.await_state("source", *STATES[STATES.index(draw.wanted) :], "done")
    time.sleep(draw.moment)  # a random moment is what is tested
    state = f"{run.state('source')}/{run.state('destination')}"
    told = f"seed {draw.seed}: {draw.kind}, {draw.workload}, address {draw.with_address}, "
    told += f"{draw.wanted} + {draw.moment:.2f} s ({state})"
    try:
        end = the_end(draw, run, aftermath, tmp)
        if end.where:
            client = draw.with_address if end.client else None
            aftermath.check(end.where, client=client, resolved=False)
        else:
            aftermath.check_nowhere()
    except AssertionError as error:
        note(draw, state, "", "VIOLATION")
        if TABLE:  # a campaign of an hour may be broken off
            Path(f"{TABLE}.{draw.seed}").write_text(f"{told}: {error}\n", encoding="utf-8")
        raise AssertionError(f"{told}: {error}") from None
    print(f"{told}: {end}")
    note(draw, state, end.fault, end.outcome)


def the_end(draw: Draw, run: Guarded, aftermath: Aftermath, tmp: Path) -> End:
    if draw.of_a_node:
        return outage(run, aftermath, draw.chance, tmp)
    fault = strike(run, draw.chance)
    wait_for(f"the end after {fault}", lambda: ended(run) or None, 90)
    return End(fault, "destination" if run.state("source") == "done" else "source")


def note(draw: Draw, *values: Any) -> None:
    if TABLE:
        with Path(TABLE).open("a", encoding="utf-8") as out:
            out.write(json.dumps([draw.seed, draw.kind, draw.workload, *values]) + "\n")
