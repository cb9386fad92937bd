"""A program that runs seven kinds of operations over a pandas table, and can prove the table and its results.

Each operation depends on nothing but the table and its own number, so any of them can be done again for a proof.
"""

from __future__ import annotations

import sys
import time
import zlib
from collections.abc import Callable
from typing import Any, Union

import numpy as np
import pandas as pd
import steps
from contract import Contract, argument_parser, say
from numpy.typing import NDArray

KINDS = ("filter", "aggregate", "sort", "group_aggregate", "join", "transform", "window")
GROUPS = 100
WINDOW = 100  # rows
SAMPLE = 21  # operations that are done again for a proof, without those next to a move
PROOF_SECONDS = 30.0  # after which a proof begins no further operation, unless it has done the newest of each kind
Result = Union[pd.DataFrame, "pd.Series[Any]"]


def column(seed: int, number: int, rows: int) -> NDArray[np.float64]:
    """Return the content of a column."""
    return np.random.default_rng([seed, number]).standard_normal(rows)


def categories(seed: int, rows: int) -> NDArray[np.int64]:
    """Return the group of each row."""
    return np.random.default_rng([seed, 1 << 32]).integers(GROUPS, size=rows)


def checksum(result: Result) -> int:
    """Return a checksum of every value of a result, labels of its rows included."""
    columns = [result[name] for name in result.columns] if isinstance(result, pd.DataFrame) else [result]
    found = zlib.crc32(np.ascontiguousarray(result.index.to_numpy()).data)
    for values in columns:
        found = zlib.crc32(np.ascontiguousarray(values.to_numpy()).data, found)
    return found


class Table:
    """The table, and a journal of what the operations found."""

    def __init__(self, rows: int, columns: int, seed: str) -> None:
        """Make a table of so many rows and columns of numbers, and one of groups.

        :raises MemoryError: when there is no room for it
        """
        self.seed = zlib.crc32(seed.encode())
        self.values = np.empty((columns, rows))
        for number, values in enumerate(self.values):
            values[:] = column(self.seed, number, rows)
        self.names = [f"c{number}" for number in range(columns)]
        self.frame = pd.DataFrame(self.values.T, columns=self.names, copy=False)
        self.groups = categories(self.seed, rows)
        self.frame["category"] = pd.Series(self.groups, copy=False)
        self.dimension = pd.DataFrame({"category": np.arange(GROUPS), "weight": np.linspace(0.0, 1.0, GROUPS)})
        self.journal: list[tuple[int, int]] = []  # rows and checksum of each result
        self.journal_checksum = 0
        self.moves = steps.Moves()
        self.moved_at: list[int] = []
        self.seconds = 0.0

    @property
    def done(self) -> int:
        """How many operations have been done."""
        return len(self.journal)

    def operate(self, number: int) -> tuple[int, int]:
        """Do one operation and return the rows and the checksum of its result."""
        result = getattr(self, KINDS[number % len(KINDS)])(np.random.default_rng([self.seed, 1 << 33, number]))
        return len(result), checksum(result)

    def pick(self, chance: np.random.Generator, most: int = 1) -> list[str]:
        """Return up to `most` columns."""
        return [self.names[number] for number in chance.permutation(len(self.names))[:most]]

    def filter(self, chance: np.random.Generator) -> Result:
        """Rows above a threshold in one column."""
        return self.frame[self.frame[self.pick(chance)[0]] > chance.normal()]

    def aggregate(self, chance: np.random.Generator) -> Result:
        """Mean, standard deviation and sum of half of the columns."""
        numbers = self.frame[self.pick(chance, (len(self.names) + 1) // 2)]
        return pd.DataFrame({"mean": numbers.mean(), "std": numbers.std(), "sum": numbers.sum()}).reset_index(drop=True)

    def sort(self, chance: np.random.Generator) -> Result:
        """The whole table in the order of one column."""
        return self.frame.sort_values(self.pick(chance)[0], ascending=bool(chance.integers(2)))

    def group_aggregate(self, chance: np.random.Generator) -> Result:
        """Mean, greatest and least of some columns for each group."""
        groups = self.frame.groupby("category")[self.pick(chance, 5)]
        return pd.concat([groups.mean(), groups.max(), groups.min()])

    def join(self, chance: np.random.Generator) -> Result:
        """Some columns with the weight of each row's group beside them."""
        return self.frame[["category", *self.pick(chance, 5)]].merge(self.dimension, on="category", how="left")

    def transform(self, chance: np.random.Generator) -> Result:
        """Some columns with mean 0 and standard deviation 1."""
        numbers = self.frame[self.pick(chance, 5)]
        normal: pd.DataFrame = (numbers - numbers.mean()) / numbers.std()
        return normal

    def window(self, chance: np.random.Generator) -> Result:
        """The mean of one column over the last rows."""
        return self.frame[self.pick(chance)[0]].rolling(WINDOW, min_periods=1).mean()

    def step(self) -> None:
        """Do the next operation and note what it found."""
        started = time.monotonic()
        self.journal.append(self.operate(self.done))
        self.journal_checksum = zlib.crc32(b"%d %d" % self.journal[-1], self.journal_checksum)
        self.seconds = time.monotonic() - started
        self.look_for_move()

    def look_for_move(self) -> None:
        """Note around which operation there was a move."""
        if self.moves.happened():
            self.moved_at = [*self.moved_at, max(0, self.done - 1)][-3:]

    def line(self) -> str:
        """Say how far it is."""
        rows, found = self.journal[-1]
        kind = KINDS[(self.done - 1) % len(KINDS)]
        return f"operation {self.done} {kind}: {rows} rows, {found:08x}, in {self.seconds:.3f} s"

    def wrong_columns(self, beat: Callable[[], None]) -> list[str]:
        """Return the columns that are not what the seed says, or that pandas does not find where they are."""
        wrong = []
        rows = len(self.frame)
        for number, name in enumerate(self.names):
            expected = column(self.seed, number, rows)
            if not np.array_equal(self.values[number], expected) or not np.array_equal(self.frame[name], expected):
                wrong.append(name)
            beat()
        if not np.array_equal(self.frame["category"], categories(self.seed, rows)):
            wrong.append("category")
        return wrong

    def journal_right(self) -> bool:
        """Return whether the journal is the one that was written."""
        found = 0
        for entry in self.journal:
            found = zlib.crc32(b"%d %d" % entry, found)
        return found == self.journal_checksum

    def sample(self) -> list[int]:
        """Return the operations to do again, the most telling first."""
        newest = list(range(max(0, self.done - len(KINDS)), self.done))
        moved = [number for at in self.moved_at for number in range(max(0, at - 1), min(self.done, at + 2))]
        spread = list(range(0, self.done, max(1, self.done // (SAMPLE - len(KINDS)))))
        return list(dict.fromkeys([*moved, *newest, *spread]))

    def prove(self, beat: Callable[[], None]) -> steps.Proof:
        """Compare the table with its seed, and results with those of the same operations done again."""
        started = time.monotonic()
        self.look_for_move()
        wrong_columns = self.wrong_columns(beat)
        wrong, again = [], 0
        for number in self.sample():
            if again >= len(KINDS) + 3 * len(self.moved_at) and time.monotonic() - started > PROOF_SECONDS:
                break
            if self.operate(number) != self.journal[number]:
                wrong.append(number)
            again += 1
            beat()
        details: dict[str, Any] = {
            "operations": self.done,
            "done_again": again,
            "moved_at": self.moved_at,
            "journal_right": self.journal_right(),
            "bytes": self.values.nbytes + self.groups.nbytes,
            "wrong_columns": wrong_columns[:10],
            "wrong_operations": wrong[:10],
            "seconds": round(time.monotonic() - started, 3),
        }
        method = "every value against its seed, the newest and a sample of all operations done again"
        return steps.Proof(not wrong_columns and not wrong and details["journal_right"] is True, method, details)


def main() -> int:
    """Read the options, run, return the exit status."""
    parser = argument_parser(__doc__ or "")
    parser.add_argument("--num_rows", "--num-rows", type=int, default=1000000, help="rows of the table")
    parser.add_argument("--num_cols", "--num-cols", type=int, default=50, help="columns of the table")
    parser.add_argument("--operations", type=int, default=0, help="operations, 0 for no limit")
    parser.add_argument("--interval", type=float, default=1.0, help="seconds between two operations")
    parser.add_argument("--seed", default="dataproc", help="what the table is made from")
    options = parser.parse_args()
    if options.num_rows < 1 or options.num_cols < 1:
        parser.error("--num_rows and --num_cols have to be at least 1")
    contract = Contract(options.working_dir, options.heartbeat_interval)
    table = Table(options.num_rows, options.num_cols, options.seed)
    say(f"table of {table.values.nbytes >> 20} MB")
    steps.run(contract, table, options.operations, pause=options.interval)
    return 0


if __name__ == "__main__":
    sys.exit(main())
