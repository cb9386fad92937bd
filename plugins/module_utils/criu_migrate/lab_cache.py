"""The cache of the lab's images: what each is keyed by, which one serves a lab, and what is removed from it.

It holds base-<key> (what debootstrap unpacked) and <key> (filled by the project's own roles); while one is made it is
called <key>.<run>.part, and it gets its name by a rename, so that a half-made one is never taken. What an image was
made of is written inside it.
"""

from __future__ import annotations

import contextlib
import fcntl
import glob
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from . import lab_cgroups, lab_kernel, lab_node, lab_store
from .proc import Proc, stat

CACHE = "/var/cache/criu-migrate/images"
FILLERS = f"{lab_store.RUN_ROOT}.filling"  # beside the labs, not among them
RECORD = "etc/criu-migrate-lab.json"  # in an image: what it was made of
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
APT_OWN = 'Acquire::Languages "none";\nAPT::Install-Recommends "false";\nDPkg::Options:: "--force-unsafe-io";\n'


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


class Made(NamedTuple):
    """What an image was made of: a key of the files that decide, and the packages that were asked for."""

    inputs: str
    contents: frozenset[str]


def made_of(path: str) -> Made | None:
    """What the image in a folder was made of; None where it does not say, as a base."""
    try:
        with open(os.path.join(path, RECORD), encoding="utf-8") as handle:
            found = json.load(handle)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return Made(found["inputs"], frozenset(found["contents"]))


class Image(NamedTuple):
    """One image in the cache: its folder, what it is (to be) made of, and the folder that its making starts from."""

    path: str
    base: str
    start: str
    suite: str
    inputs: str
    contents: list[str]

    @classmethod
    def of(
        cls, suite: str, inputs: Iterable[str], contents: Iterable[str], cache: str = CACHE, current: str = "",
        exact: bool = False,
    ) -> Image:  # fmt: skip
        """The image that serves a lab: made of these role files (patterns) and with these packages at least.

        One that holds more serves too, unless `exact`; first of all the one that the lab has (`current`). If there
        is none, one is to be made, which keeps what the lab has, from the fullest image that holds nothing else.
        """
        fixed = [suite, os.uname().machine, *PACKAGES, SSHD, APT_OWN]
        key = digest(fixed, files_below(inputs))
        base = os.path.join(cache, "base-" + digest(fixed))
        made = {path: found.contents for path, found in sealed(cache).items() if found.inputs == key}
        wanted = frozenset(contents) | made.get(current, frozenset())
        serves = [path for path, held in made.items() if held == wanted or (held > wanted and not exact)]
        if serves:
            path = current if current in serves else min(serves, key=lambda path: (len(made[path]), path))
            return cls(path, base, path, suite, key, sorted(made[path]))
        less = [path for path, held in made.items() if held < wanted]
        start = max(less, key=lambda path: (len(made[path]), path), default=base)
        return cls(os.path.join(cache, digest([key, *sorted(wanted)])), base, start, suite, key, sorted(wanted))

    @property
    def cache(self) -> str:
        return os.path.dirname(self.path)

    def exists(self) -> bool:
        return os.path.isdir(self.path)

    def start_exists(self) -> bool:
        return os.path.isdir(self.start)

    def record(self) -> str:
        """The text of RECORD."""
        return json.dumps({"inputs": self.inputs, "contents": self.contents}, indent=1) + "\n"


def sealed(cache: str) -> dict[str, Made]:
    """Every finished image in the cache, by its folder."""
    found = {path: made_of(path) for path in glob.glob(f"{cache}/*") if not path.endswith(".part")}
    return {path: made for path, made in found.items() if made is not None}


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
        lab_kernel.umount(point, lab_kernel.MNT_DETACH)  # debootstrap's second stage leaves /proc there when killed
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


def stale(current: Image) -> list[str]:
    """Images that no lab uses and that no lab would take any more: the roles have changed since they were made."""
    used = {current.path, current.base}
    for record in glob.glob(f"{lab_store.DISK_ROOT}/*/lab.json"):
        with open(record, encoding="utf-8") as handle:
            used.add(json.load(handle).get("image", ""))
    fresh = {path for path, made in sealed(current.cache).items() if made.inputs == current.inputs}

    def image(path: str) -> str:
        return path.partition("-vm-")[0]  # what virtual machines start from goes with what it was made of

    found = (path for path in glob.glob(f"{current.cache}/*") if not path.endswith(".part"))
    return sorted(path for path in found if image(path) not in used | fresh)


def prune(current: Image) -> list[str]:
    """Remove stale images; returns them."""
    with alone(current.cache):
        found = stale(current)
        for path in found:
            remove_tree(path)
    return found
