"""The stop rule on thousands of simulated programs, with noise: the figures of docs/planner.md, with some room."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterator
from statistics import median, quantiles
from typing import NamedTuple

import pytest

from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate.iteration import (
    MOST,
    PAGE,
    PROBES,
    Round,
    Sample,
    Terms,
    stop_reason,
)


class Program(NamedTuple):
    """A working set and a writer that goes over the rest, each at its own rate, and the link that it is moved over."""

    terms: Terms
    hot: float  # bytes
    hot_rate: float  # bytes/s
    rate: float

    def dirties(self, seconds: float) -> float:
        """Different bytes that are written to: writes at random places."""
        rest = self.terms.whole - self.hot
        found = -self.hot * math.expm1(-self.hot_rate * seconds / self.hot)
        return found - rest * math.expm1(-self.rate * seconds / rest)

    def downtime(self, seconds: float) -> float:
        """Of a stop after a round of so many seconds."""
        return self.terms.fixed + self.dirties(seconds) / self.terms.bandwidth


def programs(dice: random.Random, quickest: float, number: int = 4000) -> Iterator[Program]:
    """100 MB to 5 GB, links of 10 MB/s to 1 GB/s; quickest: of the second writer, as a power of ten of the link."""
    for _ in range(number):
        whole, link = 10 ** dice.uniform(8, 9.7), 10 ** dice.uniform(7, 9)
        hot = whole * 10 ** dice.uniform(-3, -0.3)
        rates = link * 10 ** dice.uniform(-2, 0.7), link * 10 ** dice.uniform(-3, quickest)
        yield Program(Terms(link, fixed=dice.choice((0.1, 0.3, 0.5)), whole=whole, lead=0.15), hot, *rates)


def moved(dice: random.Random, program: Program, size: float) -> Round:
    """A round with a tenth of noise in its seconds."""
    seconds = program.terms.lead + size / program.terms.bandwidth * 10 ** dice.gauss(0, 0.04)
    return Round(seconds, round(size), round(size / PAGE))


def test_predictions_are_close_and_little_is_left_to_gain() -> None:
    dice = random.Random(1)  # noqa: S311 - the same programs in every run
    errors, left, reasons = [], [], Counter[str]()
    for program in programs(dice, 0.3):
        rounds = [moved(dice, program, program.terms.whole)]
        while True:
            reason, predicted = stop_reason(rounds, program.terms)
            if reason:
                break
            rounds.append(moved(dice, program, program.dirties(rounds[-1].seconds) * 10 ** dice.gauss(0, 0.06)))
        true = best = program.downtime(rounds[-1].seconds)
        errors.append(abs(predicted - true) / true)
        reasons[reason] += 1
        if reason != "target":
            for _ in range(MOST - len(rounds)):
                rounds.append(moved(dice, program, program.dirties(rounds[-1].seconds)))
                best = min(best, program.downtime(rounds[-1].seconds))
            left.append(true / best)
    assert median(errors) < 0.08
    assert quantiles(errors, n=10)[8] < 0.35
    assert median(left) < 1.1
    assert set(reasons) == {"target", "not_falling", "rounds"}


@pytest.mark.parametrize("windows, most", [(PROBES, 0.01), ((0.02, 0.1), 0.06)])
def test_probes_find_all_programs_that_no_round_helps(windows: tuple[float, float], most: float) -> None:
    dice = random.Random(2)  # noqa: S311
    useful, useless = Counter[str | None](), Counter[str | None]()
    for program in programs(dice, 0.7):
        terms = program.terms
        copy = terms.whole / terms.bandwidth
        probes = [Sample(part * copy, program.dirties(part * copy) * 10 ** dice.gauss(0, 0.04)) for part in windows]
        reason, predicted = stop_reason([], terms, probes)
        assert predicted == pytest.approx(terms.fixed + copy)
        # two rounds and a stop, as the numbers truly are
        second = terms.lead + program.dirties(terms.lead + copy) / terms.bandwidth
        share = program.downtime(second) / (terms.fixed + copy)
        if share < 0.5:
            useful[reason] += 1
        elif share > 0.85:
            useless[reason] += 1
    assert useless["not_falling"] > 300 and useless[None] == 0
    assert useful["not_falling"] < most * useful[None]
