"""What the user sees while a migration runs: a line a task, and on a terminal a bar with phase and time below them."""

from __future__ import annotations

import re
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, TextIO

Event = Mapping[str, Any]
# A guard's record and the rounds of pre-dump that were shown: lines for those that were not, and how many are shown now
Rounds = Callable[[Mapping[str, Any], int], tuple[list[str], int]]
# The phases in the order of a run; tasks of the role are named "phase | what".
PHASES = ("prepare", "preflight", "begin", "arm", "hand_over", "fill", "verify", "report")
COLOURS = {"ok": "32", "changed": "33", "failed": "31", "unreachable": "31", "retry": "36"}
# Said once and loudly; the rest of what Ansible displays is shown by these lines anyway.
LOUD = ("warning", "error", "deprecated", "system_warning")
BAR = 24
MB = 1 << 20
CLEAR = "\r\x1b[K"
STYLES = re.compile(r"\x1b\[[0-9;]*[mKD]")


class Progress:
    """Turns events into lines.

    :param out: where they go
    :param words: renders how a process's memory comes, as the playbook's own callback does
    :param rounds: the same for the rounds that move it before
    """

    def __init__(
        self, out: TextIO, words: Callable[[Mapping[str, Any]], str], colour: bool, live: bool, rounds: Rounds
    ) -> None:
        self.out, self.words, self.colour, self.live, self.rounds = out, words, colour, live, rounds
        self.began = time.monotonic()
        self.limit: float | None = None  # seconds of the deadline
        self.summary = ""
        self.run_id = ""
        self.folder = ""
        self.last = ""  # what Ansible displayed last, for runs that end without any task
        self.shown_failure = False
        self.quiet = False  # only take notice: Ansible's own output is shown
        self._phase, self._pages, self._task, self._task_began = 0, "", "", 0.0
        self._shown = 0  # rounds of pre-dump
        self._filled = 0.0  # share of the memory that has come after the restore
        self._expected = ""  # how much there is to move, by the preflight
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._ticker: threading.Thread | None = None

    # --- events ------------------------------------------------------------------------------------------------

    def feed(self, event: Event) -> None:
        """Show one event."""
        kind, data = str(event.get("event")), event.get("event_data") or {}
        result: Mapping[str, Any] = data["res"] if isinstance(data.get("res"), dict) else {}
        if kind in ("playbook_on_task_start", "playbook_on_handler_task_start"):
            self._start(str(data.get("task") or ""))
        elif kind == "runner_on_ok":
            self._keep(result)
            self._line("changed" if result.get("changed") else "ok", data)
            self._show_rounds(result)
            self._moved(result)
        elif kind in ("runner_on_failed", "runner_on_unreachable"):
            self._failed(kind.rpartition("_")[2], data, result)
        elif kind == "runner_retry":
            self._retry(result)
        elif kind in LOUD:
            self.say(plain(event).strip())
        elif kind == "verbose":
            self.last = plain(event).strip() or self.last

    def _start(self, task: str) -> None:
        self._task, self._task_began = task, time.monotonic()
        phase = task.partition(" | ")[0] if " | " in task else ""
        if phase in PHASES and PHASES.index(phase) >= self._phase:
            self._phase = PHASES.index(phase)
        self._draw()

    def _keep(self, result: Mapping[str, Any]) -> None:
        migration = result.get("migration")
        if isinstance(migration, Mapping):
            self.run_id = str(migration.get("run_id") or "")
            limit = (migration.get("deadline") or {}).get("limit")
            self.limit = None if limit is None else float(limit)
        memory = ((result.get("preflight") or {}).get("process") or {}).get("memory") or {}
        if memory.get("pages"):
            self._expected = f"{memory['pages'] / MB:,.1f} MB to move"
        if result.get("summary") and result.get("results_dir"):
            self.summary, self.folder = str(result["summary"]), str(result["results_dir"])

    def _moved(self, result: Mapping[str, Any]) -> None:
        """Say what crossed, once that is counted."""
        transfer = (result.get("metrics") or {}).get("transfer") or {}
        if transfer.get("bytes") is not None:
            took = "" if transfer.get("seconds") is None else f" in {transfer['seconds']:.2f} s"
            self.say(f"... {transfer['bytes'] / MB:,.1f} MB moved{took}")

    def _line(self, status: str, data: Event) -> None:
        action = str(data.get("task_action") or "").rpartition(".")[2]
        if action in ("set_fact", "include_tasks", "include_role", "meta", "assert", "validate_argument_spec"):
            return  # nothing that a user waits for
        host = data.get("host")
        where = f" ({host})" if host and host != "localhost" else ""
        seconds = time.monotonic() - self.began
        took = data.get("duration")
        length = "        " if took is None else f"{float(took):7.2f}s"
        self.say(f"{seconds:7.1f}s {length} {self._paint(status)} {data.get('task') or ''}{where}")

    def _failed(self, status: str, data: Event, result: Mapping[str, Any]) -> None:
        self._line(status, data)
        message = str(result.get("msg") or "the task failed").strip()
        if message != self.summary.strip():
            self.say("\n".join(f"    {line}" for line in message.splitlines()))
        self.shown_failure = True

    def _show_rounds(self, result: Mapping[str, Any]) -> None:
        record = result.get("record") if "restarts" in result else None
        if isinstance(record, Mapping) and record.get("role") == "source":
            lines, self._shown = self.rounds(record, self._shown)
            for line in lines:
                self.say(f"... {line}")

    def _retry(self, result: Mapping[str, Any]) -> None:
        self._show_rounds(result)
        lazy = (result.get("record") or {}).get("lazy")
        if lazy is None:
            return
        self._pages = self.words(lazy)
        self._filled = (lazy.get("pages_transferred") or 0) / (lazy.get("pages_total") or 1)
        if self.live:
            self._draw()
        else:
            self.say(f"... {self._pages}")

    # --- the terminal ------------------------------------------------------------------------------------------

    def say(self, text: str) -> None:
        """Write lines above the bar."""
        if not text or self.quiet:
            return
        with self._lock:
            self.out.write((CLEAR if self.live else "") + text + "\n")
            self.out.flush()
        self._draw()

    def _paint(self, status: str) -> str:
        word = f"{status:<11}"
        return f"\x1b[{COLOURS[status]}m{word}\x1b[0m" if self.colour and status in COLOURS else word

    def bar(self) -> str:
        """The line at the bottom: phase, time, what is left of the deadline, bytes to move or that have come."""
        seconds = time.monotonic() - self.began
        phase = PHASES[self._phase]
        done = int(BAR * (self._phase + (self._filled if phase == "fill" else 0.0)) / (len(PHASES) - 1))
        left = "" if self.limit is None else f", {max(0.0, self.limit - seconds):.0f} s of {self.limit:.0f} left"
        task = self._task.rpartition(" | ")[2]
        what = self._pages if phase == "fill" and self._pages else task
        if phase in ("arm", "hand_over") and self._expected:
            what = f"{self._expected}, {what}"
        if time.monotonic() - self._task_began > 5:
            what += f" ({time.monotonic() - self._task_began:.0f} s)"
        return f"[{'#' * done}{'.' * (BAR - done)}] {seconds:.0f} s{left}  {phase}: {what}"

    def _draw(self) -> None:
        if not self.live:
            return
        width = shutil.get_terminal_size().columns - 1
        with self._lock:
            self.out.write(CLEAR + self.bar()[:width])
            self.out.flush()

    def _tick(self) -> None:
        waited = 0
        while not self._stop.wait(1.0):
            waited += 1
            long = time.monotonic() - self._task_began
            if self.live:
                self._draw()
            elif self._task and waited % 20 == 0 and long >= 20:
                self.say(f"... still running after {long:.0f} s: {self._task}")

    def start(self) -> None:
        """Begin to show that time goes by."""
        self._ticker = threading.Thread(target=self._tick, name="progress", daemon=True)
        self._ticker.start()

    def end(self) -> None:
        """Take the bar away."""
        self._stop.set()
        if self._ticker is not None:
            self._ticker.join()
        if self.live:
            self.live = False
            self.out.write(CLEAR)
            self.out.flush()


def plain(event: Event) -> str:
    """What Ansible displayed, without colours."""
    return STYLES.sub("", str(event.get("stdout") or ""))
