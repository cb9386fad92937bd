"""What criu_check concludes from what it tried."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate import cli, probe
from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate.errors import CriuError
from tests.conftest import ROOT

LOG = """\
Error (criu/util.c:642): exited, status=1
Error (criu/vdso.c:381): vdso: Unexpected rt vDSO area bounds
Error (criu/crtools.c:260): Could not initialize kernel features detection."""


class FakeCriu:
    """Answers like a criu with these exit codes."""

    path = "/usr/sbin/criu"

    def __init__(self, check: int, version: str) -> None:
        self.check, self.version = check, version

    def run(self, words: list[str]) -> cli.Result:
        if words == ["--version"]:
            return cli.Result(words, 0, 0.0, "", "", f"Version: {self.version}\nGitID: v{self.version}\n")
        return cli.Result(words, self.check, 0.0, "", LOG, "")

    def has_feature(self, name: str) -> bool:
        return name == "uffd-noncoop"


@pytest.fixture
def node(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that sets what this node's criu answers."""

    def set_up(check: int = 0, dumpable: bool = True, version: str = "4.2.1") -> None:
        trial = {"dumpable": dumpable, "rc": 0 if dumpable else 1, "seconds": 0.1, "reason": "1:16"}
        monkeypatch.setattr(cli, "Criu", lambda: FakeCriu(check, version))
        monkeypatch.setattr(probe, "trial", lambda _criu: trial)

    return set_up


def test_works(node: Any) -> None:
    node()
    found = probe.look(["uffd-noncoop", "mem_dirty_track"])
    assert (found["ok"], found["reason"], found["version"], found["git_id"]) == (True, "", "4.2.1", "v4.2.1")
    assert found["features"] == {"uffd-noncoop": True, "mem_dirty_track": False}


def test_a_passed_check_is_not_enough(node: Any) -> None:
    node(dumpable=False)
    found = probe.look()
    assert not found["ok"]
    assert found["reason"] == "In a trial, 1:16"


@pytest.mark.parametrize(
    ("version", "good"), [("3.17.1", False), ("4.1.1", False), ("4.2", True), ("5.0", True), ("", False)]
)
def test_the_page_server_has_to_speak_our_protocol(node: Any, version: str, good: bool) -> None:
    node(version=version)
    found = probe.look()
    assert found["ok"] is good
    assert ("older than 4.2" in found["reason"]) is not good
    assert bool(found["trial"]) is good


def test_nothing_is_tried_after_a_failed_check(node: Any) -> None:
    node(check=1)
    found = probe.look()
    assert not found["ok"]
    assert found["reason"].endswith("vdso: Unexpected rt vDSO area bounds")
    assert (found["features"], found["trial"]) == ({}, {})


def test_no_criu(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise CriuError("criu is not installed on this node.")

    monkeypatch.setattr(cli, "Criu", missing)
    found = probe.look()
    assert (found["installed"], found["ok"], found["reason"]) == (False, False, "CRIU is not installed.")


def test_settings_are_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = [
        {"name": "kernel.pid_max", "value": 1, "at_least": True},
        {"name": "kernel.pid_max", "value": 1},
        {"name": "no.such", "value": 1},
    ]
    found = probe.low_settings(wanted)
    assert set(found) == {"kernel.pid_max", "no.such"}
    assert found["no.such"] == {"value": 1, "current": None}


def test_commands_of_a_root_shell() -> None:
    assert probe.missing_commands(["sh", "no-such-command"]) == ["no-such-command"]


@pytest.mark.parametrize("role", ["criu", "lab"])
def test_defaults_are_those_that_the_specification_names(role: str) -> None:
    folder = ROOT / "roles" / role
    defaults = yaml.safe_load((folder / "defaults/main.yml").read_text())
    options = yaml.safe_load((folder / "meta/argument_specs.yml").read_text())["argument_specs"]["main"]["options"]
    assert {name: option["default"] for name, option in options.items()} == defaults
