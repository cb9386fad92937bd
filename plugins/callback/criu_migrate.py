"""Ansible's usual output, a failure shown once, signs of life in long tasks, the summary at the end."""

from __future__ import annotations

DOCUMENTATION = r"""
name: criu_migrate
type: stdout
short_description: Usual output, signs of life in long tasks, and a migration's summary at the end
description:
  - What the callback C(default) shows, except that a failure is shown once, in lines as they were written.
  - Says every O(progress_interval) seconds which task is still running.
  - Shows the summaries that C(migration_results) returned after the recap.
extends_documentation_fragment:
  - default_callback
  - result_format_callback
options:
  progress_interval:
    description: Seconds after which a running task shows a sign of life, again and again; 0 shows none.
    type: float
    default: 20
    env:
      - name: CRIU_MIGRATE_PROGRESS_INTERVAL
    ini:
      - section: callback_criu_migrate
        key: progress_interval
"""

import os
import threading
import time
from collections.abc import Mapping
from typing import Any

from ansible.plugins.callback.default import CallbackModule as DefaultCallback

from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate import summary

PAGE = 4096  # bytes
MB = 1 << 20
SUMMARIES = ("migration_results", "migration_evacuated")  # actions whose `summary` is for the end
OURS = ("assert", "criu_", "fail", "guard", "lab_", "migration_", "workload_")


class Ticker:
    """Writes a line every so many seconds while something runs.

    It writes with os.write: Ansible forks, and a lock of the display that this thread holds would stay held
    for ever in the child.
    """

    def __init__(self, interval: float) -> None:
        self.interval = interval
        self._what = ""
        self._since = 0.0
        self._changed = threading.Event()
        self._thread: threading.Thread | None = None

    def begin(self, what: str) -> None:
        """Take ``what`` for the thing that runs from now on; nothing runs where it is empty."""
        self._what, self._since = what, time.monotonic()
        self._changed.set()
        if what and self.interval > 0 and self._thread is None:
            self._thread = threading.Thread(target=self._run, name="progress", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        while True:
            if self._changed.wait(self.interval):
                self._changed.clear()
            elif self._what:
                seconds = time.monotonic() - self._since
                os.write(1, f"... still running after {seconds:.0f} s: {self._what}\n".encode())


def progress(lazy: Mapping[str, Any]) -> str:
    """Memory that has come after the restore, in words."""
    there, total, left = lazy.get("pages_transferred"), lazy.get("pages_total"), lazy.get("seconds_left")
    if not total or there is None:
        return "the process runs, its memory is still coming"
    come, whole = (number * PAGE / MB for number in (there, total))
    text = f"the process runs, {come:,.1f} of {whole:,.1f} MB of its memory have come ({there:,} of {total:,} pages)"
    return text + (f", about {left:.0f} s left" if left is not None else "")


def rounds(record: Mapping[str, Any], shown: int) -> tuple[list[str], int]:
    """Rounds of pre-dump beyond those that were `shown`, a line each, and why no further one follows; and how many are
    shown now. They may have begun anew. The reason is said once: it goes with a number of -1.
    """
    made = record.get("pre_dumps") or []
    if shown < 0:
        return [], shown
    first = shown if shown <= len(made) else 0
    lines = [f"round {place} of pre-dump: {summary.round_line(one)}" for place, one in enumerate(made, 1)][first:]
    reason = summary.stopped(record.get("stop_reason"))
    if not reason:
        return lines, len(made)
    return [*lines, f"no further pre-dump: {reason}"], -1


class CallbackModule(DefaultCallback):
    """The output of the playbooks of this collection."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "stdout"
    CALLBACK_NAME = "criu.migrate.criu_migrate"

    def __init__(self) -> None:
        super().__init__()
        self._summaries: list[str] = []
        self._ticker = Ticker(0)
        self._rounds: dict[str, int] = {}  # shown of each run

    def set_options(self, *arguments: Any, **options: Any) -> None:
        """Take the options from Ansible."""
        super().set_options(*arguments, **options)
        self._ticker.interval = self.get_option("progress_interval")

    def v2_playbook_on_task_start(self, task: Any, is_conditional: bool) -> None:
        """Begin to watch the task."""
        super().v2_playbook_on_task_start(task, is_conditional)
        self._ticker.begin(task.get_name())

    def v2_playbook_on_handler_task_start(self, task: Any) -> None:
        """Begin to watch the handler."""
        super().v2_playbook_on_handler_task_start(task)
        self._ticker.begin(task.get_name())

    def v2_runner_on_ok(self, result: Any) -> None:
        """Keep a summary for the end."""
        text = result.result.get("summary")
        if text and result.task.action.rpartition(".")[2] in SUMMARIES:
            self._summaries.append(str(text))
        super().v2_runner_on_ok(result)
        self._show_rounds(result)

    def v2_runner_retry(self, result: Any) -> None:
        """Of memory that moves: the rounds so far, or how much is there and how long the rest takes at this speed."""
        record = (result.result.get("record") or {}) if isinstance(result.result, dict) else {}
        if record.get("lazy") is not None:
            self._display.display(f"... {progress(record['lazy'])}")
        elif record.get("state") == "iterating":
            self._show_rounds(result)
        else:
            super().v2_runner_retry(result)

    def _show_rounds(self, result: Any) -> None:
        """Of what watches a source: the rounds that were not shown yet."""
        record = result.result.get("record") if "restarts" in result.result else None
        if not isinstance(record, Mapping) or record.get("role") != "source":
            return
        run_id = str(record.get("run_id"))
        lines, self._rounds[run_id] = rounds(record, self._rounds.get(run_id, 0))
        for line in lines:
            self._display.display(f"... {line}")

    def v2_runner_on_failed(self, result: Any, ignore_errors: bool = False) -> None:
        """Show a failure of ours once: its message says everything, the exception would repeat it."""
        action = result.task.action.rpartition(".")[2]
        if self._display.verbosity == 0 and result.result.get("msg") and action.startswith(OURS):
            result.result.pop("exception", None)
            if result.result["msg"] in self._summaries:
                result.result["msg"] = "The summary at the end says why."
        super().v2_runner_on_failed(result, ignore_errors)

    def v2_playbook_on_stats(self, stats: Any) -> None:
        """Show the recap, then the summaries."""
        self._ticker.begin("")
        super().v2_playbook_on_stats(stats)
        for text in self._summaries:
            self._display.display(text)
