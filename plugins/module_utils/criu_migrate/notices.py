"""What a cloud has announced to its instance: the notice, its file on the node, and the seconds that are left."""

from __future__ import annotations

import calendar
import json
import os
import time
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple

from . import record

INTERRUPTION, REBALANCE, PREEMPTED = "interruption", "rebalance", "preempted"
# Seconds from the announcement to the end, where the announcement does not say when that is.
# AWS: "Spot Instance interruption notices"; Google: "Preemption process", ACPI G2 to G3.
USUAL = {"aws": 120.0, "gcp": 30.0}
FILE = "notice.json"  # in record.RUNS, beside the runs


class Notice(NamedTuple):
    """provider: aws or gcp. kind: interruption, rebalance (a hint, no end is known) or preempted. action: what AWS will
    do (terminate, stop, hibernate). seconds: from when it was seen to the end, None where there is none."""

    provider: str
    kind: str
    action: str = ""
    seconds: float | None = None


def uptime() -> float:
    """Seconds since the boot, time in suspend included; no step of the clock changes it."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def parse_time(text: str) -> float:
    """Seconds since 1970 of a moment like 2026-11-27T08:22:00Z (UTC). ValueError where it is none."""
    return float(calendar.timegm(time.strptime(text, "%Y-%m-%dT%H:%M:%SZ")))


def seconds_until(moment: float, date: str, now: float) -> float:
    """Seconds until `moment` (since 1970), at least 0, by the Date that the metadata service has put on its answer:
    the cloud's clock counts, not the node's (`now`), which stands in where there is none."""
    try:
        now = parsedate_to_datetime(date).timestamp()
    except (TypeError, ValueError):
        pass
    return max(0.0, moment - now)


def path() -> str:
    return os.path.join(record.RUNS, FILE)


def write(notice: Notice) -> dict[str, Any]:
    """Write the notice to disk and return what was written; it has reached the disk when this returns."""
    now = time.time()
    data: dict[str, Any] = {
        **notice._asdict(),
        "seen": now,
        "ends": None if notice.seconds is None else now + notice.seconds,
        "uptime": uptime(),
        "boot_id": record.boot_id(),
    }
    os.makedirs(record.RUNS, mode=0o700, exist_ok=True)
    record.write_file(path(), json.dumps(data, indent=1, sort_keys=True).encode())
    return data


def read() -> dict[str, Any] | None:
    """The notice of this boot with `seconds_left` as of now (None: no end is known); None where there is none.

    That of an earlier boot has come true: the instance was stopped and started again.
    """
    try:
        with open(path(), encoding="utf-8") as handle:
            data: dict[str, Any] = json.load(handle)
    except (FileNotFoundError, ValueError):
        return None
    if data.get("boot_id") != record.boot_id():
        return None
    return {**data, "seconds_left": left(data, uptime())}


def left(data: dict[str, Any], now: float) -> float | None:
    """Seconds to the end at `now` (uptime), at least 0; None where no end is known."""
    if data.get("seconds") is None:
        return None
    return max(0.0, float(data["seconds"]) - (now - float(data["uptime"])))


def remove() -> bool:
    """Take the notice away; False where there was none."""
    try:
        os.unlink(path())
    except FileNotFoundError:
        return False
    return True
