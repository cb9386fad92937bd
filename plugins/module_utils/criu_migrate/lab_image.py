"""The cached root file system of the lab's nodes: what it is keyed by, and the steps that make it.

The cache holds base-<key> (what debootstrap unpacked) and <key> (filled by the project's own roles); while one is made
it is called <key>.<run>.part, and it gets its name by a rename, so that a half-made one is never taken.
"""

from __future__ import annotations

import contextlib
import fcntl
import glob
import hashlib
import json
import os
import shlex
import shutil
import socket
import subprocess
from collections.abc import Iterable, Iterator
from typing import Any

from . import lab_cgroups, lab_node, lab_store
from .errors import MigrationError
from .lab_net import greeted
from .proc import Proc, stat

CACHE = "/var/cache/criu-migrate/images"
FILLERS = f"{lab_store.RUN_ROOT}.filling"  # beside the labs, not among them
# The least that an SSH host for Ansible needs; everything else comes from the roles.
PACKAGES = ("ca-certificates", "iproute2", "openssh-server", "procps", "python3", "python3-apt", "sudo", "tini")
SSHD = """\
PermitRootLogin no
PasswordAuthentication no
KbdInteractiveAuthentication no
UseDNS no
MaxStartups 200
MaxSessions 200
"""
# Settings of the host's apt that decide whether and how packages can be fetched.
APT_SETTINGS = ("http", "https", "ftp", "Check-", "ForceIPv", "Retries", "AllowInsecure", "AllowWeak", "CA")
APT_OWN = 'Acquire::Languages "none";\nAPT::Install-Recommends "false";\nDPkg::Options:: "--force-unsafe-io";\n'
CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"


def files_below(patterns: Iterable[str]) -> list[str]:
    """Every file that the patterns name, folders with all that is in them, sorted."""
    found: set[str] = set()
    for pattern in patterns:
        for path in glob.glob(pattern):
            if os.path.isfile(path):
                found.add(path)
            for folder, _, names in os.walk(path):
                found |= {os.path.join(folder, name) for name in names if not name.endswith((".pyc", ".md"))}
    return sorted(found)


def digest(parts: Iterable[str], files: Iterable[str] = ()) -> str:
    """Sixteen hex digits for what goes into an image; a file counts by its last two names and its content."""
    total = hashlib.sha256()
    for part in parts:
        total.update(part.encode() + b"\0")
    for path in files:
        with open(path, "rb") as handle:
            total.update("/".join(path.split("/")[-2:]).encode() + b"\0" + handle.read() + b"\0")
    return total.hexdigest()[:16]


class Image:
    """One image in the cache, filled, and the base that it is made of."""

    def __init__(self, path: str, base: str, suite: str) -> None:
        self.path = path
        self.base = base
        self.suite = suite
        self.cache = os.path.dirname(path)

    @classmethod
    def of(cls, suite: str, inputs: Iterable[str], contents: Iterable[str], cache: str = CACHE) -> Image:
        """The image that these role files (patterns) and other contents make of a suite."""
        fixed = [suite, os.uname().machine, *PACKAGES, SSHD, APT_OWN]
        key = digest([*fixed, *contents], files_below(inputs))
        return cls(os.path.join(cache, key), os.path.join(cache, "base-" + digest(fixed)), suite)

    def exists(self) -> bool:
        return os.path.isdir(self.path)

    def base_exists(self) -> bool:
        return os.path.isdir(self.base)


def run(args: list[str], environment: dict[str, str] | None = None, cgroup: str = "") -> str:
    """Run a tool of the host; MigrationError carries the end of what it said.

    A tool that writes into an image runs in a cgroup, by which it is found should its run be killed.
    """
    env = {**os.environ, "LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive", **(environment or {})}
    paths = lab_cgroups.create(cgroup) if cgroup else []
    done = subprocess.run(
        args,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=env,
        preexec_fn=lambda: lab_cgroups.join(paths),  # this process has no threads
    )
    if cgroup:
        lab_cgroups.remove(cgroup)
    if done.returncode:
        raise MigrationError(
            f"{shlex.join(args)} ended with {done.returncode}:\n" + "\n".join(done.stdout.splitlines()[-15:]),
            "Packages come from the sources of this host's own apt: does `apt-get update` work?",
            {"cmd": args, "rc": done.returncode},
        )
    return done.stdout


def mirror(targets: str, codename: str) -> str:
    """The archive of this host's own release, from the lines "RELEASE COMPONENT URI" of apt-get indextargets."""
    rows = [line.split(maxsplit=2) for line in targets.splitlines() if len(line.split(maxsplit=2)) == 3]
    main = [row for row in rows if row[1] == "main"]
    for names in ((codename,), ("stable", "oldstable", "testing", "unstable", "sid")):
        for release, _, uri in main:
            if release in names:
                return uri.rstrip("/")
    return ""


def host_mirror() -> str:
    """Where this host gets Debian from; "" lets debootstrap take its default."""
    with open("/etc/os-release", encoding="utf-8") as handle:
        release = dict(line.strip().split("=", 1) for line in handle if "=" in line)
    if release.get("ID", "").strip('"') != "debian":
        return ""
    words = "$(RELEASE) $(COMPONENT) $(REPO_URI)"
    targets = run(["apt-get", "indextargets", "--format", words, "Created-By: Packages"])
    return mirror(targets, release.get("VERSION_CODENAME", "").strip('"'))


def fetch_settings(dump: str) -> str:
    """Of `apt-config dump Acquire`, the lines that the image's apt needs to reach the same archive."""
    kept = []
    for line in dump.splitlines():
        name = line.split(" ", 1)[0]
        rest = name[len("Acquire::") :]
        if name.startswith("Acquire::") and rest.startswith(APT_SETTINGS) and not line.endswith(' "";'):
            kept.append(line)
    return "\n".join(kept) + "\n"


def proxies(settings: str) -> dict[str, str]:
    """Environment variables for debootstrap, which does not read apt's settings."""
    found = {}
    for kind in ("http", "https"):
        for line in settings.splitlines():
            name, _, value = line.partition(" ")
            if name.lower() == f"acquire::{kind}::proxy":
                found[f"{kind}_proxy"] = value.strip('";')
    return found


def controller() -> Proc:
    """The ansible-playbook that this module runs under: the topmost ancestor whose program is Ansible's."""
    own = stat(os.getpid())
    best = Proc(os.getpid(), own[2] if own else 0)
    pid = os.getpid()
    while pid > 1:
        found = stat(pid)
        if found is None:
            break
        with open(f"/proc/{pid}/cmdline", "rb") as handle:
            words = handle.read().split(b"\0")[:2]  # the second where the first is the interpreter
        if any(os.path.basename(word).startswith(b"ansible") for word in words):
            best = Proc(pid, found[2])
        pid = found[1]
    return best


class Builder:
    """The image while it is made, by one run of ansible-playbook."""

    def __init__(self, image: Image, owner: Proc | None = None) -> None:
        self.image = image
        self.owner = owner or controller()
        self.part = f"{image.path}.{self.owner.pid}-{self.owner.start}.part"
        self.base_part = f"{image.base}.{self.owner.pid}-{self.owner.start}.part"
        self.state = os.path.join(FILLERS, os.path.basename(self.part))

    def unpack(self) -> None:
        """debootstrap's first stage: fetch and unpack."""
        clear_abandoned(self.image.cache)
        remove_tree(self.base_part)
        settings = run(["apt-config", "dump", "Acquire"])
        where = host_mirror()
        run(
            ["debootstrap", "--foreign", "--variant=minbase", f"--include={','.join(PACKAGES)}",
             self.image.suite, self.base_part, *([where] if where else [])],
            proxies(settings),
            os.path.basename(self.base_part),
        )  # fmt: skip
        if where:
            self._write(self.base_part, "debootstrap.mirror", where)

    def configure(self) -> None:
        """debootstrap's second stage, then the user and the settings of a cloud machine."""
        root = self.base_part
        self._write(root, "etc/apt/apt.conf.d/10criu-migrate-lab", APT_OWN)
        self._write(root, "etc/dpkg/dpkg.cfg.d/criu-migrate-lab", "force-unsafe-io\n")
        run(["chroot", root, "/debootstrap/debootstrap", "--second-stage"], cgroup=os.path.basename(root))
        where = os.path.join(root, "debootstrap.mirror")
        if os.path.exists(where):
            with open(where, encoding="utf-8") as handle:
                self._write(root, "etc/apt/sources.list", f"deb {handle.read()} {self.image.suite} main\n")
            os.unlink(where)
        user, number = lab_store.USER, str(lab_store.USER_ID)
        run(["chroot", root, "useradd", "--create-home", "--uid", number, "--shell", "/bin/bash", user])
        self._write(root, "etc/sudoers.d/90-cloud-user", f"{user} ALL=(ALL) NOPASSWD: ALL\n", 0o440)
        self._write(root, "etc/ssh/sshd_config.d/10-cloud.conf", SSHD)
        for path in glob.glob(f"{root}/etc/ssh/ssh_host_*") + glob.glob(f"{root}/var/cache/apt/archives/*.deb"):
            os.unlink(path)
        take_place(root, self.image.base)

    def filled(self) -> bool:
        """Whether this run has a copy that is not sealed yet."""
        return os.path.isdir(self.part)

    def copy_base(self) -> None:
        """A copy of the base, to be filled."""
        clear_abandoned(self.image.cache)
        stop_filler(self.state)
        remove_tree(self.part)
        run(["cp", "-a", "--reflink=auto", self.image.base, self.part], cgroup=os.path.basename(self.part))

    def fill(self, authorized_key: str) -> dict[str, Any]:
        """Start the filling node on the host's network; returns its loopback port and its host key."""
        os.makedirs(f"{self.state}/root", 0o700, exist_ok=True)
        key = f"{self.state}/host_key"
        if not os.path.exists(key):
            lab_store.make_key(key, "image")
        with socket.socket() as probe:  # sshd takes the port a moment later: it cannot be handed a socket
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        spec = lab_node.Spec(
            name="image",
            hostname="image",
            image=self.part,
            mount_point=f"{self.state}/root",
            command=["/usr/sbin/sshd", "-D", "-e", "-p", str(port), "-o", "ListenAddress=127.0.0.1"],
            cgroup=os.path.basename(self.part),
            own_network=False,
            files=[*self._files(key), (f"/home/{lab_store.USER}/.ssh/authorized_keys", 0o600,
                                       lab_store.USER_ID, authorized_key.encode() + b"\n")],
        )
        init = lab_node.start(spec, lambda _pid: None)
        with open(f"{self.state}/pid", "w", encoding="ascii") as handle:
            handle.write(f"{init.pid} {init.start}\n")
        if not greeted("", "127.0.0.1", port, 20):
            raise MigrationError("The filling node's sshd does not answer.", f"See {self.part}/var/log/console.log.")
        with open(f"{key}.pub", encoding="ascii") as handle:
            return {"port": port, "host_key": " ".join(handle.read().split()[:2])}

    def _files(self, key: str) -> list[tuple[str, int, int, bytes]]:
        """What the filling node has for as long as it is filled, `seal` takes it away again."""
        settings = fetch_settings(run(["apt-config", "dump", "Acquire"]))
        found = [("/etc/apt/apt.conf.d/20host", 0o644, 0, settings.encode())]
        copies = {"/etc/resolv.conf": 0o644, CERTIFICATES: 0o644, key: 0o600, f"{key}.pub": 0o644}
        copies.update(dict.fromkeys(glob.glob("/etc/apt/auth.conf.d/*"), 0o600))
        for path, mode in copies.items():
            if os.path.exists(path):
                target = path.replace(key, "/etc/ssh/ssh_host_ed25519_key")
                with open(path, "rb") as handle:
                    found.append((target, mode, 0, handle.read()))
        names = f"127.0.0.1 localhost image {socket.gethostname()}\n::1 localhost\n"
        return [*found, ("/etc/hosts", 0o644, 0, names.encode())]

    def seal(self) -> None:
        """Stop the filling node, take away what is not for a node, and give the image its name."""
        stop_filler(self.state)
        shutil.rmtree(self.state)
        clear_abandoned(self.image.cache)
        gone = ["etc/apt/apt.conf.d/20host", "etc/resolv.conf", "etc/apt/auth.conf.d/*", "etc/ssh/ssh_host_*",
                f"home/{lab_store.USER}/.[!b.p]*", "var/cache/apt/*", "var/lib/apt/lists/*", "var/log/*.log",
                "tmp/*", "run/*"]  # fmt: skip
        for pattern in gone:
            for path in glob.glob(os.path.join(self.part, pattern)):
                if os.path.isdir(path) and not os.path.islink(path):
                    shutil.rmtree(path)
                else:
                    os.unlink(path)
        take_place(self.part, self.image.path)
        prune(self.image)

    @staticmethod
    def _write(root: str, path: str, text: str, mode: int = 0o644) -> None:
        target = os.path.join(root, path)
        os.makedirs(os.path.dirname(target), 0o755, exist_ok=True)
        with open(target, "w", encoding="utf-8") as handle:
            handle.write(text)
        os.chmod(target, mode)


def take_place(part: str, path: str) -> None:
    """Give a finished tree its name, unless another run was quicker."""
    try:
        os.rename(part, path)
    except OSError:
        if not os.path.isdir(path):
            raise
        remove_tree(part)


def remove_tree(path: str) -> None:
    """Remove a root file system, after making sure that nothing is mounted in it."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as handle:
        points = [line.split()[4] for line in handle]
    for point in sorted((p for p in points if p.startswith(path + "/")), key=len, reverse=True):
        run(["umount", "--lazy", point])  # debootstrap's second stage leaves /proc there when it is killed
    if os.path.isdir(path):
        shutil.rmtree(path)


def stop_filler(state: str) -> None:
    """Stop the node of a Builder's state folder; nothing when there is none."""
    init = lab_node.read_proc(f"{state}/pid")
    if init is not None:
        lab_node.stop(init)
    lab_cgroups.remove(os.path.basename(state))


def owner_of(part: str) -> Proc | None:
    """The run that a *.part belongs to, from its name."""
    words = os.path.basename(part).split(".")
    try:
        pid, start = words[-2].split("-")
        return Proc(int(pid), int(start))
    except (IndexError, ValueError):
        return None


@contextlib.contextmanager
def alone(cache: str) -> Iterator[None]:
    """One process of this host at a time tidies the cache."""
    os.makedirs(cache, 0o755, exist_ok=True)
    with open(os.path.join(cache, ".lock"), "w", encoding="ascii") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def clear_abandoned(cache: str) -> None:
    """Remove what a killed run left: its filling node, and its half-made images."""
    with alone(cache):
        _clear_abandoned(cache)


def _clear_abandoned(cache: str) -> None:
    states = [os.path.join(FILLERS, name) for name in (os.listdir(FILLERS) if os.path.isdir(FILLERS) else [])]
    for path in [*states, *glob.glob(os.path.join(cache, "*.part"))]:
        owner = owner_of(path)
        if owner is not None and owner.alive():
            continue
        if path.startswith(FILLERS):
            stop_filler(path)
            shutil.rmtree(path)
        else:
            lab_cgroups.remove(os.path.basename(path))
            remove_tree(path)
    if os.path.isdir(FILLERS) and not os.listdir(FILLERS):
        os.rmdir(FILLERS)


def prune(current: Image) -> list[str]:
    """Remove images that no lab uses and that are not the current one; returns them."""
    used = {current.path, current.base}
    for record in glob.glob(f"{lab_store.DISK_ROOT}/*/lab.json"):
        with open(record, encoding="utf-8") as handle:
            used.add(json.load(handle).get("image", ""))
    with alone(current.cache):
        found = glob.glob(f"{current.cache}/*")
        pruned = [path for path in found if path not in used and not path.endswith(".part")]
        for path in pruned:
            remove_tree(path)
    return pruned
