"""Post-copy by hand with stock CRIU, and as the framework of the seed documents drives it."""

from __future__ import annotations

import time

from .bench_redis import Redis
from .hosts import Host
from .sequences import DISK, OPTIONS, PORT, TMPFS, Move, Sequence, far, put_announce

IDLE = 2.0  # seconds without a change until the seed framework takes the images for complete, and that it sleeps


def by_hand() -> Sequence:
    """The shortest stock post-copy that we know: connections warm, the far shell waiting, daemons awaited by their
    --status-fd, pages not encrypted, one command."""

    def move(redis: Redis, _run: str) -> Move:
        source, destination = redis.hosts.source, redis.hosts.destination
        call = far(redis, warm=True)
        for host in (source, destination):
            host.run(f"rm -rf {TMPFS}; mkdir -p -m 700 {TMPFS}/images; mkfifo {TMPFS}/ready")
        source.run(f"{call} true; tar -c -C / .{redis.folder} | {call} sudo tar -x -C /")
        put_announce(redis, TMPFS)
        destination.put(f"{TMPFS}.sh", _arrive(redis, TMPFS, source, "tar -x -C /").encode())
        leave = f"""set -e; cd {TMPFS}; mkfifo go; {call} sudo sh {TMPFS}.sh < go & exec 3> go
            criu dump -D {TMPFS}/images -o dump.log -t {redis.pid} {OPTIONS} --link-remap --lazy-pages \\
                --address {source.address} --port {PORT} --status-fd 4 4> ready 3>&- < /dev/null > /dev/null 2>&1 &
            head -c 1 ready > /dev/null
            ip addr del {redis.hosts.service_address}/{redis.prefix} dev {redis.interface}
            tar -c -C / .{TMPFS}/images .{redis.folder}/output.log .{redis.folder}/heartbeat.bin >&3
            exec 3>&-; wait"""
        source.put(f"{TMPFS}.sh", leave.encode())
        began = time.time()
        source.run(f"sh {TMPFS}.sh")
        _wait_filled(destination)
        return Move(began, time.time(), _clean(redis, TMPFS))

    return move


def _arrive(redis: Redis, folder: str, source: Host, unpack: str) -> str:
    link, address = redis.interface, redis.hosts.service_address
    return f"""set -e; cd {folder}; {unpack}
        ip addr add {address}/{redis.prefix} dev {link} noprefixroute; python3 -IS {folder}.py {link} {address} &
        setsid criu lazy-pages -D {folder}/images -W {folder} -o lazy.log --page-server --address {source.address} \\
            --port {PORT} --status-fd 4 4> ready < /dev/null > /dev/null 2>&1 &
        head -c 1 ready > /dev/null
        criu restore -D {folder}/images -W {folder} -o restore.log -d --lazy-pages {OPTIONS}"""


def _wait_filled(destination: Host) -> None:
    destination.run("while pgrep -f '^criu lazy-pages' > /dev/null; do sleep 0.05; done")


def _clean(redis: Redis, folder: str) -> dict[str, float]:
    for host in (redis.hosts.source, redis.hosts.destination):
        host.run(f"rm -rf {folder} {folder}.sh {folder}.py")
    return {}


def seed(redis: Redis, _run: str) -> Move:
    """dump --lazy-pages, poll until the files are idle, rsync, lazy-pages, sleep, restore: each a new ssh command."""
    source, destination = redis.hosts.source, redis.hosts.destination
    command, host = far(redis, warm=False).rsplit(" ", 1)
    for node in (source, destination):
        node.run(f"rm -rf {DISK}; mkdir -m 700 {DISK}")
    source.run(f"mkdir {DISK}/images")
    put_announce(redis, DISK)
    link, address = redis.interface, redis.hosts.service_address
    began = time.time()
    dump = f"criu dump -D {DISK}/images -o dump.log -t {redis.pid} {OPTIONS} --link-remap --lazy-pages"
    source.run(f"setsid -f {dump} --address {source.address} --port {PORT} < /dev/null > /dev/null 2>&1", warm=False)
    source.run(
        f"cd {DISK}/images; was=; same=0; while [ $same -lt {int(IDLE * 10)} ]; do sleep 0.1; "
        'now=$(ls -l --time-style=full-iso; stat -c %s *); if [ "$now" = "$was" ]; then same=$((same+1)); '
        "else same=0; was=$now; fi; done",
        warm=False,
    )
    source.run(f"ip addr del {address}/{redis.prefix} dev {link}", warm=False)
    source.run(f"rsync -aR -e '{command}' --rsync-path 'sudo rsync' {DISK}/images {redis.folder} {host}:/", warm=False)
    destination.run(
        f"cd {DISK}; ip addr add {address}/{redis.prefix} dev {link} noprefixroute; "
        f"python3 -IS {DISK}.py {link} {address}; "
        f"setsid -f criu lazy-pages -D {DISK}/images -W {DISK} -o lazy.log --page-server --address {source.address} "
        f"--port {PORT} < /dev/null > /dev/null 2>&1",
        warm=False,
    )
    time.sleep(IDLE)
    destination.run(f"criu restore -D {DISK}/images -W {DISK} -o restore.log -d --lazy-pages {OPTIONS}", warm=False)
    _wait_filled(destination)
    return Move(began, time.time(), _clean(redis, DISK))
