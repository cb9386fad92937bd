"""A program that multiplies a matrix again and again, and can prove every number of the product.

The factor is a circulant matrix whose eigenvalues all have the absolute value 1. Multiplying by it loses nothing: what
went wrong in one number once is never smoothed away. And the product after any number of steps follows from the seed by
Fourier transforms alone, in seconds, where doing the steps again would take as long as the program has run.
"""

from __future__ import annotations

import sys
import time
import zlib
from collections.abc import Callable, Iterator

import numpy as np
import steps
from contract import Contract, argument_parser, say
from numpy.typing import NDArray

Floats = NDArray[np.float64]
ROWS = 64  # rows that are made from the seed at once
# Rounding moves a number, of the order of 1, by less than this in a step and in the transforms of the proof.
ROUNDING = 2e-14


def start_rows(seed: int, size: int, first: int) -> Floats:
    """Return ROWS rows, or what is left of them, of the matrix that is there before the first step."""
    return np.random.default_rng([seed, first]).standard_normal((min(ROWS, size - first), size))


def angles(seed: int, size: int) -> Floats:
    """Return the angles of the factor's eigenvalues; those that have no conjugate are 1 or -1."""
    found = np.random.default_rng([seed, size]).uniform(-np.pi, np.pi, size // 2 + 1)
    alone = [0] if size % 2 else [0, -1]
    found[alone] = np.where(found[alone] > 0, np.pi, 0.0)
    return found


def factor_rows(seed: int, size: int) -> Floats:
    """Return the factor without taking memory for it: each row is the one above, one place to the right."""
    row: Floats = np.fft.irfft(np.exp(1j * angles(seed, size)), size)
    shifted: Floats = np.lib.stride_tricks.sliding_window_view(np.concatenate([row, row]), size)[size:0:-1]
    return shifted


class Product:
    """The running product, the factor, and the place for the next product."""

    def __init__(self, size: int, seed: str) -> None:
        """Make matrices of `size` rows and columns from the seed.

        :raises MemoryError: when there is no room for three of them
        """
        self.size = size
        self.seed = zlib.crc32(seed.encode())
        self.factor = factor_rows(self.seed, size).copy()
        self.product = np.empty((size, size))
        for first in self.parts():
            self.product[first : first + ROWS] = start_rows(self.seed, size, first)
        self.before = np.zeros((size, size))
        self.done = 0
        self.seconds = 0.0
        self.checksum = zlib.crc32(self.product.data)

    def parts(self) -> Iterator[int]:
        """Yield the first of each ROWS rows."""
        return iter(range(0, self.size, ROWS))

    def step(self) -> None:
        """Multiply once."""
        started = time.monotonic()
        np.matmul(self.product, self.factor, out=self.before)
        self.product, self.before = self.before, self.product
        self.done += 1
        self.checksum = zlib.crc32(self.product.data)
        self.seconds = time.monotonic() - started

    def line(self) -> str:
        """Say how far it is."""
        return f"product {self.done}, the last in {self.seconds:.3f} s"

    def errors(self, first: int, turns: Floats) -> tuple[float, float]:
        """Return how far the rows from `first` on are from what they should be: of the product, and of the one before.

        `turns`: the angles of the factor's eigenvalues.
        """
        part = slice(first, first + ROWS)
        start = np.fft.rfft(start_rows(self.seed, self.size, first))

        def far(found: Floats, done: int) -> float:
            expected = np.fft.irfft(start * np.exp(1j * np.remainder(done * turns, 2 * np.pi)), self.size)
            return float(np.max(np.abs(found[part] - expected)))

        earlier = far(self.before, self.done - 1) if self.done else float(np.max(np.abs(self.before[part])))
        return far(self.product, self.done), earlier

    def prove(self, beat: Callable[[], None]) -> steps.Proof:
        """Compare all three matrices with what the seed says."""
        started = time.monotonic()
        tolerance = ROUNDING * (self.done + 50)
        turns, rows = angles(self.seed, self.size), factor_rows(self.seed, self.size)
        worst, wrong = 0.0, []
        for first in self.parts():
            error = float(np.max(self.errors(first, turns)))  # Python's max would pass over what is no number
            worst = float(np.maximum(worst, error))
            part = slice(first, first + ROWS)
            # written so that what is no number is wrong
            if not error <= tolerance or not np.array_equal(self.factor[part], rows[part]):
                wrong.append(first)
            beat()
        same = zlib.crc32(self.product.data) == self.checksum
        details = {
            "products": self.done,
            "bytes": 3 * self.product.nbytes,
            "largest_error": worst if np.isfinite(worst) else None,
            "tolerance": tolerance,
            "checksum_right": same,
            "wrong_rows_from": wrong[:10],
            "seconds": round(time.monotonic() - started, 3),
        }
        method = "every number against what the seed gives after so many products"
        return steps.Proof(same and not wrong, method, details)


def main() -> int:
    """Read the options, run, return the exit status."""
    parser = argument_parser(__doc__ or "")
    parser.add_argument("--matrix_size", "--matrix-size", type=int, default=2048, help="rows and columns")
    parser.add_argument("--iterations", type=int, default=0, help="products, 0 for no limit")
    parser.add_argument("--interval", type=float, default=1.0, help="least seconds from one product to the next")
    parser.add_argument("--seed", default="matmul", help="what the matrices are made from")
    options = parser.parse_args()
    if options.matrix_size < 2:
        parser.error(f"--matrix_size {options.matrix_size} has to be at least 2")
    contract = Contract(options.working_dir, options.heartbeat_interval)
    product = Product(options.matrix_size, options.seed)
    say(f"{3 * product.product.nbytes >> 20} MB of matrices")
    steps.run(contract, product, options.iterations, period=options.interval)
    return 0


if __name__ == "__main__":
    sys.exit(main())
