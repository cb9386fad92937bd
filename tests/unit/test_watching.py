"""The watcher as a program of its own on this machine: laid out, started, killed, listened to, removed."""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.testing import patch_module_args

from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate import (
    notices,
    record,
    registry,
    watcher,
    watching,
)
from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate.errors import MigrationError
from tests.unit.metadata_servers import AwsService, serving

LIMIT = 20.0


@pytest.fixture(autouse=True)
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A node without systemd, on which no watcher is left."""
    monkeypatch.setattr(record, "RUNS", str(tmp_path / "runs"))
    monkeypatch.setattr(watcher, "FOLDER", str(tmp_path / "watch"))
    monkeypatch.setattr(registry, "FOLDER", str(tmp_path / "registry"))
    monkeypatch.setattr(watching, "SYSTEMD", str(tmp_path / "systemd"))
    yield tmp_path
    watching.remove(check=False)


@pytest.fixture
def aws() -> Iterator[AwsService]:
    service = AwsService()
    with serving(service):
        yield service


class Left(Exception):
    """What the module has ended with."""


def module(check: bool = False, **arguments: Any) -> dict[str, Any]:
    """Run criu_watch."""
    found = importlib.import_module("ansible_collections.criu.migrate.plugins.modules.criu_watch")

    def leave(_self: AnsibleModule, **result: Any) -> None:
        raise Left(result)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AnsibleModule, "exit_json", leave)
        patch.setattr(AnsibleModule, "fail_json", leave)
        with patch_module_args({**arguments, "_ansible_check_mode": check}), pytest.raises(Left) as caught:
            found.main()
    result: dict[str, Any] = caught.value.args[0]
    return result


def until(true: Any) -> None:
    deadline = time.monotonic() + LIMIT
    while not true():
        assert time.monotonic() < deadline, Path(watching.log_path()).read_text()
        time.sleep(0.01)


def asked(aws: AwsService, more: int) -> None:
    """Until the service was asked so many times from now on."""
    before = len(aws.requests)
    until(lambda: len(aws.requests) >= before + more)


def test_from_present_to_the_notice(aws: AwsService) -> None:
    first = module(aws_url=aws.url, interval=0.05)
    assert (first["changed"], first["systemd"], first["folder"]) == (True, False, watcher.FOLDER)
    asked(aws, 3)
    assert module(aws_url=aws.url, interval=0.05)["changed"] is False, "it runs with these settings already"
    quiet = module(state="noticed", seconds=0.1)
    assert quiet["notice"] is None and quiet["running"] and quiet["provider"] == "aws"
    aws.end_in(100)
    heard = module(state="noticed", seconds=LIMIT)
    assert heard["notice"]["kind"] == "interruption" and 0 < heard["notice"]["seconds_left"] <= 100
    until(lambda: not watching.running())
    again = module(state="noticed", seconds=LIMIT)
    assert again["notice"]["seen"] == heard["notice"]["seen"] and again["restarts"] == 0, "it has nothing more to do"
    assert module(state="absent")["changed"] is True
    assert module(state="absent")["changed"] is False
    assert not os.path.exists(watcher.FOLDER) and notices.read() is None


def test_new_settings_restart_it(aws: AwsService) -> None:
    module(aws_url=aws.url, interval=0.05)
    asked(aws, 1)
    before = watching.status()["pid"]
    with serving(AwsService()) as other:
        assert module(aws_url=other.url, interval=0.05)["changed"] is True
        until(lambda: other.requests and watching.status()["pid"] != before)


def test_a_watcher_that_is_killed_comes_back(aws: AwsService) -> None:
    """By its keeper; and where that was killed as well, by whoever waits for a notice."""
    module(aws_url=aws.url, interval=0.05)
    asked(aws, 1)
    first = int(watching.status()["pid"])
    keeper = int(Path(f"/proc/{first}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(first, signal.SIGKILL)
    until(lambda: watching.status()["pid"] != first)
    until(watching.running)
    second = int(watching.status()["pid"])
    os.kill(keeper, signal.SIGKILL)
    os.kill(second, signal.SIGKILL)
    until(lambda: not watching.running())
    assert module(state="noticed", seconds=0.0)["restarts"] == 1
    asked(aws, 1)


def test_a_death_ends_the_wait(aws: AwsService, monkeypatch: pytest.MonkeyPatch) -> None:
    module(aws_url=aws.url, interval=0.05)
    asked(aws, 1)
    waits = threading.Event()
    pidfd = watching._pidfd

    def begun() -> int | None:
        found = pidfd()
        waits.set()
        return found

    monkeypatch.setattr(watching, "_pidfd", begun)  # one that dies before anybody waits is started again
    results: list[dict[str, Any]] = []
    thread = threading.Thread(target=lambda: results.append(watching.await_notice(600.0, False, sys.executable)))
    thread.start()
    assert waits.wait(LIMIT)
    watching.stop()
    thread.join(LIMIT)
    assert results and results[0]["notice"] is None and results[0]["running"] is False


def test_a_hint_counts_only_where_it_is_to(aws: AwsService) -> None:
    aws.rebalance = {"noticeTime": "2026-11-27T08:22:00Z"}
    module(aws_url=aws.url, interval=0.05)
    until(lambda: notices.read() is not None)
    assert module(state="noticed", seconds=0.1)["notice"] is None
    hint = module(state="noticed", seconds=LIMIT, hints=True)["notice"]
    assert (hint["kind"], hint["seconds_left"]) == ("rebalance", None)


@pytest.mark.parametrize("url", ["169.254.169.254", "https://x", "http://x/latest", "http://x:y", "http://"])
def test_a_base_url_that_is_none_is_refused(url: str) -> None:
    failed = module(gcp_url=url)
    assert failed["msg"].startswith(f"gcp_url={url}: it is no base URL. Remedy: ")
    assert not os.path.exists(watcher.FOLDER)


def test_check_mode_changes_nothing(aws: AwsService) -> None:
    assert module(check=True, aws_url=aws.url)["changed"] is True
    assert not os.path.exists(watcher.FOLDER)
    module(aws_url=aws.url, interval=0.05)
    assert module(check=True, state="absent")["changed"] is True
    assert watching.running()
    assert module(check=True, state="noticed", seconds=600)["notice"] is None


def test_no_watcher_is_said() -> None:
    with pytest.raises(MigrationError, match="No watcher is installed"):
        watching.await_notice(0.0, False, sys.executable)


def test_with_systemd_the_module_starts_nothing(node: Path, aws: AwsService) -> None:
    (node / "systemd").mkdir()
    assert module(aws_url=aws.url)["systemd"] is True
    assert not watching.running()
    assert json.loads((node / "watch" / "config.json").read_text())["aws_url"] == aws.url
