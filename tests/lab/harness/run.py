"""One migration on the lab's nodes, whoever has started it, with the handles that a fault test needs."""

from __future__ import annotations

import json
import signal
from typing import Any

from tests.lab.harness.nodes import RUNS, Lab, Node, wait_for

FINAL = ("done", "undone")


class Run:
    """The records and guards of one migration."""

    def __init__(self, lab: Lab, workload: str, working_dir: str) -> None:
        self.lab = lab
        self.workload = workload
        self.working_dir = working_dir
        self._run_id = ""

    def node(self, role: str) -> Node:
        return self.lab.nodes[role]

    def find(self) -> str | None:
        """The run's id once there is a record of it."""
        raise NotImplementedError

    def check_going_on(self) -> None:
        """AssertionError when what carries this run has ended before its time."""

    def close(self) -> None:
        """End what this run has started on the control node."""

    def output(self) -> str:
        return ""

    # --- the guards --------------------------------------------------------------------------------------------

    @property
    def run_id(self) -> str:
        if not self._run_id:
            self._run_id = wait_for("a record of this run", self.find, 90)
        return self._run_id

    def known(self) -> str:
        """The run's id, '' where there is none yet."""
        try:
            return self._run_id or self.find() or ""
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
            self.check_going_on()
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

    def await_resumed(self, role: str) -> None:
        wait_for(f"SIGCONT on the {role}", lambda: "resumed" in self.record(role).get("times", {}), 20)

    def await_log(self, role: str, text: str, limit: float = 60.0, name: str = "guard.log", times: int = 1) -> None:
        """Until a text has been logged so many times."""

        def there() -> bool:
            return self.node(role).log(self.run_id, name).count(text) >= times

        try:
            wait_for(f"{text!r} in the {role}'s {name}", there, limit)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.story()}") from None

    def kill_guard(self, role: str, keeper: bool = False) -> None:
        """SIGKILL the guard; its keeper starts it again unless it is killed as well."""
        node, guard = self.node(role), self.record(role)["guard"]
        if keeper:
            stat = node.path(f"/proc/{guard['pid']}/stat").read_text()
            node.kill(int(stat[stat.rindex(")") + 2 :].split()[1]))
        node.kill(int(guard["pid"]))

    def await_new_guard(self, role: str, old: dict[str, Any]) -> None:
        """Until the keeper has started another guard than that of the record `old`."""
        wait_for(f"a new guard on the {role}", lambda: self.record(role)["guard"] != old["guard"], 20)

    def job_pid(self, role: str, name: str) -> int:
        """The PID of criu itself, the child of the small shell that keeps its exit code."""
        shell = int(self.record(role)["jobs"][name]["pid"])
        children = self.node(role).path(f"/proc/{shell}/task/{shell}/children")
        words = wait_for(f"criu below the shell {shell}", lambda: children.read_text().split() or None, 10)
        return int(words[0])

    def kill_job(self, role: str, name: str, number: int = signal.SIGKILL) -> None:
        self.node(role).kill(self.job_pid(role, name), number)

    def story(self) -> str:
        """What both guards and the play say, for a failed test."""
        parts = []
        run_id = self.known()
        for role in ("source", "destination"):
            record = self.node(role).record(run_id) if run_id else None
            parts.append(
                f"--- {role}: {json.dumps({k: (record or {}).get(k) for k in ('state', 'error', 'guard_error')})}"
            )
            parts.append(self.node(role).log(run_id) if run_id else "")
        parts.append("--- output\n" + self.output()[-6000:])
        return "\n".join(parts)
