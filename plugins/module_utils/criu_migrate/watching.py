"""The watcher seen by the module criu_watch: laid out, started, listened to and removed again on this node."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from typing import Any
from urllib.parse import urlsplit

from . import detaching, errors, metadata, metadata_aws, metadata_gcp, notices, packing, proc, record, registry, watcher
from .errors import MigrationError
from .inotify import Watch

# Named as modules too, so that Ansible brings along what is packed here.
PACKED = (detaching, errors, metadata, metadata_aws, metadata_gcp, notices, record, watcher)
SYSTEMD = "/run/systemd/system"  # is there where systemd is the init (sd_booted(3))
START = 10.0  # seconds until a watcher that was started holds its lock


def check_url(name: str, url: str) -> None:
    """MigrationError where a base URL of a metadata service is none."""
    try:
        parts = urlsplit(url)
        good = parts.scheme == "http" and bool(parts.hostname) and not (parts.path.strip("/") or parts.query)
        parts.port  # noqa: B018  (ValueError where it is no number)
    except ValueError:
        good = False
    if url and not good:
        raise MigrationError(f"{name}={url}: it is no base URL.", "Give one like http://ADDRESS or http://ADDRESS:PORT.")


def systemd() -> bool:
    return os.path.isdir(SYSTEMD)


def running() -> bool:
    return record.file_locked(watcher.place(watcher.LOCK))


def status() -> dict[str, Any]:
    """What the watcher has last said of itself: pid, provider, trouble; {} where there was none."""
    try:
        with open(watcher.place(watcher.STATUS), encoding="utf-8") as handle:
            found: dict[str, Any] = json.load(handle)
    except (FileNotFoundError, ValueError):
        return {}
    return found


def lay_out(config: dict[str, Any], check: bool) -> bool:
    """The program and its settings; True where something was, or with `check` would be, changed."""
    names = tuple(item.__name__.rpartition(".")[2] for item in PACKED)
    texts = {
        watcher.PROGRAM: packing.build(names, "watcher"),
        watcher.CONFIG: json.dumps({**config, "runs": record.RUNS}, indent=1, sort_keys=True).encode(),
    }
    changed = [name for name, data in texts.items() if _differs(watcher.place(name), data)]
    if changed and not check:
        os.makedirs(watcher.FOLDER, mode=0o700, exist_ok=True)
        os.makedirs(record.RUNS, mode=0o700, exist_ok=True)
        for name in changed:
            record.write_file(watcher.place(name), texts[name])
    return bool(changed)


def _differs(path: str, data: bytes) -> bool:
    try:
        with open(path, "rb") as handle:
            return handle.read() != data
    except FileNotFoundError:
        return True


def start(python: str) -> bool:
    """Start it as a daemon of its own (where there is no systemd); False when it runs already."""
    if running():
        return False
    words = [python, "-I", watcher.place(watcher.PROGRAM), "daemon"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    deadline = time.monotonic() + START
    while not (running() or _over()):
        if done.returncode or time.monotonic() > deadline:
            raise MigrationError(f"The watcher did not start: {done.stderr.strip()[-300:]}", f"See {log_path()}.")
        time.sleep(0.01)  # a lock gives no event
    return True


def _over() -> bool:
    """It has nothing to wait for: the end was announced already."""
    known = notices.read()
    return known is not None and known["kind"] != notices.REBALANCE


def log_path() -> str:
    return watcher.place(watcher.LOG)


def stop() -> bool:
    """End a watcher that runs; False where there was none."""
    if not running():
        return False
    pid = int(status().get("pid") or 0)
    seen = proc.stat(pid) if pid else None
    if seen is None:
        return False
    one = proc.Proc(pid, seen[2])
    one.kill(signal.SIGTERM)
    if proc.wait_gone([one], START):
        raise MigrationError(f"The watcher (PID {pid}) does not end.", f"kill -9 {pid}")
    return True


def remove(check: bool) -> bool:
    """The watcher, its files and the notice; False where there was nothing."""
    there = os.path.isdir(watcher.FOLDER) or os.path.exists(notices.path())
    if there and not check:
        stop()
        shutil.rmtree(watcher.FOLDER, ignore_errors=True)
        notices.remove()
    return there


def await_notice(seconds: float, hints: bool, python: str) -> dict[str, Any]:
    """Wait up to so many seconds for a notice; with `hints` a rebalance recommendation is one.

    Returns notice (None where none came) with the seconds left as of now, running, provider, trouble, restarts, and
    registered (registry.digest()). A watcher that has died is started again, unless systemd does that. MigrationError
    where none was installed.
    """
    restarts = 0
    if not os.path.exists(watcher.place(watcher.PROGRAM)):
        raise MigrationError("No watcher is installed on this node.", "ansible-playbook playbooks/watch.yml")
    if not (running() or _over() or systemd()):
        restarts += start(python)

    def seen() -> bool:
        known = notices.read()
        return known is not None and (hints or known["kind"] != notices.REBALANCE)

    end = _pidfd()
    try:
        with Watch(record.RUNS) as watch:
            watch.until(seen, seconds, end)
    finally:
        if end is not None:
            os.close(end)
    return {**now(hints), "restarts": restarts}


def now(hints: bool) -> dict[str, Any]:
    """What await_notice() returns, without waiting."""
    known, told = notices.read(), status()
    return {
        "notice": known if known is not None and (hints or known["kind"] != notices.REBALANCE) else None,
        "running": running(),
        "provider": told.get("provider", ""),
        "trouble": told.get("trouble", ""),
        "restarts": 0,
        "registered": registry.digest(),
    }


def _pidfd() -> int | None:
    """Of the watcher, so that its death is noticed; None where it does not run."""
    pid = int(status().get("pid") or 0)
    return proc.pidfd(pid) if pid and running() else None
