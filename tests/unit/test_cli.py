"""The exact argument lists of criu, what is read from how it ended, and jobs that outlive their starter."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate import cli
from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate.cli import LESS, Criu, Options, PageServer, Tls
from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate.errors import CriuError
from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate.job import Job

CRIU = Criu("/usr/sbin/criu")
SECURE = Tls("/t/ca.pem", "/t/cert.pem", "/t/key.pem")
TLS = ["--tls", "--tls-cacert", "/t/ca.pem", "--tls-cert", "/t/cert.pem", "--tls-key", "/t/key.pem"]
TLS += ["--tls-no-cn-verify"]
SAME = ["--network-lock", "nftables", "--file-locks", "--ext-unix-sk", "--tcp-established"]
DUMP = [*SAME, "--link-remap", "--ghost-limit", "67108864"]


def head(action: str, log: str = "") -> list[str]:
    return ["/usr/sbin/criu", action, "-D", "/i", "-W", "/w", "-v4", "-o", log or f"criu-{action}.log"]


def test_dump_to_disk() -> None:
    assert CRIU.dump_argv(42, "/i", "/w") == [*head("dump"), "-t", "42", "--leave-stopped", *DUMP]


@pytest.mark.parametrize("leave", ["stopped", "running"])
def test_dump_never_kills(leave: str) -> None:
    words = CRIU.dump_argv(42, "/i", "/w", leave=leave)
    assert [word for word in words if word.startswith("--leave")] == [f"--leave-{leave}"]


def test_dump_with_parent_to_an_encrypted_page_server() -> None:
    pages = PageServer(address="10.0.0.2", port=27000, tls=SECURE)
    assert CRIU.dump_argv(42, "/i", "/w", pages, track_mem=True, previous="../1") == [
        *head("dump"), "-t", "42", "--leave-stopped", *DUMP, "--track-mem", "--prev-images-dir", "../1",
        "--page-server", "--address", "10.0.0.2", "--port", "27000", *TLS,
    ]  # fmt: skip


def test_dump_through_a_descriptor_has_no_tls_of_criu() -> None:
    assert CRIU.dump_argv(42, "/i", "/w", PageServer(fd=7))[-3:] == ["--page-server", "--ps-socket", "7"]


def test_pre_dump_tracks_memory_always() -> None:
    words = [*head("pre-dump"), "-t", "42", "--track-mem", *SAME]
    assert CRIU.pre_dump_argv(42, "/i", "/w") == words
    assert CRIU.pre_dump_argv(42, "/i", "/w", previous="../1") == [*words, "--prev-images-dir", "../1"]


def test_page_server() -> None:
    pages = PageServer(address="10.0.0.2", port=27000, tls=SECURE)
    listen = ["--address", "10.0.0.2", "--port", "27000", *TLS]
    assert CRIU.page_server_argv("/i", "/w", pages) == [*head("page-server"), *listen]
    assert CRIU.page_server_argv("/i", "/w", pages, previous="../1", status_fd=5) == [
        *head("page-server"), *listen, "--prev-images-dir", "../1", "--status-fd", "5",
    ]  # fmt: skip


def test_lazy_pages() -> None:
    assert CRIU.lazy_pages_argv("/i", "/w") == head("lazy-pages")
    assert CRIU.lazy_pages_argv("/i", "/w", PageServer(address="10.0.0.1", port=9), status_fd=4) == [
        *head("lazy-pages"), "--page-server", "--address", "10.0.0.1", "--port", "9", "--status-fd", "4",
    ]  # fmt: skip


def test_restore() -> None:
    detached = [*head("restore"), "--restore-detached", "--pidfile", "/w/restore.pid"]
    assert CRIU.restore_argv("/i", "/w", "/w/restore.pid") == [*detached, "--leave-stopped", *SAME]
    assert CRIU.restore_argv("/i", "/w", "/w/restore.pid", stopped=False, lazy=True) == [
        *detached, "--lazy-pages", *SAME,
    ]  # fmt: skip


def test_options() -> None:
    options = Options.from_dict({"tcp_close": True, "file_locks": False, "shell_job": True, "extra": ["-l"], "x": 1})
    words = options.argv("restore")
    assert words == ["--network-lock", "nftables", "--ext-unix-sk", "--shell-job", "--tcp-close", "-l"]


def test_without_criu_the_remedy_says_what_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda *_args, **_named: None)
    with pytest.raises(CriuError) as caught:
        Criu()
    assert "install" in caught.value.remedy


def test_tail_keeps_errors_of_the_part_left_out(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("(00.1) Error (x.c:1): first\n" + "".join(f"line {number}\n" for number in range(100)))
    lines = cli.tail(str(log), 3).splitlines()
    assert lines == ["(00.1) Error (x.c:1): first", "line 97", "line 98", "line 99"]
    assert cli.tail(str(tmp_path / "none")) == ""


RECORDED = [
    ("(00.05) Error (criu/tty.c:1): tty: Found dangling tty\n", "dangling tty", "log"),
    ("(00.02)    4242: Error (criu/files-reg.c:9): File srv/x has bad size 1 (expect 2)\n", "bad size", "same"),
    ("(00.03) Error (criu/sk-inet.c:1): inet: Can't bind inet socket (id 4): Address already in use\n", "bind", "port"),
    ("(00.03) Error (criu/image.c:1): Unable to write: No space left on device\n", "No space", "full"),
    ("(00.1) Can't connect to server 10.0.0.2:9\nError: Could not process rule: No such file\n", "connect", "listens"),
    ("(00.01) Error (criu/ptrace.c:1): ptrace: 42 is already traced by 43\n", "traced", "tracer"),
]


@pytest.mark.parametrize(("log", "cause", "advice"), RECORDED)
def test_a_failure_names_cause_and_remedy(log: str, cause: str, advice: str) -> None:
    noise = "(00.00) Error (criu/util.c:1): rlimit: Can't setup RLIMIT_NOFILE for self: Operation not permitted\n"
    result = cli.Result(["criu", "dump"], 1, 0.5, "/w/criu-dump.log", noise + log)
    error = cli.failed("dump", result)
    assert cause in error.message
    assert "RLIMIT_NOFILE" not in error.message
    assert advice in error.remedy
    assert {"cmd", "rc", "seconds", "log", "log_tail"} <= set(error.details)


def test_a_job_keeps_its_code_for_whoever_comes_later(tmp_path: Path) -> None:
    job = Job.launch("x", str(tmp_path), ["sh", "-c", "echo no >&2; exit 3"], str(tmp_path / "x.log"))
    assert os.getsid(job.shell.pid) == job.shell.pid
    first = job.wait(10)
    later = Job.from_dict(job.as_dict()).wait(0)
    assert first is not None and later is not None
    assert (first.rc, later.rc, later.stderr) == (3, 3, "no")
    assert later.seconds == first.seconds, "the time of its end, not of the look"


def test_a_job_that_runs_on_and_is_killed(tmp_path: Path) -> None:
    job = Job.launch("x", str(tmp_path), ["sleep", "60"], "")
    assert job.wait(0.01) is None
    job.kill()
    result = job.wait(0)
    assert result is not None and result.rc == -signal.SIGKILL


def test_a_job_reports_a_descriptor_that_becomes_readable(tmp_path: Path) -> None:
    ready, status = os.pipe()
    words = ["python3", "-c", f"import os, time; os.write({status}, b'x'); time.sleep(60)"]
    job = Job.launch("x", str(tmp_path), words, "", (status,))
    os.close(status)
    assert job.wait(10, [ready]) is None
    assert os.read(ready, 1) == b"x"
    os.close(ready)
    job.kill()


def test_less_is_logged_where_there_is_much_to_log_but_not_of_lazy_pages() -> None:
    quiet = Criu("/usr/sbin/criu", level=LESS)
    assert "-v3" in quiet.dump_argv(1, "/i", "/w") and "-v3" in quiet.restore_argv("/i", "/w", "/p")
    assert "-v4" in quiet.lazy_pages_argv("/i", "/w"), "replay.py reads that log"


def test_a_job_that_gets_on_is_waited_for_and_one_that_does_not_is_not(tmp_path: Path) -> None:
    job = Job.launch("x", str(tmp_path), ["sleep", "60"], "")
    seen: list[int] = []

    def progress() -> int:
        seen.append(len(seen) if len(seen) < 20 else 20)
        return seen[-1]

    try:
        assert job.wait_on(progress, limit=0.2, look=0.02) is None
        assert len(seen) > 20, "each look at which more had come began the limit anew"
    finally:
        job.kill()


def test_a_job_that_ends_is_not_looked_at_for_long(tmp_path: Path) -> None:
    job = Job.launch("x", str(tmp_path), ["true"], "")
    result = job.wait_on(lambda: 0, limit=30.0, look=10.0)
    assert result is not None and result.rc == 0
