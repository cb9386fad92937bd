"""What moves between this node and another have cost, remembered here for the next one's predictions."""

from __future__ import annotations

import contextlib
import json
import math
import os
from statistics import median
from typing import Any, NamedTuple

from . import record
from .planner import Costs

FOLDER = "/var/cache/criu-migrate"  # apart from the runs: what is lost here costs a prediction only
NAME = "costs.json"
KEPT = 5  # moves of one kind
NEWEST = 3  # moves whose bandwidth counts
KEYS = {"lazy", "memory", "fixed", "bandwidth"}
LIKE = math.log(4)  # memory within this factor is alike
UNKNOWN = 110e6  # bytes/s of a link of which nothing is known: 1 Gbit/s
_USUAL = Costs()  # where nothing was seen yet


class Known(NamedTuple):
    """bandwidth: bytes/s; fixed: seconds of downtime that no round shortens, None where none was seen; usual: the same
    on the nodes of docs/benchmarks.md; after: seconds from the thaw until the source is free."""

    bandwidth: float
    fixed: float | None
    usual: float
    after: float

    def fixed_after(self, lead: float) -> float:
        """The same for who has seen how long a round takes in which nothing moves (seconds): as many times longer than
        usual everything else may be."""
        return self.usual * max(1.0, lead / _USUAL.lead) if self.fixed is None else self.fixed


def speeds() -> dict[str, float]:
    """Bytes/s of the links to other nodes, by their addresses, as the latest moves have found them."""
    found = {}
    for peer, moves in _read().items():
        if seen := [float(one["bandwidth"]) for one in moves if one.get("bandwidth")]:
            found[peer] = median(seen[-NEWEST:])
    return found


def recall(peer: str, lazy: bool, memory: int) -> Known:
    """What is known of moves to `peer` of processes with so much memory (bytes)."""
    moves = _read().get(peer) or []
    alike = [one for one in moves if one["lazy"] == lazy and abs(math.log(memory / max(1, one["memory"]))) < LIKE]
    fixed = None
    if alike:  # an eager restore takes as long as the memory is large
        longer = 0.0 if lazy else _USUAL.eager_byte
        fixed = median(max(0.0, one["fixed"] + (memory - one["memory"]) * longer) for one in alike)
    usual = _USUAL.freeze + _USUAL.dump + _USUAL.images + _USUAL.handover
    usual += _USUAL.lazy if lazy else _USUAL.eager + memory * _USUAL.eager_byte
    after = _USUAL.cleaning + (memory / _USUAL.fill_local if lazy else memory * _USUAL.cleaning_byte)
    return Known(speeds().get(peer, UNKNOWN), fixed, usual, after)


def remember(peer: str, lazy: bool | None, memory: int, fixed: float, bandwidth: float | None) -> None:
    """Keep what a move has cost; lazy is None where it tells of the link only. A file that cannot be written only costs
    the next one a prediction."""
    moves = _read()
    one = {"lazy": lazy, "memory": memory, "fixed": round(fixed, 6), "bandwidth": bandwidth}
    listed = moves.setdefault(peer, [])
    same = [item for item in listed if item["lazy"] == lazy]
    for outdated in same[: max(0, len(same) - KEPT + 1)]:
        listed.remove(outdated)
    listed.append(one)
    with contextlib.suppress(OSError):
        os.makedirs(FOLDER, mode=0o700, exist_ok=True)
        record.write_file(_path(), json.dumps(moves).encode(), sync=False)


def _path() -> str:
    return os.path.join(FOLDER, NAME)


def _read() -> dict[str, list[dict[str, Any]]]:
    try:
        with open(_path(), encoding="utf-8") as handle:
            found = json.load(handle)
        return {peer: [one for one in moves if _sound(one)] for peer, moves in found.items()}
    except (OSError, ValueError, TypeError, AttributeError):  # not there, cut off, or not of this version
        return {}


def _sound(one: dict[str, Any]) -> bool:
    """Numbers that can be; a prediction made of others could end a move that nothing else is wrong with."""
    if not one.keys() >= KEYS:
        return False
    numbers = [one["memory"], one["fixed"], one["bandwidth"] or 0]
    return all(isinstance(number, (int, float)) and 0 <= number < math.inf for number in numbers)
