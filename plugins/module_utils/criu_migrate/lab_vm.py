"""A virtual machine of the lab: QEMU in a network namespace of its own, and the conversation of its boot."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Callable, NoReturn

from . import lab_cgroups, lab_net, lab_vm_guest
from .errors import MigrationError
from .lab_kernel import CLONE_NEWNET, unshare
from .lab_qmp import Qmp, connected
from .proc import Proc, stat

QEMU = "qemu-system-x86_64"
# What the accelerators need on the command line. cx16 off: with it two machines at once panic under TCG.
ACCELERATORS = {
    "kvm": ["-accel", "kvm", "-cpu", "host"],
    "tcg": ["-accel", "tcg,thread={threads}", "-cpu", "max,-cx16"],
}
# QEMU before this one may translate code while another CPU of the machine is patching it; after some minutes the kernel
# panics ("Oops: int3"). There, machines of more than one CPU take turns on one thread.
SAFE_THREADS = (8, 1)
TAP = "tap0"
BOOT_LIMIT = 180.0  # seconds until sshd greets, on a busy machine without KVM
_APPEND = "console=ttyS0 loglevel=4 panic=-1 mitigations=off"


@dataclass
class Hardware:
    """What a machine is made of, apart from its disks and its network. A snapshot fits only the same hardware."""

    memory: int  # MiB
    cpus: int
    accelerator: str
    kernel: str
    initrd: str
    threads: str = "multi"  # of TCG
    snapshot: str = ""  # file to start from, "" for a cold boot


@dataclass
class Spec:
    """One start of one machine."""

    name: str
    hardware: Hardware
    state: str  # its sockets are <state>.ctl and <state>.qmp
    console: str
    disks: tuple[str, str] = ("", "")  # root (raw), settings (tar); none for the machine that a snapshot is taken of
    hardware_address: str = ""
    cgroup: str = ""
    wait: bool = False  # stop before the disks and the network card are looked for


def hardware_file(folder: str, memory: int, cpus: int) -> str:
    """Where lab_vm_image.py keeps what it found to work here."""
    return os.path.join(folder, f"hardware-{memory}-{cpus}.json")


def load(path: str) -> dict[str, Any]:
    """The content of a JSON file, {} without one."""
    try:
        with open(path, encoding="utf-8") as handle:
            found: dict[str, Any] = json.load(handle)
            return found
    except FileNotFoundError:
        return {}


def known_hardware(folder: str, memory: int, cpus: int) -> Hardware:
    """The hardware that was found to work here for so many MiB and CPUs."""
    found = load(hardware_file(folder, memory, cpus))
    if not found:
        raise MigrationError(f"No machine has been tried with {folder}.", "Run playbooks/lab.yml again.")
    return Hardware(**found["hardware"])


def make_disks(spec: Spec, image: str, files: Iterable[tuple[str, int, int, bytes]]) -> None:
    """The machine's two disks: its root, unless it is there, and the files that it takes over at every boot."""
    root, settings = spec.disks
    if not os.path.exists(root):
        command = ["cp", "--sparse=always", "--reflink=auto", image, root + ".new"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise MigrationError(f"{spec.name} gets no disk: {done.stderr.strip()}", "Is there space on the disk?")
        os.replace(root + ".new", root)
    content = lab_vm_guest.archive(files)
    with open(os.open(settings, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as handle:
        handle.write(content + b"\0" * (-len(content) % 65536))


def _drive(number: int, path: str, read_only: bool) -> list[str]:
    # unsafe: a raw file needs no flush to be whole after QEMU was killed; only a crash of the host would harm it
    options = f"file={path.replace(',', ',,')},if=none,id=disk{number},format=raw,cache=unsafe"
    return ["-drive", options + (",read-only=on" if read_only else ""), "-device", f"virtio-blk-pci,drive=disk{number}"]


def command(spec: Spec) -> list[str]:
    """QEMU's command line. It is the same for every machine, names apart, so that one snapshot fits all."""
    hardware = spec.hardware
    accelerator = [word.format(threads=hardware.threads) for word in ACCELERATORS[hardware.accelerator]]
    words = [
        QEMU, "-name", spec.name, "-nodefaults", "-no-user-config", "-display", "none", "-machine", "q35",
        *accelerator, "-smp", str(hardware.cpus), "-m", f"{hardware.memory}M",
        "-rtc", "base=utc", "-device", "vmgenid,guid=auto",
        "-kernel", hardware.kernel, "-initrd", hardware.initrd,
        "-append", f"{_APPEND} {lab_vm_guest.WAIT}" if spec.wait else _APPEND,
        "-chardev", f"file,id=con,path={spec.console},append=on", "-serial", "chardev:con",
        "-chardev", f"socket,id=ctl,path={spec.state}.ctl,server=on,wait=off", "-serial", "chardev:ctl",
        "-qmp", f"unix:{spec.state}.qmp,server=on,wait=off",
    ]  # fmt: skip
    root, settings = spec.disks
    words += [*_drive(0, root or "/dev/null", not root), *_drive(1, settings or "/dev/null", True)]
    backend = (
        f"tap,id=net0,ifname={TAP},script=no,downscript=no" if spec.hardware_address else "hubport,id=net0,hubid=0"
    )
    address = f",mac={spec.hardware_address}" if spec.hardware_address else ""
    words += ["-netdev", backend, "-device", f"virtio-net-pci,netdev=net0,romfile={address}"]
    return words + (["-incoming", "defer"] if hardware.snapshot else [])


def plug(pin: str, name: str, pid: int, rate: str) -> None:
    """A cable from the lab's bridge (port named like the machine) to the tap of the QEMU to be, process `pid`.

    The cable is a veth pair like that of a node of namespaces, so that its rate and its cutting are the same; in the
    namespace of QEMU a second bridge joins it to the tap.
    """
    lab_net.unplug(pin, name)
    lab_net.inside(pin, ["ip", "-batch", "-"], "\n".join([
        f"link add {name} type veth peer name eth0 netns {pid}",
        f"link set {name} master {lab_net.BRIDGE} up",
    ]) + "\n")  # fmt: skip
    lab_net.inside(f"/proc/{pid}/ns/net", ["ip", "-batch", "-"], "\n".join([
        f"link add {lab_net.BRIDGE} type bridge forward_delay 0 stp_state 0 mcast_snooping 0",
        f"tuntap add mode tap name {TAP} vnet_hdr",
        f"link set eth0 master {lab_net.BRIDGE} up",
        f"link set {TAP} master {lab_net.BRIDGE} up",
        f"link set {lab_net.BRIDGE} up",
    ]) + "\n")  # fmt: skip
    if rate:
        lab_net.shape(pin, name, pid, rate)


def start(spec: Spec, wire: Callable[[int], None]) -> Proc:
    """Start QEMU in a network namespace of its own; `wire` gets its PID while it still waits.

    The machine boots only with `attend`. Raises MigrationError when QEMU cannot be run.
    """
    for kind in ("ctl", "qmp"):
        if os.path.exists(f"{spec.state}.{kind}"):
            os.unlink(f"{spec.state}.{kind}")
    ready_read, ready_write = os.pipe()
    go_read, go_write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(ready_read)
        os.close(go_write)
        _become_qemu(spec, ready_write, go_read)
    os.close(ready_write)
    os.close(go_read)
    try:
        with os.fdopen(ready_read, "rb") as handle:
            if handle.read(2) != b"ok":
                raise MigrationError(f"{spec.name}: {handle.read().decode('utf-8', 'replace')}", "See docs/lab.md.")
        wire(pid)
        os.write(go_write, b"go")
    finally:
        os.close(go_write)  # a child that still waits for "go" ends by this
    found = stat(pid)
    if found is None or found[0] in "ZX":
        raise MigrationError(f"{spec.name}: QEMU ended at once.", f"Its words are in {spec.console}.")
    return Proc(pid, found[2])


def _become_qemu(spec: Spec, ready_write: int, go_read: int) -> NoReturn:
    try:
        os.setsid()
        if spec.cgroup:
            lab_cgroups.join(lab_cgroups.create(spec.cgroup))
        unshare(CLONE_NEWNET)
        os.write(ready_write, b"ok")
        os.close(ready_write)
        if os.read(go_read, 2) != b"go":
            os._exit(1)
        console = os.open(spec.console, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o640)
        os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
        os.dup2(console, 1)
        os.dup2(console, 2)
        os.closerange(3, 1024)
        words = command(spec)
        os.execvp(words[0], words)
    except BaseException as exc:  # nothing may return into the caller's code from a forked child
        try:
            os.write(ready_write, f"no{exc}".encode())
        except OSError:
            os.write(2, f"{exc}\n".encode())
        os._exit(1)


class Boot:
    """The conversation of one boot, over the machine's second serial line."""

    def __init__(self, spec: Spec, machine: Proc, limit: float = BOOT_LIMIT) -> None:
        self._spec = spec
        self._machine = machine
        self._deadline = time.monotonic() + limit
        self._line = connected(f"{spec.state}.ctl", limit, machine.alive)
        self._buffer = b""

    def __enter__(self) -> Boot:
        return self

    def __exit__(self, *_: object) -> None:
        self._line.close()

    def qmp(self) -> Qmp:
        left = max(self._deadline - time.monotonic(), 1.0)
        return Qmp(connected(f"{self._spec.state}.qmp", left, self._machine.alive))

    def resume(self) -> None:
        """Load the snapshot, if there is one, and let the machine go on from it."""
        if not self._spec.hardware.snapshot:
            return
        snapshot = self._spec.hardware.snapshot
        try:
            with self.qmp() as qmp:
                qmp.do("migrate-incoming", uri=f"exec:cat {snapshot}")
                qmp.until("query-status", ("paused",), max(self._deadline - time.monotonic(), 1.0))
                qmp.do("cont")
        except MigrationError as error:
            text = f"The machine {self._spec.name} does not go on from {snapshot}: {error.message}"
            folder = os.path.dirname(snapshot)
            raise MigrationError(text, f"Remove this lab and the folder {folder}, then make it again.") from error
        self.say("go")

    def say(self, text: str) -> None:
        self._line.sendall(text.encode() + b"\n")

    def hear(self, *words: str) -> str:
        """The next of these words that the machine says; MigrationError when it ends or the time is over."""
        while True:
            line, found, rest = self._buffer.partition(b"\n")
            if found:
                self._buffer = rest
                if line.strip().decode("latin-1") in words:
                    return line.strip().decode("latin-1")
                continue
            self._line.settimeout(max(self._deadline - time.monotonic(), 0.001))
            try:
                part = self._line.recv(4096)
            except OSError as exc:
                part = b""
                if not isinstance(exc, (socket.timeout, ConnectionError)):
                    raise
            if not part:
                console = self._spec.console
                text = f"The machine {self._spec.name} did not say {' or '.join(words)} in time"
                raise MigrationError(f"{text}: {last_words(console)}.", f"See {console}.")
            self._buffer += part


def attend(spec: Spec, machine: Proc, clock_offset: float = 0.0, limit: float = BOOT_LIMIT) -> None:
    """Lead a machine through its boot until it runs, at most `limit` seconds; its clock is ours plus the offset."""
    with Boot(spec, machine, limit) as boot:
        boot.resume()
        while boot.hear(lab_vm_guest.CLOCK, lab_vm_guest.UP) == lab_vm_guest.CLOCK:
            boot.say(f"{time.time() + clock_offset:.9f}")


def set_carrier(state: str, up: bool, machine: Proc) -> None:
    """What the machine sees of its cable."""
    with Qmp(connected(f"{state}.qmp", 10.0, machine.alive)) as qmp:
        qmp.do("set_link", name="net0", up=up)


def last_words(console: str) -> str:
    """The end of a machine's console, for a message."""
    try:
        with open(console, encoding="utf-8", errors="replace") as handle:
            lines = [re.sub(r"[^\x20-\x7e]", "", line) for line in handle.readlines()[-3:]]
    except FileNotFoundError:
        return "no output"
    return " / ".join(line for line in lines if line) or "no output"
