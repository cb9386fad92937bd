"""Three ways to move one process tree: our own migration, the shortest sequence by hand, and the plain one."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ansible_collections.criu.migrate.plugins.action import migration_certificates

from .bench_redis import ANNOUNCE, Redis
from .hosts import BenchmarkError, Host

ROOT = Path(__file__).resolve().parent.parent
KEY = "/root/.ssh/criu_migrate_benchmark"
TMPFS = "/dev/shm/criu-benchmark"  # noqa: S108  the nodes' tmpfs
DISK = "/var/tmp/criu-benchmark"  # noqa: S108  on the nodes' disk
TLS = "/var/lib/criu-migrate/benchmark-tls"
PORT = 26999
OPTIONS = "--tcp-established --network-lock nftables --file-locks --ext-unix-sk"


@dataclass
class Move:
    """When the move was asked for and when it was over (CLOCK_REALTIME, s), and what its tools said about it."""

    began: float
    ended: float
    details: dict[str, Any] = field(default_factory=dict)


Sequence = Callable[[Redis, str], Move]


def _write_tls(redis: Redis, run: str) -> None:
    made = migration_certificates.make(run, 48)
    for role, host in (("source", redis.hosts.source), ("destination", redis.hosts.destination)):
        for name in ("ca", "cert", "key"):
            host.put(f"{TLS}/{name}.pem", made[role][name].encode(), "0600")


def introduce(source: Host, destination: Host) -> None:
    """Let root on the source log in at the destination, with a key made for the benchmark."""
    source.run(f"mkdir -p -m 700 /root/.ssh; [ -e {KEY} ] || ssh-keygen -q -t ed25519 -N '' -C criu-benchmark -f {KEY}")
    public = source.get(f"{KEY}.pub").decode().strip()
    destination.run(f"f=$(eval echo ~$SUDO_USER)/.ssh/authorized_keys; grep -qF '{public}' $f || echo '{public}' >> $f")


def part(source: Host, destination: Host) -> None:
    """Undo `introduce`, and remove what the sequences keep between runs."""
    # its own connection would outlive the socket, and hold the tunnel's port
    source.run(f"[ ! -S {KEY}.{destination.address} ] || ssh -o ControlPath={KEY}.%h -O exit {destination.address}")
    source.run(f"rm -rf {KEY}* {TMPFS}* {DISK}* {TLS}")
    destination.run(
        f"sed -i '/criu-benchmark/d' $(eval echo ~$SUDO_USER)/.ssh/authorized_keys; rm -rf {TMPFS}* {DISK}* {TLS}"
    )


def far(redis: Redis, warm: bool) -> str:
    """How root on the source calls the destination."""
    user = redis.hosts.destination.run("echo $SUDO_USER").strip()
    words = f"ssh -i {KEY} -o BatchMode=yes -o StrictHostKeyChecking=accept-new -o UserKnownHostsFile={KEY}.hosts"
    if warm:
        words += f" -c aes128-gcm@openssh.com -o ControlMaster=auto -o ControlPath={KEY}.%h -o ControlPersist=300"
    return f"{words} {user}@{redis.hosts.destination.address}"


def ours(encryption: str, playbook: str, strategy: str = "full", **more: Any) -> Sequence:
    """Our own migration, as a user types it, of a process that runs already; `more` are further parameters."""

    def move(redis: Redis, run: str) -> Move:
        results = ROOT / "results" / "benchmark" / run
        extra = {
            "workload": "process",
            "pid": redis.pid,
            "working_dir": redis.folder,
            "service_address": redis.hosts.service_address,
            "migration_strategy": strategy,
            "transfer": "page_server",
            "transfer_encryption": encryption,
            "results_dir": str(results),
            **more,
        }
        command = [str(Path(sys.executable).parent / "ansible-playbook"), "-i", str(redis.hosts.inventory)]
        began = time.time()
        done = subprocess.run(
            [*command, playbook, "-e", json.dumps(extra)], cwd=ROOT, capture_output=True, text=True, timeout=1800
        )
        ended = time.time()
        if done.returncode:
            raise BenchmarkError(f"{playbook} ended with {done.returncode}: {done.stdout[-3000:]}{done.stderr[-1000:]}")
        (metrics,) = results.glob("*/metrics.json")
        found = json.loads(metrics.read_text(encoding="utf-8"))
        kept = ("lazy", "strategy", "pre_dumps", "stop_reason", "prediction", "times")
        return Move(began, ended, {**found["downtime"], **{name: found[name] for name in kept}})

    return move


def by_hand(encryption: str) -> Sequence:
    """The shortest sequence with stock CRIU: everything that can be prepared is, and one command does the rest.

    `encryption` of the pages: tls (CRIU's own), ssh (a tunnel through the connection that is open anyway), none.
    """

    def move(redis: Redis, run: str) -> Move:
        source, destination = redis.hosts.source, redis.hosts.destination
        tls = ""
        if encryption == "tls":
            _write_tls(redis, run)
            tls = (
                f"--tls --tls-cacert {TLS}/ca.pem --tls-cert {TLS}/cert.pem --tls-key {TLS}/key.pem --tls-no-cn-verify"
            )
        call = far(redis, warm=True)
        source.run(f"rm -rf {TMPFS}; mkdir -p -m 700 {TMPFS}/images; {call} true")
        server = destination.address
        if encryption == "ssh":
            server = "127.0.0.1"
            source.run(
                f"{call} -O cancel -L {PORT}:{server}:{PORT} 2> /dev/null; {call} -O forward -L {PORT}:{server}:{PORT}"
            )
        # the open files of the process have to be there; what changes until the freeze follows in the same tar
        source.run(f"tar -c -C / .{redis.folder} | {call} sudo tar -x -C /")
        destination.run(
            f"rm -rf {TMPFS}; mkdir -p -m 700 {TMPFS}/images; cd {TMPFS}; mkfifo ready; "
            f"setsid -f criu page-server -D {TMPFS}/images -W {TMPFS} -o page-server.log "
            f"--address {server} --port {PORT} {tls} "
            "--status-fd 3 3> ready < /dev/null > page-server.out 2>&1 & head -c 1 ready > /dev/null"
        )
        _put_arrive(redis, TMPFS, unpack="tar -x -C /; ")
        # The far side's shell is there before the freeze, and waits for its input.
        leave = f"""set -e; cd {TMPFS}; mkfifo go; {call} sudo sh {TMPFS}.sh < go & exec 3> go; : > 1.begun
            criu dump -D {TMPFS}/images -o dump.log -t {redis.pid} {OPTIONS} --link-remap \\
                --page-server --address {server} --port {PORT} {tls} 3>&-
            : > 2.dumped
            ip addr del {redis.hosts.service_address}/{redis.prefix} dev {redis.interface}
            tar -c -C / .{TMPFS}/images .{redis.folder}/output.log .{redis.folder}/heartbeat.bin >&3
            exec 3>&-; wait $!"""
        source.put(f"{TMPFS}.sh", leave.encode())
        began = time.time()
        source.run(f"sh {TMPFS}.sh")
        return Move(began, time.time(), _details(redis, f"{TMPFS}/images"))

    return move


def _put_arrive(redis: Redis, folder: str, unpack: str = "") -> None:
    """What the destination does once everything is there, as a script."""
    link, address = redis.interface, redis.hosts.service_address
    script = f"""set -e; {unpack}: > {folder}/3.sent; ip addr add {address}/{redis.prefix} dev {link} noprefixroute
        python3 -IS {folder}.py {link} {address} &
        criu restore -D {folder}/images -o restore.log -d {OPTIONS}; : > {folder}/4.restored"""
    redis.hosts.destination.put(f"{folder}.sh", script.encode())
    put_announce(redis, folder)


def put_announce(redis: Redis, folder: str) -> None:
    redis.hosts.destination.put(f"{folder}.py", ANNOUNCE.encode())


def plain(redis: Redis, _run: str) -> Move:
    """Dump to disk, rsync over ssh, restore: three commands, three new connections, nothing prepared."""
    source, destination = redis.hosts.source, redis.hosts.destination
    command, host = far(redis, warm=False).rsplit(" ", 1)
    for node in (source, destination):
        node.run(f"rm -rf {DISK}; mkdir -m 700 {DISK}")
    source.run(f"mkdir {DISK}/images")
    _put_arrive(redis, DISK)
    address = f"{redis.hosts.service_address}/{redis.prefix}"
    times = [time.time()]
    dump = f"criu dump -D {DISK}/images -o dump.log -t {redis.pid} {OPTIONS} --link-remap"
    source.run(f"{dump} && ip addr del {address} dev {redis.interface}", warm=False)
    times.append(time.time())
    source.run(f"rsync -aR -e '{command}' --rsync-path 'sudo rsync' {DISK}/images {redis.folder} {host}:/", warm=False)
    times.append(time.time())
    destination.run(f"sh {DISK}.sh", warm=False)
    times.append(time.time())
    steps = dict(zip(("dump_command", "rsync_command", "restore_command"), (b - a for a, b in zip(times, times[1:]))))
    return Move(times[0], times[-1], {**steps, **_details(redis, f"{DISK}/images")})


def _details(redis: Redis, images: str) -> dict[str, Any]:
    """Bytes of the images at the destination, and seconds between the scripts' stamps; the images go."""
    folder = images.rsplit("/", 1)[0]
    size = int(redis.hosts.destination.run(f"du -sb {images}").split()[0])
    stamps: list[tuple[str, float]] = []
    for host in (redis.hosts.source, redis.hosts.destination):
        text = host.run(f"cd {folder}; for f in [0-9].*; do [ ! -e $f ] || stat -c '%n %.9Y' $f; done")
        stamps += [(name[2:], float(when)) for name, when in (line.split() for line in text.splitlines())]
        host.run(f"rm -rf {folder} {folder}.sh {folder}.py")
    steps = {name: round(when - before, 4) for (_name, before), (name, when) in zip(stamps, stamps[1:])}
    return {"image_bytes": size, **steps}
