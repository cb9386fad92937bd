"""The console summary of a run, made of its metrics. Plain functions of data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .iteration import PHAUL_FEW, PHAUL_GROWTH

LINE = "=" * 60
MB = 1024 * 1024
RESULTS = {
    "migrated": "migrated",
    "rolled_back": "ROLLED BACK, the process goes on on the source",
    "failed": "FAILED",
}
# Why no further pre-dump was made: stop_reason and phaul_reason of iteration.py
STOPPED = {
    "target": "the predicted downtime meets the target",
    "not_falling": "another round would hardly shorten the downtime",
    "rounds": "as many rounds as are allowed were made",
    "few_pages": f"the last one found fewer than {PHAUL_FEW} pages written to",
    "more_pages": f"the last one found at least {PHAUL_GROWTH} pages more than the one before it",
    "deadline": "with another round the deadline might have been missed",
}
FAILED = "failed: "
UNKNOWN = "not known to run; playbooks/resolve.yml shows both records"


def seconds(value: Any, digits: int = 2) -> str:
    """Return a duration as the summary shows it; ``not measured`` for null."""
    return "not measured" if value is None else f"{value:.{digits}f}s"


def size(value: Any) -> str:
    """Return a number of bytes in MB of 1024 x 1024 bytes; ``not measured`` for null."""
    return "not measured" if value is None else f"{value / MB:.2f} MB"


def stopped(reason: Any) -> str:
    """Return why rounds of pre-dump ended, in words; '' where there were none."""
    text = str(reason or "")
    if text.startswith(FAILED):
        return f"they failed, and all memory moved while the process was frozen ({text[len(FAILED) :]})"
    return STOPPED.get(text, text)


def round_line(one: Mapping[str, Any]) -> str:
    """Return what one round of pre-dump was like: seconds, pages, bytes, and what stopping after it was to cost."""
    parts = [seconds(one.get("seconds"))]
    if one.get("pages_written") is not None:
        parts.append(f"{one['pages_written']} pages")
    if one.get("bytes") is not None:
        parts.append(size(one["bytes"]))
    if one.get("frozen") is not None:
        parts.append(f"frozen {seconds(one['frozen'], 3)}")
    if one.get("predicted_downtime") is not None:
        parts.append(f"downtime predicted {seconds(one['predicted_downtime'], 3)}")
    return ", ".join(parts)


def predicted(prediction: Mapping[str, Any]) -> str:
    """Return the downtime that was predicted beside what it was; '' where none was."""
    if prediction.get("downtime") is None:
        return ""
    error = prediction.get("error")
    off = "" if error is None else f" ({error:+.0%})"
    return f"{seconds(prediction['downtime'], 3)}, it was {seconds(prediction.get('actual'), 3)}{off}"


def render(metrics: Mapping[str, Any], results_dir: str) -> str:
    """Return the summary of a run.

    :param metrics: what metrics.json holds; parts that are missing are left out
    :param results_dir: the folder with everything else
    """
    workload = metrics.get("workload", {}).get("name", "unknown")
    blocks = [_head(metrics), _pre_dumps(metrics)]
    if touched(metrics):
        blocks += [
            _work(metrics),
            _downtime(metrics.get("downtime") or {}),
            _times(metrics.get("times") or {}),
            _nodes(metrics),
            _deadlines(metrics.get("deadlines") or {}, metrics.get("status")),
            _integrity(metrics.get("integrity") or {}),
        ]
    title = [
        LINE,
        f"CRIU Experiment Metrics: {metrics.get('experiment_name') or metrics.get('run_id', '')}",
        f"Workload Type: {workload}",
        LINE,
    ]
    total = seconds((metrics.get("times") or {}).get("total"))
    tail = [f"Total Experiment Duration: {total}", f"Results: {results_dir}", LINE]
    body = [line for block in blocks if block for line in ("", *block)]
    return "\n".join([*title, *body, "", *tail])


def touched(metrics: Mapping[str, Any]) -> bool:
    """Tell whether the process was stopped: before that there is nothing to report of it."""
    return metrics.get("status") != "failed" or "stopping" in (metrics.get("marks") or {})


def _head(metrics: Mapping[str, Any]) -> list[str]:
    status = str(metrics.get("status", "failed"))
    error = metrics.get("error")
    result = RESULTS.get(status, status)
    if status == "migrated" and (metrics.get("integrity") or {}).get("verified") is False:
        result = "MIGRATED, BUT NOT WHOLE: its proof failed"
    elif status == "migrated" and error:
        result = "MIGRATED, BUT NOT PROVEN: it failed afterwards"
    lines = [f"Result: {result}"]
    if error:
        lines.append(f"  Phase: {error.get('phase')}")
        lines += [f"  Cause: {line}" if place == 0 else f"         {line}"
                  for place, line in enumerate(str(error.get("message", "")).splitlines())]
        if error.get("remedy"):
            lines.append(f"  Remedy: {error['remedy']}")
    process = metrics.get("process") or {}
    if process.get("node"):
        pid = f" as PID {process['pid']}" if process.get("pid") is not None else ""
        lines.append(f"  Process: runs on {process['node']}{pid}")
    elif status == "failed":
        lines.append(f"  Process: {UNKNOWN if touched(metrics) else 'was not stopped, nothing of it was moved'}")
    strategy = metrics.get("strategy") or "none"
    lazy = ", lazy restore" if metrics.get("lazy_restore") else ""
    reason = f" ({metrics['strategy_reason']})" if metrics.get("strategy_reason") else ""
    lines += [f"  Strategy: {strategy}{lazy}{reason}", f"  Run: {metrics.get('run_id', '')}"]
    return lines


def _pre_dumps(metrics: Mapping[str, Any]) -> list[str]:
    rounds, reason = metrics.get("pre_dumps") or [], stopped(metrics.get("stop_reason"))
    if not rounds and not reason:
        return []
    lines = [f"Pre-dump Iterations: {len(rounds)}"]
    if rounds:
        total = sum(one["seconds"] for one in rounds)
        lines += [f"  Total time: {seconds(total)}", f"  Average time: {seconds(total / len(rounds))}"]
    lines += [f"  Iteration {place}: {round_line(one)}" for place, one in enumerate(rounds, 1)]
    lines += [f"  No further one: {reason}"] if reason else []
    expected = predicted(metrics.get("prediction") or {})
    return lines + ([f"  Downtime predicted: {expected}"] if expected else [])


def _work(metrics: Mapping[str, Any]) -> list[str]:
    parts, transfer = metrics.get("downtime") or {}, metrics.get("transfer") or {}
    if parts.get("dump") is None:
        return []
    rate = transfer.get("throughput")
    lines = ["Final Dump:", f"  Duration: {seconds(parts['dump'])}", "", "Transfer:",
             f"  Method: {transfer.get('method')} (encryption: {transfer.get('encryption')})",
             f"  Duration: {seconds(transfer.get('seconds'))}", f"  Size: {size(transfer.get('bytes'))}",
             f"  Throughput: {'not measured' if rate is None else f'{rate / MB:.2f} MB/s'}"]
    if parts.get("restore") is not None:
        lines += ["", "Restore:", f"  Duration: {seconds(parts['restore'])}"]
    lazy = metrics.get("lazy") or {}
    if lazy.get("pages_total"):
        lines += ["", "Lazy Pages:", f"  Pages: {lazy.get('pages_transferred')} of {lazy['pages_total']}",
                  f"  Duration: {seconds(lazy.get('seconds'))}"]
    return lines


def _downtime(parts: Mapping[str, Any]) -> list[str]:
    if parts.get("frozen") is None and parts.get("service") is None:
        return []
    usual, resolution = seconds(parts.get("usual_gap"), 3), seconds(parts.get("resolution"), 3)
    service = "not visible, the workload has no heartbeat"
    if parts.get("service") is not None:
        service = f"{seconds(parts['service'], 3)} (usual gap {usual}, resolution {resolution})"
    lines = ["Downtime:", f"  Service: {service}"]
    if parts.get("witness") is not None:
        by = f" ({parts['witness_by']})" if parts.get("witness_by") else ""
        lines.append(f"  Witness: {seconds(parts['witness'], 3)}{by}")
    lines.append(f"  Frozen: {seconds(parts.get('frozen'), 3)}")
    names = ("dump", "transfer", "restore", "handover")
    return lines + [f"    {name.capitalize()}: {seconds(parts[name], 3)}" for name in names
                    if parts.get(name) is not None]


def _times(times: Mapping[str, Any]) -> list[str]:
    if not times:
        return []
    names = ("preparation", "downtime", "resume", "total")
    lines = ["Times:", *(f"  {name.capitalize()}: {seconds(times.get(name), 3)}" for name in names)]
    if times.get("workload_start"):
        lines.append(f"  Starting the workload, in none of these: {seconds(times['workload_start'], 3)}")
    return lines


def _nodes(metrics: Mapping[str, Any]) -> list[str]:
    lines = []
    for key, title, show in (("memory", "Memory", size), ("open_files", "Open Files", str)):
        for node, figures in (metrics.get(key) or {}).items():
            before, after = figures.get("before"), figures.get("after")
            if before is not None and after is not None:
                lines.append(f"  {title} on the {node}: {show(before)} -> {show(after)}")
    return ["Nodes, before -> after:", *lines] if lines else []


def _deadlines(deadlines: Mapping[str, Any], status: Any) -> list[str]:
    lines = []
    why = "it was not measured" if status == "migrated" else "the process did not leave the source"
    for name, one in deadlines.items():
        label = f"  {name.upper() if name in ('aws', 'gcp') else name} ({one['limit']:g}s)"
        if one.get("met") is None or one.get("used") is None:
            lines.append(f"{label}: no verdict, {why}")
        elif one["met"]:
            lines.append(f"{label}: met, {seconds(one['used'])} used, {seconds(one['margin'])} left")
        else:
            lines.append(f"{label}: MISSED by {seconds(-one['margin'])}, {seconds(one['used'])} used")
    return ["Deadlines:", *lines] if lines else []


def _integrity(integrity: Mapping[str, Any]) -> list[str]:
    if not integrity:
        return []
    method = f" ({integrity['method']})" if integrity.get("method") else ""
    word = {True: "verified", False: "NOT WHOLE", None: "the workload cannot tell"}[integrity.get("verified")]
    return [f"Integrity: {word}{method}"]
