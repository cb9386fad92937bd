"""What an evacuation has to know: all registered processes of the source, and what each destination offers them.

Looks only. The same facts as criu_inspect gathers for one process.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from . import control, guard, inspect_destination, inspect_node, inspect_source, record, registry, uncollected, workload
from .errors import MigrationError

Facts = dict[str, Any]


def source(clock: float = 0.0) -> Facts:
    """node, processes, problems, earlier (uncollected.runs()) and registered (registry.digest()) of this node. `clock`:
    as in inspect_node.look().

    A process is {name, priority, params, by, pid, start, working_dir, since, tree}; working_dir is '' where no
    directory travels, since when an earlier move let it go on (seconds since 1970, null where there was none). An entry
    whose process is not here is a problem in words.
    """
    registered = registry.digest()  # before the look: what changes meanwhile is noticed afterwards
    known, problems = registry.entries()
    earlier = uncollected.runs()
    found = []
    for entry in known:
        if uncollected.taken(entry, earlier):
            continue
        try:
            found.append(_process(entry))
        except MigrationError as error:
            problems.append(error.text())
    node = inspect_node.look("", clock)
    add_spaces(node, (item["params"].get("image_dir") for item in found))
    return {"node": node, "processes": found, "problems": problems, "earlier": earlier, "registered": registered}


def _process(entry: registry.Entry) -> Facts:
    root = registry.locate(entry)
    other = control.moved_by({"pid": root.pid, "start": root.start, "run_id": ""})
    if other:
        raise control.taken_by(other, f"{entry['name']}: ")
    params = entry["params"]
    folder = str(params.get("working_dir") or workload.contract_of(root.pid) or "")
    roots = [*([folder] if folder else []), *(params.get("sync_paths") or [])]
    tree = inspect_source.look(root.pid, roots)
    since = workload.last_thaw(root.pid)
    return {**entry, "pid": root.pid, "start": root.start, "working_dir": folder, "since": since, "tree": tree}


def wanted(process: Facts) -> Facts:
    """What a process asks of a destination, as criu_inspect takes it, with the directory for images."""
    params = process["params"]
    return {
        "name": process["name"],
        "tree": process["tree"],
        "image_dir": params.get("image_dir") or "",
        "wanted": {
            "service_address": str(params.get("service_address") or "").split("/")[0],
            "service_interface": params.get("service_interface") or "",
            "working_dir": process["working_dir"],
            "ports": [int(part) for part in str(params["guard_port_range"]).split("-")],
        },
    }


def add_spaces(node: Facts, paths: Iterable[Any]) -> None:
    """The space at further directories, besides those where images lie by default."""
    for path in paths:
        if path and path not in node["space"]:
            node["space"][path] = inspect_node.space(str(path))


def destination(cpu: Facts, processes: list[Facts], clock: float = 0.0) -> Facts:
    """node, and there and port of each process by its name. `cpu` is the source's; a process is {name, tree, wanted,
    image_dir}, wanted as in inspect_destination.look(). Ports are those that nobody has or is armed to take."""
    node = inspect_node.look("", clock)
    add_spaces(node, (item.get("image_dir") for item in processes))
    taken = armed_ports()
    there, ports = {}, {}
    complaint: str | None = None
    for item in processes:
        # asked once: the same CPU for all
        known = {} if complaint is not None else cpu
        seen = inspect_destination.look(known, item["tree"], {**item["wanted"], "ports": []}, node["criu"]["path"])
        complaint = seen["cpu_complaint"] if complaint is None else complaint
        first, last = item["wanted"]["ports"]
        port = next_port(int(first), int(last), taken)
        taken.add(port)
        ports[item["name"]] = port
        there[item["name"]] = {**seen, "cpu_complaint": complaint, "free_port": port}
    return {"node": node, "there": there, "ports": ports}


def next_port(first: int, last: int, taken: set[int]) -> int:
    """A free TCP port of the range that is not `taken`, 0 where there is none."""
    while first <= last:
        port = inspect_destination.free_port(first, last)
        if not port or port not in taken:
            return port
        first = port + 1
    return 0


def armed_ports() -> set[int]:
    """Ports of guards that are laid out here and not started: nobody listens on them yet."""
    found: set[int] = set()
    for run_id in record.runs():
        rec = record.Record.load(run_id)
        if rec is not None and rec.data["role"] == "destination" and control.never_began(rec):
            first, last = guard.read_config(run_id)["ports"]
            found |= {int(first)} if first == last else set()
    return found
