"""The lab's network: a bridge in a network namespace of its own, and one veth pair for each node."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import time
import zlib
from collections.abc import Iterable

from .errors import MigrationError
from .lab_kernel import CLONE_NEWNET, MNT_DETACH, setns, umount

BRIDGE = "bridge"
HUB_HOST = 1
PREFIX = "10.77"
_RATE = re.compile(r"^(\d+(?:\.\d+)?)(k|m|g|t)?(i)?(bit|bps)$")
_UNITS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


def rate_bits(rate: str) -> float:
    """Bits per second of a rate in tc's notation ("1gbit", "300mbit", "40mbps"); ValueError otherwise."""
    found = _RATE.match(rate.strip().lower())
    if not found:
        raise ValueError(f"{rate!r} is not a link rate; write it as tc does, for instance 1gbit or 300mbit")
    base = 1024 if found.group(3) else 1000
    bits = float(found.group(1)) * float(base ** _UNITS[found.group(2) or ""])
    if bits <= 0:
        raise ValueError("a link rate must be above 0")
    return bits * (8 if found.group(4) == "bps" else 1)


def shaping(device: str, rate: str) -> list[str]:
    """tc's arguments that limit what leaves `device`; the bucket holds 5 ms and at least one GSO packet (bytes)."""
    burst = max(int(rate_bits(rate) / 8 * 0.005), 128 * 1024)
    return ["qdisc", "replace", "dev", device, "root", "tbf", "rate", rate.strip().lower(),
            "burst", str(burst), "latency", "50ms"]  # fmt: skip


def choose_subnet(lab: str, taken: Iterable[int]) -> int:
    """The x of 10.77.x.0/24: derived from the lab's name, the next free one where that is taken.

    Raises MigrationError when 256 labs exist.
    """
    used = set(taken)
    first = 0 if lab == "lab" else zlib.crc32(lab.encode()) % 256
    for step in range(256):
        if (first + step) % 256 not in used:
            return (first + step) % 256
    raise MigrationError("All 256 lab networks are in use.", "Remove a lab: playbooks/lab.yml -e lab_state=absent.")


def address(subnet: int, host: int) -> str:
    return f"{PREFIX}.{subnet}.{host}"


def hardware(subnet: int, host: int) -> str:
    """The MAC that goes with an address: always the same, so that no neighbour has an outdated one after a restart."""
    return f"02:00:0a:4d:{subnet:02x}:{host:02x}"


def run(args: list[str], text: str | None = None) -> str:
    """Run a network tool; MigrationError carries its words."""
    done = subprocess.run(args, input=text, capture_output=True, text=True, check=False)
    if done.returncode:
        raise MigrationError(
            f"{' '.join(args)} failed ({done.returncode}): {done.stderr.strip()}",
            "Remove the lab with lab_state=absent and make it again.",
            {"cmd": args, "rc": done.returncode, "stdin": text or ""},
        )
    return done.stdout


def inside(netns: str, args: list[str], text: str | None = None) -> str:
    """Run a tool in a network namespace, given as the path of its file."""
    return run(["nsenter", f"--net={netns}", *args], text)


def hub_exists(pin: str) -> bool:
    """A pin is a mounted namespace file; after a reboot an empty file may be all that is left."""
    try:
        return os.stat(pin).st_dev != os.stat(os.path.dirname(pin)).st_dev
    except FileNotFoundError:
        return False


def create_hub(pin: str, subnet: int) -> bool:
    """The namespace with the bridge, pinned to the file `pin`; False when it was there."""
    if hub_exists(pin):
        return False
    with open(pin, "w", encoding="ascii"):
        pass
    run(["unshare", f"--net={pin}", "true"])
    inside(pin, ["ip", "-batch", "-"], "\n".join([
        "link set lo up",
        f"link add {BRIDGE} address {hardware(subnet, HUB_HOST)} type bridge forward_delay 0 stp_state 0",
        f"address add {address(subnet, HUB_HOST)}/24 dev {BRIDGE}",
        f"link set {BRIDGE} up",
    ]) + "\n")  # fmt: skip
    return True


def remove_hub(pin: str) -> bool:
    """Unpin the namespace: the bridge goes with it."""
    if hub_exists(pin):
        umount(pin, MNT_DETACH)
    if os.path.exists(pin):
        os.unlink(pin)
        return True
    return False


def unplug(pin: str, name: str) -> None:
    """Remove the cable of a node that is off: the kernel does it too, but later; nothing where there is none."""
    if not hub_exists(pin) or name not in ports(pin):
        return
    try:
        inside(pin, ["ip", "link", "delete", name])
    except MigrationError:
        if name in ports(pin):
            raise  # it was not the kernel that came first


def plug(pin: str, name: str, pid: int, subnet: int, host: int, rate: str = "") -> None:
    """A cable from the bridge (port named like the node) to eth0 in the network namespace of process `pid`."""
    unplug(pin, name)
    inside(pin, ["ip", "-batch", "-"], "\n".join([
        f"link add {name} type veth peer name eth0 address {hardware(subnet, host)} netns {pid}",
        f"link set {name} master {BRIDGE} up",
    ]) + "\n")  # fmt: skip
    own = f"/proc/{pid}/ns/net"
    inside(own, ["ip", "-batch", "-"], "\n".join([
        "link set lo up",
        f"address add {address(subnet, host)}/24 dev eth0",
        "link set eth0 up",
    ]) + "\n")  # fmt: skip
    if rate:
        shape(pin, name, pid, rate)


def shape(pin: str, name: str, pid: int, rate: str) -> None:
    """Limit a node's cable in both directions; an empty rate lifts the limit."""
    for netns, device in ((pin, name), (f"/proc/{pid}/ns/net", "eth0")):
        if rate:
            inside(netns, ["tc", *shaping(device, rate)])
        elif " tbf " in inside(netns, ["tc", "qdisc", "show", "dev", device]):
            inside(netns, ["tc", "qdisc", "delete", "dev", device, "root"])


def ports(pin: str) -> dict[str, str]:
    """The bridge's cables: name -> "up" or "down" as they were set."""
    found = {}
    for line in inside(pin, ["ip", "-oneline", "link", "show", "master", BRIDGE]).splitlines():
        name = line.split(": ")[1].split("@")[0]
        flags = line[line.index("<") + 1 : line.index(">")].split(",")
        found[name] = "up" if "UP" in flags else "down"
    return found


def set_link(pin: str, name: str, state: str) -> bool:
    """Cut ("down") or restore ("up") a node's cable; False when it was so already."""
    known = ports(pin)
    if name not in known:
        raise MigrationError(f"The lab has no running node {name!r}, it has {', '.join(sorted(known)) or 'none'}.",
                             "Start the lab: ansible-playbook playbooks/lab.yml.")  # fmt: skip
    if known[name] == state:
        return False
    inside(pin, ["ip", "link", "set", name, state])
    return True


def socket_inside(netns: str) -> socket.socket:
    """A TCP socket that lives in another network namespace; this process stays where it is."""
    own = f"/proc/self/fd/{os.open('/proc/self/ns/net', os.O_RDONLY | os.O_CLOEXEC)}"
    setns(netns, CLONE_NEWNET)
    try:
        return socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    finally:
        setns(own, CLONE_NEWNET)
        os.close(int(own.rsplit("/", 1)[1]))


def greeted(netns: str, host: str, port: int, limit: float) -> bool:
    """Whether an SSH server greets at this address within `limit` seconds; netns "" is the caller's own."""
    deadline = time.monotonic() + limit
    while time.monotonic() < deadline:
        with socket_inside(netns) if netns else socket.socket() as probe:
            probe.settimeout(1.0)
            try:
                probe.connect((host, port))
                if probe.recv(4) == b"SSH-":
                    return True
            except OSError:
                time.sleep(0.02)  # nothing tells another network namespace that a port is listened on
    return False
