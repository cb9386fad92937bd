"""The modules around criu with a recorded criu: what a user's parameters become, what comes back, what is refused.

The criu here is a small shell script that writes down its arguments and plays a recording; real CRIU is in tests/lab.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.module_utils import basic
from ansible.module_utils.testing import patch_module_args

from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate import daemons, folders, net, proc, steps
from tests.conftest import ROOT

PLUGINS = "ansible_collections.criu.migrate.plugins.modules"
NAMES = ("criu_dump", "criu_pre_dump", "criu_restore", "criu_page_server", "criu_lazy_pages")
RECORDING = """#!/bin/sh
echo "$@" >>{folder}/calls
action=$1
while [ $# -gt 0 ]; do
    case $1 in
        -D) images=$2 ;;
        -W) work=$2 ;;
        --status-fd) fd=$2 ;;
        --pidfile) echo {pid} >$2 ;;
        --feature) exit {feature} ;;
    esac
    shift
done
printf '%s\\n' '(00.001) Warn  (criu/x.c:1): nothing' '{line}' >$work/criu-$action.log
[ {rc} = 0 ] || exit {rc}
[ -z "$fd" ] || python3 -c "import os; os.write($fd, b'x')"
case $action in
    dump|pre-dump) echo state >$images/inventory.img; echo memory >$images/pages-1.img ;;
    page-server|lazy-pages) exec sleep 30 ;;
esac
"""


class Left(Exception):
    """A module has ended."""


class Fake:
    """A criu that plays a recording, and a process to name."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "criu"
        self.process = subprocess.Popen(["sleep", "60"], start_new_session=True)
        self.plays()

    @property
    def pid(self) -> int:
        return self.process.pid

    def plays(self, rc: int = 0, line: str = "(00.002) Dumping finished successfully", feature: int = 0) -> None:
        text = RECORDING.format(folder=self.folder, rc=rc, line=line, pid=self.pid, feature=feature)
        self.path.write_text(text, encoding="ascii")
        self.path.chmod(0o700)

    def calls(self) -> list[str]:
        try:
            return (self.folder / "calls").read_text(encoding="ascii").splitlines()
        except FileNotFoundError:
            return []

    def images(self, name: str = "i") -> str:
        return str(self.folder / name)

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Fake]:
    monkeypatch.setattr(net, "delete_tables", lambda _names: [])  # this machine's nft is none of a test's business
    made = Fake(tmp_path)
    yield made
    made.end()


@pytest.fixture
def run(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """Return a function that runs a module's main() and returns what it would print."""

    def left(self: Any, **result: Any) -> None:
        raise Left({"failed": False, **result})

    def failed(self: Any, msg: str, **result: Any) -> None:
        raise Left({**result, "msg": msg, "failed": True})

    monkeypatch.setattr(basic.AnsibleModule, "exit_json", left)
    monkeypatch.setattr(basic.AnsibleModule, "fail_json", failed)

    def one(name: str, check: bool = False, **params: Any) -> dict[str, Any]:
        module = importlib.import_module(f"{PLUGINS}.{name}")
        arguments = {"images_dir": fake.images(), "criu_path": str(fake.path), **params, "_ansible_check_mode": check}
        with patch_module_args(arguments), pytest.raises(Left) as caught:
            module.main()
        result: dict[str, Any] = caught.value.args[0]
        json.dumps(result)
        return result

    return one


Run = Callable[..., dict[str, Any]]


def test_dump_killed(fake: Fake, run: Run) -> None:
    result = run("criu_dump", pid=fake.pid, leave="killed")
    assert result["changed"] and result["leave"] == "killed" and result["pids"] == [fake.pid] and result["rc"] == 0
    assert fake.process.wait(5) == -signal.SIGKILL
    assert result["bytes"] == len("state\n") + len("memory\n")
    assert fake.calls() == [" ".join(result["cmd"][1:])]
    assert stat.S_IMODE(os.stat(fake.images()).st_mode) == 0o700
    again = run("criu_dump", pid=fake.pid, leave="killed")
    assert not again["changed"] and len(fake.calls()) == 1


def test_dump_stops_the_process_first_and_takes_it_back(fake: Fake, run: Run) -> None:
    assert run("criu_dump", pid=fake.pid)["leave"] == "stopped"
    assert proc.fully_stopped(fake.pid)
    assert not run("criu_dump", pid=fake.pid)["changed"]
    assert run("criu_dump", pid=fake.pid, leave="running")["changed"]
    assert not proc.fully_stopped(fake.pid)
    stale = run("criu_dump", pid=fake.pid)
    assert stale["failed"] and "another directory" in stale["msg"] and len(fake.calls()) == 1


def test_dump_in_check_mode_touches_nothing(fake: Fake, run: Run) -> None:
    result = run("criu_dump", check=True, pid=fake.pid, options={"tcp_close": True}, work_dir="/nonexistent/w")
    assert result["changed"] and "--tcp-close" in result["cmd"] and "--leave-stopped" in result["cmd"]
    assert result["cmd"][result["cmd"].index("-W") + 1] == "/nonexistent/w"
    assert not fake.calls() and not os.path.exists(fake.images()) and not proc.fully_stopped(fake.pid)


def test_a_failed_dump_says_all_and_lets_the_process_run(fake: Fake, run: Run) -> None:
    fake.plays(rc=1, line="(00.02) Error (criu/image.c:9): Cannot write: No space left on device")
    result = run("criu_dump", pid=fake.pid)
    assert result["failed"] and result["rc"] == 1 and result["cmd"][1] == "dump"
    assert "No space left" in result["msg"] and "No space left" in result["log_tail"] and "Remedy" in result["msg"]
    assert result["measured"]["pids"] == [fake.pid] and result["measured"]["seconds"] >= 0
    assert not proc.fully_stopped(fake.pid)
    fake.plays()
    assert run("criu_dump", pid=fake.pid)["changed"], "nothing of the attempt is in the way"


def test_dump_that_a_killed_module_began_is_finished(fake: Fake, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second module finds the job, not a second criu, and still knows that the process ran before."""
    real = steps.finish

    def dies(*_args: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(steps, "finish", dies)
    with pytest.raises(KeyboardInterrupt):
        steps.dump(
            {
                "pid": fake.pid, "leave": "stopped", "track_mem": False, "timeout": 9.0,
                "images_dir": fake.images(), "work_dir": None, "criu_path": str(fake.path),
            },
            False,
        )  # fmt: skip
    monkeypatch.setattr(steps, "finish", real)
    assert run("criu_dump", pid=fake.pid)["changed"] and len(fake.calls()) == 1
    run("criu_dump", pid=fake.pid, leave="running")
    assert not proc.fully_stopped(fake.pid)


def test_a_dump_that_takes_too_long_is_killed_and_undone(fake: Fake, run: Run) -> None:
    fake.path.write_text("#!/bin/sh\nsleep 60\n", encoding="ascii")
    result = run("criu_dump", pid=fake.pid, timeout=0.2)
    assert result["failed"] and result["rc"] == -signal.SIGKILL and "0.2 s" in result["msg"]
    assert not proc.fully_stopped(fake.pid)


@pytest.mark.parametrize("pid", [4194999, 1])
def test_processes_that_are_not_there_or_not_to_be_dumped(run: Run, fake: Fake, pid: int) -> None:
    result = run("criu_dump", pid=pid)
    assert result["failed"] and str(pid) in result["msg"] and not fake.calls()


def test_own_ancestors_are_refused(run: Run, fake: Fake) -> None:
    assert "itself" in run("criu_dump", pid=os.getppid())["msg"] and not fake.calls()


def test_images_of_something_else_are_not_overwritten(run: Run, fake: Fake) -> None:
    os.mkdir(fake.images(), 0o700)
    kept = Path(fake.images(), "pages-1.img")
    kept.write_text("precious", encoding="ascii")
    for check in (True, False):
        assert "something else" in run("criu_dump", check=check, pid=fake.pid)["msg"]
    assert kept.read_text(encoding="ascii") == "precious" and not fake.calls()


def test_directories_open_to_others(run: Run, fake: Fake) -> None:
    os.mkdir(fake.images(), 0o755)
    Path(fake.images(), "notes").touch()
    assert "open to other users" in run("criu_dump", pid=fake.pid)["msg"] and not fake.calls()
    os.unlink(fake.images() + "/notes")
    assert run("criu_dump", pid=fake.pid)["changed"]
    assert stat.S_IMODE(os.stat(fake.images()).st_mode) == 0o700


def test_parents_mean_tracking_and_relative_paths(fake: Fake, run: Run) -> None:
    assert run("criu_pre_dump", pid=fake.pid, images_dir=fake.images("1"))["leave"] == "running"
    assert not run("criu_pre_dump", pid=fake.pid, images_dir=fake.images("1"))["changed"]
    params = {"images_dir": fake.images("2"), "prev_images_dir": fake.images("1")}
    words = run("criu_dump", pid=fake.pid, **params)["cmd"]
    assert "--track-mem" in words and words[words.index("--prev-images-dir") + 1] == "../1"
    params = {"images_dir": fake.images("3"), "prev_images_dir": fake.images("none")}
    assert "no finished dump" in run("criu_dump", pid=fake.pid, **params)["msg"]


@pytest.mark.parametrize("check", [False, True])
def test_pre_dump_is_refused_without_dirty_tracking(fake: Fake, run: Run, check: bool) -> None:
    fake.plays(feature=1)
    result = run("criu_pre_dump", check=check, pid=fake.pid)
    assert result["failed"] and "mem_dirty_track" in result["msg"] and "CONFIG_MEM_SOFT_DIRTY" in result["msg"]
    assert fake.calls() == ["check --feature mem_dirty_track"]


def test_restore(fake: Fake, run: Run) -> None:
    """The recording's restored process is the one that was dumped, with its note of it gone astray."""
    run("criu_dump", pid=fake.pid, leave="running")
    os.unlink(os.path.join(fake.images(), folders.MARKER))
    planned = run("criu_restore", check=True, leave="stopped", lazy_pages=True)
    assert planned["changed"] and planned["cmd"][-6:] and {"--lazy-pages", "--leave-stopped"} <= set(planned["cmd"])
    result = run("criu_restore")
    assert result["changed"] and result["pid"] == fake.pid and result["pids"] == [fake.pid]
    assert "--leave-stopped" not in result["cmd"] and result["pidfile"] == fake.images() + "/restore.pid"
    assert not run("criu_restore")["changed"] and len(fake.calls()) == 2


def test_restore_where_the_pids_are_taken(fake: Fake, run: Run) -> None:
    run("criu_dump", pid=fake.pid, leave="running")
    for check in (True, False):
        result = run("criu_restore", check=check)
        assert result["failed"] and str(fake.pid) in result["msg"] and len(fake.calls()) == 1


def test_restore_of_nothing(run: Run, fake: Fake) -> None:
    assert "no inventory.img" in run("criu_restore")["msg"] and not fake.calls()


def test_page_server_is_ready_found_again_and_stopped(fake: Fake, run: Run) -> None:
    planned = run("criu_page_server", check=True, address="127.0.0.1", port=2345)
    assert planned["changed"] and "--status-fd" not in planned["cmd"] and not fake.calls()
    started = run("criu_page_server", address="127.0.0.1", port_range=[20000, 20100])
    assert started["changed"] and 20000 <= started["port"] <= 20100 and os.getsid(started["pid"]) != os.getsid(0)
    again = run("criu_page_server", address="127.0.0.1")
    assert not again["changed"] and (again["pid"], again["port"]) == (started["pid"], started["port"])
    assert "already, on port" in run("criu_page_server", address="127.0.0.1", port=1)["msg"]
    assert run("criu_page_server", check=True, state="stopped")["changed"]
    stopped = run("criu_page_server", state="stopped", timeout=0.1)
    assert stopped["changed"] and stopped["killed"] and "rc" not in stopped
    again = run("criu_page_server", state="stopped", timeout=0.1)
    assert not again["changed"] and again["killed"]


def test_page_server_that_cannot_bind_tries_the_next_port(
    fake: Fake, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(daemons, "free_ports", lambda *_: [20001, 20000])
    fake.plays(rc=1, line="(00.02) Error (criu/util.c:1): bind: Address already in use")
    result = run("criu_page_server", address="127.0.0.1", port_range=[20000, 20001])
    assert result["failed"] and result["measured"]["ports_tried"] == [20001, 20000] and len(fake.calls()) == 2
    fake.plays(rc=1, line="(00.02) Error (criu/tls.c:1): tls: no good")
    assert "tls: no good" in run("criu_page_server", address="127.0.0.1")["msg"] and len(fake.calls()) == 3


def test_tls_files_have_to_be_there(fake: Fake, run: Run) -> None:
    keys = {"ca": "/nonexistent/ca.pem", "cert": "/nonexistent/c", "key": "/nonexistent/k"}
    assert "/nonexistent/ca.pem" in run("criu_page_server", address="127.0.0.1", tls=keys)["msg"] and not fake.calls()


def test_lazy_pages_is_killed_only_by_force(fake: Fake, run: Run) -> None:
    run("criu_dump", pid=fake.pid, leave="running")
    fake.plays(line="(00.5) uffd: UFFD transferred pages: (7/7)")
    assert run("criu_lazy_pages")["changed"]
    assert not run("criu_lazy_pages")["changed"]
    waiting = run("criu_lazy_pages", state="stopped", timeout=0.1)
    assert waiting["failed"] and "force" in waiting["msg"] and waiting["log_tail"]
    stopped = run("criu_lazy_pages", state="stopped", timeout=0.1, force=True)
    assert stopped["killed"] and stopped["pages"] == {"transferred": 7, "total": 7}


def test_a_daemon_that_fails_is_a_failure(fake: Fake, run: Run) -> None:
    run("criu_dump", pid=fake.pid, leave="running")
    fake.plays(rc=1, line="(00.5) Error (criu/uffd.c:1): uffd: no good")
    result = run("criu_lazy_pages")
    assert result["failed"] and "uffd: no good" in result["msg"] and result["rc"] == 1


def described(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Documentation (fragments merged) and argument spec of a module."""
    module: Any = importlib.import_module(f"{PLUGINS}.{name}")
    documented: dict[str, Any] = yaml.safe_load(module.DOCUMENTATION)
    fragments = importlib.import_module("ansible_collections.criu.migrate.plugins.doc_fragments.criu").ModuleDocFragment
    for fragment in documented["extends_documentation_fragment"]:
        words = fragment.split(".")
        text = getattr(fragments, words[3].upper() if len(words) > 3 else "DOCUMENTATION")
        documented["options"] = {**yaml.safe_load(text)["options"], **documented["options"]}
    caught: dict[str, Any] = {}

    class Stop(Exception):
        pass

    def keep(**named: Any) -> None:
        caught.update(named)
        raise Stop

    original, module.AnsibleModule = module.AnsibleModule, keep
    try:
        with pytest.raises(Stop):
            module.main()
    finally:
        module.AnsibleModule = original
    return documented, caught


def same(options: dict[str, Any], spec: dict[str, Any], where: str) -> None:
    assert set(options) == set(spec), where
    for name, item in spec.items():
        found = options[name]
        for key in ("type", "default", "choices", "elements", "required"):
            assert found.get(key) == item.get(key), f"{where}.{name}: {key}"
        if "options" in item:
            same(found["suboptions"], item["options"], f"{where}.{name}")


@pytest.mark.parametrize("name", NAMES)
def test_documentation_is_what_the_module_takes(name: str) -> None:
    documented, caught = described(name)
    same(documented["options"], caught["argument_spec"], name)
    assert caught["supports_check_mode"] and {"check_mode", "idempotent"} <= set(documented["attributes"])


@pytest.mark.parametrize("name", [*NAMES, "criu_images_info"])
def test_ansible_doc_reads_it(name: str, ansible: Callable[..., Any]) -> None:
    done = ansible("ansible-doc", "-t", "module", "-M", str(ROOT / "library"), "-j", name)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)[name]
    assert found["doc"]["options"]["images_dir"]["required"] and found["return"] and found["examples"]
