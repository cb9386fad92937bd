"""Checks of the process tree: what CRIU cannot dump, and what the destination lacks to restore it. Pure functions."""

from __future__ import annotations

import os
from collections.abc import Iterator

from .preflight import Case, Check, Facts, Finding, listed, size

_NETWORK_FILES = ("nfs", "nfs4", "cifs", "smb3", "ceph", "fuse.sshfs", "9p", "glusterfs")


def _name(task: Facts) -> str:
    return f"{task['pid']} ({task['name']})"


def check_there(case: Case) -> Iterator[Finding]:
    """Whether that process is one to be moved at all; if not, nothing else is said about it."""
    tree, node = case.tree, case.names["source"]
    if tree and not tree["found"]:
        text = f"The process {tree['pid']} cannot be moved: {tree['why']}."
        yield Finding("process", node, text, "Look with `ps -ef` on that node and give pid=PID.")
        return
    if not tree:
        return
    if tree["pid"] == 1 or any(task["kernel_thread"] for task in tree["tasks"]):
        text = f"The process {_name(tree['tasks'][0])} belongs to the system, not to a user."
        yield Finding("process", node, text, "Give the PID of an ordinary program.")
    elif tree["contains_us"]:
        text = f"The tree of {_name(tree['tasks'][0])} holds the connection that Ansible came by."
        yield Finding("process", node, text, "Start the program in a session of its own (setsid) and give its PID.")


def _tasks(case: Case) -> list[Facts]:
    return list(case.tree["tasks"]) if case.tree.get("found") else []


def check_tracers(case: Case) -> Iterator[Finding]:
    for task in _tasks(case):
        for tracer in task["tracers"]:
            if case.params.get("output_capture") == "strace" and f"/{case.params['run_id']}/" in tracer["command"]:
                continue  # this run's own, which leaves before the freeze
            text = f"The process {_name(task)} is traced by {_name(tracer)}, so CRIU cannot dump it."
            yield Finding("tracer", case.names["source"], text, f"End the tracer: kill {tracer['pid']}")


def check_limits(case: Case) -> Iterator[Finding]:
    hidden = [task for task in _tasks(case) if not task["limits_readable"]]
    if hidden:
        yield Finding(
            "user", case.names["source"],
            f"Root lacks CAP_SYS_RESOURCE here, so CRIU cannot dump a process of another user: "
            f"{listed(map(_name, hidden))} of uid {listed(sorted({task['uid'] for task in hidden}))}.",
            "Run the program as root: workload_user=root. Or give the container that capability.",
        )  # fmt: skip


def own_ipc(case: Case) -> bool:
    """The whole tree lives in one IPC namespace of its own, which CRIU takes along with what is in it."""
    tasks = _tasks(case)
    return len({task["ipc"] for task in tasks}) == 1 and all("ipc" in task["namespaces"] for task in tasks)


def check_namespaces(case: Case) -> Iterator[Finding]:
    fine = {"cgroup", "ipc"} if own_ipc(case) else {"cgroup"}
    own = [task for task in _tasks(case) if set(task["namespaces"]) - fine]
    if own:
        spaces = sorted({name for task in own for name in task["namespaces"] if name not in fine})
        yield Finding(
            "namespaces", case.names["source"],
            f"In namespaces of their own ({', '.join(spaces)}), as in a container or a hardened service: "
            f"{listed(map(_name, own))}.",
            "Move a container with its engine (podman container checkpoint), a service after PrivateTmp=no.",
        )  # fmt: skip


def check_session(case: Case) -> Iterator[Finding]:
    tree, node = case.tree, case.names["source"]
    if not tree.get("found"):
        return
    alone = "Start it with: setsid PROGRAM </dev/null >FILE 2>&1"
    if tree["terminals"]:
        where = listed(f"{item['what']} (PID {item['pid']}, descriptor {item['fd']})" for item in tree["terminals"])
        yield Finding("terminal", node, f"A terminal is open, which stays behind: {where}.", alone)
    elif tree["outside_session"] and not case.params.get("shell_job"):
        text = f"The process {_name(tree['tasks'][0])} belongs to the session or job of a process outside of the tree: "
        text += ", ".join(f"{key} {number}" for key, number in sorted(tree["outside_session"].items())) + "."
        yield Finding("session", node, text, f"Give shell_job=true. Or {alone[0].lower()}{alone[1:]}")


def check_unsupported(case: Case) -> Iterator[Finding]:
    tree, node = case.tree, case.names["source"]
    if not tree.get("found"):
        return
    for pid, what in sorted({(item["pid"], item["what"]) for item in tree["unsupported"]}):
        numbers = [item["fd"] for item in tree["unsupported"] if (item["pid"], item["what"]) == (pid, what)]
        text = f"PID {pid} holds {what} (descriptor {listed(numbers)}), which CRIU cannot dump."
        yield Finding("unsupported", node, text, _remedy_for(what))
    if tree["sysv"] and not own_ipc(case):
        text = f"System V shared memory is in use by {listed(tree['sysv'])}. It belongs to the whole node here, so "
        remedy = "Start the program in an IPC namespace of its own, as PostgreSQL always needs: unshare --ipc PROGRAM"
        yield Finding("unsupported", node, text + "CRIU cannot dump it.", remedy)
    for item in tree["pipes_outside"]:
        text = f"Descriptor {item['fd']} of PID {item['pid']} is a pipe to {_name({**item, 'pid': item['other']})}, "
        yield Finding("pipe", node, text + "which stays behind: after the move it is closed.", "", True)


def _remedy_for(what: str) -> str:
    known = {
        "io_uring": "Let the kernel refuse it, most programs then do without: sysctl kernel.io_uring_disabled=2, or in "
        "the program's unit SystemCallFilter=~io_uring_setup and SystemCallErrorNumber=ENOSYS.",
        "userfaultfd": "Wait until its lazy restore is complete, or start it without userfaultfd.",
        "perf_event": "Detach the profiler.",
    }
    return known.get(what, "Start the program so that it does not use it.")


def check_pids(case: Case) -> Iterator[Finding]:
    node, taken = case.names["destination"], case.there.get("pids_taken", [])
    if taken:
        text = f"PIDs of the tree are taken: {listed(map(_name, taken))}."
        yield Finding("pids", node, text, "End those processes, or start the workload again under other PIDs.")
    largest = max((tid for task in _tasks(case) for tid in task["tids"]), default=0)
    if largest >= case.destination["pid_max"] > 0:
        text = f"PID {largest} of the tree is above kernel.pid_max={case.destination['pid_max']}."
        yield Finding("pids", node, text, f"sysctl kernel.pid_max={1 << 22}")


def check_files(case: Case) -> Iterator[Finding]:
    """Files that do not travel and that the destination lacks or has otherwise."""
    node, files = case.names["destination"], case.there.get("files", [])
    missing = [item for item in files if item["problem"] == "missing"]
    shared = [item for item in missing if item["fstype"] in _NETWORK_FILES]
    for group, how in (
        (shared, "Mount that file system at the same place."),
        ([item for item in missing if item not in shared and item["mapped"]], "Install the same packages there."),
        ([item for item in missing if item not in shared and not item["mapped"]], ""),
    ):
        if group:
            paths = sorted(item["path"] for item in group)
            advice = how or f"Let them travel: {_sync(case, paths)}. Or put them there."
            if how and group is not shared:
                advice += f" Or let them travel: {_sync(case, paths)}."
            yield Finding("files", node, f"Files that the process has open are missing: {listed(paths)}.", advice)
    other = [item for item in files if item["problem"] != "missing"]
    for mapped in (True, False):
        group = [item for item in other if item["mapped"] == mapped]
        if group:
            what = listed(f"{item['path']} ({_difference(item)})" for item in group)
            paths = sorted(item["path"] for item in group)
            advice = "Install the same version on both nodes." if mapped else f"Let them travel: {_sync(case, paths)}."
            yield Finding("files", node, f"Files that the process has open differ here: {what}.", advice)


def _sync(case: Case, paths: list[str]) -> str:
    """The parameter that makes the paths travel, besides those that do already; folders where there are many."""
    if len(paths) > 5:
        paths = sorted({os.path.dirname(path) for path in paths})
    return "sync_paths=" + ",".join([*map(str, case.params.get("sync_paths") or []), *paths])


def _difference(item: Facts) -> str:
    if item["problem"] == "build_id":
        return "another build"
    words = {"size": "bytes", "mode": "mode", "kind": ""}[item["problem"]]
    return f"{item['here']} {words} here, {item['there']} on the source".replace("  ", " ")


def check_deleted(case: Case) -> Iterator[Finding]:
    """Deleted files travel inside of the images up to a limit; one that another name leads to needs link_remap."""
    if not case.tree.get("found"):
        return
    node, limit = case.names["source"], int(case.params.get("ghost_limit") or 0)
    deleted = [item for item in case.tree["files"] if item["deleted"]]
    large = [item for item in deleted if not item["links"] and item["size"] > limit]
    if large:
        largest = max(item["size"] for item in large)
        what = listed(f"{item['path']} ({size(item['size'])})" for item in large)
        text = f"Deleted files that are still open and larger than ghost_limit ({size(limit)}): {what}."
        restart = " Or restart the program, which then uses the new ones." if any(i["mapped"] for i in large) else ""
        yield Finding("deleted", node, text, f"Give ghost_limit={-(-largest // (1 << 20))}M.{restart}")
    linked = [item for item in deleted if item["links"]]
    if linked and not case.params.get("link_remap"):
        text = f"Open files lost this name but have another: {listed(item['path'] for item in linked)}."
        yield Finding("deleted", node, text, "Give link_remap=true.")
    stays = [item for item in linked if not item["travels"]]
    if stays and case.params.get("link_remap"):
        text = f"Open files lost this name but have another, and do not travel: {listed(i['path'] for i in stays)}."
        folders = sorted({os.path.dirname(item["path"]) for item in stays})
        yield Finding("deleted", node, text, f"Let their folders travel: {_sync(case, folders)}.")


def check_locks(case: Case) -> Iterator[Finding]:
    """CRIU 4.2 takes locks before it maps files, and closing what it mapped drops a process's POSIX locks again."""
    node, files = case.names["source"], case.tree.get("files", [])
    locked = [item["path"] for item in files if item["locked"]]
    if locked and not case.params.get("file_locks"):
        yield Finding("locks", node, f"Files are locked: {listed(locked)}.", "Give file_locks=true.")
    lost = [item["path"] for item in files if item["fragile"] and item["mapped"]]
    if lost:
        text = f"Files are mapped and under a POSIX lock, which CRIU loses: {listed(lost)}."
        remedy = "Without it another process may destroy them. Let the program do without one of the two (SQLite: "
        yield Finding("locks", node, text, remedy + "PRAGMA journal_mode=DELETE in place of WAL, mmap_size=0).")


def check_sqlite(case: Case) -> Iterator[Finding]:
    """SQLite looks whether the file under its name is still the one it has open (SQLITE_READONLY_DBMOVED)."""
    paths = [item["path"] for item in case.tree.get("files", []) if item.get("sqlite")]
    if paths:
        text = f"SQLite databases are open for writing: {listed(paths)}. It notices a copy, and writes no more."
        remedy = "Let the program close them before, and open them after, the move."
        yield Finding("sqlite", case.names["source"], text, remedy)


CHECKS: tuple[Check, ...] = (
    check_tracers, check_limits, check_namespaces, check_session, check_unsupported, check_pids,
    check_files, check_deleted, check_locks, check_sqlite,
)  # fmt: skip
