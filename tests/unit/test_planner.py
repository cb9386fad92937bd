"""The planner: numbers that can be checked by hand, and what has to hold whatever the numbers are."""

from __future__ import annotations

import itertools
import random

import pytest

from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate.iteration import MARGIN, PAGE, Round, Sample
from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate.planner import (
    FULL,
    FULL_LAZY,
    HYBRID,
    NEVER,
    POSTCOPY,
    PRECOPY,
    PRECOPY_LAZY,
    STRATEGIES,
    Costs,
    Load,
    Phase,
    Strategy,
    Wish,
    estimate,
)
from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate.planner_choice import (
    choose,
    measured,
    possible,
    replan,
    slower,
)
from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate.planner_evacuation import (
    Evacuation,
    Process,
    evacuation,
    place,
    play,
    shares,
)

MB = 1e6
# Round numbers: 100 MB/s for everything, no time for anything else.
PLAIN = Costs(
    bandwidth=100 * MB, fill_tls=50 * MB, fill_none=100 * MB, fill_local=1000 * MB, preparation=4, cleaning=1,
    freeze=0, dump=0, pipe=0, images=0, eager=0, eager_byte=0, lazy=0, handover=0, lead=0, reserve_byte=0,
    cleaning_byte=0,
)  # fmt: skip
EAGER = (FULL, FULL_LAZY, PRECOPY, PRECOPY_LAZY)


def test_full_by_hand() -> None:
    costs = PLAIN._replace(freeze=0.1, dump=0.2, pipe=1e-9, images=0.3, eager=0.4, eager_byte=2e-9, handover=0.5)
    plan = estimate(FULL, Load(500 * MB), costs)
    # frozen: 0.1 + 0.2 + 0.5 (pipes), 5 s on the link, 0.3, 0.4 + 1.0 (restore), 0.5
    assert plan.downtime == pytest.approx(8.0)
    assert plan.seconds == pytest.approx(4 + 8 + 1)
    assert (plan.bytes, plan.rounds, plan.stop) == (500 * MB, (), None)


def test_lazy_restore_shortens_the_downtime_by_the_reading_and_lengthens_the_whole_by_the_fill() -> None:
    costs = PLAIN._replace(eager_byte=2e-9)
    eager, lazily = (estimate(strategy, Load(500 * MB), costs) for strategy in (FULL, FULL_LAZY))
    assert eager.downtime - lazily.downtime == pytest.approx(1.0)
    assert lazily.seconds - lazily.downtime == pytest.approx(4 + 0.5 + 1)


def test_postcopy_ends_when_the_last_page_has_come() -> None:
    plan = estimate(POSTCOPY, Load(500 * MB), PLAIN._replace(lazy=0.2))
    assert plan.downtime == pytest.approx(0.2)
    assert plan.seconds == pytest.approx(4 + 0.2 + 500 / 50 + 1)
    assert estimate(POSTCOPY, Load(500 * MB), PLAIN, "none").seconds == pytest.approx(4 + 500 / 100 + 1)


def test_precopy_by_hand() -> None:
    # 500, then 100 (20 MB/s for 5 s), then 20, then 4 MB are written to: 0.04 s meets 0.3, but so does 20 MB: 0.2 s
    plan = estimate(PRECOPY, Load(500 * MB, 20 * MB), PLAIN)
    assert [round(one.written / MB) for one in plan.rounds] == [500, 100]
    assert (plan.stop, round(plan.downtime, 3), round(plan.bytes / MB)) == ("target", 0.2, 620)
    assert plan.seconds == pytest.approx(4 + 5 + 1 + 0.2 + 1)


def test_a_working_set_is_the_most_that_is_left() -> None:
    plan = estimate(PRECOPY, Load(500 * MB, 90 * MB, 50 * MB), PLAIN)
    # the second round moves all 50 MB, for 0.5 s, in which 45 are written again; so would every other
    assert plan.downtime == pytest.approx(0.45)
    assert plan.stop == "not_falling"


def test_hybrid_leaves_only_the_rest_to_follow() -> None:
    plan = estimate(HYBRID, Load(500 * MB, 20 * MB), PLAIN)
    # 100 MB are left after the first round; the others lie on the destination already
    assert (len(plan.rounds), plan.downtime) == (1, 0.0)
    assert plan.seconds == pytest.approx(4 + 5 + 100 / 50 + 400 / 1000 + 1)


@pytest.mark.parametrize("strategy", [PRECOPY, PRECOPY_LAZY])
def test_a_writer_quicker_than_the_link_gets_no_round(strategy: Strategy) -> None:
    plan = estimate(strategy, Load(500 * MB, 200 * MB), PLAIN)
    stopped = estimate(Strategy("full", strategy.lazy_restore), Load(500 * MB), PLAIN)
    assert (plan.stop, plan.rounds) == ("not_falling", ())
    assert (plan.downtime, plan.seconds) == (stopped.downtime, stopped.seconds)


def test_rounds_end_where_the_deadline_leaves_none() -> None:
    free, held = (estimate(PRECOPY, Load(500 * MB, 50 * MB), PLAIN, wish=Wish(left=left)) for left in (None, 12.0))
    assert free.stop == "target" and held.stop == "deadline"
    assert held.seconds <= 12.0 < free.seconds
    assert len(held.rounds) < len(free.rounds)


@pytest.mark.parametrize("load, costs, text", [
    (Load(0), PLAIN, "memory"), (Load(NEVER), PLAIN, "memory"), (Load(1, -1), PLAIN, "dirty rate"),
    (Load(1), PLAIN._replace(bandwidth=0), "bandwidth"), (Load(1), PLAIN._replace(lead=-1), "lead"),
])  # fmt: skip
def test_numbers_that_cannot_be_are_named(load: Load, costs: Costs, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        estimate(FULL, load, costs)


def test_an_unknown_encryption_is_named() -> None:
    with pytest.raises(ValueError, match="'ssh' is none of"):
        estimate(FULL, Load(1), PLAIN, "ssh")


def random_cases() -> list[tuple[Load, Costs, float]]:
    dice = random.Random(5)  # noqa: S311 - the same cases in every run
    return [
        (
            Load(10 ** dice.uniform(7, 10), 10 ** dice.uniform(5, 9.5), 10 ** dice.uniform(6, 10)),
            Costs(bandwidth=10 ** dice.uniform(6.5, 10)),
            dice.uniform(8, 130),
        )
        for _ in range(150)
    ]


@pytest.mark.parametrize("allowed", [EAGER, STRATEGIES, (FULL,)])
def test_never_one_that_misses_where_a_rejected_one_would_meet(allowed: tuple[Strategy, ...]) -> None:
    met = 0
    for load, costs, left in random_cases():
        found = choose(load, costs, Wish(left=left), allowed, ("tls", "none"))
        every = (found.taken, *found.rejected)
        assert len(every) == 2 * len(allowed)
        assert found.fits == any(one.seconds <= left for one in every) == (found.taken.seconds <= left)
        safe = [one for one in every if one.seconds * MARGIN <= left]
        if safe:  # within the margin the downtime decides, of those with the first encryption that does
            met += 1
            assert found.taken in safe
            same = [one for one in safe if one.encryption == found.taken.encryption]
            shortest = min(one.downtime for one in same)
            assert found.taken.downtime <= max(1.1 * shortest, shortest + 0.02)
            assert found.taken.encryption == "tls" or not any(one.encryption == "tls" for one in safe)
    assert 20 < met < 150


def test_more_bandwidth_is_never_worse() -> None:
    for load, costs, _left in random_cases():
        for strategy in (FULL, FULL_LAZY, POSTCOPY):
            slow, quick = (estimate(strategy, load, costs._replace(bandwidth=rate)) for rate in (50 * MB, 100 * MB))
            assert quick.seconds <= slow.seconds and quick.downtime <= slow.downtime


def test_pre_copy_never_waits_longer_than_stop_and_copy() -> None:
    for load, costs, _left in random_cases():
        assert estimate(PRECOPY, load, costs).downtime <= estimate(FULL, load, costs).downtime * 1.0001


def test_what_does_not_fit_says_what_would() -> None:
    # 4 + 40 + 1 s at 0.8 Gbit/s; of 30 s 25 are left for 4,000 MB: 160 MB/s
    found = choose(Load(4000 * MB), PLAIN, Wish(left=30), (FULL,))
    assert not found.fits
    assert found.reason == "needs 45 s at 0.8 Gbit/s, 30 s left; 1.3 Gbit/s would do"
    assert choose(Load(4000 * MB), PLAIN._replace(bandwidth=1.3e9 / 8), Wish(left=30), (FULL,)).fits
    assert choose(Load(4000 * MB), PLAIN._replace(tls=100 * MB), Wish(left=30), (FULL,)).reason.endswith(
        "no link would do"
    )


def test_encryption_is_given_up_only_where_the_deadline_needs_it() -> None:
    costs = PLAIN._replace(bandwidth=NEVER, tls=100 * MB, none=200 * MB)
    late, early = (choose(Load(2000 * MB), costs, Wish(left=left), (FULL,), ("tls", "none")) for left in (60, 20))
    assert (late.taken.encryption, early.taken.encryption) == ("tls", "none")
    assert "fits only with none" in early.reason
    assert choose(Load(2000 * MB), costs, Wish(left=20), (FULL,), ("tls",)).fits is False


def test_without_a_deadline_the_downtime_decides_and_postcopy_is_asked_for() -> None:
    load = Load(2000 * MB, 500 * MB)
    assert choose(load, Costs(bandwidth=125 * MB), Wish(), EAGER).taken.strategy == FULL_LAZY
    assert choose(load, Costs(bandwidth=125 * MB), Wish(), STRATEGIES).taken.strategy == POSTCOPY


def test_postcopy_counts_only_when_its_last_page_comes_in_time() -> None:
    found = choose(Load(1000 * MB), PLAIN, Wish(left=20), (FULL, POSTCOPY))
    assert found.taken.strategy == FULL  # 15 s; post-copy would need 25
    assert choose(Load(1000 * MB), PLAIN, Wish(left=40), (FULL, POSTCOPY)).taken.strategy == POSTCOPY


def test_choosing_from_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="no strategy"):
        choose(Load(1), PLAIN, Wish(), ())


@pytest.mark.parametrize("soft, lazy, user, twice, accepted", list(itertools.product([False, True], repeat=5)))
def test_only_what_the_nodes_can_do(soft: bool, lazy: bool, user: bool, twice: bool, accepted: bool) -> None:
    found = possible(soft_dirty=soft, lazy_local=lazy, userfaultfd=user, twice=twice, accepted=accepted)
    assert FULL in found
    assert (PRECOPY in found) == soft and (FULL_LAZY in found) == (lazy and twice)
    assert (POSTCOPY in found) == (accepted and user and twice) and (HYBRID in found) == (POSTCOPY in found and soft)


def moved(size: float, seconds: float) -> Round:
    return Round(seconds, round(size), round(size / PAGE))


def test_a_link_that_is_slower_than_thought_ends_the_rounds() -> None:
    load, wish = Load(500 * MB, 20 * MB), Wish(left=25.0)
    plan = choose(load, PLAIN, wish, EAGER).taken
    assert plan.strategy.iterates and len(plan.rounds) == 2
    first = moved(500 * MB, 15.0)  # a third of the speed
    assert slower([first], plan.rounds) and not slower([moved(500 * MB, 5.2)], plan.rounds)
    again = replan(load, PLAIN, Wish(left=25.0 - 4 - 15), [first], EAGER, "tls")
    # 300 MB are left at 33 MB/s: 9 s whatever is done, 6 are left; going on would be later still
    assert not again.fits and again.taken.rounds == (first,)
    assert again.reason.startswith("needs 10 s at 0.27 Gbit/s, 6 s left")
    assert all(again.taken.seconds <= other.seconds for other in again.rejected)


def test_a_round_as_planned_goes_on_as_planned() -> None:
    load = Load(500 * MB, 20 * MB)
    again = replan(load, PLAIN, Wish(left=20.0), [moved(500 * MB, 5.0)], EAGER, "tls")
    assert again.fits and len(again.taken.rounds) == 2
    assert again.taken.downtime == pytest.approx(0.2, abs=0.01)


def test_measured_dirtying_is_believed_more_than_what_was_thought() -> None:
    done = [moved(500 * MB, 5.0), moved(480 * MB, 4.8)]
    again = replan(Load(500 * MB, 1 * MB), PLAIN, Wish(left=60.0), done, EAGER, "tls")
    assert again.taken.rounds == tuple(done)
    assert again.taken.downtime > 4


def test_a_program_of_which_nothing_is_known_gets_a_second_round() -> None:
    done = [moved(500 * MB, 5.0)]
    again = replan(Load(500 * MB), PLAIN, Wish(left=60.0), done, EAGER, "tls")
    assert len(again.taken.rounds) == 2
    # with 1 s left there is no time to find out
    assert replan(Load(500 * MB), PLAIN, Wish(left=1.0), done, EAGER, "tls").taken.rounds == tuple(done)


def test_probes_are_believed_more_than_a_rate() -> None:
    quick = Load(500 * MB, 1 * MB, probes=(Sample(0.5, 100 * MB), Sample(1.5, 290 * MB)))
    assert estimate(PRECOPY, quick, PLAIN).rounds == ()
    assert estimate(PRECOPY, quick._replace(probes=()), PLAIN).downtime < 0.1
    assert choose(quick, PLAIN, Wish(), EAGER).taken.strategy == FULL


def test_replanning_needs_a_round() -> None:
    with pytest.raises(ValueError, match="after a round"):
        replan(Load(1), PLAIN, Wish(), [], EAGER, "tls")
    with pytest.raises(ValueError, match="after a round"):
        replan(Load(1), PLAIN, Wish(), [moved(1, 1)], (FULL,), "tls")


def test_measured_bandwidth_replaces_all_caps() -> None:
    assert measured(PLAIN, [moved(300 * MB, 2.0)]).carries("tls") == pytest.approx(150 * MB, rel=1e-4)
    assert measured(PLAIN, []) == PLAIN


def test_shares_of_a_link() -> None:
    assert shares({1: NEVER, 2: NEVER}, 100) == {1: 50, 2: 50}
    assert shares({1: 10, 2: NEVER, 3: NEVER}, 100) == {1: 10, 2: 45, 3: 45}
    assert shares({1: 10, 2: 20}, NEVER) == {1: 10, 2: 20}
    assert shares({}, 100) == {}


def test_two_jobs_share_the_link_only_while_both_move() -> None:
    jobs = [[Phase("a", 1, 100), Phase("b", 2)], [Phase("a", 0, 300, frozen=True)]]
    played, busy = play(jobs, 100, at_once=2)
    # 1 s alone (100 of the second), both at 50 for 2 s, the rest of 100 alone: 4 s
    assert [one.ends for one in played] == [5, 4]
    assert [one.downtime for one in played] == [0, 4]
    assert busy == pytest.approx(1.0)
    played, busy = play(jobs, 100, at_once=1)
    assert [one.ends for one in played] == [4, 7] and busy == pytest.approx(400 / 600)


def test_a_job_starts_no_earlier_than_it_is_ready() -> None:
    played, _busy = play([[Phase("a", 1)], [Phase("a", 1)], [Phase("a", 1)]], 100, 2, ready=[2, 2.5, 7])
    assert [one.ends for one in played] == [3, 3.5, 8]


ONE_GBIT = PLAIN._replace(bandwidth=125 * MB)


def names(found: Evacuation) -> list[str]:
    return [fate.name for fate in found.fates if fate.saved]


def test_ten_of_256_mb_leave_within_a_gcp_notice() -> None:
    some = [Process(f"p{number}", Load(256 * MB)) for number in range(10)]
    found = evacuation(some, {"b": 4e9, "c": 4e9}, Costs(bandwidth=125 * MB), 30, each=0.5)
    assert len(names(found)) == 10
    assert found.busy >= 0.8 and found.at_once >= 2
    assert {fate.destination for fate in found.fates} == {"b", "c"}


def test_the_shortest_first_saves_the_most() -> None:
    some = [Process("large", Load(2500 * MB)), *(Process(f"s{number}", Load(500 * MB)) for number in range(4))]
    found = evacuation(some, {"b": 99e9}, ONE_GBIT, 30)
    assert names(found) == ["s0", "s1", "s2", "s3"]
    assert [fate.seconds for fate in found.fates[:1]] == [pytest.approx(4 + 4 + 1, abs=0.6)]
    assert "30 s left" in found.fates[-1].reason


def test_a_higher_priority_is_not_given_up_for_two_lower_ones() -> None:
    some = [Process("dear", Load(2000 * MB), 1), Process("a", Load(900 * MB)), Process("b", Load(900 * MB))]
    found = evacuation(some, {"b": 99e9}, ONE_GBIT, 26)
    assert names(found) == ["dear"]
    assert sorted(names(evacuation([one._replace(priority=0) for one in some], {"b": 99e9}, ONE_GBIT, 26))) == [
        "a",
        "b",
    ]


def test_nobody_can_save_more_than_is_saved() -> None:
    dice = random.Random(7)  # noqa: S311
    for _ in range(20):
        some = [Process(str(number), Load(dice.uniform(50, 900) * MB)) for number in range(6)]
        found = evacuation(some, {"b": 99e9}, ONE_GBIT, 18, strategies=(FULL,))
        best = max(
            len(group)
            for count in range(7)
            for group in itertools.combinations(some, count)
            if 4 + sum(one.load.memory for one in group) / ONE_GBIT.bandwidth + (1 if group else 0) <= 18
        )  # the link never idle: no plan can beat that
        assert len(names(found)) == best


def test_memory_of_the_nodes_is_a_limit_and_packing_takes_in_more() -> None:
    some = [Process("a", Load(100)), Process("b", Load(100)), Process("c", Load(700))]
    # spread, a and b would go to y, which has the most room, and leave too little for c and its images
    assert place(some, {"x": 400, "y": 1500}, 1) == {"a": "x", "b": "x", "c": "y"}
    assert set(place(some[:2], {"x": 800, "y": 750}, 1).values()) == {"x", "y"}
    assert place(some, {"x": 300, "y": 1400}, 1)["c"] == "y"
    assert "c" not in place(some, {"x": 1399}, 1)
    found = evacuation([Process("a", Load(100 * MB)), Process("c", Load(700 * MB))], {"x": 1399 * MB}, ONE_GBIT, 99)
    assert names(found) == ["a"] and "no node has 1400 MB left" in found.fates[-1].reason


def test_pre_copy_where_there_is_time_for_all_of_it() -> None:
    some = [Process(str(number), Load(200 * MB, 5 * MB)) for number in range(3)]
    slow, quick = (evacuation(some, {"b": 9e9}, ONE_GBIT, limit, EAGER) for limit in (120, 11))
    assert slow.strategy.iterates and names(slow) == names(quick)
    assert sum(fate.downtime or 0 for fate in slow.fates) < sum(fate.downtime or 0 for fate in quick.fates)


def test_an_evacuation_of_nothing_or_of_twins_is_refused() -> None:
    with pytest.raises(ValueError, match="different names"):
        evacuation([], {}, PLAIN, 30)
    with pytest.raises(ValueError, match="different names"):
        evacuation([Process("a", Load(1)), Process("a", Load(1))], {}, PLAIN, 30)
