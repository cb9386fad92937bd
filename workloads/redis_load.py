"""The mix of reads and writes that the driver inside the tree and the client outside have in common.

A write is one transaction, ``MULTI; SET key value; INCR counter; EXEC``: a write that got lost or was done
twice leaves the counter different from the number of acknowledgements.
"""

from __future__ import annotations

import hashlib
import random
from array import array
from typing import Any, Callable, Protocol

PROOF_BYTES = 1 << 20  # how much one step of filling or checking asks for at once
METHOD = "every key against its derived value, acknowledged writes against the server's counter"


def value_of(key: str, version: int, size: int) -> bytes:
    """Return the `size` bytes that `key` holds at `version`."""
    return hashlib.shake_128(f"{key}:{version}".encode()).digest(size)


class Store(Protocol):
    """What the mix needs of a connection to redis."""

    def get(self, key: str) -> bytes | None:
        """Return the value of `key`, None where there is none."""

    def get_many(self, keys: list[str]) -> list[bytes | None]:
        """Return the values of `keys` in their order."""

    def write(self, key: str, value: bytes, counter: str) -> int:
        """Set `key` and add one to `counter` in one transaction; return the counter."""


class Load:
    """A range of keys, their versions, and the operations done on them."""

    def __init__(self, store: Store, key_format: str, counter: str, num_keys: int, value_size: int,
                 read_ratio: float, seed: str) -> None:  # fmt: skip
        """Describe the range: `key_format` takes a number, values have `value_size` bytes."""
        self.store = store
        self.counter = counter
        self.num_keys = num_keys
        self.value_size = value_size
        self.read_ratio = read_ratio
        self.versions = array("L", bytes(array("L").itemsize * num_keys))
        self.written = 0
        self.reads = self.hits = self.wrong_reads = self.wrong_counts = 0
        self._key_format = key_format
        self._random = random.Random(seed)  # noqa: S311  no secret

    def key(self, number: int) -> str:
        """Return the name of key `number`."""
        return self._key_format % number

    def expected(self, number: int) -> bytes:
        """Return what key `number` has to hold now."""
        return value_of(self.key(number), self.versions[number], self.value_size)

    def steps(self) -> list[tuple[int, int]]:
        """Return (first, end) of key ranges whose values are about a megabyte each."""
        size = max(1, min(1000, PROOF_BYTES // self.value_size))
        return [(first, min(first + size, self.num_keys)) for first in range(0, self.num_keys, size)]

    def operate(self) -> tuple[str, int, int] | None:
        """Do one read or write; return (key, version, counter) of an acknowledged write.

        :raises OSError: or the store's own error, when the connection fails
        """
        number = self._random.randrange(self.num_keys)
        key = self.key(number)
        if self._random.random() < self.read_ratio:
            value = self.store.get(key)
            self.reads += 1
            self.hits += value is not None
            if value is not None or self.versions[number]:
                self.wrong_reads += value != self.expected(number)
            return None
        version = self.versions[number] + 1
        count = self.store.write(key, value_of(key, version, self.value_size), self.counter)
        self.versions[number] = version
        self.written += 1
        self.wrong_counts += count != self.written
        return key, version, count

    def prove(self, served: Callable[[], None], version_zero_is_absent: bool = False) -> dict[str, Any]:
        """Read every key back; `served` is called after each answer. Return what was seen.

        With `version_zero_is_absent` a key that was never written must not be there.
        """
        wrong: list[str] = []
        present = 0
        for first, end in self.steps():
            values = self.store.get_many([self.key(number) for number in range(first, end)])
            served()
            for number, value in zip(range(first, end), values):
                present += value is not None
                absent = version_zero_is_absent and not self.versions[number]
                if value != (None if absent else self.expected(number)):
                    wrong.append(self.key(number))
            served()
        counted = int(self.store.get(self.counter) or 0)
        return {
            "keys": self.num_keys,
            "present": present,
            "wrong": len(wrong),
            "first_wrong": wrong[:10],
            "acknowledged": self.written,
            "counted": counted,
            "reads": self.reads,
            "hits": self.hits,
            "hit_rate": round(self.hits / self.reads, 6) if self.reads else None,
            "wrong_reads": self.wrong_reads,
            "wrong_counts": self.wrong_counts,
        }


def is_whole(proof: dict[str, Any]) -> bool:
    """Return whether a proof shows no lost, doubled or damaged key or write."""
    faults = proof["wrong"] or proof["wrong_reads"] or proof["wrong_counts"]
    return not faults and bool(proof["counted"] == proof["acknowledged"])
