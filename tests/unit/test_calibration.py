"""Costs that are taken from recorded migrations, and how far off predictions from them are."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate import calibration
from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate.calibration import (
    Measured,
    costs_of,
    line,
    read,
)
from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate.iteration import Round
from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate.planner import (
    FULL,
    FULL_LAZY,
    POSTCOPY,
    PRECOPY,
    Costs,
    Load,
    Strategy,
    estimate,
)
from tests.conftest import ROOT

RUNS = ROOT / "tests" / "unit" / "data" / "runs"
MB = 1e6
# None of these is a default, so that what is found again was found.
TRUE = Costs(
    tls=700 * MB, none=900 * MB, rsync=300 * MB, freeze=0.01, dump=0.11, pipe=0.2e-9, images=0.06, eager=0.07,
    eager_byte=1.1e-9, lazy=0.09, handover=0.02, fill_tls=150 * MB, fill_none=400 * MB, fill_local=2500 * MB,
    preparation=11, cleaning=0.2, cleaning_byte=0.3e-9,
)  # fmt: skip


def metrics(name: str) -> dict[str, Any]:
    return dict(json.loads((RUNS / name / "metrics.json").read_text(encoding="utf-8")))


def made(strategy: Strategy, size: float, encryption: str = "tls", costs: Costs = TRUE, nodes: str = "ab") -> Measured:
    """A run as the model itself would take it."""
    plan = estimate(strategy, Load(size), costs, encryption)
    phases = {phase.name: phase.lasts(costs.bandwidth) for phase in plan.phases}
    moving = size / costs.cap(encryption) if not strategy.follows else 0.0
    late = moving if encryption == "rsync" else 0.0
    lazily = strategy.follows or strategy.lazy_restore
    return Measured(
        name="made", nodes=frozenset(nodes), strategy=strategy, encryption=encryption, bytes=size,
        downtime=plan.downtime, used=plan.seconds, preparation=phases["preparation"], freeze=costs.freeze,
        dump=costs.dump + costs.pipe * size + moving - late, transfer=costs.images + late,
        restore=costs.lazy if lazily else costs.eager + costs.eager_byte * size, handover=costs.handover,
        fill=phases.get("fill"), after=phases.get("fill", 0.0) + phases["cleaning"],
    )  # fmt: skip


def test_a_model_is_found_again_in_what_it_made() -> None:
    ways = [(FULL, "tls"), (FULL, "none"), (FULL, "rsync"), (FULL_LAZY, "tls"), (POSTCOPY, "tls"), (POSTCOPY, "none")]
    runs = [made(strategy, size * MB, way) for strategy, way in ways for size in (100, 200, 400, 800)]
    found = costs_of(runs)
    for name, value in TRUE._asdict().items():
        assert getattr(found, name) == pytest.approx(value, rel=1e-6), name
    assert all(one.downtime_error < 1e-6 and (one.seconds_error or 0) < 1e-6 for one in calibration.predict(runs))


def test_one_bad_run_moves_nothing() -> None:
    runs = [made(FULL, size * MB) for size in (100, 200, 300, 400, 600, 800)]
    bad = runs[2]._replace(dump=40.0, restore=50.0, downtime=95.0, preparation=200.0)
    plan, true = (estimate(FULL, Load(500 * MB), costs_of(some)) for some in ([*runs[:2], bad, *runs[3:]], runs))
    assert plan.downtime == pytest.approx(true.downtime, rel=0.05)
    assert plan.seconds == pytest.approx(true.seconds, rel=0.05)


def test_runs_of_one_size_stretch_the_default_line() -> None:
    assert line([], 1.0, 2.0) == (1.0, 2.0)
    assert line([(10, 42)] * 5, 1.0, 2.0) == (2.0, 4.0)  # the default would be 21 there
    assert line([(10, 21), (20, 31), (40, 51)], 1.0, 2.0) == (11, 1)
    assert line([(10, 40), (20, 30), (40, 10)], 1.0, 2.0)[1] == 0


def test_what_no_run_shows_stays_as_it_was() -> None:
    found = costs_of([made(FULL, 500 * MB)])
    base = Costs()
    for name in ("none", "rsync", "fill_tls", "fill_none", "fill_local", "dump", "pipe", "lazy", "lead"):
        assert getattr(found, name) == getattr(base, name), name
    assert found.tls != base.tls
    assert costs_of([]) == base


def test_only_runs_of_the_same_nodes_count_whichever_way_they_went() -> None:
    slow = TRUE._replace(tls=70 * MB)
    runs = [made(FULL, size * MB, costs=slow, nodes="cd") for size in (100, 200, 400)]
    one, lonely = made(FULL, 300 * MB, nodes="ba"), made(FULL, 300 * MB, nodes="ef")
    other = made(FULL, 300 * MB, nodes="ab")
    found = calibration.predict([one, other, lonely, *runs])
    assert [prediction.runs for prediction in found] == [1, 1, 0, 2, 2, 2]
    assert found[0].downtime_error < 0.01
    assert found[2].downtime == estimate(FULL, Load(300 * MB), Costs()).downtime


def test_a_real_run_is_read() -> None:
    found = read(metrics("memory_20261121_074229"))
    assert found is not None
    raw = metrics("memory_20261121_074229")
    assert found.bytes == raw["transfer"]["bytes"] and found.downtime == raw["downtime"]["frozen"]
    assert found.fill == raw["lazy"]["seconds"] and found.used == raw["deadlines"]["aws"]["used"]


@pytest.mark.parametrize("name", ["redis_20261121_035059_failed", "redis_20261121_035141_exception"])
def test_what_has_not_moved_says_nothing(name: str) -> None:
    assert read(metrics(name)) is None


@pytest.mark.parametrize("name", sorted(path.name for path in RUNS.iterdir()))
def test_any_section_may_be_missing(name: str) -> None:
    for section in [*metrics(name), None]:
        found = read({key: value for key, value in metrics(name).items() if key != section})
        if found:
            calibration.predict([found, found])


def test_rounds_of_a_recorded_pre_copy_are_taken_as_they_were() -> None:
    raw = metrics("redis_20261121_054636")
    pages = 25600
    raw["strategy"], raw["lazy_restore"] = "precopy", False
    raw["pre_dumps"] = [
        {"seconds": 2.0, "bytes": 4 * pages * 4096, "pages_written": 4 * pages},
        {"seconds": 0.5, "bytes": pages * 4096, "pages_written": pages},
    ]
    found = read(raw)
    assert found is not None
    assert found.strategy == PRECOPY and found.bytes == 4 * pages * 4096
    assert found.preparation == pytest.approx(raw["times"]["preparation"] - 2.5)
    predicted = calibration.predict([found])[0]
    # a quarter of the pages in 2 s; in the 0.5 s that followed between a sixteenth and a quarter of them
    least, most = (
        estimate(FULL, Load(found.bytes), Costs()).downtime
        - (1 - part) * found.bytes * (1 / Costs().tls + Costs().pipe)
        for part in (1 / 16, 1 / 4)
    )
    assert least <= predicted.downtime <= most
    assert predicted.seconds > 2.5 + Costs().preparation


def pre_copied(**changes: Any) -> dict[str, Any]:
    """A run as pre-copy records it now: two rounds with a pause between them, 4 s from the first look to the freeze."""
    raw = metrics("redis_20261121_054636")
    pages = 25600
    raw.update(strategy="precopy", lazy_restore=True)
    raw["pre_dumps"] = [
        {"seconds": 2.0, "bytes": 4 * pages * 4096, "pages_written": 4 * pages, "predicted_downtime": 1.0},
        {"seconds": 0.5, "bytes": pages * 4096, "pages_written": pages, "predicted_downtime": 0.4},
    ]
    frozen = raw["downtime"]["frozen"]
    raw["marks"]["iterating"] = raw["marks"]["stopping"] - 4.0
    raw["prediction"] = {"downtime": 1.5 * frozen, "actual": frozen, "error": 0.5}
    return {**raw, **changes}


def test_what_a_guard_had_predicted_is_compared_as_well() -> None:
    found = read(pre_copied())
    assert found is not None and len(found.rounds) == 2
    assert calibration.predict([found])[0].guard_error == pytest.approx(0.5)
    plain = read(metrics("redis_20261121_054636"))
    assert plain is not None and calibration.predict([plain])[0].guard_error is None


def test_pauses_and_looks_between_rounds_are_no_preparation() -> None:
    raw = pre_copied()
    found = read(raw)
    assert found is not None
    assert found.preparation == pytest.approx(raw["times"]["preparation"] - 4.0)
    without = found._replace(iterated=0.0)
    predicted, other = (calibration.predict([one])[0] for one in (found, without))
    assert predicted.seconds - other.seconds == pytest.approx(4.0)


def test_rounds_that_were_lost_are_time_and_no_rounds() -> None:
    found = read(pre_copied(prediction={"downtime": None, "actual": None, "error": None}))
    assert found is not None
    assert found.rounds == () and found.iterated == pytest.approx(4.0)
    assert found.bytes == pre_copied()["transfer"]["bytes"]


def test_what_a_round_costs_in_which_nothing_moves_is_found() -> None:
    found = read(pre_copied())
    assert found is not None
    sizes = (100 * MB, 200 * MB, 400 * MB)
    rounds = tuple(Round(0.25 + size / (500 * MB), int(size), int(size) // 4096) for size in sizes)
    assert costs_of([found._replace(rounds=rounds)]).lead == pytest.approx(0.25)
