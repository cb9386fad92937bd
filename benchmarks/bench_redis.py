"""The redis that is moved and its client outside: started, measured, checked and ended in the same way for everyone."""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate import heartbeat

from .hosts import BenchmarkError, Host, Hosts

PROGRAMS = Path(__file__).resolve().parent.parent / "workloads"
BASE = "/srv/criu-migrate"
# `arping -A` for nodes that lack it
ANNOUNCE = """
import socket, sys
link, address = sys.argv[1], socket.inet_aton(sys.argv[2])
raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0806))
raw.bind((link, 0))
mac = bytes.fromhex(open(f"/sys/class/net/{link}/address").read().strip().replace(":", ""))
for operation in (b"\\0\\1", b"\\0\\2"):
    head = bytes.fromhex("0001080006040000")[:6] + operation
    raw.send(b"\\xff" * 6 + mac + b"\\x08\\x06" + head + mac + address + b"\\xff" * 6 + address)
"""


@dataclass
class Load:
    """What redis holds (keys, bytes of a value) and what is done to it (operations a second)."""

    num_keys: int
    value_size: int
    ops_per_sec: float
    client_ops_per_sec: float
    port: int


@dataclass
class Redis:
    """A running redis with its driver (`pid` is the driver, the root of the tree) and its client."""

    hosts: Hosts
    folder: str
    client_folder: str
    interface: str
    prefix: int
    pid: int = 0
    memory: int = 0  # bytes resident in the tree before the move


def _copy_programs(host: Host, folder: str, *names: str) -> None:
    for name in names:
        host.put(f"{folder}/{name}", (PROGRAMS / name).read_bytes())


def _start(host: Host, folder: str, argv: list[str], limit: float) -> int:
    """Start a program by the workloads' contract; return its PID once it is ready."""
    program = f"echo $$ > started.pid; exec {' '.join(argv)}"
    host.run(
        f"cd {folder} && : > checkpoint_flag && setsid -f sh -c '{program}' < /dev/null > {folder}/output.log 2>&1"
    )
    # few programs while it waits: each takes a PID, and those of the tree have to be free at the destination
    text = host.run(
        f"cd {folder}; n=0; until [ -e checkpoint_ready ]; do n=$((n+1)); sleep 0.2; "
        f"read -r p < started.pid && kill -0 $p && [ $n -lt {int(limit * 5)} ] || {{ tail -5 output.log; exit 1; }}; "
        "done; cat checkpoint_ready",
        limit=limit + 10,
    )
    return int(text.strip().split(":")[1])


def start(hosts: Hosts, load: Load, name: str) -> Redis:
    """A filled redis on the source, reachable at the service address, with a client that is connected to it."""
    links = json.loads(hosts.source.run(f"ip -4 -j addr show to {hosts.source.address}/32"))
    link = next(item for item in links if item)
    interface, prefix = link["ifname"], int(link["addr_info"][0]["prefixlen"])
    redis = Redis(hosts, f"{BASE}/{name}", f"{BASE}/{name}-client", interface, prefix)
    hosts.source.run(f"ip addr replace {hosts.service_address}/{prefix} dev {interface} noprefixroute")
    hosts.source.run(f"python3 -IS - {interface} {hosts.service_address}", stdin=ANNOUNCE.encode())
    _copy_programs(hosts.source, redis.folder, "contract.py", "redis_load.py", "redis_standalone.py")
    _copy_programs(hosts.client, redis.client_folder, "contract.py", "redis_load.py", "redis_client.py")
    words = ["python3", f"{redis.folder}/redis_standalone.py", f"--working_dir={redis.folder}"]
    words += [f"--redis_port={load.port}", f"--num_keys={load.num_keys}", f"--value_size={load.value_size}"]
    words += [f"--ops_per_sec={load.ops_per_sec}"]
    try:
        redis.pid = _start(hosts.source, redis.folder, words, 300.0)
        _start_client(redis, load)
        redis.memory = memory(hosts.source, redis.pid)
    except BenchmarkError:
        clean(hosts)
        raise
    return redis


def _start_client(redis: Redis, load: Load) -> None:
    words = ["python3", f"{redis.client_folder}/redis_client.py", f"--working_dir={redis.client_folder}"]
    words += [f"--host={redis.hosts.service_address}", f"--port={load.port}", "--client_id=benchmark"]
    words += [f"--ops_per_sec={load.client_ops_per_sec}"]
    _start(redis.hosts.client, redis.client_folder, words, 30.0)


def memory(host: Host, pid: int) -> int:
    """Bytes resident in a process and its children."""
    text = host.run(f"for p in {pid} $(cat /proc/{pid}/task/*/children); do grep ^Rss: /proc/$p/smaps_rollup; done")
    return sum(int(line.split()[1]) * 1024 for line in text.splitlines())


def _wait_file(host: Host, path: str, limit: float) -> bytes:
    host.run(
        f"n=0; until [ -e {path} ]; do n=$((n+1)); [ $n -gt {int(limit * 5)} ] && exit 1; sleep 0.2; done",
        limit=limit + 10,
    )
    return host.get(path)


def finish(redis: Redis, window: tuple[float, float]) -> dict[str, Any]:
    """End the client, let redis prove itself at the destination, and return the gaps (s) and both proofs.

    `window` (CLOCK_REALTIME of the control node, s) holds the whole move: with an NTP-synchronised or a shared clock
    every gap that the move has made overlaps it.
    """
    hosts = redis.hosts
    hosts.client.run(f"rm -f {redis.client_folder}/checkpoint_flag")
    seen = json.loads(_wait_file(hosts.client, f"{redis.client_folder}/client_result.json", 120.0))
    ring = heartbeat.gap_report(heartbeat.ring_order(hosts.destination.get(f"{redis.folder}/heartbeat.bin")), window)
    token = secrets.token_hex(8)
    hosts.destination.put(f"{redis.folder}/verify_request", (token + "\n").encode())
    proof = json.loads(_wait_file(hosts.destination, f"{redis.folder}/verify_result.json", 120.0))
    gaps = [gap for gap in seen["longest_gaps"] if gap["to"] > window[0] and gap["from"] < window[1]]
    apart = [gap["seconds"] for gap in seen["longest_gaps"] if gap not in gaps]
    if not gaps or ring["service"] is None:
        raise BenchmarkError("Nobody saw the move: client and heartbeat have no gap in its time.")
    return {
        "client": max(gap["seconds"] for gap in gaps),
        "client_usual": max(apart, default=None),
        "heartbeat": ring["service"]["seconds"],
        "heartbeat_usual": ring["usual_gap_p99_9"],
        "connected": bool(seen["connected_whole_time"]),
        "client_verified": bool(seen["verified"]),
        "verified": bool(proof["verified"]) and proof["token"] == token,
        "acknowledged": seen["acknowledged"],
        "proofs": [seen["proof"], proof["details"], seen["errors"]],
    }


# By directory, as a run that failed may have left its copy anywhere, running or stopped.
CLEAN = """
PATH=$PATH:/usr/sbin
find /proc -maxdepth 3 -path "/proc/[0-9]*/fd/1" -lname "{base}/bench-*" 2> /dev/null | while IFS=/ read -r _ _ p _; do
    kill -9 $p
done
rm -rf {base}/bench-*
ip -4 -o addr show to {address}/32 | while read -r _ link _ address _; do ip addr del $address dev $link; done
if command -v nft > /dev/null; then
    nft list tables | grep CRIU- | while read -r table; do nft delete $table; done
fi
"""


def clean(hosts: Hosts) -> None:
    """Take every run of the benchmark off the hosts: processes first, then directories, address, locks."""
    for host in hosts.all():
        host.run(CLEAN.format(base=BASE, address=hosts.service_address))
