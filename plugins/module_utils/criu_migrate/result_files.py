"""The files of a results folder, by the names of the seed documents. Pure: what was collected in, texts out.

Whatever came of the run, the status and the output of the process are there for both nodes; where there is nothing to
show, the file says so.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any

from . import tracing

Data = Mapping[str, Any]
FOLDERS = {"source": "source", "destination": "dest"}
STATUS = {"pre_dump": "workload_status_pre_dump.txt", "post_restore": "workload_status_post_restore.txt",
          "post_rollback": "workload_status_post_rollback.txt"}  # fmt: skip
OUTPUT = {"pre_dump": "workload_stdout_pre_dump.log", "post_restore": "workload_stdout_post_restore.log",
          "post_rollback": "workload_stdout_post_rollback.log"}  # fmt: skip
WHEN = {"pre_dump": "before the dump", "post_restore": "after the restore", "post_rollback": "after the roll-back"}


def build(
    source: Data, destination: Data, earlier: Data | None = None, names: Data | None = None, status: str = "failed"
) -> dict[str, str]:
    """Text by path below the folder.

    source, destination: what criu_guard collected. earlier: the same of the source, before what had been started was
    ended again. names: {source: {name}, ...}. status: migrated | rolled_back | failed.
    """
    found: dict[str, str] = {}
    named = {role: str(((names or {}).get(role) or {}).get("name") or role) for role in FOLDERS}
    for role, collected in (("source", {**_reached(earlier), **_reached(source)}), ("destination", destination)):
        folder = FOLDERS[role]
        found.update({f"{folder}/{name}": text for name, text in _of_node(_reached(collected)).items()})
        if collected.get("unreachable"):
            found[f"{folder}/not_reached.txt"] = _not_reached(named[role], collected)
    one, two = _reached(source), _reached(destination)
    before = (one.get("record") or {}).get("before") or _reached(earlier).get("seen") or one.get("seen") or {}
    output = one if (one.get("output") or {}).get("path") else _reached(earlier)
    found.update(_pair("source", "pre_dump", named["source"], before, output, "before", _absent(one, source)))
    after = (two.get("record") or {}).get("after") or (two.get("seen") if status == "migrated" else {}) or {}
    if status == "rolled_back":
        there = (one.get("record") or {}).get("after") or one.get("seen") or {}
        found.update(_pair("source", "post_rollback", named["source"], there, one, "after", "It was not seen."))
    why = _absent(two, destination) if status == "migrated" else _never(status)
    found.update(_pair("dest", "post_restore", named["destination"], after, two if after else {}, "after", why))
    return found


def _reached(collected: Data | None) -> dict[str, Any]:
    """What came from a node; {} where it could not be asked."""
    return dict(collected) if collected and not collected.get("unreachable") else {}


def _of_node(collected: Data) -> dict[str, str]:
    found = {str(name): str(text) for name, text in (collected.get("logs") or {}).items()}
    record = collected.get("record")
    if record:
        found["record.json"] = _json(record)
        if record.get("images"):
            found["1/images.txt"] = _images(record["images"])
    return found


def _images(sizes: Mapping[str, int]) -> str:
    """What the checkpoint directory held. Its content is the memory of the process and stays on the node."""
    lines = [f"{size:>14} {name}" for name, size in sorted(sizes.items())]
    return "\n".join([f"{'BYTES':>14} IMAGE", *lines, f"{sum(sizes.values()):>14} in all"]) + "\n"


def _not_reached(name: str, collected: Data) -> str:
    return (
        f"{name} could not be reached when logs were collected: {collected.get('msg') or 'no word'}\n"
        "Its record and logs are still in /var/lib/criu-migrate on that node; playbooks/resolve.yml shows the record.\n"
    )


def _absent(collected: Data, given: Data) -> str:
    if given.get("unreachable"):
        return "The node could not be reached, see not_reached.txt."
    return "No process was seen." if collected else "Nothing was collected from this node."


def _never(status: str) -> str:
    if status == "rolled_back":
        return "The process did not run here: the migration was undone, and it goes on on the source."
    return "The process is not known to have run here."


def _pair(folder: str, phase: str, node: str, seen: Data, collected: Data, part: str, why: str) -> dict[str, str]:
    """Status and output of one phase."""
    place = "source" if folder == "source" else "destination"
    head = f"{node} ({place}), {WHEN[phase]}"
    found = {f"{folder}/{STATUS[phase]}": _status(head, seen) if seen else f"{head}: {why}\n"}
    path = f"{folder}/{OUTPUT[phase]}"
    strace = (collected.get("strace") or {}).get(phase) or {}
    output = collected.get("output") or {}
    about = {key: output.get(key) for key in ("path", "size", "frozen", "cut_off")}
    info: dict[str, Any] = {"node": node, "phase": phase, "capture": "strace" if strace else "file", "file": about}
    if strace:
        found[path] = tracing.parse(strace["raw"])
        found[f"{path}.raw"] = strace["raw"]
        found[f"{folder}/output_{phase}.log"] = str(output.get(part) or "")
        info["strace"] = strace["info"]
    else:
        found[path] = str(output.get(part) or "")
    if not output.get("path"):
        info["why"] = why if not collected else "No file takes the program's output, or it is gone."
    info["bytes"] = len(found[path].encode())
    found[f"{path}.info"] = _json(info)
    return found


def _status(head: str, seen: Data) -> str:
    at = seen.get("at")
    when = time.strftime(", %Y-%m-%dT%H:%M:%SZ", time.gmtime(at)) if at else ""
    memory = seen.get("memory") or {}
    figures = ", ".join(f"{name} {memory.get(name)}" for name in ("rss", "pss", "swap"))
    lines = [f"{head}{when}", f"memory (bytes): {figures}", f"open files: {seen.get('open_files')}", ""]
    return "\n".join([*lines, str(seen.get("status") or "")])


def _json(data: Any) -> str:
    return json.dumps(data, indent=2, sort_keys=True) + "\n"
