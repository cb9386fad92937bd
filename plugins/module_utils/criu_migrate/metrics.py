"""metrics.json out of what was collected from both nodes. Pure: dicts in, dict out; seconds and bytes throughout."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

SCHEMA_VERSION = 1
NOTICES = {"aws": 120.0, "gcp": 30.0}  # seconds between a spot instance's notice and its end
PAGE = 4096  # bytes of a page in CRIU's statistics

Data = Mapping[str, Any]


def _difference(later: Any, earlier: Any) -> float | None:
    return None if later is None or earlier is None else round(float(later) - float(earlier), 6)


def status_of(source: Data, destination: Data) -> str:
    """migrated | rolled_back | failed, by the records alone: the source's decides."""
    state = source.get("state")
    there = destination.get("state")
    if state == "done" or (state == "committed" and there in ("running", "done")):
        return "migrated"
    if state is None and there == "done":  # only the source's own word makes it so, though it cannot be reached now
        return "migrated"
    if state == "undone" and "freezing" in source.get("times", {}):
        return "rolled_back"
    return "failed"


def times_on_source_clock(source: Data, destination: Data) -> dict[str, float]:
    """All marks of both nodes on the source's clock; the destination's bear its name in front."""
    offset = float((source.get("clock") or {}).get("offset", 0.0))
    marks = {str(name): float(value) for name, value in source.get("times", {}).items()}
    for name, value in (destination.get("times") or source.get("destination_times") or {}).items():
        marks[f"destination_{name}"] = float(value) - offset
    return marks


def downtime(source: Data, destination: Data, marks: Data, heartbeat: Data, client: Data) -> dict[str, Any]:
    """The gap that service saw, what an independent witness saw, and the parts that make the freeze up.

    witness: the outside client where there is one, else the times at which the two kernels last and first saw
    the workload write, which no clock of the process has a part in.
    """
    thawed = marks.get("destination_resumed", marks.get("resumed"))
    seen = (heartbeat.get("service") or {}).get("seconds")
    first, last = destination.get("first_beat"), source.get("last_beat")
    offset = float((source.get("clock") or {}).get("offset", 0.0))
    kernel = _difference(first - offset if first is not None else None, last)
    gap = (client.get("longest_gap") or {}).get("seconds")
    dump = (source.get("dump") or {}).get("seconds")
    restore = (destination.get("restore") or source.get("restore") or {}).get("seconds")
    return {
        "service": seen,
        "witness": gap if gap is not None else kernel,
        "witness_by": "outside client" if gap is not None else ("kernel's file times" if kernel is not None else None),
        "resolution": heartbeat.get("resolution"),
        "usual_gap": heartbeat.get("usual_gap"),
        "frozen": _difference(thawed, marks.get("stopping")),
        "dump": dump,
        "transfer": _difference(marks.get("destination_restoring", marks.get("sent")), marks.get("dumped")),
        "restore": restore,
        "handover": _difference(thawed, marks.get("destination_restored")),
    }


def transfer(params: Data, plan: Data, source: Data, destination: Data, stats: Data, marks: Data) -> dict[str, Any]:
    """Bytes of pages and images that crossed, and the seconds in which they did (page server: those of the dump)."""
    dump, strategy = stats.get("dump") or {}, plan.get("strategy")
    pages = int(dump.get("pages_written", 0)) * PAGE
    size = int(source.get("bytes") or 0)
    moved = sum(int(one["bytes"]) for one in source.get("pre_dumps") or []) if source.get("parent") else 0
    pages += moved
    images = "rsync" if params.get("transfer") == "rsync" else "link"
    follows = strategy in ("postcopy", "hybrid")
    way = "link" if follows else "rsync" if images == "rsync" else "page_server"
    asked = "none" if params.get("transfer_encryption") == "none" else "tls"  # where nothing was planned
    encryption = "tls" if way == "rsync" else plan.get("encryption") or asked
    seconds = (
        (source.get("rsync") or {}).get("seconds")
        if way == "rsync"
        else _difference(marks.get("sent"), marks.get("frozen"))
    )
    if follows:  # pages go over the guards' link, whatever has taken the small images
        filled = destination.get("filled") or {}
        needed = int(filled.get("pages_total") or 0) - int(filled.get("pages_inherited") or 0)
        needed = int(filled["pages_fetched"]) if "pages_fetched" in filled else needed
        # of hybrid's dump the pages that cannot come late lie in the images
        pages = max(pages, needed * PAGE) if strategy == "postcopy" else moved + needed * PAGE
        seconds = _difference(marks.get("destination_filled"), marks.get("frozen"))
    total = (size if way == "rsync" else pages + size) if dump else None
    return {
        "method": params.get("transfer"),
        "encryption": encryption,
        "channels": {
            "pages": {"way": way, "encryption": encryption},
            "images": {"way": images, "encryption": "tls"},  # of both ways, whatever is asked for pages
        },
        "bytes": total,
        "seconds": seconds,
        "throughput": round(total / seconds, 1) if total is not None and seconds else None,
    }


def beginning(params: Data, looked: Sequence[float], began: float | None) -> float | None:
    """The start of the run on the source's clock, as if a test workload had been there already.

    The nodes are looked at before a workload is started and again with its process; a run that finds its process there
    looks once. What lies before the first look is the run's own (nodes prepared), what lies between the two is not.
    """
    if began is None or not looked or params.get("began") is None:
        return began
    return began - max(0.0, looked[0] - float(params["began"]))


def times(
    marks: Data, parts: Data, began: float | None, ended: float | None, looked: Sequence[float]
) -> dict[str, Any]:
    """The four times of the literature, and what is in none of them."""
    return {
        "preparation": _difference(marks.get("stopping"), began),
        "downtime": parts["frozen"],
        "resume": _difference(ended, marks.get("destination_resumed", marks.get("resumed"))),
        "total": _difference(ended, began),
        "workload_start": _difference(looked[-1], looked[0]) if looked else None,
    }


def prediction(source: Data, parts: Data, status: str) -> dict[str, Any]:
    """The downtime that was predicted when the last round had ended, beside what it was; seconds. error: by how much of
    what it was the prediction missed it. A prediction whose rounds were lost (a guard was started again) is none, and
    the time until a process goes on on the source is no downtime of a move."""
    predicted = (source.get("predicted") or {}).get("downtime")
    if source.get("pre_dumps") and not source.get("parent"):
        predicted = None
    actual = parts["frozen"] if predicted is not None and status == "migrated" else None
    error = round((predicted - actual) / actual, 6) if predicted is not None and actual else None
    return {"downtime": predicted, "actual": actual, "error": error}


def deadlines(params: Data, status: str, began: float | None, free: float | None) -> dict[str, Any]:
    """Would a notice at the start of the run, to a process that is there, have left enough time?

    For both providers, and the one asked for.
    """
    limits = dict(NOTICES)
    asked = params.get("deadline") or {}
    if asked and asked.get("name") not in NOTICES:
        limits["asked"] = float(asked["limit"])
    used = _difference(free, began) if status == "migrated" else None
    return {
        name: {
            "limit": limit,
            "used": used,
            "met": None if used is None else used <= limit,
            "margin": None if used is None else round(limit - used, 6),
        }
        for name, limit in limits.items()
    }


def lazy(source: Data, destination: Data) -> dict[str, Any]:
    """Pages that came after the restore, and the seconds from the restore until the last was there."""
    found = destination.get("filled") or source.get("lazy") or {}
    return {name: found.get(name) for name in ("pages_total", "pages_transferred", "seconds")}


def _observed(source: Data, destination: Data, key: str) -> dict[str, Any]:
    def value(record: Data, when: str) -> Any:
        found = (record.get(when) or {}).get(key)
        return found.get("rss") if isinstance(found, Mapping) else found

    # Before, the process is on the source only; after, on one of the two only.
    moved = destination.get("after") is not None
    return {
        "source": {"before": value(source, "before"), "after": 0 if moved else value(source, "after")},
        "destination": {"before": 0, "after": value(destination, "after") if moved else 0},
    }


def _node(name: str, address: str, facts: Data, clock: Data | None) -> dict[str, Any]:
    return {
        "name": name,
        "address": address,
        "kernel": facts.get("kernel"),
        "criu": facts.get("criu"),
        "python": facts.get("python"),
        "clock_offset": 0.0 if clock is None else clock.get("offset"),
        "clock_offset_bound": 0.0 if clock is None else clock.get("bound"),
    }


def integrity(verified: Data, client: Data) -> dict[str, Any]:
    """The workload's own proof and the outside client's, together: both have to hold where both exist."""
    own, outside = verified.get("verified"), client.get("verified")
    both = [value for value in (own, outside) if value is not None]
    details = dict(verified.get("details") or {})
    if client:
        details["client"] = {key: value for key, value in client.items() if key != "stamps"}
    return {"verified": all(both) if both else None, "method": verified.get("method"), "details": details}


def build(
    params: Data,
    source: Data,
    destination: Data,
    *,
    preflight: Data | None = None,
    verified: Data | None = None,
    heartbeat: Data | None = None,
    client: Data | None = None,
    error: Data | None = None,
    began: float | None = None,
    looked: Sequence[float] = (),
    ended: float | None = None,
    names: Mapping[str, Mapping[str, str]] | None = None,
) -> dict[str, Any]:
    """Everything that design.md lists for metrics.json.

    source and destination: what criu_guard collected ({record, stats, ...}; empty where nothing was armed).
    began (the last look before the move) and ended: seconds, the source's clock; looked: the control node's.
    names: {source: {name, address}, destination: ...}.
    """
    one, two = source.get("record") or {}, destination.get("record") or {}
    marks = times_on_source_clock(one, two)
    status = status_of(one, two)
    stats = {
        **(source.get("stats") or {}),
        **{k: v for k, v in (destination.get("stats") or {}).items() if k == "restore"},
    }
    facts = preflight or {}
    plan = facts.get("plan") or {}
    parts = downtime(one, two, marks, heartbeat or {}, client or {})
    problem = error or one.get("error") or two.get("guard_error")
    where = {"migrated": "destination", "rolled_back": "source"}.get(status)
    root = (one.get("procs") or [{}])[0].get("pid")
    named = names or {}
    start = beginning(params, looked, began)
    result: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "run_id": params["run_id"],
        "experiment_name": params.get("experiment_name") or f"{params['workload']['name']}-full",
        "workload": {"name": params["workload"]["name"], "params": params["workload"]["params"]},
        "strategy": plan.get("strategy"),
        "strategy_reason": plan.get("reason") or None,
        "lazy_restore": bool(plan.get("lazy_restore")),
        "transfer": transfer(params, plan, one, two, stats, marks),
        "status": status,
        "process": {
            "node": (named.get(where or "") or {}).get("name") if where else None,
            "pid": root if where else None,
        },
        "nodes": {
            "source": _node(**_name(named, "source"), facts=facts.get("source") or {}, clock=None),
            "destination": _node(
                **_name(named, "destination"), facts=facts.get("destination") or {}, clock=one.get("clock") or {}
            ),
        },
        "times": times(marks, parts, start, ended, looked),
        "downtime": parts,
        "marks": {name: round(value, 6) for name, value in sorted(marks.items(), key=lambda item: item[1])},
        "pre_dumps": one.get("pre_dumps") or [],
        "stop_reason": one.get("stop_reason"),
        "prediction": prediction(one, parts, status),
        "dump": stats.get("dump") or {},
        "restore": stats.get("restore") or {},
        "lazy": lazy(one, two),
        "memory": _observed(one, two, "memory"),
        "open_files": _observed(one, two, "open_files"),
        "deadlines": deadlines(params, status, start, marks.get("done")),
        "integrity": integrity(verified or {}, client or {}),
    }
    if params.get("started"):
        result["started"] = params["started"]
    if result["strategy"] in ("postcopy", "hybrid") and result["dump"]:
        result["dump"] = {**result["dump"], "frozen": None}  # CRIU counts until its page server has sent the last page
    if problem and (error or status != "migrated"):
        result["error"] = {
            "phase": problem.get("phase", "unknown"),
            "message": problem.get("message", ""),
            "remedy": problem.get("remedy") or None,
        }
    return result


def _name(names: Mapping[str, Mapping[str, str]], role: str) -> dict[str, str]:
    found = names.get(role) or {}
    return {"name": found.get("name", role), "address": found.get("address", "")}
