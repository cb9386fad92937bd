"""When pre-copy stops: simulated programs with known dirtying, and numbers that can be checked by hand."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate.iteration import (
    PAGE,
    PROBES,
    Round,
    Sample,
    Terms,
    bandwidth,
    dirtied,
    phaul_reason,
    samples,
    stop_reason,
)

MB = 1 << 20
LINK = 100.0 * MB  # bytes/s
WHOLE = 500.0 * MB
TERMS = Terms(LINK, fixed=0.1, whole=WHOLE, lead=0.05)


def moved(size: float, waited: float = 0.0, slower: float = 1.0) -> Round:
    """A round that moves so many bytes over the link."""
    return Round(TERMS.lead + slower * size / LINK, round(size), round(size / PAGE), waited)


def run(dirty: Callable[[float], float], terms: Terms = TERMS, noise: Callable[[int], float] = lambda number: 1.0
        ) -> tuple[str, list[Round], float]:  # fmt: skip
    """Rounds until the rule stops them; noise multiplies what round number i finds. Returns also the true downtime."""
    rounds = [moved(terms.whole)]
    while True:
        reason, _predicted = stop_reason(rounds, terms)
        left = min(terms.whole, dirty(rounds[-1].seconds))
        if reason:
            return reason, rounds, terms.fixed + left / LINK
        rounds.append(moved(min(terms.whole, left * noise(len(rounds)))))


def evenly(rate: float) -> Callable[[float], float]:
    """Writes spread over all of the memory."""
    return lambda seconds: WHOLE * -math.expm1(-rate * seconds / WHOLE)


def hot(size: float) -> Callable[[float], float]:
    """A working set that is written to all the time."""
    return lambda seconds: size if seconds > 0.01 else 0.0


def test_one_round_and_no_probe_predict_the_worst_and_go_on() -> None:
    reason, predicted = stop_reason([moved(WHOLE)], TERMS)
    assert reason is None
    assert predicted == pytest.approx(0.1 + 5)


def test_prediction_by_hand() -> None:
    # 100 MB in a window of 5.05 s, then in one of 2.525 s half of it: slope 1, the next window of 1.2625 s has 25 MB.
    rounds = [Round(5.05, int(WHOLE), 128000), Round(2.525, 100 * MB, 25600), Round(1.2625, 50 * MB, 12800)]
    reason, predicted = stop_reason(rounds, TERMS._replace(target=0.36, whole=1000 * WHOLE))
    assert (reason, round(predicted, 3)) == ("target", 0.35)


def test_an_idle_program_stops_after_the_second_round() -> None:
    reason, rounds, downtime = run(lambda seconds: 0.0)
    assert (reason, len(rounds)) == ("target", 2)
    assert downtime <= TERMS.target


@pytest.mark.parametrize("rate", [5, 20, 40, 60])
def test_a_slow_writer_meets_the_target(rate: int) -> None:
    reason, rounds, downtime = run(evenly(rate * MB))
    assert reason == "target"
    assert len(rounds) <= 8
    assert downtime <= TERMS.target * 1.2


@pytest.mark.parametrize("rate", [200, 400, 10000])
def test_a_writer_quicker_than_the_link_stops_at_the_first_sample(rate: int) -> None:
    for dirty in (evenly(rate * MB), lambda seconds: rate * MB * seconds):
        reason, rounds, _downtime = run(dirty)
        assert (reason, len(rounds)) == ("not_falling", 2)


def test_a_working_set_stops_once_two_short_windows_agree() -> None:
    reason, rounds, downtime = run(hot(80 * MB))  # after the third round it might as well be noise
    assert (reason, len(rounds)) == ("not_falling", 4)
    assert downtime == pytest.approx(0.1 + 0.8)


@pytest.mark.parametrize("factor", [0.2, 3, 6])
@pytest.mark.parametrize("which", [2, 3])
def test_one_noisy_round_does_not_stop_a_falling_row(which: int, factor: float) -> None:
    reason, _rounds, downtime = run(evenly(40 * MB), noise=lambda number: factor if number == which else 1.0)
    assert reason == "target"
    assert downtime <= 0.6


def test_a_program_that_becomes_quick_for_good_stops_after_the_second_sign() -> None:
    rounds = [moved(WHOLE), moved(150 * MB), moved(300 * MB)]  # the third: 200 MB/s
    assert stop_reason(rounds, TERMS)[0] is None
    assert stop_reason([*rounds, moved(WHOLE)], TERMS)[0] == "not_falling"


def test_the_number_of_rounds_is_a_limit() -> None:
    reason, rounds, _downtime = run(evenly(60 * MB), TERMS._replace(most=3))
    assert (reason, len(rounds)) == ("rounds", 3)


def test_fixed_rounds_look_at_nothing_but_their_number() -> None:
    fixed = TERMS._replace(target=0.0, gain=None, most=5)
    reason, rounds, _downtime = run(hot(400 * MB), fixed)
    assert (reason, len(rounds)) == ("rounds", 5)


def test_a_deadline_leaves_no_round() -> None:
    rounds = [moved(WHOLE), moved(200 * MB)]  # 40 MB/s seen: about 80 MB now, and so 1 s for the next round
    assert stop_reason(rounds, TERMS._replace(left=10.0))[0] is None
    assert stop_reason(rounds, TERMS._replace(left=1.0))[0] == "deadline"
    assert stop_reason(rounds, TERMS._replace(left=10.0, after=9.0))[0] == "deadline"


@pytest.mark.parametrize("rate", [30, 60, 90, 300])
@pytest.mark.parametrize("limit", [12, 16, 20, 30])
def test_a_deadline_that_can_be_met_is_met(rate: int, limit: int) -> None:
    terms, rounds = TERMS._replace(target=0.0, gain=None, most=99), [moved(WHOLE)]
    while True:
        left = limit - sum(one.seconds for one in rounds)
        dirty = evenly(rate * MB)(rounds[-1].seconds)
        if stop_reason(rounds, terms._replace(left=left))[0]:
            break
        rounds.append(moved(dirty))
    assert terms.fixed + dirty / LINK <= left
    assert left < limit


def test_probes_say_before_the_first_round_that_none_is_worth_it() -> None:
    quick = [Sample(0.1, 40.0 * MB), Sample(0.5, 190.0 * MB)]
    small = [Sample(0.1, 40.0 * MB), Sample(0.5, 42.0 * MB)]
    for probes, reason in ((quick, "not_falling"), (small, None), ([], None)):
        found, predicted = stop_reason([], TERMS, probes)
        assert found == reason
        assert predicted == pytest.approx(5.1)


@pytest.mark.parametrize("rate", [20, 60, 200, 2000])
def test_probes_of_the_usual_length_tell_writers_from_working_sets(rate: int) -> None:
    windows = [part * WHOLE / LINK for part in PROBES]
    written = [Sample(seconds, evenly(rate * MB)(seconds)) for seconds in windows]
    assert (stop_reason([], TERMS, written)[0] == "not_falling") == (rate > 100)
    assert stop_reason([], TERMS, [Sample(seconds, hot(rate * MB / 20)(seconds)) for seconds in windows])[0] is None


def test_a_hybrid_pays_less_for_each_byte_left() -> None:
    rounds = [moved(WHOLE), moved(WHOLE)]
    reason, predicted = stop_reason(rounds, TERMS._replace(per_byte=0.1 / (1 << 30)))
    assert reason == "target"
    assert predicted == pytest.approx(0.1 + 0.1 * WHOLE / (1 << 30), rel=0.01)


@pytest.mark.parametrize(
    ("pages", "reason"),
    [
        ([], None),
        ([5000], None),
        ([63], "few_pages"),
        ([5000, 64], None),
        ([5000, 63], "few_pages"),
        ([5000, 600, 631], None),
        ([5000, 600, 632], "more_pages"),
        ([9000, 8000, 7000, 6000, 5000, 4000, 3000, 2000], "rounds"),
    ],
)
def test_the_rule_of_go_criu(pages: list[int], reason: str | None) -> None:
    assert phaul_reason([Round(1.0, number * PAGE, number) for number in pages]) == reason


def test_waiting_lengthens_the_window() -> None:
    rounds = [Round(5.0, 1, 100, waited=10.0), Round(1.0, 1, 50)]
    assert samples(rounds) == [Sample(15.0, 50.0 * PAGE)]


def test_dirtied_never_exceeds_memory_and_never_shrinks_with_time() -> None:
    seen = [Sample(1.0, 100.0 * MB), Sample(4.0, 350.0 * MB), Sample(0.2, 30.0 * MB)]
    guesses = [dirtied(seen[:count], seconds, WHOLE) for count in (1, 2, 3) for seconds in (0, 0.1, 1, 9, 999)]
    assert all(0 <= guess <= WHOLE for guess in guesses)
    assert all(guesses[row * 5 : row * 5 + 5] == sorted(guesses[row * 5 : row * 5 + 5]) for row in range(3))
    assert dirtied([], 1.0, WHOLE) == WHOLE


def test_bandwidth_is_that_of_rounds_that_tell() -> None:
    assert bandwidth([]) is None
    assert bandwidth([Round(1.0, 0, 0)]) is None
    # The second waited for something else, the last moved next to nothing.
    rounds = [Round(5.0, 500, 1), Round(9.0, 200, 1), Round(1.0, 100, 1), Round(0.5, 2, 1)]
    assert bandwidth(rounds) == pytest.approx(100)
    assert bandwidth([Round(5.0, 500, 1)], lead=1.0) == pytest.approx(125)


@pytest.mark.parametrize("terms", [TERMS._replace(bandwidth=0), TERMS._replace(whole=0)])
def test_numbers_that_say_nothing_are_refused(terms: Terms) -> None:
    with pytest.raises(ValueError, match="above 0"):
        stop_reason([], terms)


def test_a_small_working_set_is_told_from_a_quick_writer_over_a_slow_link() -> None:
    """Two virtual machines over TLS: in 0.4 s it had written to all that it writes to in a second; a round takes 75.

    The brighter view took the steeper slope, by which all memory is written to in that time, and no round was made.
    """
    terms = Terms(9.4e6, fixed=3.0, whole=712e6, lead=2.0)
    probes = [Sample(0.38, 11.7e6), Sample(1.05, 11.9e6)]
    assert stop_reason([], terms, probes)[0] is None
    whole = Round(75.8, 689266688, 168278)
    assert stop_reason([whole], terms, probes)[0] is None
    quick = [Sample(0.38, 270e6), Sample(1.05, 620e6)]
    assert stop_reason([], terms, quick)[0] == "not_falling"
    for seconds in (0.1, 0.5, 5.0, 75.0):
        assert dirtied(probes, seconds, 712e6, hopeful=True) <= dirtied(probes, seconds, 712e6)
