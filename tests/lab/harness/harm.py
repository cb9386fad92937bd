"""What tests do to nodes: programs that take a PID, a port or a process's tracer seat, and small file systems."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from tests.lab.harness.nodes import Node, wait_for

TRACER = """
import ctypes, sys, time
libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.argtypes = [ctypes.c_long] * 4
PTRACE_SEIZE = 0x4206
if libc.ptrace(PTRACE_SEIZE, int(sys.argv[1]), 0, 0):
    sys.exit(f"seize: errno {ctypes.get_errno()}")
print("seized")
time.sleep(600)
"""
LISTENER = """
import socket, sys, time
server = socket.create_server(("0.0.0.0", int(sys.argv[1])))
print("listening")
time.sleep(600)
"""
# The next fork of a PID namespace takes ns_last_pid + 1; another process may be quicker, so it is tried again.
PID_TAKER = """
import os, sys, time
wanted = int(sys.argv[1])
for _ in range(200):
    with open("/proc/sys/kernel/ns_last_pid", "w") as last:
        last.write(str(wanted - 1))
    child = os.fork()
    if child == 0:
        os.setsid()
        time.sleep(600)
        os._exit(0)
    if child == wanted:
        print("taken")
        time.sleep(600)
    os.kill(child, 9)
    os.waitpid(child, 0)
sys.exit("not taken")
"""


@contextlib.contextmanager
def running(node: Node, program: str, *words: str) -> Iterator[None]:
    """A program in the node, from when it says that it is ready to the end of the block."""
    child, pid = node.start(program, *words)
    try:
        yield
    finally:
        node.run("kill", "-9", str(pid), check=False)
        child.wait(10)


@contextlib.contextmanager
def small_tmpfs(node: Node, path: str, megabytes: int) -> Iterator[None]:
    """A tmpfs of its own for images."""
    node.run("mkdir", "-p", path)
    node.run("mount", "-t", "tmpfs", "-o", f"size={megabytes}m,mode=700", "tmpfs", path)
    try:
        yield
    finally:
        node.run("umount", path)
        node.run("rmdir", path)


def fill(node: Node, path: str, leave: int) -> None:
    """Leave only `leave` bytes on the file system of `path`."""
    free = int(node.run("stat", "-f", "-c", "%a", path)) * int(node.run("stat", "-f", "-c", "%S", path))
    node.run("fallocate", "-l", str(free - leave), f"{path}/fill")


@contextlib.contextmanager
def cut(node: Node) -> Iterator[None]:
    """The node's cable is out for the block."""
    node.link("down")
    try:
        yield
    finally:
        node.link("up")


def await_gone(node: Node, pid: int) -> None:
    wait_for(f"the end of {pid}", lambda: not node.path(f"/proc/{pid}").exists() or None, 20)
