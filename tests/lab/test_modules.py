"""The modules for single steps, with real CRIU: what they do, that a second run does nothing, what a failure says."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from ansible_collections.criu.migrate.plugins.action.migration_certificates import make
from tests.lab.harness.nodes import Lab, Node
from tests.lab.harness.steps import Modules, Victim, nft_tables


@pytest.fixture
def modules(lab: Lab, tmp_path: Path) -> Modules:
    return Modules(lab, tmp_path)


@pytest.fixture
def victim(modules: Modules) -> Iterator[Victim]:
    made = Victim(modules)
    try:
        yield made
    finally:
        made.clean()


def tls(victim: Victim) -> dict[str, str]:
    """Certificates for both nodes, at the same paths."""
    made = make("test", 1)
    for node, role in ((victim.source, "source"), (victim.destination, "destination")):
        for name, text in made[role].items():
            node.path(f"{victim.folder}/{name}.pem").write_text(text, encoding="ascii")
    return {name: f"{victim.folder}/{name}.pem" for name in ("ca", "cert", "key")}


def test_dump_and_restore_on_one_node(modules: Modules, victim: Victim) -> None:
    node, images, work = victim.source, victim.images("i"), victim.images("w")
    locks = nft_tables(node)
    dump = {"pid": victim.pid, "images_dir": images, "leave": "killed"}
    planned = modules.ok(node, "criu_dump", "--check", **dump)
    assert planned["changed"] and planned["cmd"][1] == "dump" and planned["pids"] == [victim.pid]
    assert not node.path(images).exists(), "check mode makes no directory"
    dumped = modules.ok(node, "criu_dump", **dump)
    assert dumped["changed"] and dumped["cmd"] == planned["cmd"] and victim.process(node) is None
    assert dumped["bytes"] > 20_000_000 and dumped["stats"]["dump"]["pages_written"] > 4000
    assert 0 < dumped["stats"]["dump"]["frozen"] < dumped["seconds"] < 30
    assert stat.S_IMODE(node.path(images).stat().st_mode) == 0o700
    assert not modules.ok(node, "criu_dump", **dump)["changed"]
    assert modules.ok(node, "criu_restore", "--check", images_dir=images, work_dir=work)["changed"]
    assert victim.process(node) is None and not node.path(work).exists()
    restored = modules.ok(node, "criu_restore", images_dir=images, work_dir=work)
    assert restored["changed"] and restored["pid"] == victim.pid and restored["stats"]["restore"]["pages_restored"]
    victim.goes_on(node)
    assert not modules.ok(node, "criu_restore", images_dir=images, work_dir=work)["changed"]
    assert nft_tables(node) == locks, "a lock of CRIU stays"


def test_a_dump_can_be_taken_back(modules: Modules, victim: Victim) -> None:
    """Out of TCP_REPAIR, without CRIU's lock, running: the count goes through a connection."""
    node, dump = victim.source, {"pid": victim.pid, "images_dir": victim.images("i")}
    locks = nft_tables(node)
    assert modules.ok(node, "criu_dump", **dump)["leave"] == "stopped"
    frozen = victim.process(node)
    assert frozen is not None and frozen["stopped"]
    assert not modules.ok(node, "criu_dump", **dump)["changed"]
    assert modules.ok(node, "criu_dump", "--check", **dump, leave="running")["changed"]
    assert victim.process(node) == frozen
    assert modules.ok(node, "criu_dump", **dump, leave="running")["changed"]
    victim.goes_on(node)
    assert nft_tables(node) == locks
    assert not modules.ok(node, "criu_dump", **dump, leave="running")["changed"]
    stale = modules(node, "criu_dump", **dump, leave="killed")
    assert stale["failed"] and "run on" in stale["msg"] and victim.process(node) is not None


def test_leave_running(modules: Modules, victim: Victim) -> None:
    node, locks = victim.source, nft_tables(victim.source)
    dump = {"pid": victim.pid, "images_dir": victim.images("i"), "leave": "running"}
    assert modules.ok(node, "criu_dump", **dump)["changed"]
    victim.goes_on(node)
    assert nft_tables(node) == locks
    taken = modules(node, "criu_restore", images_dir=victim.images("i"), work_dir=victim.images("w"))
    assert taken["failed"] and str(victim.pid) in taken["msg"] and not node.path(victim.images("w")).exists()


def test_restore_stopped_then_wake(modules: Modules, victim: Victim) -> None:
    node, images = victim.source, victim.images("i")
    modules.ok(node, "criu_dump", pid=victim.pid, images_dir=images, leave="killed")
    assert modules.ok(node, "criu_restore", images_dir=images, leave="stopped")["changed"]
    there = victim.process(node)
    assert there is not None and there["stopped"]
    assert not modules.ok(node, "criu_restore", images_dir=images, leave="stopped")["changed"]
    assert modules.ok(node, "criu_restore", images_dir=images)["changed"]
    victim.goes_on(node)


@pytest.mark.parametrize("secure", [True, False], ids=["tls", "plain"])
def test_to_another_node_by_page_server(modules: Modules, victim: Victim, secure: bool) -> None:
    keys = tls(victim) if secure else None
    images, far = victim.images("i"), victim.destination
    server = {"images_dir": images, "address": far.address, "tls": keys}
    started = modules.ok(far, "criu_page_server", **server)
    assert started["changed"] and 27000 <= started["port"] <= 27999
    again = modules.ok(far, "criu_page_server", **server)
    assert not again["changed"] and (again["pid"], again["port"]) == (started["pid"], started["port"])
    pages = {"address": far.address, "port": started["port"], "tls": keys}
    dump = {"pid": victim.pid, "images_dir": images, "leave": "killed", "page_server": pages}
    dumped = modules.ok(victim.source, "criu_dump", **dump)
    assert dumped["bytes"] < 2_000_000, "the memory has gone to the other node"
    ended = modules.ok(far, "criu_page_server", images_dir=images, state="stopped")
    assert ended["rc"] == 0 and not ended["killed"] and ended["bytes"] > 20_000_000
    assert not modules.ok(far, "criu_page_server", images_dir=images, state="stopped")["changed"]
    victim.small_images_to("i")
    assert modules.ok(far, "criu_restore", images_dir=images)["pid"] == victim.pid
    victim.goes_on(far)


def test_a_page_server_outlives_async_and_is_killed_on_demand(modules: Modules, victim: Victim) -> None:
    far, server = victim.destination, {"images_dir": victim.images("i"), "address": victim.destination.address}
    assert modules.ok(far, "criu_page_server", "--check", **server)["cmd"][1] == "page-server"
    assert not far.path(victim.images("i")).exists()
    started = modules.ok(far, "criu_page_server", "-B", "20", "-P", "1", **server)
    assert [item["comm"] for item in far.look()["processes"] if item["pid"] == started["pid"]] == ["criu"]
    stop = {"images_dir": victim.images("i"), "state": "stopped", "timeout": 0.2}
    ended = modules.ok(far, "criu_page_server", **stop)
    assert ended["changed"] and ended["killed"] and "rc" not in ended
    assert not modules.ok(far, "criu_page_server", **stop)["changed"]
    assert not [item for item in far.look()["processes"] if item["pid"] == started["pid"]]


def test_a_port_that_is_taken(modules: Modules, victim: Victim) -> None:
    far = victim.destination
    port = modules.ok(far, "criu_page_server", images_dir=victim.images("a"), address=far.address)["port"]
    wish = {"images_dir": victim.images("b"), "address": far.address}
    taken = modules(far, "criu_page_server", **wish, port=port)
    assert taken["failed"] and "bind" in taken["log_tail"] and taken["measured"]["ports_tried"] == [port]
    other = modules.ok(far, "criu_page_server", **wish, port_range=[port, port + 1])
    assert other["port"] == port + 1
    for name in ("a", "b"):
        modules.ok(far, "criu_page_server", images_dir=victim.images(name), state="stopped", timeout=0.1)


def fill(modules: Modules, victim: Victim, node: Node, **more: object) -> None:
    """A lazy restore, to the last page."""
    lazy = {"images_dir": victim.images("i"), "work_dir": victim.images("w"), **more}
    assert modules.ok(node, "criu_lazy_pages", **lazy)["changed"]
    assert not modules.ok(node, "criu_lazy_pages", **lazy)["changed"]
    where = {"images_dir": victim.images("i"), "work_dir": victim.images("w")}
    assert modules.ok(node, "criu_restore", **where, lazy_pages=True)["changed"]
    victim.goes_on(node)
    filled = modules.ok(node, "criu_lazy_pages", **where, state="stopped")
    assert filled["rc"] == 0 and not filled["killed"]
    assert filled["pages"]["transferred"] == filled["pages"]["total"] > 4000
    assert not modules.ok(node, "criu_lazy_pages", **where, state="stopped")["changed"]
    victim.goes_on(node)


def test_lazy_restore_from_local_images(modules: Modules, victim: Victim) -> None:
    modules.ok(victim.source, "criu_dump", pid=victim.pid, images_dir=victim.images("i"), leave="killed")
    fill(modules, victim, victim.source)


def test_lazy_restore_from_a_dump_that_holds_the_memory(modules: Modules, victim: Victim) -> None:
    """What criu_lazy_pages does with a page server; the modules themselves make no such dump, see their docs."""
    keys, images, source = tls(victim), victim.images("i"), victim.source
    words = f"-D {images} -t {victim.pid} --lazy-pages --address {source.address} --port 27555 --tcp-established"
    words += f" --tls --tls-no-cn-verify --tls-cacert {keys['ca']} --tls-cert {keys['cert']} --tls-key {keys['key']}"
    lock = "--network-lock nftables --file-locks --ext-unix-sk -v4 -o log --status-fd 9"
    fifo = f"{victim.folder}/ready"
    start = (
        f"mkdir {images} && mkfifo {fifo} && (setsid criu dump {words} {lock} 9>{fifo} </dev/null >/dev/null 2>&1 &)"
    )
    modules.shell(source, f"{start}; head -c 1 {fifo} >/dev/null")
    victim.small_images_to("i", pages=True)
    pages = {"address": source.address, "port": 27555, "tls": keys}
    fill(modules, victim, victim.destination, page_server=pages)
    assert victim.process(source) is None


def test_a_failed_dump_shows_the_log_and_the_process_runs_on(modules: Modules, victim: Victim) -> None:
    node, locks = victim.source, nft_tables(victim.source)
    nobody = {"address": victim.destination.address, "port": 9}
    failed = modules(node, "criu_dump", pid=victim.pid, images_dir=victim.images("i"), page_server=nobody)
    assert failed["failed"] and failed["rc"] and failed["cmd"][1] == "dump"
    assert "Can't connect" in failed["log_tail"] and "Can't connect" in failed["msg"] and failed["error"]["remedy"]
    assert failed["measured"]["pids"] == [victim.pid] and failed["measured"]["seconds"] is not None
    victim.goes_on(node)
    assert nft_tables(node) == locks
    assert modules.ok(node, "criu_dump", pid=victim.pid, images_dir=victim.images("i"))["changed"], "may be tried again"


def test_a_failed_restore_shows_the_log(modules: Modules, victim: Victim) -> None:
    node, images = victim.source, victim.images("i")
    modules.ok(node, "criu_dump", pid=victim.pid, images_dir=images, leave="killed")
    lost = node.path(images) / "pages-1.img"
    lost.rename(lost.with_suffix(".away"))
    failed = modules(node, "criu_restore", images_dir=images)
    assert failed["failed"] and failed["rc"] and "Restoring FAILED" in failed["log_tail"] and "measured" in failed
    assert victim.process(node) is None
    lost.with_suffix(".away").rename(lost)
    assert modules.ok(node, "criu_restore", images_dir=images)["changed"]
    victim.goes_on(node)


def test_pre_dump_refuses_where_it_would_do_damage(modules: Modules, victim: Victim) -> None:
    node = victim.source
    features = modules.ok(node, "criu_check", features=["mem_dirty_track"], trial=False)["features"]
    if features["mem_dirty_track"]:
        pytest.skip("this kernel tracks changed pages")
    maps = node.run("cat", f"/proc/{victim.pid}/maps")
    for check in ([], ["--check"]):
        refused = modules(node, "criu_pre_dump", *check, pid=victim.pid, images_dir=victim.images("i"))
        assert refused["failed"] and "mem_dirty_track" in refused["msg"] and "CONFIG_MEM_SOFT_DIRTY" in refused["msg"]
    assert modules(node, "criu_dump", pid=victim.pid, images_dir=victim.images("i"), track_mem=True)["failed"]
    assert node.run("cat", f"/proc/{victim.pid}/maps") == maps and not node.path(victim.images("i")).exists()


def test_checkpoint_and_restore_on_the_other_node(modules: Modules, victim: Victim) -> None:
    where = f"images_dir={victim.images('i')}"
    planned = modules.playbook("checkpoint", "--check", "-e", f"pid={victim.pid}", "-e", where)
    assert planned.returncode == 0 and "Would dump" in planned.stdout, planned.stdout
    done = modules.playbook("checkpoint", "-e", f"pid={victim.pid}", "-e", where)
    assert done.returncode == 0, done.stdout
    victim.goes_on(victim.source)
    twice = modules.playbook("restore", "-e", where, "-e", "node=destination")
    assert twice.returncode != 0 and "two copies" in twice.stdout, twice.stdout
    victim.source.kill(victim.pid)
    for check in (["--check"], []):
        done = modules.playbook("restore", *check, "-e", where, "-e", "node=destination")
        assert done.returncode == 0, done.stdout
    victim.goes_on(victim.destination)
    assert stat.S_IMODE(victim.destination.path(victim.images("i")).stat().st_mode) == 0o700
    again = modules.playbook("restore", "-e", where, "-e", "node=destination")
    assert again.returncode == 0 and "changed=0" in again.stdout.rsplit("RECAP", 1)[1], again.stdout


@pytest.mark.parametrize(
    ("book", "words", "said"),
    [
        ("checkpoint", ["pid=x", "images_dir=/srv/e"], "pid=x"),
        ("checkpoint", ["pid=5"], "images_dir=nothing"),
        ("checkpoint", ["pid=5", "images_dir=/srv/e", "leave=dead"], "leave=dead"),
        ("restore", ["images_dir=relative"], "images_dir=relative"),
        ("restore", ["images_dir=/srv/e", "node=nowhere"], "node=nowhere"),
    ],
)
def test_wrong_input(modules: Modules, book: str, words: list[str], said: str) -> None:
    done = modules.playbook(book, *[part for word in words for part in ("-e", word)])
    assert done.returncode != 0 and said in done.stdout and "Wanted:" in done.stdout
