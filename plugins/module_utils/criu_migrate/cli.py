"""The only place that builds a criu command line and runs it, for modules and guards alike."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from .errors import CriuError

TAIL_LINES = 20
MOST, LESS = 4, 3  # of what CRIU logs: everything; not two lines for each piece of memory


@dataclass
class Options:
    """What dump and restore have to agree on; the names are criu's own."""

    tcp_established: bool = True
    tcp_close: bool = False
    file_locks: bool = True
    ext_unix_sk: bool = True
    link_remap: bool = True
    shell_job: bool = False
    ghost_limit: int = 64 * 1024 * 1024
    network_lock: str = "nftables"
    extra: list[str] = field(default_factory=list)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Options:
        known = {name: data[name] for name in cls.__dataclass_fields__ if data.get(name) is not None}
        return cls(**known)

    def argv(self, action: str) -> list[str]:
        words = ["--network-lock", self.network_lock]
        for name in ("file_locks", "ext_unix_sk", "shell_job"):
            if getattr(self, name):
                words.append("--" + name.replace("_", "-"))
        if self.tcp_close:
            words.append("--tcp-close")
        elif self.tcp_established:
            words.append("--tcp-established")
        if action == "dump":
            if self.link_remap:
                words.append("--link-remap")
            words += ["--ghost-limit", str(self.ghost_limit)]
        return words + self.extra


@dataclass
class Tls:
    """PEM files of one run for CRIU's --tls; names are not checked, since they would have to be DNS names."""

    ca: str
    cert: str
    key: str

    def argv(self) -> list[str]:
        return ["--tls", "--tls-cacert", self.ca, "--tls-cert", self.cert, "--tls-key", self.key, "--tls-no-cn-verify"]


@dataclass
class PageServer:
    """Where pages go: a connected socket handed over as a descriptor, or an address and a port."""

    fd: int | None = None
    address: str = ""
    port: int = 0
    tls: Tls | None = None

    def argv(self, client: bool) -> list[str]:
        words = ["--page-server"] if client else []
        if self.fd is not None:
            words += ["--ps-socket", str(self.fd)]
        else:
            words += ["--address", self.address] if self.address else []
            words += ["--port", str(self.port)]
        return words + (self.tls.argv() if self.tls else [])


@dataclass
class Result:
    """How one criu command ended; seconds is its wall time."""

    cmd: list[str]
    rc: int
    seconds: float
    log: str
    log_tail: str
    stderr: str = ""

    def as_dict(self) -> dict[str, Any]:
        return {
            "cmd": self.cmd,
            "rc": self.rc,
            "seconds": self.seconds,
            "log": self.log,
            "log_tail": self.log_tail,
            "stderr": self.stderr,
        }


def tail(path: str, lines: int = TAIL_LINES, most: int = 0) -> str:
    """The last lines of a log, errors of the part before them first; '' when it cannot be read.

    With `most`, only so many bytes at the end are looked at.
    """
    try:
        with open(path, "rb") as handle:
            if most:
                handle.seek(max(0, os.fstat(handle.fileno()).st_size - most))
            text = handle.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return ""
    errors = [line for line in text[:-lines] if "Error" in line][-lines:]
    return "\n".join(errors + text[-lines:])


def failed(what: str, result: Result) -> CriuError:
    """The error for a criu command that did not end with 0; CRIU's first complaint is the cause."""
    lines = (result.log_tail + "\n" + result.stderr).splitlines()
    errors = [line for line in lines if _COMPLAINT.search(line) and not _NOISE.search(line)]
    complaint = re.sub(r"^\([\d.]+\)\s*(\d+:\s*)?", "", errors[0]).strip() if errors else ""
    message = f"criu {what} ended with {result.rc}" + (f": {complaint}" if complaint else ".")
    # An ordinary line of a log at this level may hold the words of any remedy.
    return CriuError(message, remedy("\n".join(errors) or result.stderr), result.as_dict())


_COMPLAINT = re.compile("Error|Can't connect to server")  # that last one CRIU does not call an error
# CRIU asks for more descriptors than a container may have and goes on without; after an early failure it unlocks a
# network that it had not locked yet.
_NOISE = re.compile("RLIMIT_NOFILE|Could not process rule")

_REMEDIES: tuple[tuple[str, str], ...] = (
    ("Can't connect to server", "No page server listens there: start it first (criu_page_server), open its port."),
    ("cg: ", "The process is in a cgroup that this node does not see: start it on the node itself."),
    ("Can't get rlimit", "CRIU lacks CAP_SYS_RESOURCE here: run the workload as root (workload_user=root)."),
    ("No space left on device", "The image directory is full: free space there, or image_storage=disk."),
    (
        "is already traced|seize task|Unseizable|can't be ptraced|ptrace",
        "End the tracer (strace, gdb) on the process, then migrate again.",
    ),
    ("Can't bind inet socket.*Address already in use", "Another process on the destination has that port: stop it."),
    ("Cannot assign requested address", "The address is not on that node: move it along with service_address=ADDRESS."),
    (
        "Can't open file|file .* not found|No such file",
        "Put that file at the same path on the destination (sync_paths=...).",
    ),
    ("has bad size|mismatch", "That file differs between the nodes: make them the same (sync_paths=...)."),
    (
        "[Pp]id .*(exist|taken|use)|File exists",
        "A PID of the tree is taken on the destination: stop that process, or restart it.",
    ),
    ("Connected TCP socket", "Allow connections: tcp_established=true with service_address, or tcp_close=true."),
    ("Operation not permitted", "The node lacks a privilege that CRIU needs: see playbooks/preflight.yml."),
)


UNKNOWN = "Read CRIU's log (log_tail has its end); playbooks/preflight.yml looks for the usual causes."


def remedy(text: str) -> str:
    """Advice for what a program said of its failure; UNKNOWN where it is none of the usual causes."""
    return next((advice for pattern, advice in _REMEDIES if re.search(pattern, text)), UNKNOWN)


def _status(fd: int | None) -> list[str]:
    """CRIU writes one byte to the descriptor when it is ready to be connected to."""
    return [] if fd is None else ["--status-fd", str(fd)]


class Criu:
    """One criu binary. Commands return a finished Result; what is to run on is a Job of an `*_argv`."""

    def __init__(self, path: str = "", options: Options | None = None, level: int = MOST) -> None:
        self.level = level
        found = path or shutil.which("criu", path="/usr/local/sbin:/usr/sbin:/usr/local/bin:/usr/bin:/sbin:/bin")
        if not found:
            raise CriuError(
                "criu is not installed on this node.", "Run playbooks/prepare.yml or migrate.yml, which install it."
            )
        self.path = found
        self.options = options or Options()

    def run(self, words: Sequence[str], limit: float = 60.0) -> Result:
        """Run a short command and wait for it; the log is what it printed."""
        cmd = [self.path, *words]
        began = time.monotonic()
        try:
            done = subprocess.run(
                cmd, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=limit, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise CriuError(
                f"criu {words[0]} did not end within {limit:g} s.", "Look at the node's kernel log."
            ) from error
        text = done.stdout + done.stderr
        return Result(
            cmd, done.returncode, time.monotonic() - began, "", "\n".join(text.splitlines()[-TAIL_LINES:]), text
        )

    def version(self) -> str:
        match = re.search(r"Version: (\S+)", self.run(["--version"]).stderr)
        return match.group(1) if match else ""

    def has_feature(self, name: str) -> bool:
        """`criu check --feature name` by its exit code; CRIU also answers no for names that it does not know."""
        return self.run(["check", "--feature", name]).rc == 0

    def _images(self, action: str, images: str, work: str, log: str, level: int | None = None) -> list[str]:
        return [self.path, action, "-D", images, "-W", work, f"-v{level or self.level}", "-o", log]

    def dump_argv(
        self,
        pid: int,
        images: str,
        work: str,
        pages: PageServer | None = None,
        log: str = "criu-dump.log",
        leave: str = "stopped",
        track_mem: bool = False,
        previous: str = "",
        lazy_fd: int | None = None,
    ) -> list[str]:
        """--leave-stopped unless told otherwise: success never kills, whoever asked for the dump does that.

        `previous` is relative to `images`, as CRIU makes a link of it. With `lazy_fd` memory is not written: CRIU says
        there that all the rest is, and waits on the socket of `pages` for who wants it.
        """
        words = [*self._images("dump", images, work, log), "-t", str(pid), f"--leave-{leave}"]
        words += self.options.argv("dump") + (["--track-mem"] if track_mem else [])
        words += ["--prev-images-dir", previous] if previous else []
        if lazy_fd is not None:
            return [*words, "--lazy-pages", *(pages.argv(client=False) if pages else []), *_status(lazy_fd)]
        return words + (pages.argv(client=True) if pages else [])

    def pre_dump_argv(
        self,
        pid: int,
        images: str,
        work: str,
        pages: PageServer | None = None,
        previous: str = "",
        log: str = "criu-pre-dump.log",
    ) -> list[str]:
        words = [*self._images("pre-dump", images, work, log), "-t", str(pid), "--track-mem"]
        words += self.options.argv("pre-dump") + (["--prev-images-dir", previous] if previous else [])
        return words + (pages.argv(client=True) if pages else [])

    def page_server_argv(
        self,
        images: str,
        work: str,
        pages: PageServer,
        log: str = "criu-page-server.log",
        previous: str = "",
        status_fd: int | None = None,
    ) -> list[str]:
        words = [*self._images("page-server", images, work, log), *pages.argv(client=False)]
        words += ["--prev-images-dir", previous] if previous else []
        return words + _status(status_fd)

    def lazy_pages_argv(
        self,
        images: str,
        work: str,
        pages: PageServer | None = None,
        log: str = "criu-lazy-pages.log",
        status_fd: int | None = None,
    ) -> list[str]:
        words = self._images("lazy-pages", images, work, log, MOST)  # replay.py reads it
        return words + (pages.argv(client=True) if pages else []) + _status(status_fd)

    def restore_argv(self, images: str, work: str, pidfile: str, stopped: bool = True, lazy: bool = False) -> list[str]:
        words = [*self._images("restore", images, work, "criu-restore.log"), "--restore-detached", "--pidfile", pidfile]
        words += ["--leave-stopped"] if stopped else []
        words += ["--lazy-pages"] if lazy else []
        return words + self.options.argv("restore")
