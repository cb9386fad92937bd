"""A program that takes memory block by block and can prove that every byte of it is still right."""

from __future__ import annotations

import hashlib
import sys
import time
from typing import Any

from contract import Contract, Pace, argument_parser, say

MEGABYTE = 1 << 20
SAMPLE = 64  # pieces that are made again from the seed for a proof


def content(seed: str, block: int, piece: int) -> bytes:
    """Return the expected bytes (one megabyte) of a piece of a block: incompressible and repeatable."""
    return hashlib.shake_128(f"{seed}:{block}:{piece}".encode()).digest(MEGABYTE)


class Blocks:
    """Blocks of memory with a checksum for each of their megabytes."""

    def __init__(self, seed: str, block_megabytes: int) -> None:
        """Start without any block; `block_megabytes` is the size of each."""
        self.seed = seed
        self.block_megabytes = block_megabytes
        self.blocks: list[bytearray] = []
        self.checksums: list[list[bytes]] = []

    def grow(self) -> None:
        """Fill one more megabyte, in a new block where the last one is full."""
        if not self.blocks or len(self.checksums[-1]) == self.block_megabytes:
            self.blocks.append(bytearray(self.block_megabytes * MEGABYTE))
            self.checksums.append([])
        block, piece = len(self.blocks) - 1, len(self.checksums[-1])
        data = content(self.seed, block, piece)
        self.blocks[block][piece * MEGABYTE : (piece + 1) * MEGABYTE] = data
        self.checksums[block].append(hashlib.sha256(data).digest())

    def full_blocks(self) -> int:
        """Return how many blocks are completely filled."""
        return sum(len(done) == self.block_megabytes for done in self.checksums)

    def pieces(self) -> list[tuple[int, int]]:
        """Return (block, piece) of every filled megabyte."""
        return [(block, piece) for block, done in enumerate(self.checksums) for piece in range(len(done))]

    def read(self, block: int, piece: int) -> memoryview:
        """Return the memory of one filled piece."""
        return memoryview(self.blocks[block])[piece * MEGABYTE : (piece + 1) * MEGABYTE]

    def intact(self, block: int, piece: int) -> bool:
        """Return whether the memory of a piece still has the checksum that was noted."""
        return hashlib.sha256(self.read(block, piece)).digest() == self.checksums[block][piece]

    def as_made(self, block: int, piece: int) -> bool:
        """Return whether a piece equals what its seed says, whatever was noted about it."""
        return self.read(block, piece) == content(self.seed, block, piece)


def prove(contract: Contract, token: str, memory: Blocks) -> None:
    """Check every checksum, and a spread sample against its seed; answer `token`."""
    started = time.monotonic()
    pieces = memory.pieces()
    wrong: list[tuple[int, int]] = []
    for place in pieces:
        if not memory.intact(*place):
            wrong.append(place)
        contract.beat()
    sample = pieces[:: max(1, len(pieces) // SAMPLE)]
    for place in sample:
        if not memory.as_made(*place):
            wrong.append(place)
        contract.beat()
    details: dict[str, Any] = {
        "bytes": len(pieces) * MEGABYTE,
        "blocks": len(memory.blocks),
        "checksums": len(pieces),
        "regenerated": len(sample),
        "wrong": len(set(wrong)),
        "first_wrong": wrong[:10],
        "seconds": round(time.monotonic() - started, 3),
    }
    contract.answer(token, not wrong, "checksum of every megabyte, sample against its seed", details)
    say(f"verified: {details}")


def run(contract: Contract, memory: Blocks, interval: float, most_blocks: int) -> None:
    """Grow by a block each `interval` seconds up to `most_blocks`, until asked to end."""
    pace = Pace(1.0 / 0.005)
    next_block = time.monotonic()
    next_line = next_block
    ready = False
    while not contract.ended():
        now = time.monotonic()
        full = memory.full_blocks()
        started = len(memory.blocks)
        if started == full and full and not ready:  # also where a block takes longer than the interval
            contract.ready()
            ready = True
        elif started > full or (started < most_blocks and now >= next_block):
            if started == full:
                next_block = now + interval
            memory.grow()
        token = contract.requested_proof()
        if token is not None:
            prove(contract, token, memory)
        contract.beat()
        if now >= next_line:
            next_line = now + 1.0
            say(f"blocks {full}/{most_blocks}, {len(memory.pieces())} MB")
        if ready or started == full:
            pace.wait()


def main() -> int:
    """Read the options, run, return the exit status."""
    parser = argument_parser(__doc__ or "")
    parser.add_argument("--mb_size", "--mb-size", type=int, default=256, help="megabytes of a block")
    parser.add_argument("--interval", type=float, default=5.0, help="seconds between two blocks")
    parser.add_argument("--max_memory", "--max-memory", type=int, default=8192, help="megabytes of all blocks")
    parser.add_argument("--seed", default="memory", help="what the content is derived from")
    options = parser.parse_args()
    if not 1 <= options.mb_size <= options.max_memory:
        parser.error(f"--mb_size {options.mb_size} has to lie between 1 and --max_memory {options.max_memory}")
    contract = Contract(options.working_dir, options.heartbeat_interval)
    memory = Blocks(options.seed, options.mb_size)
    run(contract, memory, options.interval, options.max_memory // options.mb_size)
    say("asked to end")
    return 0


if __name__ == "__main__":
    sys.exit(main())
