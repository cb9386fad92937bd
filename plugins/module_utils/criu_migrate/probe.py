"""What the CRIU of a node can do, found out by trying. Changes nothing but a directory of its own."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from . import cli
from .errors import CriuError
from .job import Job

FEATURES = ("mem_dirty_track", "uffd-noncoop", "network_lock_nftables", "timens", "pidfd_store")
TRIAL_LIMIT = 30.0  # seconds for the dump of a small process
# page_images.py and lazy_proxy.py speak this one's page server. 4.1.1 sends 24 bytes where 4.2 sends 32, and neither
# names its version on the wire nor as a feature, so here versions have to be compared: read as the other one's, the
# pages of a frozen process would only be missed at the limit of the dump.
OLDEST = (4, 2)


def identity(text: str) -> tuple[str, str]:
    """(version, git id) from what `criu --version` says; the git id is "" in a released build."""
    version = re.search(r"Version: (\S+)", text)
    git = re.search(r"GitID: (\S+)", text)
    return (version.group(1) if version else "", git.group(1) if git else "")


def too_old(version: str) -> str:
    """Why a CRIU of this version is not used, '' where it is."""
    match = re.match(r"(\d+)\.(\d+)", version)
    if match and (int(match.group(1)), int(match.group(2))) >= OLDEST:
        return ""
    return "It is older than 4.2, and its page server speaks another protocol."


def trial(criu: cli.Criu, base: str = "") -> dict[str, Any]:
    """Dump a small process that listens on a TCP socket: `criu check` passes on kernels where this fails.

    Returns dumpable, rc, seconds, and, where it failed, reason and log_tail.
    """
    folder = tempfile.mkdtemp(prefix="criu-trial-", dir=base or None)
    listener = socket.create_server(("127.0.0.1", 0))
    victim = subprocess.Popen(
        ["sleep", "60"],  # ends by itself, should nobody be left to kill it
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        pass_fds=[listener.fileno()],
        start_new_session=True,
        cwd="/",
    )
    listener.close()
    try:
        # left running: CRIU then takes its network lock, an nft table, away again
        cmd = criu.dump_argv(victim.pid, folder, folder, leave="running")
        job = Job.launch("trial", folder, cmd, f"{folder}/criu-dump.log")
        result = job.wait(TRIAL_LIMIT)
        if result is None:
            job.kill()
            result = job.result(-signal.SIGKILL)
    finally:
        victim.kill()
        victim.wait()
    shutil.rmtree(folder)
    found = {"dumpable": result.rc == 0, "rc": result.rc, "seconds": result.seconds, "reason": "", "log_tail": ""}
    if result.rc:
        found.update(reason=_cause("dump", result), log_tail=result.log_tail or result.stderr)
    return found


def _cause(what: str, result: cli.Result) -> str:
    """Why a command failed, without what CRIU says of children that it had merely tried something in."""
    lines = [line for line in (result.log_tail or result.stderr).splitlines() if "exited, status=" not in line]
    return cli.failed(what, replace(result, log_tail="\n".join(lines), stderr="")).message


def look(features: Iterable[str] = FEATURES, with_trial: bool = True) -> dict[str, Any]:
    """Everything about this node's CRIU; `ok` when it is new enough, `criu check` passes and the trial succeeds."""
    found: dict[str, Any] = {
        "installed": False, "ok": False, "path": "", "version": "", "git_id": "", "kernel": os.uname().release,
        "check": {}, "features": {}, "trial": {}, "reason": "CRIU is not installed.",
    }  # fmt: skip
    try:
        criu = cli.Criu()
    except CriuError:
        return found
    found["installed"], found["path"] = True, criu.path
    found["version"], found["git_id"] = identity(criu.run(["--version"]).stderr)
    check = criu.run(["check"])
    found["check"] = {"rc": check.rc, "log_tail": check.log_tail}
    found["reason"] = _cause("check", check) if check.rc else too_old(found["version"])
    if check.rc == 0:
        found["features"] = {name: criu.has_feature(name) for name in features}
    if not found["reason"] and with_trial:
        found["trial"] = trial(criu)
        if not found["trial"]["dumpable"]:
            found["reason"] = f"In a trial, {found['trial']['reason']}"
    found["ok"] = not found["reason"]
    return found


def missing_commands(names: Iterable[str]) -> list[str]:
    """Those commands that a root shell of this node would not find."""
    path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    return [name for name in names if not shutil.which(name, path=path)]


def low_settings(wanted: Iterable[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The kernel settings that differ from what is wanted: name -> value (wanted) and current, null if unknown.

    Each of `wanted` has name, value, and at_least where a higher value is as good.
    """
    found = {}
    for item in wanted:
        name, value = str(item["name"]), int(item["value"])
        try:
            with open("/proc/sys/" + name.replace(".", "/"), encoding="ascii") as handle:
                current: Any = int(handle.read())
        except (OSError, ValueError):
            current = None
        good = current is not None and (current == value or (item.get("at_least") and current > value))
        if not good:
            found[name] = {"value": value, "current": current}
    return found
