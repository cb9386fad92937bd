"""Programs that nobody here wrote, from the distribution: moved under load, or refused beforehand with the reason."""

from __future__ import annotations

import errno
import shutil
import struct
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.lab.conftest import Prepare
from tests.lab.harness.aftermath import Aftermath
from tests.lab.harness.foreign import HTTP, MEMCACHED, Service
from tests.lab.harness.migration import Migration
from tests.lab.harness.nodes import Lab, wait_for

PORT = 7021
Serve = Callable[..., Service]
NGINX = """
daemon off; user root; worker_processes 2; pid {folder}/nginx.pid; error_log {folder}/error.log;
events {{ worker_connections 64; }}
http {{
  access_log {folder}/access.log;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  keepalive_timeout 600; keepalive_requests 1000000;
  server {{
    listen {port};
    location = /file {{ root {folder}; }}
    location ~ ^/(?<number>[0-9]+)$ {{
      return 200 '{{"connection": $connection, "requests": $connection_requests, "value": "value of $number"}}';
    }}
  }}
}}
"""
NODE = """
const held = new Map();
for (let n = 0; n < 5000; n++) held.set(`/${n}`, `value of ${n}`);
const file = Buffer.from(Array.from({length: 256 * 4096}, (_, n) => n % 256));
let connections = 0;
const server = require('http').createServer((request, response) => {
  const socket = request.socket;
  socket.requests += 1;
  if (request.url === '/file') return response.end(file);
  response.end(JSON.stringify({connection: socket.number, requests: socket.requests, value: held.get(request.url)}));
});
server.on('connection', (socket) => { socket.number = connections++; socket.requests = 0; });
server.keepAliveTimeout = 600000;
server.listen(Number(process.argv[2]), '0.0.0.0');
"""
# struct sock_filter: load the system call's number; 425, io_uring_setup, fails with ENOSYS, others pass
NO_IO_URING = b"".join(
    struct.pack("=HBBI", *words)
    for words in ((0x20, 0, 0, 0), (0x15, 0, 1, 425), (0x06, 0, 0, 0x50000 | errno.ENOSYS), (0x06, 0, 0, 0x7FFF0000))
)
# The rows are numbered by the database, each is a transaction of its own.
SQLITE = """
cd "$1"
sqlite3 db "PRAGMA journal_mode=$2; CREATE TABLE held (number INTEGER PRIMARY KEY, text TEXT);"
yes 'INSERT INTO held (text) SELECT hex(ifnull(max(number), 0) + 1) FROM held;' | sqlite3 db
"""
PG = "/usr/lib/postgresql/17/bin"
PG_CONF = """
listen_addresses = '*'
port = {port}
unix_socket_directories = ''
dynamic_shared_memory_type = mmap
shared_buffers = 32MB
"""


@pytest.fixture
def serve(lab: Lab) -> Iterator[Serve]:
    """Return a function that prepares a program's folder on the source; everything is taken away after the test."""
    made: list[Service] = []
    lab.keep_pids_apart()

    def make(number: int, port: int = PORT) -> Service:
        made.append(Service(lab, lab.service_address(number), port))
        return made[-1]

    yield make
    for service in made:
        service.clean()


def move(prepare: Prepare, service: Service, **params: Any) -> tuple[Migration, Aftermath]:
    """A migration of the running program, not yet started."""
    return prepare(
        "process", own_pid=service.pid, pid=service.pid, working_dir=service.folder,
        service_address=service.address, **params,
    )  # fmt: skip


def check_moved(migration: Migration, aftermath: Aftermath, service: Service, strategy: str) -> None:
    migration.run()
    metrics = migration.metrics()
    assert (metrics["status"], metrics["strategy"]) == ("migrated", strategy)
    result = service.client_result()
    assert result["right"] and result["answers"] > 10, result
    aftermath.check("destination", verify=False)


def refusal(migration: Migration, aftermath: Aftermath) -> str:
    """What the preflight says; nothing must have been touched."""
    migration.run(rc=None)
    assert "problem" in migration.output(), migration.output()
    aftermath.check_untouched()
    return " ".join(migration.output().split())


@pytest.mark.parametrize("strategy", ["full", "postcopy"])
def test_memcached(prepare: Prepare, serve: Serve, strategy: str) -> None:
    service = serve(21)
    service.start(f"memcached -u root -l 0.0.0.0 -p {PORT} -U 0")
    service.connect(MEMCACHED)
    check_moved(*move(prepare, service, migration_strategy=strategy), service, strategy)


def test_nginx(prepare: Prepare, serve: Serve) -> None:
    service = serve(22)
    service.write("file", bytes(range(256)) * 4096)
    service.write("nginx.conf", NGINX.format(folder=service.folder, port=PORT))
    service.start(f"nginx -c {service.folder}/nginx.conf -e {service.folder}/error.log")
    service.connect(HTTP)
    check_moved(*move(prepare, service, migration_strategy="full"), service, "full")


def test_node_uses_io_uring_unless_told_otherwise(prepare: Prepare, serve: Serve) -> None:
    service = serve(23)
    service.write("server.js", NODE)
    service.start(f"node {service.folder}/server.js {PORT}")
    service.connect(HTTP)
    said = refusal(*move(prepare, service))
    assert "holds io_uring" in said and "SystemCallFilter=~io_uring_setup" in said
    assert service.client_result()["right"]


def test_node_without_io_uring(prepare: Prepare, serve: Serve) -> None:
    """As with SystemCallFilter=~io_uring_setup in a unit; UV_USE_IO_URING=0 does not keep libuv 1.50 from it."""
    service = serve(24)
    service.write("server.js", NODE)
    service.write("filter", NO_IO_URING)
    service.start(
        f"node {service.folder}/server.js {PORT}", before=f"setpriv --seccomp-filter={service.folder}/filter"
    )
    service.connect(HTTP)
    check_moved(*move(prepare, service, migration_strategy="full"), service, "full")


def sqlite(prepare: Prepare, lab: Lab, mode: str) -> tuple[Migration, Aftermath]:
    """A shell, yes and sqlite3, which writes one row after the other."""
    script = "/srv/sqlite.sh"
    lab.source.path(script).write_text(SQLITE, encoding="utf-8")
    command = f"sh {script} {{working_dir}} {mode}"
    # the shell keeps its script open
    return prepare("command", migration_strategy="full", command=command, sync_paths=[script])


def test_sqlite_notices_that_its_file_is_another_one(prepare: Prepare, lab: Lab) -> None:
    """It would run on and write nothing more (SQLITE_READONLY_DBMOVED): refused, and goes on here."""
    migration, aftermath = sqlite(prepare, lab, "DELETE")
    said = refusal(migration, aftermath)
    assert "/db." in said and "SQLite" in said


def test_sqlite_with_a_lock_that_would_be_lost(prepare: Prepare, lab: Lab) -> None:
    """With WAL it maps its index and holds a POSIX lock on it; without it the next reader removes the index."""
    migration, aftermath = sqlite(prepare, lab, "WAL")
    said = refusal(migration, aftermath)
    assert "db-shm" in said and "journal_mode=DELETE" in said


# Opens the database for each row, and tries again where it was moved in the middle of one.
SQLITE_OPENS = """
import sqlite3, time
while True:
    db = sqlite3.connect("db")
    try:
        with db:
            db.execute("CREATE TABLE IF NOT EXISTS held (number INTEGER PRIMARY KEY, text TEXT)")
            db.execute("INSERT INTO held (text) SELECT hex(ifnull(max(number), 0) + 1) FROM held")
    except sqlite3.OperationalError as error:
        print(error, flush=True)
    db.close()
    time.sleep(0.2)
"""


def test_sqlite_that_opens_its_file_for_each_transaction(prepare: Prepare, lab: Lab) -> None:
    lab.source.path("/srv/opens.py").write_text(SQLITE_OPENS, encoding="utf-8")
    for _attempt in range(3):  # who looks at it within a transaction refuses to move it
        migration, aftermath = prepare("command", command="python3 /srv/opens.py", migration_strategy="full")
        migration.start()
        assert migration.play is not None
        if migration.play.wait(240) == 0 or "SQLite" not in migration.output():
            break
    assert migration.metrics()["status"] == "migrated", migration.output()

    def ask(question: str) -> str:
        words = ("sqlite3", "-cmd", ".timeout 5000", f"{migration.working_dir}/db", question)
        return lab.destination.run(*words).strip()

    before = int(ask("SELECT max(number) FROM held"))
    assert before > 2
    wait_for("further rows", lambda: int(ask("SELECT max(number) FROM held")) > before + 2 or None, 10)
    assert ask("SELECT count(*) = max(number), sum(text != hex(number)) FROM held") == "1|0"
    assert ask("PRAGMA integrity_check") == "ok"
    aftermath.check("destination", verify=False)


class Session:
    """psql on the third host, one statement after the other over one connection."""

    def __init__(self, service: Service) -> None:
        words = ["psql", "-XqAt", "-h", service.address, "-p", str(service.port), "-U", "ubuntu", "postgres"]
        self.psql = subprocess.Popen(
            service.lab.client.command(*words), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, bufsize=1,
        )  # fmt: skip

    def ask(self, statement: str) -> str:
        """The first line of the answer."""
        assert self.psql.stdin and self.psql.stdout
        self.psql.stdin.write(f"{statement};\n")
        return self.psql.stdout.readline().strip()

    def close(self) -> None:
        assert self.psql.stdin
        self.psql.stdin.close()
        self.psql.wait(10)


def postgresql(service: Service, before: str = "", env: str = "") -> Session:
    """A running server, and a session with an open transaction that has changed something."""
    node, data = service.lab.source, f"{service.folder}/data"
    as_user = ("setpriv", "--reuid=ubuntu", "--regid=ubuntu", "--clear-groups")
    node.run(*as_user, f"{PG}/initdb", "-D", data, "-U", "ubuntu", "-A", "trust", "-E", "UTF8", "--no-sync")
    with node.path(f"{data}/postgresql.conf").open("a") as conf:
        conf.write(PG_CONF.format(port=service.port))
    with node.path(f"{data}/pg_hba.conf").open("a") as hba:
        hba.write("host all all all trust\n")
    service.start(f"{env} {PG}/postgres -D {data}", before)
    session = Session(service)
    assert session.ask("CREATE TABLE held (number int); BEGIN; SELECT 'begun'") == "begun"
    assert session.ask("INSERT INTO held SELECT generate_series(1, 100000); SELECT count(*) FROM held") == "100000"
    return session


WHO = "SELECT pg_backend_pid(), pg_current_xact_id()"


def test_postgresql_shares_memory_in_a_way_that_does_not_move(prepare: Prepare, serve: Serve) -> None:
    service = serve(25)
    service.user = "ubuntu"  # it refuses to be root
    session = postgresql(service)
    said = refusal(*move(prepare, service))
    assert "System V shared memory is in use" in said and "unshare --ipc" in said
    assert session.ask("COMMIT; SELECT count(*) FROM held") == "100000"
    session.close()


def pretend(service: Service) -> str:
    """PostgreSQL refuses to be root. Where CRIU can dump none but root's processes, it gets to see another number."""
    if service.user != "root":
        return ""
    compiler = shutil.which("cc")
    assert compiler, "CRIU can dump none but root's processes here, so a C compiler is needed: make compiler"
    library = service.write("user.so", b"")
    text = "unsigned getuid(void) { return 1000; }\nunsigned geteuid(void) { return 1000; }\n"
    command = [compiler, "-shared", "-fPIC", "-nostdlib", "-x", "c", "-o", str(library), "-"]
    subprocess.run(command, input=text, text=True, check=True)
    return f"env LD_PRELOAD={service.folder}/user.so"


def test_postgresql_with_an_open_transaction(prepare: Prepare, serve: Serve) -> None:
    """Most of its memory is shared, and cannot come later: the preflight refuses post-copy."""
    service = serve(26)
    session = postgresql(service, "unshare --ipc", pretend(service))
    who = session.ask(WHO)
    migration, aftermath = move(prepare, service, migration_strategy="full")
    migration.run()
    assert session.ask(WHO) == who
    assert session.ask("SELECT count(*) FROM held") == "100000"
    assert session.ask("COMMIT; SELECT sum(number) FROM held") == "5000050000"
    session.close()
    aftermath.check("destination", verify=False)
