"""The stack pointer that makes CRIU take every page for one of a stack."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate import proc

# Waits in pause(2) with a stack pointer of its own choice; x86_64 machine code: mov rsp, rdi; mov eax, 34; syscall.
CODE = """
import ctypes, mmap, sys
stack = mmap.mmap(-1, 1 << 16)
base = ctypes.addressof(ctypes.c_char.from_buffer(stack))
code = mmap.mmap(-1, 4096, prot=7)
code.write(bytes.fromhex("4889fcb8220000000f05"))
print("ready", flush=True)
wait = ctypes.CFUNCTYPE(None, ctypes.c_size_t)(ctypes.addressof(ctypes.c_char.from_buffer(code)))
wait(base + 32768 + int(sys.argv[1]))
"""


@pytest.fixture(params=[0, 64])
def offset(request: pytest.FixtureRequest) -> Iterator[tuple[int, proc.Proc]]:
    child = subprocess.Popen([sys.executable, "-c", CODE, str(request.param)], stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.readline()
    found = proc.stat(child.pid)
    assert found is not None
    yield request.param, proc.Proc(child.pid, found[2])
    child.send_signal(signal.SIGKILL)
    child.wait()


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="machine code of x86_64")
def test_a_stack_pointer_on_the_border_of_a_page_is_seen(offset: tuple[int, proc.Proc]) -> None:
    where, item = offset
    path = Path(f"/proc/{item.pid}/syscall")
    while not path.read_text(encoding="ascii").startswith("34 "):
        os.sched_yield()
    item.kill(signal.SIGSTOP)
    while not proc.fully_stopped(item.pid):
        os.sched_yield()
    assert proc.stack_ends_on_page([item]) is (where == 0)
