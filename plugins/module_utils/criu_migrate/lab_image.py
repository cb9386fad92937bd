"""The steps that make an image of the lab's nodes, each a tool of Debian's or the start of a host to be filled."""

from __future__ import annotations

import glob
import os
import shlex
import shutil
import socket
import subprocess
from typing import Any

from . import lab_cgroups, lab_node, lab_store
from .errors import MigrationError
from .lab_cache import (
    APT_OWN,
    FILLERS,
    PACKAGES,
    RECORD,
    SSHD,
    Image,
    clear_abandoned,
    controller,
    prune,
    remove_tree,
    stop_filler,
    take_place,
)
from .lab_net import greeted
from .proc import Proc

# Settings of the host's apt that decide whether and how packages can be fetched.
APT_SETTINGS = ("http", "https", "ftp", "Check-", "ForceIPv", "Retries", "AllowInsecure", "AllowWeak", "CA")
CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"


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

    def copy_start(self) -> None:
        """A copy of what the image starts from, to be filled."""
        clear_abandoned(self.image.cache)
        stop_filler(self.state)
        remove_tree(self.part)
        run(["cp", "-a", "--reflink=auto", self.image.start, self.part], cgroup=os.path.basename(self.part))

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
            files=[
                *self._files(key),
                (
                    f"/home/{lab_store.USER}/.ssh/authorized_keys",
                    0o600,
                    lab_store.USER_ID,
                    authorized_key.encode() + b"\n",
                ),
            ],
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
        found = fetching_files()
        for path, mode in ((key, 0o600), (f"{key}.pub", 0o644)):
            with open(path, "rb") as handle:
                found.append((path.replace(key, "/etc/ssh/ssh_host_ed25519_key"), mode, 0, handle.read()))
        return found

    def seal(self) -> None:
        """Stop the filling node, take away what is not for a node, and give the image its name."""
        stop_filler(self.state)
        shutil.rmtree(self.state)
        clear_abandoned(self.image.cache)
        clean(self.part)
        self._write(self.part, RECORD, self.image.record())
        take_place(self.part, self.image.path)
        prune(self.image)

    @staticmethod
    def _write(root: str, path: str, text: str, mode: int = 0o644) -> None:
        target = os.path.join(root, path)
        os.makedirs(os.path.dirname(target), 0o755, exist_ok=True)
        with open(target, "w", encoding="utf-8") as handle:
            handle.write(text)
        os.chmod(target, mode)


def fetching_files() -> list[tuple[str, int, int, bytes]]:
    """What a root file system needs to reach this host's package sources: path, mode, owner, content."""
    settings = fetch_settings(run(["apt-config", "dump", "Acquire"]))
    found = [("/etc/apt/apt.conf.d/20host", 0o644, 0, settings.encode())]
    copies = {"/etc/resolv.conf": 0o644, CERTIFICATES: 0o644}
    copies.update(dict.fromkeys(glob.glob("/etc/apt/auth.conf.d/*"), 0o600))
    for path, mode in copies.items():
        if os.path.exists(path):
            with open(path, "rb") as handle:
                found.append((path, mode, 0, handle.read()))
    names = f"127.0.0.1 localhost image {socket.gethostname()}\n::1 localhost\n"
    return [*found, ("/etc/hosts", 0o644, 0, names.encode())]


def clean(root: str) -> None:
    """Take away what is not for a node: `fetching_files`, host keys, caches and logs."""
    gone = ["etc/apt/apt.conf.d/20host", "etc/resolv.conf", "etc/apt/auth.conf.d/*", "etc/ssh/ssh_host_*",
            f"home/{lab_store.USER}/.[!b.p]*", "var/cache/apt/*", "var/lib/apt/lists/*", "var/log/*.log",
            "tmp/*", "run/*"]  # fmt: skip
    for pattern in gone:
        for path in glob.glob(os.path.join(root, pattern)):
            if os.path.isdir(path) and not os.path.islink(path):
                shutil.rmtree(path)
            else:
                os.unlink(path)
    # apt goes by this time: the next one who installs something here fetches the lists again
    os.utime(os.path.join(root, "var/lib/apt/lists"), (0, 0))
