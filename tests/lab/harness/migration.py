"""One run of migrate.yml as its own process group, with the handles that a fault test needs."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
from pathlib import Path
from typing import Any, TextIO

from tests.conftest import ROOT
from tests.lab.harness.nodes import RUNS, Lab, Node, environment, program, wait_for

PLAYBOOK = os.environ.get("CRIU_MIGRATE_PLAYBOOK", "migrate.yml")
LIMIT = 240.0  # seconds for one play; most take 15
FINAL = ("done", "undone")


class Migration:
    """A migration under test. Its working directory has a name of its own, by which its record is found."""

    def __init__(self, lab: Lab, tmp: Path, workload: str, **params: Any) -> None:
        self.lab = lab
        self.tmp = tmp / f"run-{secrets.token_hex(3)}"
        self.tmp.mkdir()
        self.workload = workload
        self.working_dir = f"/srv/criu-migrate/test-{secrets.token_hex(4)}"
        self.params: dict[str, Any] = {"workload": workload, "working_dir": self.working_dir, **params}
        self.results = self.tmp / "results"
        self.arguments: list[str] = []
        self.environ: dict[str, str] = {}
        self.playbook = PLAYBOOK
        self.cwd = ROOT
        self.play: subprocess.Popen[str] | None = None
        self._out: TextIO | None = None
        self._run_id = ""

    def node(self, role: str) -> Node:
        return self.lab.nodes[role]

    # --- the play ----------------------------------------------------------------------------------------------

    def start(self) -> Migration:
        extra = {"results_dir": str(self.results), **self.params}
        command = [program("ansible-playbook"), "-i", str(self.lab.inventory), self.playbook]
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
        assert (got == rc if rc is not None else got != 0), f"ansible-playbook ended with {got}:\n{self.story()}"
        return self

    def run(self, rc: int | None = 0) -> Migration:
        return self.start().finish(rc)

    def kill_play(self) -> None:
        """Kill ansible-playbook with everything that it has started on the control node."""
        assert self.play is not None
        os.killpg(self.play.pid, signal.SIGKILL)
        self.play.wait()

    def close(self) -> None:
        if self.play is not None and self.play.poll() is None:
            self.kill_play()
        if self._out is not None:
            self._out.close()

    # --- the guards --------------------------------------------------------------------------------------------

    @property
    def run_id(self) -> str:
        if not self._run_id:
            self._run_id = wait_for("a record of this run", self._find, 90)
        return self._run_id

    def _find(self) -> str | None:
        for node in (self.lab.source, self.lab.destination):
            for name in node.runs():
                record = node.record(name)
                if record and record.get("working_dir") == self.working_dir:
                    return name
        assert not self.ended(), f"The play ended without a run:\n{self.output()}"
        return None

    def known(self) -> str:
        """The run's id, '' where there is none yet."""
        try:
            return self._run_id or self._find() or ""
        except AssertionError:
            return ""

    def record(self, role: str) -> dict[str, Any]:
        return self.node(role).record(self.run_id) or {"state": "absent"}

    def state(self, role: str) -> str:
        return str(self.record(role)["state"])

    def await_paused(self, role: str, state: str, limit: float = 60.0) -> dict[str, Any]:
        """Until the guard stands still in a state (pause_at); returns its record."""

        def paused() -> dict[str, Any] | None:
            record = self.record(role)
            assert record["state"] not in FINAL, f"the {role} never paused at {state}:\n{self.story()}"
            assert not self.ended(), f"the play ended before {role} {state}:\n{self.story()}"
            return record if record.get("paused") == state else None

        self.run_id  # noqa: B018 - first the play has to get there
        return wait_for(f"{role} paused at {state}", paused, limit)

    def go(self, role: str, state: str) -> None:
        self.node(role).path(f"{RUNS}/{self.run_id}/go-{state}").touch()

    def await_state(self, role: str, *states: str, limit: float = 60.0) -> dict[str, Any]:
        def reached() -> dict[str, Any] | None:
            record = self.record(role)
            return record if record["state"] in states else None

        try:
            return wait_for(f"{role} {'/'.join(states)}", reached, limit)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.story()}") from None

    def await_log(self, role: str, text: str, limit: float = 60.0, name: str = "guard.log") -> None:
        try:
            wait_for(f"{text!r} in the {role}'s {name}", lambda: text in self.node(role).log(self.run_id, name), limit)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.story()}") from None

    def kill_guard(self, role: str) -> int:
        """SIGKILL the guard; returns its PID."""
        pid = int(self.record(role)["guard"]["pid"])
        self.node(role).kill(pid)
        return pid

    def kill_job(self, role: str, name: str, number: int = signal.SIGKILL) -> None:
        """A signal for criu itself, the child of the small shell that keeps its exit code."""
        node = self.node(role)
        shell = int(self.record(role)["jobs"][name]["pid"])
        children = node.path(f"/proc/{shell}/task/{shell}/children").read_text().split()
        for pid in children:
            node.kill(int(pid), number)

    # --- afterwards --------------------------------------------------------------------------------------------

    def metrics(self) -> dict[str, Any]:
        folders = list(self.results.iterdir())
        assert len(folders) == 1, f"one results folder was expected: {folders}"
        found: dict[str, Any] = json.loads((folders[0] / "metrics.json").read_text(encoding="utf-8"))
        return found

    def story(self) -> str:
        """What both guards and the play say, for a failed test."""
        parts = []
        run_id = self.known()
        for role in ("source", "destination"):
            record = self.node(role).record(run_id) if run_id else None
            parts.append(f"--- {role}: {json.dumps({k: (record or {}).get(k) for k in ('state', 'error', 'guard_error')})}")
            parts.append(self.node(role).log(run_id) if run_id else "")
        parts.append("--- play\n" + self.output()[-6000:])
        return "\n".join(parts)
