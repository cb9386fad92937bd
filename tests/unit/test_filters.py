"""The filters: plain functions of numbers."""

from __future__ import annotations

import math

import pytest

from filter_plugins.migration import FilterModule, convergence, deadline_verdict, throughput, trimmed_mean


def test_trimmed_mean_is_the_one_of_the_certified_test() -> None:
    samples = [6000, 200, 1000, 6500, 300, 7000, *[2500] * 14]
    assert trimmed_mean(samples) == 2500
    assert trimmed_mean([1, 2, 9], cut=1) == 2
    assert trimmed_mean([1.5, 2.5], cut=0) == 2.0


@pytest.mark.parametrize(("values", "cut"), [([1] * 6, 3), ([], 0), ([1], -1), ([1, math.nan], 0)])
def test_trimmed_mean_refuses(values: list[float], cut: int) -> None:
    with pytest.raises(ValueError):
        trimmed_mean(values, cut)
    with pytest.raises(TypeError):
        trimmed_mean("123", 0)  # type: ignore[arg-type]  # what a template could pass


def test_deadline_verdict() -> None:
    assert deadline_verdict(30, 30) == {"limit": 30.0, "used": 30.0, "met": True, "margin": 0.0}
    assert deadline_verdict(31, 30)["met"] is False
    assert deadline_verdict(31, 30)["margin"] == -1.0
    assert deadline_verdict(None, 120) == {"limit": 120.0, "used": None, "met": None, "margin": None}
    for used, limit in ((-1, 30), (1, 0)):
        with pytest.raises(ValueError):
            deadline_verdict(used, limit)


def test_throughput() -> None:
    assert throughput(100, 4) == 25.0
    assert throughput(100, 0) is None
    assert throughput(None, 1) is None
    with pytest.raises(ValueError):
        throughput(-1, 1)


def test_convergence() -> None:
    assert convergence([])["verdict"] == "unknown"
    assert convergence([5]) == {"verdict": "unknown", "ratio": None, "best": 0}
    assert convergence([100, 50]) == {"verdict": "converging", "ratio": 0.5, "best": 1}
    assert convergence([100, 50, 52]) == {"verdict": "steady", "ratio": 1.04, "best": 1}
    assert convergence([100, 50, 80])["verdict"] == "diverging"
    assert convergence([0, 0])["verdict"] == "steady"
    assert convergence([0, 3])["verdict"] == "diverging"
    with pytest.raises(ValueError):
        convergence([1, -1])


def test_all_are_offered() -> None:
    assert set(FilterModule().filters()) == {"convergence", "deadline_verdict", "throughput", "trimmed_mean"}
