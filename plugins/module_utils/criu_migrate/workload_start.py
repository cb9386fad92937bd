"""Starting a workload: its directory, its programs, a session of its own, and the wait until it serves."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import random
import shlex
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from . import proc, record
from .errors import MigrationError
from .inotify import Watch
from .workload import (
    FLAG,
    KILL_LIMIT,
    OUTPUT,
    READY,
    RECORD,
    REQUEST,
    RESULT,
    acting_as,
    find,
    last_thaw,
    last_words,
    members,
    recorded,
)

SETTLE = 0.5  # seconds in which a program that gives no ready signal is expected to die if it cannot run
PATHS = "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin"


def account(user: str = "") -> pwd.struct_passwd:
    """Return the account that runs a workload: `user`, else who became root by sudo, else the caller.

    :raises MigrationError: when there is no such account
    """
    # Without CAP_SYS_RESOURCE CRIU may read the limits of its own user's processes only (prlimit(2))
    any_user = os.geteuid() == 0 and proc.has_capability(proc.CAP_SYS_RESOURCE)
    name = user or (os.environ.get("SUDO_USER", "") if any_user else "")
    try:
        return pwd.getpwnam(name) if name else pwd.getpwuid(os.geteuid())
    except KeyError as error:
        text = f"There is no account {name!r} on this node."
        raise MigrationError(text, "Give another workload_user, or make the account.") from error


def words(command: str) -> list[str]:
    """Split a command line as a shell would, without running one.

    :raises MigrationError: when it is empty or a quote is left open
    """
    try:
        argv = shlex.split(command)
    except ValueError as error:
        text = f"The command {command!r} cannot be split into words: {error}."
        raise MigrationError(text, "Close its quotes.") from error
    if not argv:
        raise MigrationError("The command is empty.", "Give the program to run and its arguments.")
    return argv


def spread_pids() -> bool:
    """Let the next PIDs be high and random, so that they are free on another node too; return whether it worked."""
    try:
        most = int(Path("/proc/sys/kernel/pid_max").read_text(encoding="ascii"))
        least = 32768 if most >= 131072 else most // 4
        place = random.randrange(least, most - 2048)  # noqa: S311  no secret
        Path("/proc/sys/kernel/ns_last_pid").write_text(str(place), encoding="ascii")
    except (OSError, ValueError):
        return False
    return True


def prepare(folder: Path, programs: Mapping[str, str], user: pwd.struct_passwd) -> bool:
    """Make the working directory, owned by `user`, with `programs` (name: content) and a fresh contract in it.

    Return whether it was made for a workload, now or earlier: only then may it be removed.
    """
    made = not folder.exists() or bool(recorded(folder).get("made"))
    folder.mkdir(mode=0o750, parents=True, exist_ok=True)
    if os.geteuid() == 0:
        os.chown(folder, user.pw_uid, user.pw_gid)
    with acting_as(user.pw_uid, user.pw_gid):
        for name, text in programs.items():
            (folder / name).write_text(text, encoding="utf-8")
        for name in (READY, REQUEST, RESULT):
            (folder / name).unlink(missing_ok=True)
        (folder / RECORD).write_text(json.dumps({"made": made}), encoding="utf-8")
        (folder / FLAG).touch()
    return made


def launch(folder: Path, argv: Sequence[str], user: pwd.struct_passwd) -> subprocess.Popen[bytes]:
    """Start `argv` as `user` in a session of its own, without a terminal, its output in a file that moves with it.

    :raises MigrationError: when it cannot be executed
    """
    environment = {
        "PATH": PATHS,
        "HOME": user.pw_dir,
        "USER": user.pw_name,
        "LOGNAME": user.pw_name,
        "LANG": "C.UTF-8",
        "PYTHONUNBUFFERED": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    become: dict[str, Any] = {}
    if os.geteuid() == 0 and user.pw_uid != 0:
        groups = os.getgrouplist(user.pw_name, user.pw_gid)
        become = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": groups}
    with acting_as(user.pw_uid, user.pw_gid):
        output = (folder / OUTPUT).open("ab")
    with output:
        spread_pids()
        try:
            return subprocess.Popen(
                list(argv), cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                start_new_session=True, close_fds=True, **become,
            )  # fmt: skip
        except OSError as error:
            raise MigrationError(
                f"{argv[0]} cannot be started: {error.strerror or error}.",
                "Check that the program is installed on the node and may be executed by "
                f"{user.pw_name}; a workload of this repository is installed by its role.",
            ) from error


def is_ready(folder: Path) -> bool:
    """Return whether the program has given its ready signal completely."""
    try:
        return (folder / READY).read_text(encoding="utf-8").startswith("ready")
    except OSError:
        return False


def await_ready(folder: Path, process: subprocess.Popen[bytes], limit: float) -> None:
    """Wait for the ready signal for `limit` seconds.

    :raises MigrationError: when the program ends first, or gives no signal in time (it is killed then)
    """
    descriptor = os.pidfd_open(process.pid)
    try:
        with Watch(str(folder)) as watch:
            ready = watch.until(lambda: is_ready(folder), limit, descriptor)
    finally:
        os.close(descriptor)
    if ready:
        return
    died(folder, process)
    proc.kill_tree(members(folder), KILL_LIMIT)
    raise MigrationError(
        f"The workload gave no ready signal ({folder / READY}) within {limit:g} s and was killed.",
        "Give it more time with ready_timeout, or look at its output.",
        {"output": last_words(folder)},
    )


def died(folder: Path, process: subprocess.Popen[bytes]) -> None:
    """Raise MigrationError with the program's last words where it has ended already."""
    status = process.poll()
    if status is not None:
        words = last_words(folder)
        raise MigrationError(
            f"The workload ended as soon as it was started, with status {status}: {words or 'it said nothing'}",
            "Correct what its output names.",
            {"output": words, "status": status},
        )


def start(
    working_dir: str,
    argv: Sequence[str],
    programs: Mapping[str, str],
    user: str = "",
    wait_ready: bool = True,
    ready_timeout: float = 60.0,
    verifies: bool = False,
    check: bool = False,
) -> dict[str, Any]:
    """Start a workload unless it runs already; return its PID, start time (clock ticks) and seconds to ready.

    :raises MigrationError: when it cannot start, ends at once, or is not ready within `ready_timeout` seconds
    """
    folder = Path(working_dir)
    found = find(folder)
    if found is not None:
        note = recorded(folder)
        here = {"pid": found.pid, "start_ticks": found.start, "working_dir": working_dir}
        return {**note, **here, "changed": False, "since": last_thaw(found.pid)}
    who = account(user)
    if check:
        return {"changed": True, "pid": None, "user": who.pw_name, "working_dir": working_dir}
    made = prepare(folder, programs, who)
    began = time.monotonic()
    try:
        process = launch(folder, argv, who)
    except MigrationError:
        if made:
            shutil.rmtree(folder)
        raise
    seen = proc.stat(process.pid)
    note = {
        "pid": process.pid,
        "start_ticks": seen[2] if seen else 0,
        "boot_id": record.boot_id(),
        "argv": list(argv),
        "user": who.pw_name,
        "verifies": verifies,
        "made": made,
    }
    with acting_as(who.pw_uid, who.pw_gid):
        (folder / RECORD).write_text(json.dumps(note) + "\n", encoding="utf-8")
    if wait_ready:
        await_ready(folder, process, ready_timeout)
    else:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(SETTLE)
        died(folder, process)
    ready = round(time.monotonic() - began, 3) if wait_ready else None
    process.returncode = 0  # it outlives this program on purpose
    return {**note, "changed": True, "ready_seconds": ready, "working_dir": working_dir}
