"""criu-migrate run: migrate.yml by ansible-runner."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from . import places, timing
from .places import CommandError
from .progress import Progress, plain

INTERRUPTED = 99  # what ansible-playbook ends with after Ctrl-C
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass
class Request:
    """What to run. `extra` is given to Ansible in a file, so that no value shows in a list of processes."""

    extra: Mapping[str, Any] = field(default_factory=dict)
    raw: Sequence[str] = ()  # -e as typed
    inventories: Sequence[str] = ()
    environ: Mapping[str, str] = field(default_factory=dict)
    check: bool = False
    verbose: int = 0


def environment(root: Path, more: Mapping[str, str], here: Path, environ: Mapping[str, str]) -> dict[str, str]:
    """Variables for ansible-playbook, beside those that are there."""
    found = dict(more)
    # Of this very installation, whether or not its venv is activated.
    found["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environ.get('PATH', os.defpath)}"
    if "ANSIBLE_CONFIG" not in environ and not (here / "ansible.cfg").exists() and (root / "ansible.cfg").exists():
        found["ANSIBLE_CONFIG"] = str(root / "ansible.cfg")
    # ansible-runner switches it off where it is not set.
    found["ANSIBLE_HOST_KEY_CHECKING"] = environ.get("ANSIBLE_HOST_KEY_CHECKING", "True")
    found["ANSIBLE_STDOUT_CALLBACK"] = "criu.migrate.criu_migrate"
    return found


def arguments(request: Request, extra_file: Path) -> list[str]:
    """The command line of ansible-playbook, without the playbook."""
    words: list[str] = []
    for inventory in request.inventories:
        words += ["-i", inventory]
    words += ["-e", f"@{extra_file}"]
    for one in request.raw:
        words += ["-e", one]
    if request.check:
        words.append("--check")
    if request.verbose > 1:
        words.append("-" + "v" * (request.verbose - 1))
    return words


def children() -> list[int]:
    """PIDs of the processes that this one has started."""
    found: list[int] = []
    for task in Path("/proc/self/task").iterdir():
        try:
            found += [int(word) for word in (task / "children").read_text().split()]
        except OSError:
            continue
    return found


@contextmanager
def signals_go_on(tell: Callable[[str], None]) -> Iterator[None]:
    """Hand signals on to ansible-playbook, which sits in a session of its own and would not see a Ctrl-C.

    The runner's own handler would kill it outright. The first signal lets it end by itself, a second one kills it.
    """
    seen: list[int] = []

    def hand_on(number: int, _frame: FrameType | None) -> None:
        seen.append(number)
        found = children()
        if not found:
            raise KeyboardInterrupt
        for pid in found:
            what = signal.SIGINT if len(seen) == 1 else signal.SIGKILL
            try:
                group = os.getpgid(pid)
                if group == os.getpgrp():  # just forked, not yet in its own session
                    os.kill(pid, what)
                else:
                    os.killpg(group, what)
            except ProcessLookupError:
                continue
        # os.write: the thread that was interrupted may hold the lock of the display
        if len(seen) == 1:
            os.write(2, b"\ninterrupted: waiting for ansible-playbook to end (once more to kill it)\n")

    before = {number: signal.signal(number, hand_on) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if seen:
            tell("interrupted")


def _handler(progress: Progress, clock: timing.Timing, verbose: int, broken: list[Exception]) -> Callable[[Any], bool]:
    def handle(event: Any) -> bool:
        # What is raised here would end the run, and leave the playbook behind without a word.
        try:
            clock.feed(event)
            progress.feed(event)
            if verbose and event.get("stdout"):
                sys.stdout.write((str(event["stdout"]) if progress.colour else plain(event)) + "\n")
                sys.stdout.flush()
        except Exception as error:
            broken.append(error)
        return False  # nothing is written to disk: results hold keys and logs

    return handle


def _play(request: Request, root: Path, private: Path, progress: Progress, clock: timing.Timing) -> int:
    """Run the playbook in a private folder; return its exit code.

    :raises CommandError: the runner could not start it
    """
    import ansible_runner
    from ansible_runner.exceptions import AnsibleRunnerException

    extra_file = private / "extra.json"
    extra_file.touch(0o600)
    extra_file.write_text(json.dumps(dict(request.extra)), encoding="utf-8")
    # As an argument they are lost where this file is not there.
    (private / "env").mkdir()
    settings = {"suppress_output_file": True, "pexpect_timeout": 1}
    (private / "env" / "settings").write_text(json.dumps(settings), encoding="utf-8")
    here, broken = Path.cwd(), list[Exception]()
    if not request.verbose:
        progress.start()
    try:
        runner = ansible_runner.run(
            private_data_dir=str(private), project_dir=str(here), playbook=str(root / "playbooks" / "migrate.yml"),
            cmdline=shlex.join(arguments(request, extra_file)), quiet=True, suppress_env_files=True,
            fact_cache_type="", envvars=environment(root, request.environ, here, os.environ),
            event_handler=_handler(progress, clock, request.verbose, broken), cancel_callback=lambda: False,
        )  # fmt: skip
    except AnsibleRunnerException as error:
        raise CommandError(f"ansible-runner could not run the playbook: {error}") from error
    for what in broken[:1]:
        print(f"criu-migrate: the progress could not be shown: {what!r}", file=sys.stderr)
    return INTERRUPTED if runner.rc is None else int(runner.rc)


def run(request: Request) -> int:
    """Run the playbook, show its progress, complete its results; return its exit code.

    :raises CommandError: it could not be started
    """
    root = places.open_collection()
    from ansible_collections.criu.migrate.plugins.callback.criu_migrate import progress as words
    from ansible_collections.criu.migrate.plugins.callback.criu_migrate import rounds

    terminal = sys.stdout.isatty()
    colour = terminal and not os.environ.get("NO_COLOR")
    progress = Progress(sys.stdout, words, colour, terminal and not request.verbose, rounds)
    progress.quiet = bool(request.verbose)
    clock = timing.Timing(time.time(), [path.stem for path in (root / "plugins" / "action").glob("*.py")])
    rc, interrupted = INTERRUPTED, list[str]()
    private: Path | None = None
    try:
        with signals_go_on(interrupted.append):
            private = Path(tempfile.mkdtemp(prefix="criu-migrate-"))
            rc = _play(request, root, private, progress, clock)
    except KeyboardInterrupt:
        interrupted.append("before the playbook began")
    finally:
        progress.end()
        if private is not None:
            shutil.rmtree(private, ignore_errors=True)
    if interrupted:
        return _tell_interrupted(progress, rc)
    _complete(progress, clock, time.time(), rc)
    if rc and not progress.shown_failure and progress.last:
        print(progress.last, file=sys.stderr)
    if progress.summary and not request.verbose:
        print(progress.summary)
    return rc


def _tell_interrupted(progress: Progress, rc: int) -> int:
    if progress.folder:
        print(f"criu-migrate: interrupted; the results are in {progress.folder}", file=sys.stderr)
        return rc or INTERRUPTED
    about = f" {progress.run_id}" if progress.run_id else ""
    resolve = f"ansible-playbook playbooks/resolve.yml -e run_id={progress.run_id or 'RUN_ID'}"
    print(
        f"criu-migrate: interrupted, no results were written. The migration{about}, if it had begun, is finished or "
        f"undone by the guards on the nodes.\nHow it stands, and what remains to be done: {resolve}",
        file=sys.stderr,
    )
    return rc or INTERRUPTED


def _complete(progress: Progress, clock: timing.Timing, ended: float, rc: int) -> None:
    """Add what Ansible cost to the metrics, and make the report again with it."""
    path = Path(progress.folder) / "metrics.json"
    if not progress.folder or not path.is_file():
        return
    from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate import report, results

    from . import runs

    try:
        one = runs.load(path.parent)
        metrics = {**one.metrics, "ansible": clock.section(ended, rc, timing.handover(one.metrics))}
        results.write_text(path, results.as_json(metrics))
        results.write_text(path.with_name(report.NAME), report.html(metrics, runs.logs(path.parent), path.parent.name))
    except (OSError, CommandError) as error:
        print(f"criu-migrate: {path.parent}: Ansible's times could not be added: {error}", file=sys.stderr)
