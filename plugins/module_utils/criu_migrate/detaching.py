"""Being a process of one's own that outlives whoever has started it: guards, and the watcher where no systemd runs."""

from __future__ import annotations

import os
import signal
import time

RESTARTS = 20  # of one that is killed again and again


def detach(log: str) -> bool:
    """Become a daemon: a session of its own, no terminal, output to a log. True in the daemon, False in the caller."""
    if os.fork():
        os.wait()
        return False
    os.setsid()
    if os.fork():
        os._exit(0)
    os.chdir("/")
    os.umask(0o077)
    null = os.open(os.devnull, os.O_RDWR)
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for target, fd in ((0, null), (1, out), (2, out)):
        os.dup2(fd, target)
    os.closerange(3, 1024)
    return True


def keep() -> None:
    """Return in a child that does the work; its parent stays and starts one that was killed again, from its file.

    SIGTERM is how it is told to end. When the keeper is killed too, Ansible (of a guard: or resolve.yml) starts both
    again.
    """
    for count in range(RESTARTS):
        child = os.fork()
        if child == 0:
            return
        _pid, status = os.waitpid(child, 0)
        killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) != signal.SIGTERM
        broke = os.WIFEXITED(status) and os.WEXITSTATUS(status) == 1  # an exception: what caused it may pass
        if not killed and not broke:
            break
        time.sleep(min(count, 10) if broke else 0)
    os._exit(0)
