"""What a host needs before it can carry a lab: tried, not guessed from versions."""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
from collections.abc import Iterable
from typing import Callable, NamedTuple

from . import lab_cgroups, lab_net
from .errors import MigrationError
from .lab_kernel import (
    CLONE_NEWCGROUP,
    CLONE_NEWIPC,
    CLONE_NEWNET,
    CLONE_NEWNS,
    CLONE_NEWPID,
    CLONE_NEWUTS,
    MS_PRIVATE,
    MS_REC,
    mount,
    unshare,
)

# What the lab runs on this host, and Debian's package of it.
COMMANDS = {
    "ip": "iproute2",
    "tc": "iproute2",
    "nsenter": "util-linux",
    "unshare": "util-linux",
    "ssh": "openssh-client",
    "ssh-keygen": "openssh-client",
}
IMAGE_COMMANDS = {"debootstrap": "debootstrap"}
MACHINES = ("x86_64", "aarch64")
IMAGE_BYTES = 3 * 1024**3
MEMORY_BYTES = 1024**3
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Problem(NamedTuple):
    """Something that is missing, and what to do about it."""

    message: str
    remedy: str


def missing_packages(image_exists: bool) -> list[str]:
    """Debian packages of the commands that are not there."""
    wanted = COMMANDS if image_exists else {**COMMANDS, **IMAGE_COMMANDS}
    return sorted({package for command, package in wanted.items() if not shutil.which(command, path=_PATH)})


def tried(step: Callable[[], None]) -> str:
    """Run a step in a child process, whose namespaces end with it; returns why it failed, or ""."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            step()
            code = 0
        except (OSError, MigrationError) as exc:
            os.write(write, str(exc).encode())
        finally:
            os._exit(code)
    os.close(write)
    with os.fdopen(read, "rb") as handle:
        text = handle.read().decode("utf-8", "replace")
    _, status = os.waitpid(child, 0)
    return "" if os.waitstatus_to_exitcode(status) == 0 else text or "it ended without a word"


def _try_namespaces() -> None:
    unshare(CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWNET | CLONE_NEWPID | CLONE_NEWCGROUP)


def _try_overlay(folder: str) -> None:
    unshare(CLONE_NEWNS)
    mount("none", "/", "", MS_REC | MS_PRIVATE)
    for name in ("lower", "upper", "work", "merged"):
        os.mkdir(os.path.join(folder, name))
    mount("overlay", f"{folder}/merged", "overlay", 0,
          f"lowerdir={folder}/lower,upperdir={folder}/upper,workdir={folder}/work")  # fmt: skip


def _try_network(rate: str) -> None:
    unshare(CLONE_NEWNET)
    lab_net.run(["ip", "link", "add", "name", "bridge0", "type", "bridge"])
    lab_net.run(["ip", "link", "add", "name", "v0", "type", "veth", "peer", "name", "v1"])
    if rate:
        lab_net.run(["tc", *lab_net.shaping("v0", rate)])


def _try_cgroups() -> None:
    name = f"trial-{os.getpid()}"
    if not lab_cgroups.create(name):
        raise MigrationError("no cgroup hierarchy is mounted")
    lab_cgroups.remove(name)


def which(command: str) -> str | None:
    """Where a command of this host lies, sbin included."""
    return shutil.which(command, path=_PATH)


def existing(folder: str) -> str:
    """The lowest folder above a path that is there."""
    while not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    return folder


def privileged_problems(disk: str, rate: str) -> list[Problem]:
    """Try the namespaces, mounts, links and cgroups that a lab is made of."""
    found = []
    why = tried(_try_namespaces)
    if why:
        found.append(Problem(f"Namespaces cannot be made: {why}.", "Run on a machine or a VM with a full kernel."))
    with tempfile.TemporaryDirectory(prefix="criu-migrate-lab-", dir=existing(disk)) as folder:
        why = tried(lambda: _try_overlay(folder))
        # the kernel leaves work/work with mode 0, which only root may remove
    if why:
        found.append(Problem(f"overlayfs cannot be mounted with its layers in {disk}: {why}.",
                             "Load it (modprobe overlay), or mount an ext4 or xfs file system there."))  # fmt: skip
    if not {"iproute2"} & set(missing_packages(True)):
        why = tried(lambda: _try_network(rate))
        if why:
            found.append(Problem(f"The lab's network cannot be made: {why}.",
                                 "Load bridge, veth and sch_tbf; without sch_tbf leave lab_rate empty."))  # fmt: skip
    why = tried(_try_cgroups)
    if why:
        found.append(Problem(f"cgroups cannot be made: {why}.", "Mount /sys/fs/cgroup writable."))
    return found


def resource_problems(image_exists: bool, cache: str) -> list[Problem]:
    """Space for the image (bytes free where it will lie), memory, machine type."""
    found = []
    if platform.machine() not in MACHINES:
        found.append(Problem(f"The machine type is {platform.machine()}.", f"Use {' or '.join(MACHINES)}."))
    free = shutil.disk_usage(existing(cache)).free
    if not image_exists and free < IMAGE_BYTES:
        found.append(Problem(f"{free / 1e9:.1f} GB are free for the image in {cache}.",
                             f"Free {IMAGE_BYTES / 1e9:.1f} GB there."))  # fmt: skip
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if memory < MEMORY_BYTES:
        found.append(Problem(f"The machine has {memory / 1e9:.1f} GB of memory.", "Use one with 1 GB or more."))
    return found


def problems(image_exists: bool, cache: str, disk: str, rate: str) -> list[Problem]:
    """Everything that keeps this host from carrying a lab, missing packages aside."""
    if os.geteuid() != 0:
        return [Problem("This is not root.", "Run it as root, or as a user with sudo (add -K for its password).")]
    found = resource_problems(image_exists, cache)
    missing = missing_packages(image_exists)
    if missing and not shutil.which("apt-get", path=_PATH):
        found.append(Problem(f"These packages are missing: {', '.join(missing)}.", "Install them; apt is not here."))
    if not image_exists and not shutil.which("apt-get", path=_PATH):
        found.append(Problem("The image is made with Debian's tools, apt is not here.", "Use a Debian or Ubuntu host."))
    return found + privileged_problems(disk, rate)


def message(found: Iterable[Problem]) -> str:
    """One text with all that is missing."""
    lines = [f"- {problem.message} {problem.remedy}" for problem in found]
    return "This machine cannot carry the lab:\n" + "\n".join(lines)
