"""A process whose number is taken by what is left of it."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
from pathlib import Path

import pytest

from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate import proc
from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate.job import Job


def test_a_dead_leader_of_a_session_that_lives_is_gone() -> None:
    """On this machine's kernel, whatever it says of one."""
    words = ["sh", "-c", "exec 3<&0; cat <&3 & echo $!"]
    leader = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
    assert leader.stdin is not None and leader.stdout is not None
    child = int(leader.stdout.readline())
    gone = proc.Proc(leader.pid, (proc.stat(leader.pid) or ("", 0, 0))[2])
    leader.wait()
    try:
        assert os.getpgid(child) == leader.pid
        assert proc.pidfd(leader.pid) is None
        gone.kill(signal.SIGKILL)
        assert proc.wait_gone([gone], 1.0) == []
        assert proc.stat(child) is not None
    finally:
        leader.stdin.close()  # which is the end of the child
        leader.stdout.close()


@pytest.mark.parametrize("number", [errno.ESRCH, errno.EINVAL])
def test_as_kernels_before_6_16_say_it(number: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def pidfd_open(_pid: int) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "pidfd_open", pidfd_open)
    monkeypatch.setattr(signal, "pidfd_send_signal", lambda *_all: pytest.fail("somebody else was hit"))
    gone = proc.Proc(2**22, 1)
    gone.kill(signal.SIGKILL)
    assert proc.kill_tree([gone], 1.0) == []
    result = Job("dump", str(tmp_path), ["criu"], 2**22, 1, str(tmp_path / "log"), 0.0).wait(1.0)
    assert result is not None and result.rc == -signal.SIGKILL


def test_what_else_goes_wrong_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    def pidfd_open(_pid: int) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(os, "pidfd_open", pidfd_open)
    with pytest.raises(OSError, match="Too many"):
        proc.pidfd(1)
