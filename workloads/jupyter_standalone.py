"""Drives a real Jupyter kernel, its child, cell by cell over ZeroMQ and can prove that no variable got lost.

Needs the Python packages ipykernel, jupyter_client, numpy and matplotlib (Debian: python3-ipykernel,
python3-jupyter-client, python3-numpy, python3-matplotlib).
"""

from __future__ import annotations

import ast
import os
import queue
import signal
import sys
import time
from types import FrameType
from typing import Any

from contract import Contract, Pace, argument_parser, say

METHOD = "the kernel's checksum of every variable against a model made again from the seed; its history; its counters"
TICKS = 25.0  # small requests a second: each answered one is a unit of service
ANSWER_LIMIT = 120.0  # seconds until a kernel that does not answer counts as gone
START_LIMIT = 60.0  # seconds a kernel may take to start


class Refused(Exception):
    """The workload cannot run here; the text says why and what to do."""


class Ended(Exception):
    """Somebody asked the program to end by a signal."""


class Kernel:
    """A running kernel and the only client that it has."""

    def __init__(self, contract: Contract, transport: str) -> None:
        """Start a kernel whose files all lie in the working directory, and connect to its five sockets.

        :raises Refused: where a package is missing or the kernel does not come up
        """
        for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "MPLCONFIGDIR"):
            os.environ[name] = contract.path("kernel")
        try:
            from jupyter_client.manager import KernelManager
        except ImportError as error:
            raise Refused(f"{error}; install python3-ipykernel and python3-jupyter-client") from error
        self.manager = KernelManager(kernel_name="python3", transport=transport)
        self.manager.connection_file = contract.path("kernel.json")
        if transport == "ipc":
            self.manager.ip = contract.path("kernel-socket")
        self.drawn = 0  # pictures that came
        self.ticks = 0
        self.errors: list[str] = []
        # On disk its history would be an SQLite database, which writes no more once its file is a copy.
        self.manager.start_kernel(
            cwd=contract.working_dir, extra_arguments=["--HistoryManager.hist_file=:memory:"]
        )
        self.client = self.manager.blocking_client()
        self.client.start_channels()
        try:
            self.client.wait_for_ready(timeout=START_LIMIT)
        except RuntimeError as error:
            self.end()
            raise Refused(f"the kernel did not start: {error}; its own words are in output.log") from error

    def execute(self, source: str, expressions: dict[str, str] | None = None, silent: bool = False) -> dict[str, Any]:
        """Have `source` executed and return the reply's content.

        :raises Refused: when no answer comes
        """
        request = self.client.execute(
            source, silent=silent, store_history=not silent, user_expressions=expressions, allow_stdin=False
        )
        deadline = time.monotonic() + ANSWER_LIMIT
        while True:
            self.drain()
            try:
                reply = self.client.get_shell_msg(timeout=1.0)
            except queue.Empty:
                if not self.manager.is_alive() or time.monotonic() > deadline:
                    raise Refused("the kernel does not answer any more") from None
                continue
            if reply["parent_header"].get("msg_id") == request:
                break
        content: dict[str, Any] = reply["content"]
        if content["status"] != "ok":
            self.errors.append(f"{content.get('ename')}: {content.get('evalue')}")
        return content

    def drain(self) -> None:
        """Take what the kernel published: pictures are counted, printed text goes to the output."""
        while self.client.iopub_channel.msg_ready():
            message = self.client.get_iopub_msg(timeout=1.0)
            if message["msg_type"] == "display_data" and "image/png" in message["content"]["data"]:
                self.drawn += 1

    def ask(self, source: str, expressions: dict[str, str]) -> dict[str, Any]:
        """Execute `source` silently; return the values of `expressions`, None for those that fail."""
        found = self.execute(source, expressions, silent=True).get("user_expressions", {})
        return {
            name: ast.literal_eval(answer["data"]["text/plain"]) if answer["status"] == "ok" else None
            for name, answer in found.items()
        }

    def tick(self) -> None:
        """Let the kernel count one further, and compare.

        :raises Refused: when no answer comes
        """
        self.ticks += 1
        seen = self.ask("tick = globals().get('tick', 0) + 1", {"tick": "tick"})
        if seen.get("tick") != self.ticks:
            self.errors.append(f"tick {self.ticks} was {seen.get('tick')}")
            self.ask(f"tick = {self.ticks}", {})  # each loss is noted once

    def wait_drawn(self, number: int) -> None:
        """Wait until `number` pictures have come: they travel on another socket than the reply."""
        deadline = time.monotonic() + 10.0
        while self.drawn < number and time.monotonic() < deadline:
            self.drain()
            time.sleep(0.002)

    def end(self) -> None:
        """End the kernel and wait for it."""
        self.manager.shutdown_kernel(now=True)


class Session:
    """A notebook and the kernel that runs it."""

    def __init__(self, contract: Contract, kernel: Kernel, notebook: Any) -> None:
        """Have `notebook`, a jupyter_cells.Notebook, executed by `kernel`."""
        self.contract = contract
        self.kernel = kernel
        self.notebook = notebook
        self.sources: list[str] = []

    def run_cell(self) -> None:
        """Run the next cell; a markdown cell never reaches a kernel."""
        cell = self.notebook.next_cell()
        if cell.source:
            self.sources.append(cell.source)
            self.kernel.execute(cell.source)
            self.kernel.wait_drawn(self.notebook.counts["visualization"])
        self.contract.beat()
        say(f"cell {cell.index} {cell.kind} {cell.name}")

    def prove(self, token: str) -> None:
        """Ask the kernel for what it holds and answer `token`."""
        from jupyter_cells import digest_of

        started = time.monotonic()
        wrong = []
        checked = 0
        for name, expected in self.notebook.expected():
            checked += 1
            seen = self.kernel.ask("", {"sum": f"checksum({name})"})["sum"]
            if seen != expected:
                wrong.append(f"{name}: {'missing' if seen is None else 'other content'}")
            self.contract.beat()
        raw = "get_ipython().history_manager.input_hist_raw[1:]"
        history = "hashlib.sha256(chr(0).join(" + raw + ").encode()).hexdigest()"
        seen = self.kernel.ask("", {"total": "total", "history": history, "cells": f"len({raw})"})
        details = {
            "variables": checked,
            "wrong": wrong[:10],
            "wrong_variables": len(wrong),
            "total": seen["total"] == self.notebook.total,
            "history": seen["history"] == digest_of(self.sources),
            "cells": self.notebook.index,
            "executed": len(self.sources),
            "executed_by_kernel": seen["cells"],
            "pictures": self.kernel.drawn,
            "pictures_expected": self.notebook.counts["visualization"],
            "ticks": self.kernel.ticks,
            "errors": self.kernel.errors[:10],
            "kernel_pid": self.kernel.manager.provisioner.pid,
            "seconds": round(time.monotonic() - started, 3),
        }
        self.contract.answer(token, is_whole(details), METHOD, details)
        say(f"verified {is_whole(details)}: {details}")


def is_whole(details: dict[str, Any]) -> bool:
    """Return whether what a proof saw is what an unmoved session would have shown."""
    return bool(
        details["variables"] > 0
        and not details["wrong_variables"]
        and not details["errors"]
        and details["total"]
        and details["history"]
        and details["executed"] == details["executed_by_kernel"]
        and details["pictures"] == details["pictures_expected"]
    )


def serve(session: Session, num_cells: int, cell_interval: float) -> None:
    """Run a cell each `cell_interval` seconds, up to `num_cells` unless that is 0, until asked to end."""
    from jupyter_cells import OPENING

    contract = session.contract
    pace = Pace(TICKS)
    next_cell = time.monotonic()
    ready = False
    while not contract.ended():
        now = time.monotonic()
        index = session.notebook.index
        if index < len(OPENING) or (now >= next_cell and (num_cells == 0 or index < num_cells)):
            next_cell = now + cell_interval
            session.run_cell()
        elif not ready:
            contract.ready()
            ready = True
        session.kernel.tick()
        contract.beat()
        token = contract.requested_proof()
        if token is not None:
            session.prove(token)
        pace.wait()


def run(options: Any) -> None:
    """Start the kernel, run the session, and end the kernel again."""
    try:
        import numpy  # noqa: F401
        from jupyter_cells import Notebook
    except ImportError as error:
        raise Refused(f"{error}; install python3-numpy") from error
    contract = Contract(options.working_dir, options.heartbeat_interval)
    kernel = Kernel(contract, options.transport)
    say(f"kernel {kernel.manager.provisioner.pid} over {options.transport}")
    try:
        session = Session(contract, kernel, Notebook(options.seed, options.rows))
        serve(session, options.num_cells, options.cell_interval)
        say("asked to end")
    finally:
        kernel.end()


def end_by_signal(*_signal: int | FrameType | None) -> None:
    """Turn a signal into an orderly end, so that no kernel stays behind."""
    raise Ended


def main() -> int:
    """Read the options, run, return the exit status."""
    parser = argument_parser(__doc__ or "")
    parser.add_argument("--num_cells", "--num-cells", type=int, default=0, help="cells to run, 0: without end")
    parser.add_argument("--cell_interval", "--cell-interval", type=float, default=3.0, help="seconds between cells")
    parser.add_argument("--transport", choices=("ipc", "tcp"), default="ipc", help="of ZeroMQ")
    parser.add_argument("--rows", type=int, default=65536, help="rows of a dataset, 64 bytes each")
    parser.add_argument("--seed", default="jupyter", help="what the cells are derived from")
    options = parser.parse_args()
    if options.num_cells < 0 or options.cell_interval < 0 or options.rows < 4096:
        parser.error("--num_cells and --cell_interval may not be negative, --rows not below 4096")
    signal.signal(signal.SIGTERM, end_by_signal)
    try:
        run(options)
    except Refused as refusal:
        say(f"refused: {refusal}")
        return 1
    except Ended:
        say("ended by a signal or before it was ready")
    return 0


if __name__ == "__main__":
    sys.exit(main())
