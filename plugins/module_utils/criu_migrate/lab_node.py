"""A node of the lab: namespaces, an overlay root, and a small init in it."""

from __future__ import annotations

import errno
import os
import signal
import stat as stat_module
import traceback
import uuid
from dataclasses import dataclass, field
from typing import Callable, NoReturn

from . import lab_cgroups
from .errors import MigrationError
from .lab_kernel import (
    CLONE_NEWCGROUP,
    CLONE_NEWIPC,
    CLONE_NEWNET,
    CLONE_NEWNS,
    CLONE_NEWPID,
    CLONE_NEWUTS,
    MS_BIND,
    MS_NODEV,
    MS_NOEXEC,
    MS_NOSUID,
    MS_PRIVATE,
    MS_REC,
    mount,
    pivot_into,
    unshare,
)
from .proc import Proc, kill_tree, stat

DEVICES = ("null", "zero", "full", "random", "urandom", "tty", "userfaultfd", "fuse", "net/tun")
LINKS = {"fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1",
         "stderr": "/proc/self/fd/2", "ptmx": "pts/ptmx"}  # fmt: skip
INIT = ("/usr/bin/tini", "--")
ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}


@dataclass
class Spec:
    """What a node is made of. Without layers the image itself is the root, to be filled."""

    name: str
    hostname: str
    image: str
    mount_point: str
    command: list[str]
    layers: str = ""  # directory that holds upper/ and work/
    cgroup: str = ""  # name below criu-migrate-lab; "" for the caller's own cgroups
    own_network: bool = True
    pid_place: float = 0.0  # 0 to 1: so that PIDs of two nodes differ, as they would on machines that ran for a while
    files: list[tuple[str, int, int, bytes]] = field(default_factory=list)  # path, mode, owner, content


def start(spec: Spec, wire: Callable[[int], None]) -> Proc:
    """Start the node's init; `wire` gets its PID while it still waits, to connect the network.

    Returns the init as seen from the host. Raises MigrationError with the step that failed.
    """
    pid_read, pid_write = os.pipe()
    go_read, go_write = os.pipe()
    fail_read, fail_write = os.pipe()
    launcher = os.fork()
    if launcher == 0:
        _launch(spec, pid_write, go_read, fail_write, (pid_read, go_write, fail_read))
    for fd in (pid_write, go_read, fail_write):
        os.close(fd)
    try:
        text = _read_all(pid_read)
        os.waitpid(launcher, 0)
        if not text:
            raise MigrationError(f"{spec.name}: {_read_all(fail_read) or 'its launcher died'}")
        init = _identified(int(text))
        wire(init.pid)
        os.write(go_write, b"go")
        os.close(go_write)
        go_write = -1
        failure = _read_all(fail_read)
        if failure:
            raise MigrationError(f"The node {spec.name} did not start: {failure}",
                                 "The host may lack a capability: see docs/lab.md.")  # fmt: skip
        return init
    finally:
        for fd in (pid_read, fail_read, go_write):
            if fd >= 0:
                os.close(fd)  # an init that still waits for "go" ends by this


def stop(init: Proc, limit: float = 10.0) -> bool:
    """Pull the plug: SIGKILL to the init ends every process of the node. False when it was off."""
    if not init.alive():
        return False
    if kill_tree([init], limit):
        raise MigrationError(f"The node's init, PID {init.pid}, outlives SIGKILL.", "See /proc/PID/stack of it.")
    return True


def _identified(pid: int) -> Proc:
    found = stat(pid)
    if found is None:
        raise MigrationError("The node's init ended at once.", "Repeat; if it stays so, see dmesg.")
    return Proc(pid, found[2])


def _read_all(fd: int) -> str:
    parts: list[bytes] = []
    while True:
        part = os.read(fd, 65536)
        if not part:
            return b"".join(parts).decode("utf-8", "replace")
        parts.append(part)


def _launch(spec: Spec, pid_write: int, go_read: int, fail_write: int, other: tuple[int, ...]) -> NoReturn:
    """Between fork and exec: enter the namespaces, fork the init, report its PID, end."""
    try:
        for fd in other:
            os.close(fd)
        os.setsid()
        if spec.cgroup:
            lab_cgroups.join(lab_cgroups.create(spec.cgroup))
        flags = CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWPID | CLONE_NEWCGROUP
        unshare(flags | (CLONE_NEWNET if spec.own_network else 0))
        init = os.fork()
        if init == 0:
            _become_init(spec, pid_write, go_read, fail_write)
        os.write(pid_write, str(init).encode())
        os._exit(0)
    except BaseException as exc:  # nothing may return into the caller's code from a forked child
        _report(fail_write, exc)


def _report(fail_write: int, exc: BaseException) -> NoReturn:
    last = traceback.extract_tb(exc.__traceback__)[-1]
    os.write(fail_write, f"{exc} (in {last.name})".encode())
    os._exit(1)


def _become_init(spec: Spec, pid_write: int, go_read: int, fail_write: int) -> NoReturn:
    try:
        os.close(pid_write)
        if os.read(go_read, 2) != b"go":
            os._exit(1)
        os.close(go_read)
        _build_root(spec)
        _write_files(spec)
        pivot_into(spec.mount_point)
        _set_hostname(spec.hostname)
        _set_first_pid(spec.pid_place)
        _exec_init(spec, fail_write)
    except BaseException as exc:
        _report(fail_write, exc)


def _exec_init(spec: Spec, fail_write: int) -> NoReturn:
    null = os.open("/dev/null", os.O_RDONLY)
    console = os.open("/var/log/console.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o640)
    os.dup2(null, 0)
    os.dup2(console, 1)
    os.dup2(console, 2)
    os.set_inheritable(fail_write, False)  # its end of file tells the parent that exec worked
    for text in os.listdir("/proc/self/fd"):
        if int(text) > 2 and int(text) != fail_write:
            try:
                os.close(int(text))
            except OSError as exc:
                if exc.errno != errno.EBADF:
                    raise
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)  # Python ignores them, and exec would hand that down
    os.umask(0o022)
    os.execve(INIT[0], [*INIT, *spec.command], ENVIRONMENT)


def _set_hostname(name: str) -> None:
    with open("/proc/sys/kernel/hostname", "w", encoding="ascii") as handle:
        handle.write(name)


def first_pid(place: float, pid_max: int) -> int:
    """Where PIDs begin for a node at this place (0 to 1) among its likes; below 300 are those of the system itself."""
    return 300 + int((pid_max - 300) * place)


def _set_first_pid(place: float) -> None:
    path = "/proc/sys/kernel/ns_last_pid"
    if os.path.exists(path):
        with open("/proc/sys/kernel/pid_max", encoding="ascii") as handle:  # the node's own from Linux 6.14 on
            highest = int(handle.read())
        with open(path, "w", encoding="ascii") as handle:
            handle.write(str(first_pid(place, highest)))


def _build_root(spec: Spec) -> None:
    mount("none", "/", "", MS_REC | MS_PRIVATE)
    hierarchies = lab_cgroups.host_hierarchies()
    devices = {name: os.stat(f"/dev/{name}") for name in DEVICES if os.path.exists(f"/dev/{name}")}
    root = spec.mount_point
    if spec.layers:
        mount("overlay", root, "overlay", 0,
              f"lowerdir={spec.image},upperdir={spec.layers}/upper,workdir={spec.layers}/work")  # fmt: skip
    else:
        mount(spec.image, root, "", MS_BIND)
    mount("proc", f"{root}/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    mount("sysfs", f"{root}/sys", "sysfs", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    _mount_cgroups(f"{root}/sys/fs/cgroup", hierarchies)
    _mount_dev(f"{root}/dev", devices)
    mount("tmpfs", f"{root}/run", "tmpfs", MS_NOSUID | MS_NODEV, "mode=755,size=20%")
    mount("tmpfs", os.path.join(root, "tmp"), "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777,size=50%")
    for folder in ("sshd", "lock"):
        os.mkdir(f"{root}/run/{folder}", 0o755)
    _own_boot_id(root)


def _own_boot_id(root: str) -> None:
    """Every start of a node looks like a boot of its own, as it would on a machine of its own."""
    with open(f"{root}/run/boot_id", "w", encoding="ascii") as handle:
        handle.write(f"{uuid.uuid4()}\n")
    os.chmod(f"{root}/run/boot_id", 0o444)
    mount(f"{root}/run/boot_id", f"{root}/proc/sys/kernel/random/boot_id", "", MS_BIND)


def _mount_cgroups(path: str, found: list[lab_cgroups.Hierarchy]) -> None:
    flags = MS_NOSUID | MS_NODEV | MS_NOEXEC
    plan = lab_cgroups.mount_plan(found)
    if any(place for place, _ in plan):
        mount("tmpfs", path, "tmpfs", flags, "mode=755")
    for place, item in plan:
        target = os.path.join(path, place) if place else path
        os.makedirs(target, exist_ok=True)
        if item.version == 2:
            mount("cgroup2", target, "cgroup2", flags)
        else:
            mount("cgroup", target, "cgroup", flags, item.options)


def _mount_dev(path: str, devices: dict[str, os.stat_result]) -> None:
    mount("tmpfs", path, "tmpfs", MS_NOSUID, "mode=755")
    previous = os.umask(0)
    os.mkdir(f"{path}/net", 0o755)
    for name, found in devices.items():
        mode = 0o600 if name == "userfaultfd" else 0o666
        os.mknod(f"{path}/{name}", mode | stat_module.S_IFCHR, found.st_rdev)
    os.umask(previous)
    for name, target in LINKS.items():
        os.symlink(target, f"{path}/{name}")
    for name in ("pts", "shm", "mqueue"):
        os.mkdir(f"{path}/{name}")
    mount("devpts", f"{path}/pts", "devpts", MS_NOSUID | MS_NOEXEC, "newinstance,ptmxmode=0666,mode=620,gid=5")
    mount("tmpfs", f"{path}/shm", "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777,size=80%")
    mount("mqueue", f"{path}/mqueue", "mqueue", MS_NOSUID | MS_NODEV | MS_NOEXEC)


def _write_files(spec: Spec) -> None:
    for path, mode, owner, content in spec.files:
        target = os.path.join(spec.mount_point, path.lstrip("/"))
        parent = os.path.dirname(target)
        if not os.path.isdir(parent):
            os.makedirs(parent, 0o700 if owner else 0o755)
            os.chown(parent, owner, owner)
        if os.path.lexists(target):
            os.unlink(target)
        with open(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as handle:
            handle.write(content)
            os.fchmod(handle.fileno(), mode)
            os.fchown(handle.fileno(), owner, owner)


def read_proc(path: str) -> Proc | None:
    """The init that a file names, running or not; None without a file."""
    try:
        with open(path, encoding="ascii") as handle:
            pid, start_time = handle.read().split()
    except (FileNotFoundError, ValueError):
        return None
    return Proc(int(pid), int(start_time))
