"""What the preflight has to know about a node. Looks only; its one temporary directory is gone afterwards."""

from __future__ import annotations

import base64
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from typing import Any

from . import cli, costs, probe
from .errors import CriuError

Facts = dict[str, Any]
COMMANDS = ("ip", "nft", "rsync")
# capabilities(7): what CRIU uses, by bit
CAPABILITIES = {"CAP_NET_ADMIN": 12, "CAP_SYS_PTRACE": 19, "CAP_SYS_ADMIN": 21, "CAP_SYS_RESOURCE": 24}
IMAGES_TMPFS = "/dev/shm/criu-migrate"  # noqa: S108  (each run makes a private directory below it)
IMAGES_DISK = "/var/lib/criu-migrate-images"
_PATH = "/usr/local/sbin:/usr/sbin:/usr/local/bin:/usr/bin:/sbin:/bin"


def look(image_dir: str = "", control_clock: float = 0.0) -> Facts:
    """Facts of this node; `image_dir` is where images shall lie, if the user says so, `control_clock` the time
    (seconds since 1970) at which the control node began to ask."""
    now = time.time()
    places = [image_dir] if image_dir else [IMAGES_TMPFS, IMAGES_DISK]
    criu = probe.look()
    if criu["ok"]:
        criu["check"], criu["trial"] = {}, {}  # logs of what went well
    return {
        "hostname": os.uname().nodename,
        "identity": identity(),
        "kernel": os.uname().release,
        "arch": platform.machine(),
        "python": ".".join(str(part) for part in sys.version_info[:3]),
        "criu": criu,
        "cpu": {"flags": cpu_flags(), "image": cpu_image(criu["path"])},
        # The time that the task took to get here is in it: good for seconds only.
        "clock": {"now": now, "ahead": now - control_clock if control_clock else 0.0},
        "capabilities": capabilities(),
        "missing_commands": probe.missing_commands(COMMANDS),
        "memory": memory(),
        "space": {path: space(path) for path in places},
        "addresses": addresses(),
        "pid_max": _number("/proc/sys/kernel/pid_max"),
        "links": costs.speeds(),
    }


def identity() -> dict[str, str]:
    """What tells two nodes apart, under whatever names and addresses they are reached."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as handle:
        found = {"boot_id": handle.read().strip()}
    for name in ("pid", "net"):
        found[name] = os.readlink(f"/proc/self/ns/{name}")
    return found


def cpu_flags(path: str = "/proc/cpuinfo") -> list[str]:
    """Features that every CPU of the node has, by the kernel's names."""
    with open(path, encoding="ascii", errors="replace") as handle:
        sets = [
            set(match.group(1).split())
            for match in re.finditer(r"^(?:flags|Features|features)\s*:(.*)$", handle.read(), re.MULTILINE)
        ]
    return sorted(set.intersection(*sets)) if sets else []


def cpu_image(criu: str) -> str:
    """CRIU's own picture of the CPU, base64 of cpuinfo.img; '' where CRIU makes none (no CRIU, other architectures)."""
    if not criu:
        return ""
    folder = tempfile.mkdtemp(prefix="criu-cpuinfo-")
    try:
        cli.Criu(criu).run(["cpuinfo", "dump", "-D", folder], 20.0)
        with open(os.path.join(folder, "cpuinfo.img"), "rb") as handle:
            return base64.b64encode(handle.read()).decode()
    except (OSError, CriuError):
        return ""
    finally:
        shutil.rmtree(folder)


def cpu_check(criu: str, image: str) -> str:
    """What CRIU on this node complains about when it sees the other node's CPU; '' when nothing."""
    if not criu or not image:
        return ""
    folder = tempfile.mkdtemp(prefix="criu-cpuinfo-")
    try:
        with open(os.path.join(folder, "cpuinfo.img"), "wb") as handle:
            handle.write(base64.b64decode(image))
        result = cli.Criu(criu).run(["cpuinfo", "check", "-D", folder], 20.0)
    finally:
        shutil.rmtree(folder)
    if result.rc == 0:
        return ""
    lines = [line for line in result.stderr.splitlines() if "Error" in line] or [f"it ended with {result.rc}"]
    return re.sub(r"^.*?Error \([^)]*\):\s*", "", lines[0])


def capabilities() -> dict[str, bool]:
    """Which of CRIU's capabilities this process, root by become, has in effect."""
    with open("/proc/self/status", encoding="ascii", errors="replace") as handle:
        match = re.search(r"^CapEff:\s*([0-9a-f]+)", handle.read(), re.MULTILINE)
    mask = int(match.group(1), 16) if match else 0
    return {name: bool(mask >> bit & 1) for name, bit in CAPABILITIES.items()}


def memory() -> dict[str, int]:
    """Bytes of memory: total, and what can be had without swapping."""
    found = {}
    with open("/proc/meminfo", encoding="ascii") as handle:
        for line in handle:
            name, rest = line.split(":", 1)
            if name in ("MemTotal", "MemAvailable"):
                found[name] = int(rest.split()[0]) * 1024
    return {"total": found.get("MemTotal", 0), "available": found.get("MemAvailable", 0)}


def existing_parent(path: str) -> str:
    """The path itself or the nearest folder above it that exists."""
    path = os.path.abspath(path)
    while not os.path.lexists(path):
        path = os.path.dirname(path)
    return path


def space(path: str) -> Facts:
    """Where a directory lies or would lie: parent that exists, mount point, file system, free bytes, problem if any."""
    parent = existing_parent(path)
    mount = mount_of(parent)
    found: Facts = {"parent": parent, "mount": mount["path"], "fstype": mount["fstype"], "free": 0, "problem": ""}
    if not os.path.isdir(parent):
        found["problem"] = f"{parent} is not a directory"
        return found
    status = os.statvfs(parent)
    found["free"] = status.f_bavail * status.f_frsize
    if status.f_flag & os.ST_RDONLY:
        found["problem"] = f"{mount['path']} is mounted read-only"
    elif not os.access(parent, os.W_OK | os.X_OK):
        found["problem"] = f"{parent} is not writable for root"
    return found


def mounts() -> list[dict[str, str]]:
    """Mount points with their file system types, as this process sees them (proc_pid_mountinfo(5))."""
    found = []
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as handle:
        for line in handle:
            left, _, right = line.partition(" - ")
            path = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match.group(1), 8)), left.split()[4])
            found.append({"path": path, "fstype": right.split()[0]})
    return found


def mount_of(path: str, known: list[dict[str, str]] | None = None) -> dict[str, str]:
    """The mount that a path lies on; the last one where several lie over each other."""
    real = os.path.realpath(path)
    best = {"path": "/", "fstype": ""}
    for mount in mounts() if known is None else known:
        prefix = mount["path"].rstrip("/") + "/"
        if (real + "/").startswith(prefix) and len(mount["path"]) >= len(best["path"]):
            best = mount
    return best


def addresses() -> list[Facts]:
    """{address, prefix, interface, up} of every address; [] where there is no iproute2."""
    tool = shutil.which("ip", path=_PATH)
    if tool is None:
        return []
    done = subprocess.run([tool, "-j", "addr", "show"], capture_output=True, text=True, check=False)
    links: list[dict[str, Any]] = json.loads(done.stdout or "[]")
    found = []
    for link in links:
        common = {"interface": link["ifname"], "up": "UP" in link.get("flags", [])}
        infos = link.get("addr_info") or [{}]
        found += [{**common, "address": i.get("local", ""), "prefix": i.get("prefixlen", 0)} for i in infos]
    return found


def _number(path: str) -> int:
    with open(path, encoding="ascii") as handle:
        return int(handle.read())
