"""A client of redis on another host: one connection, never renewed, and a log of what was acknowledged to it.

It is the witness of a migration: what it has seen shows whether a command was lost, done twice or kept waiting.
Standard library only, so its host needs nothing but Python.
"""

from __future__ import annotations

import argparse
import heapq
import json
import os
import select
import signal
import socket
import sys
import time
from types import FrameType
from typing import Any, TextIO, Union

from contract import Contract, Pace, argument_parser, say, write_atomically
from redis_load import Load, is_whole

CONNECT_LIMIT = 10.0  # seconds
LOOK = 0.2  # seconds between two looks at the request to end while an answer is awaited
GAPS_KEPT = 32
NEAR = 2.0  # seconds around the longest gap that still belong to what made it
Reply = Union[None, int, bytes, list[Any]]


class Broken(Exception):
    """The connection, or a promise made over it, is broken."""


class Connection:
    """One TCP connection that speaks redis's protocol; it is never opened again."""

    def __init__(self, host: str, port: int) -> None:
        """Connect once.

        :raises OSError: when that fails
        """
        self.socket = socket.create_connection((host, port), timeout=CONNECT_LIMIT)
        self.socket.settimeout(None)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.give_up_at: float | None = None  # time.monotonic() after which no answer is awaited
        self._buffer = bytearray()

    def call(self, *commands: tuple[str | bytes, ...]) -> list[Reply]:
        """Send all commands at once and return their replies.

        :raises OSError: when the connection breaks
        :raises Broken: when it is closed, the server answers with an error, or `give_up_at` is past
        """
        request = bytearray()
        for command in commands:
            request += b"*%d\r\n" % len(command)
            for part in command:
                data = part.encode() if isinstance(part, str) else part
                request += b"$%d\r\n%b\r\n" % (len(data), data)
        self.socket.sendall(request)
        return [self._reply() for _ in commands]

    def _more(self) -> None:
        while not select.select([self.socket], [], [], LOOK)[0]:
            if self.give_up_at is not None and time.monotonic() > self.give_up_at:
                raise Broken("no answer came within the limit after the request to end")
        data = self.socket.recv(1 << 18)
        if not data:
            raise Broken("the server closed the connection")
        self._buffer += data

    def _line(self) -> bytes:
        while True:
            end = self._buffer.find(b"\r\n")
            if end >= 0:
                line = bytes(self._buffer[:end])
                del self._buffer[: end + 2]
                return line
            self._more()

    def _exactly(self, size: int) -> bytes:
        while len(self._buffer) < size + 2:
            self._more()
        data = bytes(self._buffer[:size])
        del self._buffer[: size + 2]
        return data

    def _reply(self) -> Reply:
        line = self._line()
        kind, rest = line[:1], line[1:]
        if kind == b"+":
            return rest
        if kind == b":":
            return int(rest)
        if kind == b"$":
            return None if rest == b"-1" else self._exactly(int(rest))
        if kind == b"*":
            return None if rest == b"-1" else [self._reply() for _ in range(int(rest))]
        raise Broken(f"the server answered {line.decode(errors='replace')!r}")


class ClientStore:
    """The mix's view of the connection."""

    def __init__(self, connection: Connection) -> None:
        """Use `connection`."""
        self._connection = connection

    def get(self, key: str) -> bytes | None:
        """Return the value of `key`, None where there is none."""
        (value,) = self._connection.call(("GET", key))
        if value is not None and not isinstance(value, bytes):
            raise Broken(f"GET {key} was answered {value!r}")
        return value

    def get_many(self, keys: list[str]) -> list[bytes | None]:
        """Return the values of `keys` in their order."""
        (values,) = self._connection.call(("MGET", *keys))
        if not isinstance(values, list) or len(values) != len(keys):
            raise Broken("MGET was not answered with one value for each key")
        return values

    def write(self, key: str, value: bytes, counter: str) -> int:
        """Set `key` and add one to `counter` in one transaction; return the counter."""
        replies = self._connection.call(("MULTI",), ("SET", key, value), ("INCR", counter), ("EXEC",))
        result = replies[3]
        if not isinstance(result, list) or len(result) != 2 or result[0] != b"OK" or not isinstance(result[1], int):
            raise Broken(f"the transaction on {key} was answered {replies!r}")
        return result[1]


class Gaps:
    """The longest waits between two acknowledgements, in seconds of CLOCK_REALTIME."""

    def __init__(self) -> None:
        """Start without any acknowledgement."""
        self.last: float | None = None
        self._longest: list[tuple[float, float, float]] = []

    def acknowledged(self) -> None:
        """Note that an answer has come now."""
        now = time.time()
        if self.last is not None:
            gap = (now - self.last, self.last, now)
            if len(self._longest) < GAPS_KEPT:
                heapq.heappush(self._longest, gap)
            elif gap > self._longest[0]:
                heapq.heapreplace(self._longest, gap)
        self.last = now

    def report(self) -> dict[str, Any]:
        """Return the longest gap, the longest that is not near it as the usual one, and all that were kept."""
        gaps = [
            {"seconds": round(seconds, 6), "from": start, "to": end}
            for seconds, start, end in sorted(self._longest, reverse=True)
        ]
        first, last = (gaps[0]["from"] - NEAR, gaps[0]["to"] + NEAR) if gaps else (0.0, 0.0)
        apart = [gap["seconds"] for gap in gaps if gap["to"] < first or gap["from"] > last]
        return {
            "longest_gap": gaps[0] if gaps else None,
            "usual_gap": apart[0] if apart else None,
            "longest_gaps": gaps,
        }


class Client:
    """Operates over one connection until it is asked to end, then proves what it was promised."""

    def __init__(self, contract: Contract, options: argparse.Namespace) -> None:
        """Connect and open the log of acknowledged writes.

        :raises OSError: when either fails
        """
        self.contract = contract
        self.options = options
        self.gaps = Gaps()
        self.ending = False
        self.operations = 0
        self.connection = Connection(options.host, options.port)
        name = options.client_id
        self.load = Load(ClientStore(self.connection), f"client:{name}:%08d", f"client:{name}:count",
                         options.num_keys, options.value_size, options.read_ratio, name)  # fmt: skip
        path = contract.path("acknowledged.log")
        self.log: TextIO = open(path, "w", buffering=1, encoding="utf-8")  # noqa: SIM115  open as long as the program

    def end(self, *_signal: int | FrameType | None) -> None:
        """Ask for the end; answers are awaited a while longer."""
        if not self.ending:
            self.ending = True
            self.connection.give_up_at = time.monotonic() + self.options.patience

    def operate(self) -> None:
        """Do operations until asked to end."""
        pace = Pace(self.options.ops_per_sec)
        next_line = 0.0
        while not self.ending:
            write = self.load.operate()
            self.gaps.acknowledged()
            self.contract.beat()
            self.operations += 1
            if write is not None:
                self.log.write(f"{self.gaps.last:.6f} {write[0]} {write[1]} {write[2]}\n")
            if self.operations == 1:
                self.contract.ready()
            if time.monotonic() >= next_line:
                next_line = time.monotonic() + 1.0
                say(f"operations {self.operations}, acknowledged writes {self.load.written}")
            if self.contract.ended():
                self.end()
            pace.wait()

    def work(self) -> dict[str, Any]:
        """Operate, prove, and return the result; a break is part of it."""
        started = time.time()
        errors: list[str] = []
        proof: dict[str, Any] | None = None
        try:
            self.operate()
            self.connection.give_up_at = None
            proof = self.load.prove(self.contract.beat, version_zero_is_absent=True)
        except (OSError, Broken) as error:
            errors.append(f"{type(error).__name__}: {error}")
        return {
            "client_id": self.options.client_id,
            "server": [self.options.host, self.options.port],
            "started": started,
            "ended": time.time(),
            "connected_whole_time": not errors,
            "errors": errors,
            "operations": self.operations,
            "acknowledged": self.load.written,
            "verified": proof is not None and is_whole(proof),
            "proof": proof,
            **self.gaps.report(),
        }


def read_options() -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argument_parser(__doc__ or "")
    parser.add_argument("--host", required=True, help="address of the server")
    parser.add_argument("--port", type=int, default=6379, help="TCP port of the server")
    parser.add_argument("--client_id", default=f"{socket.gethostname()}-{os.getpid()}", help="names its keys")
    parser.add_argument("--num_keys", type=int, default=1000, help="number of its own keys")
    parser.add_argument("--value_size", type=int, default=256, help="bytes of a value")
    parser.add_argument("--ops_per_sec", type=float, default=200, help="operations a second")
    parser.add_argument("--read_ratio", type=float, default=0.8, help="share of reads, 0 to 1")
    parser.add_argument("--patience", type=float, default=30.0, help="seconds to wait for answers at the end")
    return parser.parse_args()


def main() -> int:
    """Run the client, write client_result.json, return 0 where every promise was kept."""
    options = read_options()
    contract = Contract(options.working_dir, options.heartbeat_interval)
    try:
        client = Client(contract, options)
    except OSError as error:
        say(f"cannot connect to {options.host}:{options.port}: {error}; is the server up and the address on its node?")
        return 1
    signal.signal(signal.SIGTERM, client.end)
    signal.signal(signal.SIGINT, client.end)
    result = client.work()
    write_atomically(contract.path("client_result.json"), json.dumps(result) + "\n")
    say(f"acknowledged {result['acknowledged']}, verified {result['verified']}, errors {result['errors']}")
    return 0 if result["verified"] and not result["errors"] else 1


if __name__ == "__main__":
    sys.exit(main())
