"""One run of migrate.yml as its own process group, with the handles that a fault test needs."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
from pathlib import Path
from typing import Any, TextIO

from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate import proc
from tests.conftest import ROOT
from tests.lab.harness.nodes import Lab, environment, program
from tests.lab.harness.run import Run

PLAYBOOK = os.environ.get("CRIU_MIGRATE_PLAYBOOK", "migrate.yml")
LIMIT = 240.0  # seconds for one play; most take 15


class Migration(Run):
    """A migration by ansible-playbook. Its working directory has a name of its own, by which its record is found."""

    def __init__(self, lab: Lab, tmp: Path, workload: str, **params: Any) -> None:
        super().__init__(lab, workload, f"/srv/criu-migrate/test-{secrets.token_hex(4)}")
        self.tmp = tmp / f"run-{secrets.token_hex(3)}"
        self.tmp.mkdir()
        self.params: dict[str, Any] = {"workload": workload, "working_dir": self.working_dir, **params}
        self.working_dir = str(self.params["working_dir"])
        self.results = self.tmp / "results"
        self.inventories = [lab.inventory]
        self.arguments: list[str] = []
        self.environ: dict[str, str] = {}
        self.playbook = PLAYBOOK
        self.cwd = ROOT
        self.play: subprocess.Popen[str] | None = None
        self._out: TextIO | None = None

    # --- the play ----------------------------------------------------------------------------------------------

    def start(self) -> Migration:
        extra = {"results_dir": str(self.results), **self.params}
        command = [program("ansible-playbook"), self.playbook]
        for inventory in self.inventories:
            command += ["-i", str(inventory)]
        command += ["-e", json.dumps(extra), *self.arguments]
        self._out = (self.tmp / "play.log").open("w", encoding="utf-8")
        self.play = subprocess.Popen(
            command, cwd=self.cwd, env=environment(self.tmp, **self.environ), stdin=subprocess.DEVNULL,
            stdout=self._out, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        )  # fmt: skip
        return self

    def output(self) -> str:
        return (self.tmp / "play.log").read_text(encoding="utf-8", errors="replace")

    def ended(self) -> bool:
        return self.play is not None and self.play.poll() is not None

    def finish(self, rc: int | None = 0, limit: float = LIMIT) -> Migration:
        """Wait for the end of the play; `rc` is what it has to end with, None for anything but 0."""
        assert self.play is not None
        try:
            got = self.play.wait(limit)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"The play does not end:\n{self.story()}") from None
        assert got == rc if rc is not None else got != 0, f"ansible-playbook ended with {got}:\n{self.story()}"
        return self

    def run(self, rc: int | None = 0) -> Migration:
        return self.start().finish(rc)

    def kill_play(self) -> None:
        """Kill ansible-playbook with everything that it has started on the control node; workers lead sessions."""
        assert self.play is not None
        started = proc.tree(self.play.pid)
        os.killpg(self.play.pid, signal.SIGKILL)
        proc.kill_tree(started, 5.0)
        self.play.wait()

    def close(self) -> None:
        if self.play is not None and self.play.poll() is None:
            self.kill_play()
        if self._out is not None:
            self._out.close()

    def check_going_on(self) -> None:
        assert not self.ended(), f"the play ended:\n{self.story()}"

    def find(self) -> str | None:
        for node in (self.lab.source, self.lab.destination):
            for name in node.runs():
                record = node.record(name)
                if record and record.get("working_dir") == self.working_dir:
                    return name
        assert not self.ended(), f"The play ended without a run:\n{self.output()}"
        return None

    def metrics(self) -> dict[str, Any]:
        folders = list(self.results.iterdir())
        assert len(folders) == 1, f"one results folder was expected: {folders}"
        found: dict[str, Any] = json.loads((folders[0] / "metrics.json").read_text(encoding="utf-8"))
        return found
