"""Drives a real redis-server, its child, over TCP and can prove that no key and no write got lost or doubled.

Needs the redis-server program and the Python package redis (Debian: redis-server, python3-redis).
"""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import sys
import time
from types import FrameType
from typing import Any, Optional, cast

from contract import Contract, Pace, argument_parser, say
from redis_load import METHOD, Load, is_whole, value_of

ANY = "0.0.0.0"  # noqa: S104  clients reach it over an address that comes and goes with a migration
START_LIMIT = 20.0  # seconds redis-server may take to answer


class Refused(Exception):
    """The workload cannot run here; the text says why and what to do."""


class Ended(Exception):
    """Somebody asked the program to end by a signal."""


class RedisStore:
    """The mix's view of a redis-py client."""

    def __init__(self, client: Any) -> None:
        """Use `client`, a redis.Redis."""
        self._client = client

    def get(self, key: str) -> bytes | None:
        """Return the value of `key`, None where there is none."""
        return cast(Optional[bytes], self._client.get(key))

    def get_many(self, keys: list[str]) -> list[bytes | None]:
        """Return the values of `keys` in their order."""
        return cast(list[Optional[bytes]], self._client.mget(keys))

    def write(self, key: str, value: bytes, counter: str) -> int:
        """Set `key` and add one to `counter` in one transaction; return the counter."""
        replies = self._client.pipeline(transaction=True).set(key, value).incr(counter).execute()
        return int(replies[1])


def configuration(port: int, bind: str, directory: str) -> str:
    """Return a redis.conf without any writing to disk; open to other hosts only where `bind` is."""
    protected = "yes" if bind.startswith("127.") else "no"
    return "\n".join(
        (
            f"port {port}",
            f"bind {bind}",
            f"protected-mode {protected}",
            f'dir "{directory}"',
            'save ""',
            "appendonly no",
            "daemonize no",
            "",
        )
    )


def refuse_taken_port(port: int, bind: str) -> None:
    """Raise Refused where something already listens on `port`."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((bind, port))
        except OSError as error:
            raise Refused(
                f"port {port} on {bind} cannot be used: {error.strerror}; "
                "stop what listens there or choose another redis_port"
            ) from error


def start_server(contract: Contract, port: int, bind: str) -> subprocess.Popen[bytes]:
    """Start redis-server as a child and return it.

    :raises Refused: where the program is missing or the port is taken
    """
    program = shutil.which("redis-server", path="/usr/local/bin:/usr/bin:/usr/local/sbin:/usr/sbin:/bin")
    if program is None:
        raise Refused("redis-server is not installed on this node; install the package redis-server")
    refuse_taken_port(port, bind)
    path = contract.path("redis.conf")
    with open(path, "w", encoding="utf-8") as stream:
        stream.write(configuration(port, bind, contract.working_dir))
    return subprocess.Popen([program, path], stdin=subprocess.DEVNULL)


def connect(server: subprocess.Popen[bytes], port: int, bind: str) -> Any:
    """Return a redis.Redis over one TCP connection that is never renewed.

    :raises Refused: where the Python package is missing or the server does not answer in time
    """
    try:
        import redis
    except ImportError as error:
        raise Refused("the Python package redis is not installed; install python3-redis") from error
    host = "127.0.0.1" if bind == ANY else bind
    deadline = time.monotonic() + START_LIMIT
    while server.poll() is None and time.monotonic() < deadline:
        try:
            socket.create_connection((host, port), timeout=1.0).close()
        except OSError:
            time.sleep(0.01)
            continue
        client = redis.Redis(host=host, port=port, single_connection_client=True)
        client.ping()
        return client
    raise Refused(f"redis-server did not answer on {host}:{port}; its own words are in output.log")


def fill(client: Any, load: Load, contract: Contract) -> None:
    """Give every key its first value, about a megabyte at a time."""
    started = time.monotonic()
    for first, end in load.steps():
        keys = [load.key(number) for number in range(first, end)]
        client.mset({key: value_of(key, 0, load.value_size) for key in keys})
        if contract.ended():
            raise Ended
    say(f"filled {load.num_keys} keys of {load.value_size} bytes in {time.monotonic() - started:.2f} s")


def prove(contract: Contract, token: str, client: Any, load: Load) -> None:
    """Answer a request for a proof from what the server holds now."""
    started = time.monotonic()
    details = load.prove(contract.beat)
    details["database_size"] = client.dbsize()
    details["seconds"] = round(time.monotonic() - started, 3)
    verified = is_whole(details) and details["present"] == load.num_keys
    contract.answer(token, verified, METHOD, details)
    say(f"verified {verified}: {details}")


def serve(contract: Contract, client: Any, load: Load, ops_per_sec: float) -> None:
    """Do operations at the rate `ops_per_sec` until asked to end."""
    pace = Pace(ops_per_sec)
    done = 0
    next_line = time.monotonic() + 1.0
    next_look = 0.0
    while True:
        load.operate()
        contract.beat()
        done += 1
        now = time.monotonic()
        if now >= next_look:  # the files are looked at every 5 ms, not for each operation
            next_look = now + 0.005
            if contract.ended():
                return
            token = contract.requested_proof()
            if token is not None:
                prove(contract, token, client, load)
        if now >= next_line:
            next_line = now + 1.0
            rate = load.hits / load.reads if load.reads else 1.0
            say(f"operations {done}, writes {load.written}, hit rate {rate:.4f}, wrong reads {load.wrong_reads}")
        pace.wait()


def run(options: Any) -> None:
    """Start the server, fill it, serve, and end it again."""
    contract = Contract(options.working_dir, options.heartbeat_interval)
    server = start_server(contract, options.redis_port, options.bind)
    try:
        client = connect(server, options.redis_port, options.bind)
        load = Load(RedisStore(client), "key:%08d", "writer:driver:count", options.num_keys, options.value_size,
                    options.read_ratio, "driver")  # fmt: skip
        fill(client, load, contract)
        contract.ready()
        serve(contract, client, load, options.ops_per_sec)
        say("asked to end")
    finally:
        server.terminate()
        server.wait()


def end_by_signal(*_signal: int | FrameType | None) -> None:
    """Turn a signal into an orderly end, so that no server stays behind."""
    raise Ended


def main() -> int:
    """Read the options, run, return the exit status."""
    parser = argument_parser(__doc__ or "")
    parser.add_argument("--redis_port", "--redis-port", type=int, default=6379, help="TCP port")
    parser.add_argument("--bind", default=ANY, help="IPv4 address to listen on")
    parser.add_argument("--num_keys", "--num-keys", type=int, default=100000, help="number of keys")
    parser.add_argument("--value_size", "--value-size", type=int, default=1024, help="bytes of a value")
    parser.add_argument("--ops_per_sec", "--ops-per-sec", type=float, default=1000, help="operations a second")
    parser.add_argument("--read_ratio", "--read-ratio", type=float, default=0.8, help="share of reads, 0 to 1")
    options = parser.parse_args()
    if options.num_keys < 1 or options.value_size < 1 or options.ops_per_sec <= 0:
        parser.error("--num_keys, --value_size and --ops_per_sec have to be positive")
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
