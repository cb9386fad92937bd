"""The cells of a notebook session, derived from a seed, and what its variables have to hold.

All arithmetic is on whole numbers, so that every CPU gets the same: a model on the destination can be compared with
what was computed on the source. Needs numpy.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

MIX = {"import": 5, "markdown": 15, "data_load": 15, "computation": 35, "visualization": 15, "model": 15}  # percent
OPENING = ("import", "data_load", "computation", "visualization", "model")  # before it is ready, each kind once
# Names are used again, as people do; this also bounds the memory of a session without end.
SLOTS = {"data_load": 32, "computation": 64, "visualization": 16, "model": 16}
PREFIX = {"data_load": "data", "computation": "result", "visualization": "counts", "model": "weights"}
LIBRARIES = ("json", "csv", "math", "statistics", "collections", "itertools", "datetime", "numpy.linalg", "numpy.fft")
COLUMNS = 8
PRIME = (1 << 61) - 1
FIRST = f"""import hashlib
import numpy as np

total = 0

def load(name, rows):
    raw = hashlib.shake_128(name.encode()).digest(rows * {COLUMNS * 2})
    return np.frombuffer(raw, dtype="<i2").reshape(rows, {COLUMNS}).astype(np.int64)

def checksum(value):
    value = np.ascontiguousarray(value)
    return hashlib.sha256(f"{{value.dtype}} {{value.shape}} ".encode() + value.tobytes()).hexdigest()
"""
PLOTTING = """%matplotlib inline
import matplotlib.pyplot as plt
"""
WORK = {
    "data_load": "{name} = load({seed!r}, {rows})",
    "computation": "{name} = ({data}[:, {a}] * {data}[:, {b}] + {index}) % 65537\n"
    f"total = (total * 31 + int({{name}}.sum())) % {PRIME}",
    "visualization": "{name} = np.histogram({data}[:, {a}], bins=range(-32768, 32769, 2048))[0]",
    "model": """features = {data}[:4096] // 256
labels = np.where(features.sum(axis=1) > {a}, 1, -1)
{name} = np.zeros(features.shape[1], dtype=np.int64)
for epoch in range(20):
    wrong = labels * (features @ {name}) <= 0
    {name} = {name} + (labels[wrong, None] * features[wrong]).sum(axis=0)
print("wrong:", int(wrong.sum()))""",
}
DRAWING = """
figure, axes = plt.subplots(figsize=(4, 3))
axes.bar(range({name}.size), {name})
axes.set_title("{name} of {data}")
plt.show()"""


@dataclass(frozen=True)
class Cell:
    """One cell: what the kernel gets, and what a model needs to know to do the same."""

    index: int
    kind: str
    source: str  # for the kernel; empty for a markdown cell, which no kernel ever gets
    work: str = ""  # the part of the source that gives `name` its value
    name: str = ""  # variable that it defines
    data: Cell | None = field(default=None, repr=False)  # cell that loaded what it reads


class Notebook:
    """Cells one after the other, always the same for a seed, and the record of what each variable comes from."""

    def __init__(self, seed: str, rows: int) -> None:
        """Begin a session; a dataset has `rows` rows of 64 bytes."""
        self.seed = seed
        self.rows = rows
        self.index = 0
        self.counts = dict.fromkeys(MIX, 0)
        self.live: dict[str, Cell] = {}
        self.total = 0  # every computation so far, in its order

    def next_cell(self) -> Cell:
        """Return the next cell and note what it defines."""
        chance = random.Random(f"{self.seed}:{self.index}")  # noqa: S311  no secret
        kind = OPENING[self.index] if self.index < len(OPENING) else _choose(chance)
        cell = self._cell(kind, chance)
        self.index += 1
        self.counts[kind] += 1
        if cell.name:
            self.live[cell.name] = cell
        if kind == "computation":
            self.total = int(model_of(cell, self.total)["total"])
        return cell

    def _cell(self, kind: str, chance: random.Random) -> Cell:
        if kind == "markdown":
            return Cell(self.index, kind, "")
        if kind == "import":
            source = f"import {chance.choice(LIBRARIES)}" if self.index else (FIRST + PLOTTING).strip()
            return Cell(self.index, kind, source)
        name = f"{PREFIX[kind]}_{self.counts[kind] % SLOTS[kind]}"
        data = None if kind == "data_load" else chance.choice(self._datasets())
        a, b = chance.randrange(COLUMNS), chance.randrange(COLUMNS)
        values = {"name": name, "data": data.name if data else "", "a": a, "b": b, "index": self.index,
                  "rows": self.rows, "seed": f"{self.seed}:{self.index}"}  # fmt: skip
        work = WORK[kind].format(**values)
        drawing = DRAWING.format(**values) if kind == "visualization" else ""
        return Cell(self.index, kind, work + drawing, work, name, data)

    def _datasets(self) -> list[Cell]:
        return [cell for cell in self.live.values() if cell.kind == "data_load"]

    def expected(self) -> Iterator[tuple[str, str]]:
        """Return (variable, checksum) as a session that was never moved has them, each made again from the seed."""
        for name, cell in self.live.items():
            model = model_of(cell)
            yield name, str(model["checksum"](model[name]))


def _choose(chance: random.Random) -> str:
    return chance.choices(list(MIX), weights=list(MIX.values()))[0]


def model_of(cell: Cell, total: int = 0) -> dict[str, Any]:
    """Return the variables after `cell` and what it reads ran alone, from `total` on."""
    names: dict[str, Any] = {"print": lambda *_words: None}
    exec(FIRST, names)  # noqa: S102  our own text
    names["total"] = total
    if cell.data is not None:
        exec(cell.data.work, names)  # noqa: S102
    exec(cell.work, names)  # noqa: S102
    return names


def digest_of(sources: list[str]) -> str:
    """Return the checksum of the sources of all executed cells."""
    return hashlib.sha256("\0".join(sources).encode()).hexdigest()
