"""What a host needs, beyond what any lab needs, before it can carry virtual machines."""

from __future__ import annotations

import os
import platform
import shutil

from . import lab_net, lab_vm
from .lab_host import Problem, existing, tried, which
from .lab_kernel import CLONE_NEWNET, unshare

COMMANDS = {lab_vm.QEMU: "qemu-system-x86", "mkfs.ext4": "e2fsprogs"}
IMAGE_BYTES = 2 * 1024**3
NODE_BYTES = 1024**3
OVERHEAD = 256  # MiB, of QEMU itself


def missing_packages() -> list[str]:
    """Debian packages of the commands that are not there."""
    return sorted({package for command, package in COMMANDS.items() if not which(command)})


def _try_tap() -> None:
    unshare(CLONE_NEWNET)
    lab_net.run(["ip", "tuntap", "add", "mode", "tap", "name", lab_vm.TAP, "vnet_hdr"])


def available_mib() -> int:
    """Memory in MiB that can be taken without harm to what runs."""
    with open("/proc/meminfo", encoding="ascii") as handle:
        for line in handle:
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) // 1024
    return 0


def problems(to_start: int, memory: int, cache: str, image_exists: bool) -> list[Problem]:
    """Everything that keeps this host from starting so many machines of `memory` MiB, missing packages aside."""
    if os.geteuid() != 0:
        return []  # said already
    found = []
    if platform.machine() != "x86_64":
        found.append(
            Problem(f"Virtual machines are not offered on {platform.machine()}.", "Use lab_backend=namespace.")
        )
    needed, available = to_start * (memory + OVERHEAD), available_mib()
    if to_start > 0 and needed > available:
        found.append(Problem(f"{to_start} machines of {memory} MiB need {needed} MiB of memory, {available} are free.",
                             "Give them less (lab_memory), stop something, or use lab_backend=namespace."))  # fmt: skip
    free = shutil.disk_usage(existing(cache)).free
    wanted = to_start * NODE_BYTES + (0 if image_exists else IMAGE_BYTES)
    if free < wanted:
        found.append(Problem(f"{free / 1e9:.1f} GB are free in {cache}.", f"Free {wanted / 1e9:.1f} GB there."))
    if which("ip"):
        why = tried(_try_tap)
        if why:
            found.append(Problem(f"A virtual machine's network card cannot be made: {why}.",
                                 "Load tun (modprobe tun), and see that /dev/net/tun is there."))  # fmt: skip
    return found
