"""What the preflight sees of real processes, files and sockets of this machine."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate import (
    inspect_destination,
    inspect_files,
    inspect_node,
    inspect_source,
    proc,
)

Start = Callable[..., tuple[int, dict[str, Any]]]
PROGRAM = """
import os, socket, sys, time
base = sys.argv[1]
{body}
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Return a function that starts a Python program in a session of its own and looks at it."""
    children: list[subprocess.Popen[bytes]] = []

    def run(body: str, roots: list[str] | None = None) -> tuple[int, dict[str, Any]]:
        words = [sys.executable, "-c", PROGRAM.format(body=body), str(tmp_path)]
        child = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True, cwd="/")
        children.append(child)
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        return child.pid, inspect_source.look(child.pid, roots or [])

    yield run
    for child in children:
        child.kill()
        child.communicate()


def entry(tree: dict[str, Any], path: Path) -> dict[str, Any]:
    (found,) = [item for item in tree["files"] if item["path"] == str(path)]
    return dict(found)


def test_a_tree_with_files(start: Start, tmp_path: Path) -> None:
    body = """
import fcntl
here = open(base + "/here", "w"); here.write("12345"); here.flush(); fcntl.lockf(here, fcntl.LOCK_EX)
gone = open(base + "/gone", "w"); gone.write("123"); gone.flush(); os.unlink(base + "/gone")
moved = open(base + "/old", "w"); os.link(base + "/old", base + "/new"); os.unlink(base + "/old")
"""
    pid, tree = start(body, roots=[str(tmp_path)])
    assert tree["found"]
    assert tree["tasks"][0]["tids"] == [pid]
    assert tree["outside_session"] == {}
    assert tree["memory"]["pages"] > 0
    here = entry(tree, tmp_path / "here")
    assert (here["size"], here["locked"], here["travels"], here["deleted"]) == (5, True, True, False)
    assert here["fragile"] and not here["mapped"]
    gone = entry(tree, tmp_path / "gone")
    assert (gone["deleted"], gone["links"], gone["size"]) == (True, 0, 3)
    moved = entry(tree, tmp_path / "old")
    assert (moved["deleted"], moved["links"]) == (True, 1)
    assert {item["fd"] for item in tree["pipes_outside"]} >= {0, 1}


def test_sockets_of_every_kind(start: Start, tmp_path: Path) -> None:
    body = """
listener = socket.create_server(("127.0.0.1", 0))
client = socket.create_connection(listener.getsockname()); server = listener.accept()[0]
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); udp.bind(("127.0.0.1", 0))
named = socket.socket(socket.AF_UNIX); named.bind(base + "/sock"); named.listen()
pair = socket.socketpair()
open(base + "/ports", "w").write(f"{listener.getsockname()[1]} {udp.getsockname()[1]}")
"""
    _pid, tree = start(body)
    tcp, udp = map(int, (tmp_path / "ports").read_text().split())
    found = tree["sockets"]
    assert [item["local"] for item in found["tcp_listening"]] == [["127.0.0.1", tcp]]
    assert len(found["tcp_connected"]) == 2
    assert [item["local"] for item in found["udp"]] == [["127.0.0.1", udp]]
    assert [item["path"] for item in found["unix"] if item["path"]] == [str(tmp_path / "sock")]
    assert [item["outside"] for item in found["unix"]] == ["", "", ""]
    assert found["unsupported"] == []


def test_the_other_end_of_a_unix_connection(start: Start, tmp_path: Path) -> None:
    path = str(tmp_path / "outside")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        pid, _tree = start(f"c = socket.socket(socket.AF_UNIX); c.connect({path!r})")
        with listener.accept()[0]:
            (connection,) = inspect_source.look(pid, [])["sockets"]["unix"]
        assert connection["outside"] == path
        assert connection["type"] == 1


def test_terminals_and_devices(start: Start) -> None:
    _pid, tree = start("ends = os.openpty(); random = open('/dev/urandom'); poll = __import__('select').epoll()")
    assert any(item["what"].startswith("/dev/pts/") for item in tree["terminals"])
    assert tree["unsupported"] == []


def test_a_socket_that_criu_cannot_dump(start: Start) -> None:
    try:
        socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262).close()  # IPPROTO_MPTCP, linux/in.h
    except OSError:
        pytest.skip("this kernel has no MPTCP")
    _pid, tree = start("held = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262)")
    assert [item["what"] for item in tree["sockets"]["unsupported"]] == ["MPTCP"]


def test_a_process_that_is_not_there() -> None:
    child = subprocess.Popen(["true"])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert inspect_source.look(child.pid, [])["why"] == "it is a zombie"
    child.wait()
    assert inspect_source.look(child.pid, [])["found"] is False


def test_a_session_that_stays_behind() -> None:
    child = subprocess.Popen(["sleep", "60"])
    try:
        tree = inspect_source.look(child.pid, [])
        assert tree["outside_session"]["sid"] == os.getsid(0)
    finally:
        child.kill()
        child.wait()


def test_a_tracer_is_seen(start: Start) -> None:
    pid, _tree = start("")
    seize = f"assert ctypes.CDLL(None).ptrace(0x4206, {pid}, 0, 0) == 0"
    code = f"import ctypes, sys\n{seize}\nprint(flush=True)\nsys.stdin.read()"
    tracer = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert tracer.stdout is not None
        if tracer.stdout.readline() != b"\n":
            pytest.skip("ptrace is not allowed here")
        assert [item["pid"] for item in inspect_source.tracers(pid, proc.threads(pid))] == [tracer.pid]
    finally:
        tracer.kill()
        tracer.communicate()


def test_files_held_against_this_node(tmp_path: Path) -> None:
    (tmp_path / "same").write_text("123")
    (tmp_path / "other").write_text("1234")
    (tmp_path / "mode").write_text("123")
    (tmp_path / "mode").chmod(0o600)
    (tmp_path / "folder").mkdir()
    there = {"kind": "file", "size": 3, "mode": 0o644, "mapped": False, "build_id": "", "fstype": ""}
    (tmp_path / "same").chmod(0o644)
    (tmp_path / "other").chmod(0o644)
    names = ("same", "other", "mode", "folder", "nowhere")
    found = inspect_files.differences({**there, "path": str(tmp_path / name)} for name in names)
    seen = {os.path.basename(item["path"]): item["problem"] for item in found}
    assert seen == {"other": "size", "mode": "mode", "folder": "kind", "nowhere": "missing"}


def test_another_build_of_a_library() -> None:
    path = os.path.realpath(sys.executable)
    mine = inspect_files.build_id(path)
    assert all(letter in "0123456789abcdef" for letter in mine)
    size, mode = os.stat(path).st_size, os.stat(path).st_mode & 0o7777
    there = {"path": path, "kind": "file", "size": size, "mode": mode, "mapped": True, "fstype": ""}
    assert inspect_files.differences([{**there, "build_id": mine}]) == []
    if mine:
        assert inspect_files.differences([{**there, "build_id": "00"}])[0]["problem"] == "build_id"
    assert inspect_files.build_id(__file__) == ""


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        (("0.0.0.0", 80), ("10.0.0.1", 80), True),  # noqa: S104
        (("10.0.0.2", 80), ("10.0.0.1", 80), False),
        (("10.0.0.1", 80), ("10.0.0.1", 80), True),
        (("::", 80), ("10.0.0.1", 80), True),
        (("0.0.0.0", 80), ("0.0.0.0", 81), False),  # noqa: S104
        (("0.0.0.0", 0), ("0.0.0.0", 0), False),  # noqa: S104
    ],
)
def test_addresses_that_cannot_be_bound_at_once(one: tuple[str, int], other: tuple[str, int], expected: bool) -> None:
    assert inspect_destination.clash(one, other) is expected


def test_a_port_that_is_taken_and_who_has_it() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        wanted = {"tcp_listening": [{"local": ["0.0.0.0", port]}], "udp": []}  # noqa: S104
        (taken,) = inspect_destination.ports_taken(wanted)
        assert (taken["port"], taken["pid"]) == (port, os.getpid())
        assert inspect_destination.free_port(port, port) == 0
    assert inspect_destination.free_port(port, port) == port


def test_pids_that_are_taken() -> None:
    # The kernel sets the name after it has closed what Popen waits for: the line says that the program runs.
    words = ["sh", "-c", "echo; read -r line"]
    child = subprocess.Popen(words, start_new_session=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.readline()
    try:
        tree = {"tasks": [{"pid": child.pid, "tids": [child.pid]}]}
        assert inspect_destination.pids_taken(tree) == [{"pid": child.pid, "name": "sh"}]
    finally:
        child.kill()
        child.communicate()
    assert inspect_destination.pids_taken(tree) == []


def test_a_group_without_its_leader_takes_the_pid_too() -> None:
    code = "import os, time\nif os.fork(): os._exit(0)\nprint(os.getpid(), flush=True)\ntime.sleep(60)"
    leader = subprocess.Popen([sys.executable, "-c", code], start_new_session=True, stdout=subprocess.PIPE)
    assert leader.stdout is not None
    member = int(leader.stdout.readline())
    leader.wait()
    try:
        (taken,) = inspect_destination.pids_taken({"tasks": [{"pid": leader.pid, "tids": [leader.pid]}]})
        assert taken["pid"] == leader.pid
    finally:
        os.kill(member, 9)
        leader.stdout.close()


def test_space_of_a_directory_that_is_not_there_yet(tmp_path: Path) -> None:
    found = inspect_node.space(str(tmp_path / "a" / "b"))
    assert found["parent"] == str(tmp_path)
    assert found["free"] > 0
    assert found["problem"] == ""
    (tmp_path / "file").write_text("")
    assert "not a directory" in inspect_node.space(str(tmp_path / "file" / "x"))["problem"]


def test_flags_are_those_that_every_cpu_has(tmp_path: Path) -> None:
    path = tmp_path / "cpuinfo"
    path.write_text("processor: 0\nflags\t\t: sse2 avx\n\nprocessor: 1\nflags\t\t: sse2\n")
    assert inspect_node.cpu_flags(str(path)) == ["sse2"]
    path.write_text("Features\t: fp asimd\n")
    assert inspect_node.cpu_flags(str(path)) == ["asimd", "fp"]
