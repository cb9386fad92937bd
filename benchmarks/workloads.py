"""Every workload moved back and forth, once with each way of moving in turn, its state proved after every move.

Run from the clone, with the lab up:
    make benchmark-workloads
    make benchmark-workloads BENCHMARK_ARGS="--workloads redis,memory --rounds 2 --minutes 30"
    make benchmark-workloads BENCHMARK_ARGS="--output results/workloads_20260101_120000"    goes on with that one
See docs/benchmarks.md. The exit code is 0 when no move went wrong.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import moves_table
from .moves import DEFAULTS, VARIANTS, Mover, Nodes, Traveller, good

Move = dict[str, Any]
FIRST = "first"  # the move that starts the workload; it counts as a move, not as a run of a variant


def read_options(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inventory", type=Path, default=Path("inventories/lab/hosts.yml"), help="YAML inventory")
    parser.add_argument("--workloads", default=",".join(DEFAULTS), help="which, comma separated")
    parser.add_argument("--rounds", type=int, default=10, help="runs of each variant with each workload")
    parser.add_argument("--minutes", type=float, default=0.0, help="begin no move after so long, shared by all; 0: any")
    parser.add_argument("--output", type=Path, help="folder for the figures; one that has moves in it is gone on with")
    parser.add_argument("--params", default="{}", help="JSON: parameters for every workload that has them, as mb_size")
    parser.add_argument("--table", action="store_true", help="only make the tables of --output")
    options = parser.parse_args(words)
    options.workloads = [word.strip() for word in options.workloads.split(",")]
    unknown = [word for word in options.workloads if word not in DEFAULTS]
    if unknown:
        parser.error(f"no such workload: {', '.join(unknown)}")
    if options.table and not options.output:
        parser.error("--table needs --output")
    options.params = json.loads(options.params)
    return options


def schedule(rounds: int) -> list[str]:
    """Return the variants of all moves of one workload, each once a round, rotated: so each goes both ways as often."""
    names = list(VARIANTS)
    turns = (round_number % len(names) for round_number in range(rounds))
    return [name for turn in turns for name in names[turn:] + names[:turn]]


def remaining(moves: Sequence[Move], workload: str, rounds: int) -> list[str]:
    """Return what of the schedule has not been tried yet."""
    tried = [move["variant"] for move in moves if move["workload"] == workload and move["variant"] != FIRST]
    left = schedule(rounds)
    for variant in tried:
        if variant in left:
            left.remove(variant)
    return left


def read(path: Path) -> list[Move]:
    """Return the moves of a file with one in JSON on each line; what broke off in the last one is left out."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n") and line.strip()]


def say(move: Move, left: int) -> None:
    """One line about a move, several where it went wrong."""
    text = f"{time.strftime('%H:%M:%S')} {move['workload']} {move['variant']} {move['direction']}: "
    if good(move):
        parts = (f"{name} {'-' if move[name] is None else round(move[name], 3)} s" for name in ("service", "total"))
        print(f"{text}{', '.join(parts)}, {(move['bytes'] or 0) / 1e6:.0f} MB; {left} left", flush=True)
        return
    stars = "*" * 78
    print(f"{stars}\n{text}NOT WHOLE: {json.dumps(move, indent=1)}\nSee {move['results']}\n{stars}", flush=True)


class Record:
    """The moves that were made, and the file that has a line for each."""

    def __init__(self, folder: Path) -> None:
        """Go on with what `folder` has."""
        self.path = folder / "moves.jsonl"
        self.moves = read(self.path)
        self.path.write_text("".join(json.dumps(move) + "\n" for move in self.moves), encoding="utf-8")

    def add(self, move: Move, left: int) -> None:
        """Keep a move and tell of it."""
        self.moves.append(move)
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(move) + "\n")
        say(move, left)


def move_about(mover: Mover, record: Record, workload: str, rounds: int, until: float) -> None:
    """Start a workload and move it until all of its runs are there or time is up; after a failure a fresh one."""
    todo = remaining(record.moves, workload, rounds)
    traveller: Traveller | None = None
    refused = 0
    try:
        while todo and time.monotonic() < until and refused < 3:
            if traveller is None:
                move, traveller = mover.start(workload)
                refused = 0 if good(move) else refused + 1
                record.add(move, len(todo))
            else:
                move = mover.move(traveller, todo[0])
                record.add(move, len(todo) - 1)
                todo.pop(0)
            if not good(move):
                mover.end(traveller, move)
                traveller = None
    finally:
        if traveller is not None:
            mover.end(traveller)


def run(options: argparse.Namespace, folder: Path) -> None:
    """All workloads one after the other, each with its share of the time that is left."""
    record = Record(folder)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="criu-") as private:
        mover = Mover(Nodes(options.inventory.resolve(), Path(private)), folder, options.params)
        for place, workload in enumerate(options.workloads):
            until = float("inf")
            if options.minutes:
                left = began + options.minutes * 60 - time.monotonic()
                until = time.monotonic() + left / (len(options.workloads) - place)
            move_about(mover, record, workload, options.rounds, until)


def main() -> int:
    """Run and write the tables; 1 where a move went wrong."""
    options = read_options()
    if not options.table and not options.inventory.exists():
        print(f"{options.inventory} is not there: make the lab first (make lab), or name an --inventory.")
        return 2
    folder = (options.output or Path("results") / time.strftime("workloads_%Y%m%d_%H%M%S")).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the workload is ended and the tables are made
    try:
        if not options.table:
            run(options, folder)
    finally:
        moves = read(folder / "moves.jsonl")
        tables = moves_table.markdown(moves)
        (folder / "table.md").write_text(tables, encoding="utf-8")
        print(f"{tables}\nFigures: {folder}")
    return 0 if moves and all(map(good, moves)) else 1


if __name__ == "__main__":
    sys.exit(main())
