"""The disk image, the kernel and the snapshots of the lab's virtual machines, in the image cache.

<key>-vm-<key> holds root.raw (the filled image of the nodes, plus the distribution's kernel), vmlinuz, initrd, and, for
each hardware that was asked for, what was found by trying: hardware-<memory>-<cpus>.json and its snapshot.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
from dataclasses import asdict
from typing import Any

from . import lab_cache, lab_cgroups, lab_image, lab_node, lab_vm, lab_vm_guest
from .errors import MigrationError
from .lab_vm import Hardware, Spec
from .proc import wait_gone

PACKAGES = ("busybox-static", "linux-image-cloud-amd64")
DISK_BYTES = 8 * 1024**3  # sparse
KVM_LIMIT = 15.0  # seconds that a kernel's boot may take with KVM; without, it takes about 10
INSTALL_LIMIT = 900.0  # seconds
_INSTALL = """\
export DEBIAN_FRONTEND=noninteractive INITRD=No
apt-get update && apt-get install -y --no-install-recommends {packages}
echo $? >/criu-migrate-lab.rc
"""


class VmImage:
    """What the machines start from, made of a filled image."""

    def __init__(self, image: str) -> None:
        self.image = image
        parts = (*PACKAGES, lab_vm_guest.FIRST, *lab_vm_guest.DRIVERS, *lab_vm_guest.APPLETS, str(DISK_BYTES))
        self.folder = f"{image}-vm-{lab_cache.digest(parts)}"

    def exists(self) -> bool:
        return os.path.isdir(self.folder)

    def path(self, name: str) -> str:
        return os.path.join(self.folder, name)

    def build(self) -> None:
        """Install the kernel in a copy of the image, and make a disk and an initramfs of it."""
        owner = lab_cache.controller()
        part = f"{self.folder}.{owner.pid}-{owner.start}.part"
        lab_cache.clear_abandoned(os.path.dirname(part))
        lab_cache.remove_tree(part)
        os.makedirs(part)
        tree, cgroup = f"{part}/tree", os.path.basename(part)
        lab_image.run(["cp", "-a", "--reflink=auto", self.image, tree], cgroup=cgroup)
        install(tree, cgroup)
        kernels = sorted(os.listdir(f"{tree}/usr/lib/modules"))
        if len(kernels) != 1:
            raise MigrationError(f"The image has the kernels {kernels}, not one.", "See the archive of the suite.")
        shutil.copyfile(f"{tree}/boot/vmlinuz-{kernels[0]}", f"{part}/vmlinuz")
        with open(f"{part}/initrd", "wb") as handle:
            handle.write(lab_vm_guest.initramfs(tree, kernels[0]))
        with open(f"{part}/root.raw", "wb") as handle:
            handle.truncate(DISK_BYTES)
        lab_image.run(["mkfs.ext4", "-q", "-F", "-m", "0", "-d", tree, f"{part}/root.raw"], cgroup=cgroup)
        shutil.rmtree(tree)
        lab_cache.take_place(part, self.folder)

    def hardware(self, memory: int, cpus: int) -> tuple[bool, Hardware]:
        """The hardware that works here for so many MiB and CPUs, with its snapshot; whether it had to be tried."""
        path = lab_vm.hardware_file(self.folder, memory, cpus)
        tried_on = {
            "boot_id": _read("/proc/sys/kernel/random/boot_id"),
            "qemu": qemu_version(),
            "command": _command_key(),
        }
        found = lab_vm.load(path)
        if found.get("tried_on") == tried_on:
            return False, Hardware(**found["hardware"])
        hardware, notes = self._try(memory, cpus)
        with open(path + ".new", "w", encoding="utf-8") as handle:
            json.dump({"hardware": asdict(hardware), "notes": notes, "tried_on": tried_on}, handle, indent=1)
        os.replace(path + ".new", path)
        return True, hardware

    def _try(self, memory: int, cpus: int) -> tuple[Hardware, dict[str, Any]]:
        notes: dict[str, Any] = {}
        for accelerator, limit in (("kvm", KVM_LIMIT), ("tcg", lab_vm.BOOT_LIMIT)):
            if accelerator == "kvm" and not os.access("/dev/kvm", os.R_OK | os.W_OK):
                notes["kvm"] = "there is no /dev/kvm"
                continue
            threads = "multi" if cpus == 1 or release(qemu_version()) >= lab_vm.SAFE_THREADS else "single"
            hardware = Hardware(memory, cpus, accelerator, self.path("vmlinuz"), self.path("initrd"), threads)
            try:
                hardware.snapshot, notes[accelerator] = self._snapshot(hardware, limit)
                return hardware, notes
            except MigrationError as error:
                notes[accelerator] = error.message
        raise MigrationError(
            f"No virtual machine boots here: {'; '.join(f'{name}: {why}' for name, why in notes.items())}",
            "Use lab_backend=namespace.", {"tried": notes},
        )  # fmt: skip

    def _snapshot(self, hardware: Hardware, limit: float) -> tuple[str, str]:
        """Boot until the disks would be looked for, and save that; returns the file and how long the boot took.

        MigrationError when the machine does not come that far. A machine that cannot be saved boots cold.
        """
        owner = lab_cache.controller()
        name = f"snapshot-{hardware.accelerator}-{hardware.memory}-{hardware.cpus}"
        state = os.path.join(lab_cache.FILLERS, f"{name}.{owner.pid}-{owner.start}.part")
        os.makedirs(state, 0o700, exist_ok=True)
        cgroup = os.path.basename(state)
        spec = Spec(name, hardware, f"{state}/vm", f"{state}/console.log", cgroup=cgroup, wait=True)
        began = time.monotonic()
        try:
            machine = lab_vm.start(spec, lambda _pid: None)
            with lab_vm.Boot(spec, machine, limit) as boot:
                boot.hear(lab_vm_guest.READY)
                took = f"boots in {time.monotonic() - began:.1f} s"
                part = self.path(f"{name}.part")
                try:
                    with boot.qmp() as qmp:
                        qmp.do("stop")
                        qmp.do("migrate", uri=f"exec:cat >{part}")
                        qmp.until("query-migrate", ("completed",), 60.0)
                except MigrationError as error:
                    return "", f"{took}; no snapshot: {error.message}"
            os.replace(part, self.path(name))
            return self.path(name), took
        finally:
            lab_cgroups.remove(cgroup)
            shutil.rmtree(state, ignore_errors=True)
            if not os.listdir(lab_cache.FILLERS):
                os.rmdir(lab_cache.FILLERS)


def install(tree: str, cgroup: str) -> None:
    """Install the kernel's packages in a root file system, as apt does it, in namespaces of its own."""
    state = os.path.join(lab_cache.FILLERS, cgroup)
    os.makedirs(f"{state}/root", 0o700, exist_ok=True)
    script = _INSTALL.format(packages=" ".join(PACKAGES))
    spec = lab_node.Spec(
        name="kernel",
        hostname="image",
        image=tree,
        mount_point=f"{state}/root",
        command=["/bin/sh", "-c", script],
        cgroup=cgroup,
        own_network=False,
        files=lab_image.fetching_files(),
    )
    init = lab_node.start(spec, lambda _pid: None)
    with open(f"{state}/pid", "w", encoding="ascii") as handle:
        handle.write(f"{init.pid} {init.start}\n")
    wait_gone([init], INSTALL_LIMIT)
    lab_cache.stop_filler(state)
    shutil.rmtree(state)
    log = f"{tree}/var/log/console.log"
    if _read(f"{tree}/criu-migrate-lab.rc") != "0":
        raise MigrationError(
            f"The kernel cannot be installed: {lab_vm.last_words(log)}",
            "Packages come from the sources of this host's own apt: does `apt-get update` work?",
        )
    os.unlink(f"{tree}/criu-migrate-lab.rc")
    lab_image.clean(tree)


def qemu_version() -> str:
    """The first line of what QEMU says of itself."""
    done = subprocess.run([lab_vm.QEMU, "--version"], capture_output=True, text=True)
    return done.stdout.partition("\n")[0]


def release(text: str) -> tuple[int, ...]:
    """Major and minor number in what QEMU says of itself, () where there is none."""
    found = re.search(r"version (\d+)\.(\d+)", text)
    return tuple(int(number) for number in found.groups()) if found else ()


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as handle:
            return handle.read().strip()
    except FileNotFoundError:
        return ""


def _command_key() -> str:
    """What changes when this program starts machines another way: then an old snapshot does not fit."""
    spec = Spec("", Hardware(0, 0, "tcg", "", ""), "", "")
    return lab_cache.digest(
        [*lab_vm.command(spec), *(word for words in lab_vm.ACCELERATORS.values() for word in words)]
    )
