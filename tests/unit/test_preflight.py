"""The preflight's verdict: each problem by itself, several at once, and where images lie."""

# ruff: noqa: E501, S104  (tables read better with a row a line; addresses are compared with, not bound to)

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate import preflight, preflight_images
from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate.inspect_node import IMAGES_DISK, IMAGES_TMPFS
from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate.preflight import Case, Finding

GIB = 1 << 30
NAMES = {"source": "node-1", "destination": "node-2"}
Change = Callable[[dict[str, Any]], object]


def node(name: str, address: str) -> dict[str, Any]:
    place = {"parent": "/", "mount": "/", "problem": ""}
    return {
        "hostname": name,
        "identity": {"boot_id": name, "pid": "pid:[1]", "net": "net:[1]"},
        "kernel": "6.12.1",
        "arch": "x86_64",
        "python": "3.13.5",
        "criu": {
            "installed": True, "ok": True, "reason": "", "version": "4.2.1", "git_id": "", "path": "/usr/sbin/criu",
            "features": {"network_lock_nftables": True},
        },
        "cpu": {"flags": ["avx", "avx2", "pti", "sse2"], "image": ""},
        "clock": {"now": 1.8e9, "ahead": 0.5},
        "capabilities": dict.fromkeys(("CAP_NET_ADMIN", "CAP_SYS_ADMIN", "CAP_SYS_PTRACE", "CAP_SYS_RESOURCE"), True),
        "missing_commands": [],
        "memory": {"total": 8 * GIB, "available": 6 * GIB},
        "space": {
            IMAGES_TMPFS: {**place, "fstype": "tmpfs", "free": 4 * GIB},
            IMAGES_DISK: {**place, "fstype": "ext4", "free": 50 * GIB},
        },
        "addresses": [
            {"interface": "lo", "address": "127.0.0.1", "prefix": 8, "up": True},
            {"interface": "eth0", "address": address, "prefix": 24, "up": True},
        ],
        "pid_max": 4194304,
    }  # fmt: skip


def good() -> dict[str, Any]:
    """The arguments of a Case in which nothing is wrong: a redis-server with a client in its tree."""
    task = {
        "pid": 4242, "ppid": 1, "pgid": 4242, "sid": 4242, "tids": [4242, 4243], "state": "S", "name": "redis-server",
        "uid": 1000, "kernel_thread": False, "tracers": [], "limits_readable": True, "namespaces": [], "cwd": "/srv/w",
        "root": "/", "ipc": "ipc:[1]",
    }  # fmt: skip
    tree = {
        "pid": 4242, "found": True, "start": 77, "procs": [{"pid": 4242, "start": 77, "stopped_before": False}],
        "tasks": [task], "memory": {"rss": GIB, "pss": GIB, "swap": 0, "pages": GIB}, "command": "redis-server",
        "contains_us": False, "outside_session": {}, "files": [], "roots_bytes": 1000, "unsupported": [],
        "terminals": [], "pipes_outside": [], "sysv": [],
        "sockets": {"tcp_listening": [tcp("0.0.0.0:6379", "0.0.0.0:0")], "tcp_connected": [], "udp": [], "unix": [],
                    "unsupported": []},
    }  # fmt: skip
    there = {
        "cpu_complaint": "", "free_port": 27000, "service": {}, "pids_taken": [], "files": [], "ports_taken": [],
        "unix_missing": [], "working_dir": {"parent": "/srv", "mount": "/", "free": GIB, "problem": ""},
    }  # fmt: skip
    params = {
        "workload": {"name": "redis"}, "tcp_established": True, "tcp_close": False, "file_locks": True,
        "ext_unix_sk": True, "link_remap": True, "shell_job": False, "ghost_limit": 1 << 20, "sync_paths": [],
        "working_dir": "/srv/w", "guard_port_range": "27000-27999", "transfer": "page_server", "image_storage": "auto",
        "image_dir": None, "service_address": None, "workload_user": None,
    }  # fmt: skip
    return {
        "source": node("a", "10.0.0.1"), "destination": node("b", "10.0.0.2"), "tree": tree, "there": there,
        "params": params, "names": dict(NAMES), "reached_by": ("10.0.0.1", "10.0.0.2"), "prepared": True,
    }  # fmt: skip


def tcp(local: str, peer: str) -> dict[str, Any]:
    ends = {
        name: [text.rpartition(":")[0], int(text.rpartition(":")[2])]
        for name, text in (("local", local), ("peer", peer))
    }
    return {"family": "tcp", "state": "01", "pid": 4242, "fd": 9, **ends}


def file(path: str, **more: Any) -> dict[str, Any]:
    return {"path": path, "kind": "file", "mode": 0o644, "size": 10, "pid": 4242, "mapped": False, "build_id": "",
            "deleted": False, "links": 1, "locked": False, "fragile": False, "travels": False, "fstype": "ext4", **more}  # fmt: skip


def differs(path: str, problem: str = "missing", **more: Any) -> dict[str, Any]:
    return {"path": path, "problem": problem, "mapped": False, "fstype": "ext4", **more}


def judged(*changes: Change) -> list[Finding]:
    facts = good()
    for change in changes:
        change(facts)
    return preflight.judge(Case(**facts))


def put(path: str, value: Any) -> Change:
    """Return a change that sets one value; path as source.criu.ok."""

    def change(facts: dict[str, Any]) -> None:
        *folders, last = path.split(".")
        for name in folders:
            facts = facts[int(name)] if isinstance(facts, list) else facts[name]
        facts[last] = copy.deepcopy(value)

    return change


def other_task(**facts: Any) -> Change:
    """A second process of the tree."""

    def change(case: dict[str, Any]) -> None:
        tasks = case["tree"]["tasks"]
        tasks.append({**copy.deepcopy(tasks[0]), "pid": 4250, "tids": [4250], "namespaces": [], **facts})

    return change


def connect(*pairs: tuple[str, str]) -> Change:
    return put("tree.sockets.tcp_connected", [tcp(*pair) for pair in pairs])


INSIDE = (("127.0.0.1:6379", "127.0.0.1:5000"), ("127.0.0.1:5000", "127.0.0.1:6379"))
SERVICE = (
    put("params.service_address", "10.0.0.50/24"),
    put("there.service", {"present": None, "interface": "eth0", "problem": ""}),
    lambda facts: facts["source"]["addresses"].append(
        {"interface": "eth0", "address": "10.0.0.50", "prefix": 24, "up": True}
    ),
)

# changes, check, node, words of the problem, words of the remedy
PROBLEMS: list[tuple[list[Change], str, str, str, str]] = [
    ([put("destination.identity", node("a", "")["identity"])], "same_node", "node-2", "is the source", "two machines"),
    ([put("source.python", "3.8.10")], "python", "node-1", "3.8.10", "3.9"),
    ([put("destination.criu.installed", False)], "criu", "node-2", "not installed", "migrate.yml"),
    ([put("source.criu.ok", False), put("source.criu.reason", "vdso: Unexpected")], "criu", "node-1", "vdso", "migrate.yml"),
    ([put("destination.criu.version", "4.1.1")], "criu_version", "node-2", "4.2.1 on the source, 4.1.1", "same version"),
    ([put("destination.criu.git_id", "v4.2-7")], "criu_version", "node-2", "v4.2-7", "same version"),
    ([put("source.criu.features", {"network_lock_nftables": False})], "features", "node-1", "nftables", "nf_tables"),
    ([put("destination.arch", "aarch64")], "arch", "node-2", "source is x86_64", "same architecture"),
    ([put("destination.cpu.flags", ["sse2"])], "cpu", "node-2", "avx, avx2.", "newer CPU"),
    ([put("there.cpu_complaint", "xsave size")], "cpu", "node-2", "xsave size", "newer CPU"),
    ([put("source.capabilities.CAP_SYS_ADMIN", False)], "capabilities", "node-1", "CAP_SYS_ADMIN", "capabilities"),
    ([put("source.missing_commands", ["nft"])], "commands", "node-1", "nft", "migrate.yml"),
    ([put("destination.missing_commands", ["rsync"]), put("params.transfer", "rsync")], "commands", "node-2", "rsync", "pack"),
    ([put("there.free_port", 0)], "guard_port", "node-2", "27000-27999", "guard_port_range="),
    ([put("there.working_dir.problem", "/srv is mounted read-only")], "working_dir", "node-2", "read-only", "working_dir"),
    ([put("tree.roots_bytes", 2 * GIB)], "working_dir", "node-2", "2.0 GiB", "Free space"),
    ([*SERVICE, put("there.service.present", {"interface": "eth0", "prefix": 24})], "service_address", "node-2",
     "here already", "ip addr del 10.0.0.50/24 dev eth0"),
    ([*SERVICE, put("there.service.problem", "No interface")], "service_address", "node-2", "No interface", "service_inter"),
    ([*SERVICE, put("destination.addresses.1.up", False)], "service_address", "node-2", "eth0", "ip link set eth0 up"),
    ([*SERVICE, lambda f: f["source"]["addresses"].pop()], "service_address", "node-1", "not here", "Add it"),
    ([put("params.service_address", "10.0.0.1")], "service_address", "node-1", "node's own", "service_address="),
    ([put("tree", {"pid": 9, "found": False, "why": "there is none with that PID"})], "process", "node-1", "none", "ps -ef"),
    ([put("tree.tasks.0.kernel_thread", True)], "process", "node-1", "belongs to the system", "ordinary"),
    ([put("tree.contains_us", True)], "process", "node-1", "Ansible", "setsid"),
    ([put("tree.tasks.0.tracers", [{"pid": 9, "name": "strace"}])], "tracer", "node-1", "9 (strace)", "kill 9"),
    ([put("tree.tasks.0.limits_readable", False)], "user", "node-1", "uid 1000", "workload_user=root"),
    ([put("source.capabilities.CAP_SYS_RESOURCE", False), put("tree", {}), put("params.workload_user", "ubuntu")], "user", "node-1", "ubuntu", "workload_user=root"),
    ([put("tree.tasks.0.namespaces", ["mnt", "pid"])], "namespaces", "node-1", "mnt, pid", "engine"),
    ([put("tree.terminals", [{"pid": 4242, "fd": 0, "what": "/dev/pts/3"}])], "terminal", "node-1", "/dev/pts/3", "setsid"),
    ([put("tree.outside_session", {"sid": 7})], "session", "node-1", "sid 7", "shell_job=true"),
    ([put("tree.unsupported", [{"pid": 4242, "fd": 5, "what": "io_uring"}])], "unsupported", "node-1", "io_uring", "io_uring_"),
    ([put("tree.unsupported", [{"pid": 4242, "fd": fd, "what": "io_uring"} for fd in (5, 7)])], "unsupported", "node-1",
     "(descriptor 5, 7)", "SystemCallFilter="),
    ([put("tree.unsupported", [{"pid": 4242, "fd": 5, "what": "the device /dev/kvm"}])], "unsupported", "node-1", "/dev/kvm", ""),
    ([put("tree.sysv", [4242])], "unsupported", "node-1", "System V", "unshare --ipc"),
    ([put("tree.tasks.0.namespaces", ["ipc", "net"])], "namespaces", "node-1", "(net)", "engine"),
    ([put("tree.tasks.0.namespaces", ["ipc"]), other_task(ipc="ipc:[2]")], "namespaces", "node-1", "(ipc)", "engine"),
    ([put("there.pids_taken", [{"pid": 4242, "name": "nginx"}])], "pids", "node-2", "4242 (nginx)", "End"),
    ([put("destination.pid_max", 4000)], "pids", "node-2", "4243", "sysctl kernel.pid_max="),
    ([put("there.files", [differs("/opt/a")])], "files", "node-2", "/opt/a", "sync_paths=/opt/a."),
    ([put("there.files", [differs("/opt/a")]), put("params.sync_paths", ["/x"])], "files", "node-2", "/opt/a", "=/x,/opt/a."),
    ([put("there.files", [differs(f"/opt/{n}") for n in range(9)])], "files", "node-2", "and 4 more", "sync_paths=/opt."),
    ([put("there.files", [differs("/lib/x.so", mapped=True)])], "files", "node-2", "/lib/x.so", "Install"),
    ([put("there.files", [differs("/nfs/x", fstype="nfs4")])], "files", "node-2", "/nfs/x", "Mount"),
    ([put("there.files", [differs("/opt/a", "size", here=1, there=2)])], "files", "node-2", "1 bytes here, 2 on", "sync_paths="),
    ([put("there.files", [differs("/lib/x.so", "build_id", mapped=True)])], "files", "node-2", "another build", "same version"),
    ([put("tree.files", [file("/opt/a", deleted=True, links=0, size=3 << 20)])], "deleted", "node-1", "3.0 MiB", "ghost_limit=3M"),
    ([put("tree.files", [file("/opt/a", deleted=True)])], "deleted", "node-1", "/opt/a", "sync_paths=/opt"),
    ([put("tree.files", [file("/opt/a", deleted=True)]), put("params.link_remap", False)], "deleted", "node-1", "/opt/a", "link_remap"),
    ([put("tree.files", [file("/opt/a", locked=True)]), put("params.file_locks", False)], "locks", "node-1", "/opt/a", "file_locks"),
    ([put("tree.files", [file("/opt/a-shm", locked=True, fragile=True, mapped=True)])], "locks", "node-1", "/opt/a-shm", "SQLite"),
    ([put("tree.files", [file("/opt/a.db", sqlite=True)])], "sqlite", "node-1", "/opt/a.db", "close them before"),
    ([connect(("10.0.0.1:6379", "10.0.0.9:5000"))], "connections", "node-1", "10.0.0.9:5000", "service_address=ADDRESS"),
    ([connect(("127.0.0.1:6379", "127.0.0.1:5000"))], "connections", "node-1", "127.0.0.1:5000", "tcp_close=true"),
    ([connect(*INSIDE), put("params.tcp_established", False)], "connections", "node-1", "=false", "tcp_established=true"),
    ([connect(("10.0.0.50:1", "10.0.0.50:2")), *SERVICE], "connections", "node-1", "10.0.0.50:2", "tcp_close"),
    ([connect(("10.0.0.1:1", "10.0.0.1:2"), ("10.0.0.1:2", "10.0.0.1:1"))], "connections", "node-1", "10.0.0.1:2", "tcp_close"),
    ([put("tree.sockets.tcp_listening", [tcp("10.0.0.1:80", "0.0.0.0:0")])], "addresses", "node-2", "10.0.0.1:80", "0.0.0.0"),
    ([put("tree.sockets.udp", [tcp("10.0.0.1:53", "0.0.0.0:0")])], "addresses", "node-2", "10.0.0.1:53", "0.0.0.0"),
    ([put("there.ports_taken", [{"kind": "tcp", "address": "0.0.0.0", "port": 80, "pid": 9, "name": "nginx"}])], "ports",
     "node-2", "0.0.0.0:80 is taken here by 9 (nginx)", "kill 9"),
    ([put("tree.sockets.unsupported", [{"pid": 4242, "fd": 5, "what": "MPTCP"}])], "sockets", "node-1", "MPTCP", "GODEBUG"),
    ([put("tree.sockets.unix", [{"pid": 1, "fd": 5, "type": 1, "path": "", "outside": "/run/x"}])], "unix", "node-1", "/run/x",
     "StandardOutput"),
    ([put("tree.sockets.unix", [{"pid": 1, "fd": 5, "type": 2, "path": "", "outside": "/dev/log"}]),
      put("params.ext_unix_sk", False)], "unix", "node-1", "/dev/log", "ext_unix_sk=true"),
    ([put("there.unix_missing", ["/run/app"])], "unix", "node-2", "/run/app", "mkdir -p /run/app"),
    ([put("params.image_storage", "tmpfs"), put("tree.memory.pages", 5 * GIB)], "images", "node-2", "4.0 GiB free", "disk"),
    ([put("params.image_dir", "/mnt/i"), put("source.space", {"/mnt/i": {"problem": "/mnt is mounted read-only"}}),
      put("destination.space", {"/mnt/i": {"problem": "", "fstype": "ext4", "free": 9 * GIB}})], "images", "node-1",
     "read-only", "image_dir"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "check", "where", "problem", "remedy"),
    PROBLEMS,
    ids=[f"{n}-{row[1]}" for n, row in enumerate(PROBLEMS)],
)
def test_each_problem_by_itself(changes: list[Change], check: str, where: str, problem: str, remedy: str) -> None:
    (found,) = judged(*changes)
    assert (found.check, found.node, found.warning) == (check, where, False)
    assert problem in found.problem
    assert remedy in found.remedy


# What looks like a problem and is none
FINE: list[list[Change]] = [
    [],
    [put("tree", {})],
    [put("destination.criu.features", {"network_lock_nftables": True, "mem_dirty_track": False})],
    [put("destination.cpu.flags", ["avx", "avx2", "sse2"])],  # pti is the kernel's own
    [put("destination.missing_commands", ["rsync"])],
    [connect(*INSIDE)],
    [connect(("10.0.0.50:6379", "10.0.0.9:5000")), *SERVICE],
    [put("tree.sockets.tcp_listening", [tcp("10.0.0.50:80", "0.0.0.0:0")]), *SERVICE],
    [put("tree.outside_session", {"sid": 7}), put("params.shell_job", True)],
    [put("tree.tasks.0.state", "T")],
    [put("tree.tasks.0.namespaces", ["cgroup"])],
    [put("tree.tasks.0.namespaces", ["ipc"]), put("tree.sysv", [4242])],
    [put("tree.files", [file("/opt/a", deleted=True, links=0, size=1000)])],
    [put("tree.files", [file("/srv/w/a", deleted=True, travels=True)])],
    [put("tree.files", [file("/opt/a", locked=True, fragile=True), file("/opt/b", locked=True, mapped=True)])],
    [put("tree.sockets.unix", [{"pid": 1, "fd": 5, "type": 2, "path": "", "outside": "/dev/log"}])],
    [put("source.capabilities.CAP_SYS_RESOURCE", False)],  # the limits of this very process could be read
    [put("source.capabilities.CAP_SYS_RESOURCE", False), put("tree", {})],  # it would be started as root
]


@pytest.mark.parametrize("changes", FINE)
def test_nothing_is_found_where_nothing_is_wrong(changes: list[Change]) -> None:
    assert judged(*changes) == []


WARNINGS: list[tuple[list[Change], str, str]] = [
    ([put("destination.clock.ahead", 61.0)], "clock", "60 s ahead"),
    ([put("prepared", False), put("destination.criu.installed", False)], "criu", "migrate.yml installs it"),
    ([put("prepared", False), put("destination.criu.ok", False)], "criu", "does not work"),
    ([put("prepared", False), put("destination.criu.version", "3.17.1")], "criu_version", "3.17.1"),
    ([put("prepared", False), put("source.missing_commands", ["nft"])], "commands", "nft"),
    ([connect(("10.0.0.1:80", "10.0.0.9:5")), put("params.tcp_close", True)], "connections", "will be closed: 10.0.0.1:80"),
    ([put("tree.pipes_outside", [{"pid": 4242, "fd": 1, "other": 9, "name": "cat"}])], "pipe", "9 (cat)"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "check", "problem"), WARNINGS)
def test_what_is_only_told(changes: list[Change], check: str, problem: str) -> None:
    (found,) = judged(*changes)
    assert (found.check, found.warning) == (check, True)
    assert problem in found.problem


def test_every_problem_is_listed_at_once_with_its_remedy() -> None:
    found = judged(
        put("there.free_port", 0),
        put("there.pids_taken", [{"pid": 4242, "name": "nginx"}]),
        put("destination.clock.ahead", 61.0),
        connect(("10.0.0.1:80", "10.0.0.9:5")),
    )
    text = preflight.message(found)
    assert text.startswith("3 problems found, nothing was touched:\n  - [node-2] ")
    assert [finding.check for finding in found] == ["guard_port", "pids", "connections", "clock"]
    assert len(text.splitlines()) == 4
    assert all("Remedy: " in line for line in text.splitlines()[1:])


def test_a_process_that_cannot_be_meant_hides_what_follows_from_it() -> None:
    found = judged(
        put("tree.contains_us", True), put("there.pids_taken", [{"pid": 1, "name": "sshd"}]), put("there.free_port", 0)
    )
    assert [finding.check for finding in found] == ["process", "guard_port"]


# tmpfs free, memory, transfer, storage -> directories on the source and on the destination, for 1 GiB of pages
CHOICES = [
    (4.0, 6.0, "page_server", "auto", (IMAGES_TMPFS, IMAGES_TMPFS)),
    (1.0, 6.0, "page_server", "auto", (IMAGES_TMPFS, IMAGES_DISK)),  # only the destination gets pages
    (4.0, 2.0, "page_server", "auto", (IMAGES_TMPFS, IMAGES_DISK)),  # images and process do not both fit in memory
    (1.0, 6.0, "rsync", "auto", (IMAGES_DISK, IMAGES_DISK)),
    (4.0, 6.0, "rsync", "auto", (IMAGES_TMPFS, IMAGES_TMPFS)),
    (4.0, 6.0, "page_server", "disk", (IMAGES_DISK, IMAGES_DISK)),
]


@pytest.mark.parametrize(("tmpfs", "memory", "transfer", "storage", "wanted"), CHOICES)
def test_images_lie_where_they_fit(
    tmpfs: float, memory: float, transfer: str, storage: str, wanted: tuple[str, str]
) -> None:
    facts = good()
    for role in NAMES:
        facts[role]["space"][IMAGES_TMPFS]["free"] = tmpfs * GIB
        facts[role]["memory"]["available"] = memory * GIB
    facts["params"].update(transfer=transfer, image_storage=storage)
    chosen = preflight_images.choose(Case(**facts))
    assert (chosen.images["source"], chosen.images["destination"]) == wanted
    assert chosen.findings == []


def test_images_that_fit_nowhere_are_refused_with_both_reasons() -> None:
    facts = good()
    facts["destination"]["memory"]["available"] = GIB // 2
    (found,) = preflight.judge(Case(**facts))
    assert found.check == "images"
    assert IMAGES_TMPFS in found.problem
    assert IMAGES_DISK in found.problem


def test_the_result_is_what_a_migration_needs() -> None:
    facts = good()
    before = copy.deepcopy(facts)
    case = Case(**facts)
    result = preflight.result(case, preflight.judge(case))
    assert result["images"] == {"source": IMAGES_TMPFS, "destination": IMAGES_TMPFS}
    assert result["process"]["pid"] == 4242
    assert result["process"]["start"] == 77
    assert result["source"]["name"] == "node-1"
    assert result["destination"]["criu"] == "4.2.1"
    assert result["warnings"] == []
    assert facts == before
