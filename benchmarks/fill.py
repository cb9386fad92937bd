"""How long the background fill of a post-copy takes, beside a plain copy of as many bytes over the same TLS.

Run from the clone, with the lab up:
    make benchmark-fill
    make benchmark-fill BENCHMARK_ARGS="--pairs 5 --num_keys 88000"
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from ansible_collections.criu.migrate.plugins.action import migration_certificates
from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate import payload

from . import bench_redis, hosts, report, sequences

PORT = 26998
FOLDER = "/var/lib/criu-migrate/benchmark-copy"
FILE = "/dev/shm/criu-benchmark-copy"  # noqa: S108  the destination's tmpfs
# The guards' own TLS at both ends; `size` bytes of memory at the source, a file in tmpfs at the destination.
ENDS = f"""
import os, socket, sys, time
from criu_migrate import wire
from criu_migrate.secure import PIECE, Secure
role, host, size = sys.argv[1], sys.argv[2], int(sys.argv[3])
context = wire.context(role == "destination", *(f"{FOLDER}/{{name}}.pem" for name in ("ca", "cert", "key")))
buffer = memoryview(bytearray(os.urandom(1 << 20) * (PIECE // (1 << 20) or 1)))[:PIECE]
if role == "destination":
    with socket.create_server((host, {PORT})) as server:
        print("ready", flush=True)
        link = Secure(server.accept()[0], context, True)
    fd = os.open("{FILE}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    while size > 0:
        count = link.recv_into(buffer)
        assert count
        size -= os.write(fd, buffer[:count])
    link.sendall(b"x")
else:
    link = Secure(socket.create_connection((host, {PORT})), context, False)
    began = time.monotonic()
    while size > 0:
        link.sendall(buffer[:size])
        size -= len(buffer)
    link.recv_into(buffer)
    print(time.monotonic() - began)
"""


def copy(where: hosts.Hosts, run: str, size: int) -> float:
    """Seconds for `size` bytes from the source's memory into a file in the destination's tmpfs."""
    made = migration_certificates.make(run, 1)
    program = f"PYTHONPATH={FOLDER}/guard.pyz exec python3 -s {FOLDER}/copy.py"
    for role, host in (("source", where.source), ("destination", where.destination)):
        for name in ("ca", "cert", "key"):
            host.put(f"{FOLDER}/{name}.pem", made[role][name].encode(), "0600")
        host.put(f"{FOLDER}/guard.pyz", payload.build())
        host.put(f"{FOLDER}/copy.py", ENDS.encode())
    seconds = 0.0
    try:
        for turn in ("warm", "ready"):  # the first only fetches the destination's memory, as its guard does
            fifo = f"{FOLDER}/{turn}"
            script = f"mkfifo {fifo}; {program} destination {where.destination.address} {size} > {fifo}"
            far = threading.Thread(target=where.destination.run, args=(script,))
            far.start()
            where.destination.run(f"until [ -p {fifo} ]; do sleep 0.01; done; head -n 1 {fifo}")
            seconds = float(where.source.run(f"{program} source {where.destination.address} {size}"))
            far.join()
    finally:
        for host in (where.source, where.destination):
            host.run(f"rm -rf {FOLDER} {FILE}")
    return seconds


def migrate(where: hosts.Hosts, load: bench_redis.Load, encryption: str, name: str) -> dict[str, Any]:
    """One post-copy of a fresh redis: seconds until every page had come, bytes, service's downtime (s)."""
    redis = bench_redis.start(where, load, name)
    try:
        moved = sequences.ours(encryption, "migrate.yml", "postcopy")(redis, name)
        time.sleep(1.0)
        seen = bench_redis.finish(redis, (moved.began, moved.ended + 1.0))
        path = next((sequences.ROOT / "results" / "benchmark" / name).rglob("metrics.json"))
        metrics = json.loads(path.read_text(encoding="utf-8"))
    finally:
        bench_redis.clean(where)
    if not (seen["verified"] and seen["client_verified"]):
        raise hosts.BenchmarkError(f"{name}: {seen}")
    return {"seconds": metrics["lazy"]["seconds"], "bytes": metrics["lazy"]["pages_total"] * 4096, **seen}


def main() -> int:
    """Run the pairs and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inventory", type=Path, default=Path("inventories/lab/hosts.yml"), help="YAML inventory")
    parser.add_argument("--service_address", default="", help="address that moves; default: lab_service_address")
    parser.add_argument("--pairs", type=int, default=10, help="post-copies, each with a copy")
    parser.add_argument("--num_keys", type=int, default=365000, help="365000 keys of 1024 bytes: about 528 MB")
    options = parser.parse_args()
    load = bench_redis.Load(options.num_keys, 1024, 1000.0, 200.0, 6390)
    fills, copies = [], []
    with tempfile.TemporaryDirectory(prefix="criu-") as control:
        where = hosts.load(options.inventory.resolve(), Path(control), options.service_address)
        stamp = time.strftime("%H%M%S")
        bench_redis.clean(where)
        for pair in range(options.pairs):
            fills.append(migrate(where, load, "tls", f"bench-fill-{stamp}-{pair}"))
            copies.append(copy(where, f"bench-fill-{stamp}-{pair}", fills[-1]["bytes"]))
            print(f"pair {pair}: filled in {fills[-1]['seconds']:.2f} s, copied in {copies[-1]:.2f} s", flush=True)
        for host in where.all():
            host.close()
    rates = [item["bytes"] / item["seconds"] / 1e6 for item in fills]
    plain = [item["bytes"] / seconds / 1e6 for item, seconds in zip(fills, copies, strict=True)]
    print("\n| | median | quartile | quartile | min | max | runs |\n|---|---|---|---|---|---|---|")
    for name, values, digits in (
        ("until every page has come, seconds", [item["seconds"] for item in fills], 2),
        ("fill, MB/s", rates, 0),
        ("plain copy, seconds", copies, 2),
        ("plain copy, MB/s", plain, 0),
        ("fill / copy in a pair, seconds", [a["seconds"] / b for a, b in zip(fills, copies, strict=True)], 2),
    ):
        found = report.spread(values)
        keys = ("median", "low_quartile", "high_quartile", "min", "max")
        print(f"| {name} | " + " | ".join(f"{found[key]:.{digits}f}" for key in keys) + f" | {found['count']} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
