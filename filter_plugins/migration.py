"""Filters over the figures of a migration: plain functions of numbers, seconds and bytes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any


def _numbers(values: Any, who: str) -> list[float]:
    if isinstance(values, (str, bytes)) or not isinstance(values, Sequence):
        raise TypeError(f"{who}: a list of numbers is needed, this is {type(values).__name__}")
    numbers = [float(value) for value in values]
    if any(math.isnan(number) for number in numbers):
        raise ValueError(f"{who}: NaN is not a figure")
    return numbers


def trimmed_mean(values: Sequence[float], cut: int = 3) -> float:
    """Return the mean without the ``cut`` smallest and the ``cut`` largest values.

    The certified test takes 20 samples and cuts 3 at each end.

    :raises ValueError: nothing would be left, or ``cut`` is below 0
    """
    numbers = sorted(_numbers(values, "trimmed_mean"))
    if cut < 0 or len(numbers) <= 2 * cut:
        raise ValueError(f"trimmed_mean: {len(numbers)} values, cut {cut} at each end, leave none")
    kept = numbers[cut : len(numbers) - cut]
    return math.fsum(kept) / len(kept)


def deadline_verdict(used: float | None, limit: float) -> dict[str, Any]:
    """Return ``{limit, used, met, margin}`` in seconds for a deadline; no verdict where nothing was used.

    :param used: seconds until the source was free, None where the process did not leave it
    :raises ValueError: a limit that is not above 0, or a negative time
    """
    if limit <= 0 or (used is not None and used < 0):
        raise ValueError(f"deadline_verdict: limit {limit} must be above 0 and used {used} not below")
    if used is None:
        return {"limit": float(limit), "used": None, "met": None, "margin": None}
    margin = float(limit) - float(used)
    return {"limit": float(limit), "used": float(used), "met": margin >= 0, "margin": margin}


def throughput(size: float | None, seconds: float | None) -> float | None:
    """Return bytes a second, None where there is nothing to divide by.

    :raises ValueError: a negative size or time
    """
    if size is None or seconds is None or seconds == 0:
        return None
    if size < 0 or seconds < 0:
        raise ValueError(f"throughput: {size} bytes in {seconds} s")
    return float(size) / float(seconds)


def convergence(sizes: Sequence[float], tolerance: float = 0.1) -> dict[str, Any]:
    """Say whether rounds of pre-dump pay: does each move less than the one before?

    :param sizes: bytes (or pages) of each round, in order
    :param tolerance: by how much, as a part of the round before, a round must be smaller to count as progress
    :return: ``verdict`` (``unknown`` below two rounds, ``converging``, ``steady``, ``diverging``), ``ratio`` of
        the last round to the one before (None if unknown), ``best`` the place of the smallest round, from 0
    :raises ValueError: a negative size
    """
    numbers = _numbers(sizes, "convergence")
    if any(number < 0 for number in numbers):
        raise ValueError("convergence: a round cannot have moved less than nothing")
    best = numbers.index(min(numbers)) if numbers else None
    if len(numbers) < 2:
        return {"verdict": "unknown", "ratio": None, "best": best}
    before, last = numbers[-2:]
    ratio = last / before if before else (1.0 if last == 0 else math.inf)
    verdict = "converging" if ratio < 1 - tolerance else "diverging" if ratio > 1 + tolerance else "steady"
    return {"verdict": verdict, "ratio": ratio, "best": best}


class FilterModule:
    """What Ansible looks for."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return {
            "convergence": convergence,
            "deadline_verdict": deadline_verdict,
            "throughput": throughput,
            "trimmed_mean": trimmed_mean,
        }
