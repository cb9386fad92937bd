"""Every wait of the guards has its limit here, in seconds."""

from __future__ import annotations

from typing import Any

DEFAULTS: dict[str, float] = {
    "connect": 15.0,  # one dial of the other guard
    "reserve": 5.0,  # fetching memory on the destination before the freeze; then with what there is
    "freeze": 10.0,  # SIGSTOP sent until every thread is stopped
    "dump": 300.0,  # without a page of it that has come
    "transfer": 600.0,  # rsync or the stream of small images
    "restore": 300.0,  # criu restore
    "link": 60.0,  # without a word from the other guard before the source undoes
    "peer": 600.0,  # a destination that holds nothing waits so long for its source
    "fill": 1.0,  # one answer to "is every page there?"; it is asked again without end
    "commit": 60.0,  # one answer to "commit"; it is asked again without end
    "undo": 60.0,  # killing the stopped copy on the destination
}
TOOL = 30.0  # one call of ip, nft, ss or crit


def merged(given: dict[str, Any]) -> dict[str, float]:
    """The defaults with what the user gave; unknown names and values <= 0 raise ValueError."""
    limits = dict(DEFAULTS)
    for name, value in given.items():
        if name not in limits:
            raise ValueError(f"limits: unknown name {name!r}, known are {', '.join(sorted(limits))}")
        seconds = float(value)
        if seconds <= 0:
            raise ValueError(f"limits: {name} must be above 0 seconds")
        limits[name] = seconds
    return limits
