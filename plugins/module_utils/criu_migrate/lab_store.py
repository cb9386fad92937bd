"""What a lab is called, where it lies on disk, and the operations on a whole lab."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from typing import Any, Optional

from . import lab_cgroups, lab_net, lab_node
from .errors import MigrationError
from .lab_kernel import MNT_DETACH, umount
from .proc import Proc

RUN_ROOT = "/run/criu-migrate-lab"
DISK_ROOT = "/var/lib/criu-migrate-lab"
FIRST_NODE, CLIENT, SERVICE = 10, 100, 200  # last parts of the addresses
MAX_NODES = 80
USER, USER_ID = "ubuntu", 1000
ZONES = ("az_a", "az_c")
NAME = re.compile(r"^[a-z][a-z0-9-]{0,29}$")


class Lab:
    """One lab by its name. The record on disk outlives a reboot, so that addresses and host keys stay."""

    def __init__(self, name: str) -> None:
        if not NAME.match(name):
            raise MigrationError(
                f"{name!r} cannot be a lab_name.", "Use up to 30 lower-case letters, digits and hyphens."
            )
        self.name = name
        self.run = os.path.join(RUN_ROOT, name)
        self.disk = os.path.join(DISK_ROOT, name)
        self.pin = os.path.join(self.run, "net")
        self.record: dict[str, Any] = self._load()

    def _load(self) -> dict[str, Any]:
        try:
            with open(os.path.join(self.disk, "lab.json"), encoding="utf-8") as handle:
                loaded: dict[str, Any] = json.load(handle)
                return loaded
        except FileNotFoundError:
            return {}

    def _save(self, record: dict[str, Any]) -> bool:
        if record == self.record:
            return False
        path = os.path.join(self.disk, "lab.json")
        with open(path + ".new", "w", encoding="utf-8") as handle:
            json.dump(record, handle, indent=1, sort_keys=True)
        os.replace(path + ".new", path)
        self.record = record
        return True

    def hosts(self) -> dict[str, str]:
        """Host name -> address of every host of the lab, nodes first, as recorded."""
        subnet = int(self.record["subnet"])
        return {name: lab_net.address(subnet, int(host)) for name, host in self.record["hosts"].items()}

    def ensure_network(self, nodes: int, rate: str) -> bool:
        """The namespace, bridge and record of a lab with so many nodes; True when something was changed.

        Nodes that are no longer asked for are removed; a changed rate reaches the running nodes.
        """
        for folder in (RUN_ROOT, DISK_ROOT, self.run, self.disk):
            os.makedirs(folder, 0o755, exist_ok=True)
        record = {
            "name": self.name,
            "subnet": self.record.get("subnet", lab_net.choose_subnet(self.name, taken_subnets(self.name))),
            "rate": rate,
            "hosts": planned_hosts(nodes),
        }
        dropped = [name for name in self.record.get("hosts", {}) if name not in record["hosts"]]
        rate_changed = self.record.get("rate", rate) != rate
        for name in dropped:
            self.remove_node(name)
        changed = self._save(record)
        changed = lab_net.create_hub(self.pin, int(record["subnet"])) or changed
        if rate_changed:
            for name in self.hosts():
                init = self.init_of(name)
                if init is not None and init.alive():
                    lab_net.shape(self.pin, name, init.pid, rate)
        return changed

    def _pid_file(self, node: str) -> str:
        return os.path.join(self.run, f"{node}.pid")

    def init_of(self, node: str) -> Optional[Proc]:
        return lab_node.read_proc(self._pid_file(node))

    def running(self, node: str) -> bool:
        init = self.init_of(node)
        return init is not None and init.alive()

    def start_node(self, node: str, image: str, authorized_key: str) -> bool:
        """Power a node on; its disk is what it was, or new. False when it was on."""
        if self.running(node):
            return False
        if node not in self.record.get("hosts", {}):
            raise MigrationError(f"The lab {self.name} has no node {node!r}.", "Run playbooks/lab.yml.")
        lab_cgroups.remove(self._cgroup(node))
        layers = os.path.join(self.disk, node)
        mount_point = os.path.join(self.run, f"{node}.root")
        for folder in (layers, f"{layers}/upper", f"{layers}/work", mount_point):
            os.makedirs(folder, 0o755, exist_ok=True)
        spec = lab_node.Spec(
            name=node,
            hostname=node,
            image=image,
            mount_point=mount_point,
            command=["/usr/sbin/sshd", "-D", "-e"],
            layers=layers,
            cgroup=self._cgroup(node),
            files=self._node_files(node, authorized_key),
            first_pid=first_pid(list(self.record["hosts"]).index(node), len(self.record["hosts"])),
        )
        subnet, host, rate = int(self.record["subnet"]), int(self.record["hosts"][node]), self.record["rate"]
        init = lab_node.start(spec, lambda pid: lab_net.plug(self.pin, node, pid, subnet, host, rate))
        with open(self._pid_file(node), "w", encoding="ascii") as handle:
            handle.write(f"{init.pid} {init.start}\n")
        return True

    def stop_node(self, node: str) -> bool:
        """Cut a node's power; its disk stays. False when it was off."""
        init = self.init_of(node)
        stopped = init is not None and lab_node.stop(init)
        lab_cgroups.remove(self._cgroup(node))
        return stopped

    def remove_node(self, node: str) -> bool:
        """Stop a node and remove its disk; False when there was nothing."""
        changed = self.stop_node(node)
        changed = lab_cgroups.remove(self._cgroup(node)) or changed
        if os.path.exists(self._pid_file(node)):
            os.unlink(self._pid_file(node))
        mount_point = os.path.join(self.run, f"{node}.root")
        if os.path.isdir(mount_point):
            os.rmdir(mount_point)
        layers = os.path.join(self.disk, node)
        if os.path.isdir(layers):
            shutil.rmtree(layers)
            changed = True
        return changed

    def _cgroup(self, node: str) -> str:
        return f"{self.name}.{node}"

    def host_key(self, node: str) -> str:
        """The node's public SSH host key; made once."""
        path = os.path.join(self.disk, node, "ssh_host_ed25519_key")
        if not os.path.exists(path):
            os.makedirs(os.path.dirname(path), 0o755, exist_ok=True)
            make_key(path, f"{node} of the lab {self.name}")
        with open(path + ".pub", encoding="ascii") as handle:
            return handle.read().strip()

    def _node_files(self, node: str, authorized_key: str) -> list[tuple[str, int, int, bytes]]:
        public = self.host_key(node)
        with open(os.path.join(self.disk, node, "ssh_host_ed25519_key"), "rb") as handle:
            private = handle.read()
        names = "".join(f"{address} {name}\n" for name, address in self.hosts().items())
        return [
            ("/etc/ssh/ssh_host_ed25519_key", 0o600, 0, private),
            ("/etc/ssh/ssh_host_ed25519_key.pub", 0o644, 0, f"{public}\n".encode()),
            (f"/home/{USER}/.ssh/authorized_keys", 0o600, USER_ID, f"{authorized_key}\n".encode()),
            ("/etc/hosts", 0o644, 0, f"127.0.0.1 localhost\n::1 localhost\n{names}".encode()),
            ("/etc/hostname", 0o644, 0, f"{node}\n".encode()),
        ]

    def remove(self) -> bool:
        """Remove every trace of the lab on this host, whatever state it is in; False when there was none."""
        changed = False
        names = set(self.record.get("hosts", {}))
        if os.path.isdir(self.run):
            names |= {name[:-4] for name in os.listdir(self.run) if name.endswith(".pid")}
        for name in sorted(names):
            changed = self.remove_node(name) or changed
        changed = lab_net.remove_hub(self.pin) or changed
        for folder in (self.run, self.disk):
            if os.path.isdir(folder):
                shutil.rmtree(folder)
                changed = True
        for folder in (RUN_ROOT, DISK_ROOT):
            try:
                os.rmdir(folder)
            except OSError:
                continue  # other labs are in it
        return changed


def planned_hosts(nodes: int) -> dict[str, int]:
    """Host name -> last part of its address: node-1, node-2, ... and client-1."""
    if not 2 <= nodes <= MAX_NODES:
        raise MigrationError(f"lab_nodes={nodes} is not possible.", f"A lab has 2 to {MAX_NODES} nodes.")
    planned = {f"node-{number + 1}": FIRST_NODE + number for number in range(nodes)}
    return {**planned, "client-1": CLIENT}


def first_pid(index: int, count: int) -> int:
    """Where a node's PIDs begin: spread over what the kernel allows, so that a restored PID is likely free."""
    with open("/proc/sys/kernel/pid_max", encoding="ascii") as handle:
        highest = int(handle.read())
    return 300 + (highest - 300) * index // count


def taken_subnets(but: str) -> list[int]:
    """The x of 10.77.x.0/24 of every other lab of this host."""
    taken = []
    for name in os.listdir(DISK_ROOT) if os.path.isdir(DISK_ROOT) else []:
        path = os.path.join(DISK_ROOT, name, "lab.json")
        if name != but and os.path.exists(path):
            with open(path, encoding="utf-8") as handle:
                taken.append(int(json.load(handle)["subnet"]))
    return taken


def make_key(path: str, comment: str) -> None:
    """An ed25519 key without a passphrase, 0600."""
    done = subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", path],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise MigrationError(f"ssh-keygen failed: {done.stderr.strip()}", "Install openssh-client on this host.")


def unmount_below(folder: str) -> None:
    """Undo mounts that an interrupted run may have left below `folder` in this mount namespace."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as handle:
        points = [line.split()[4] for line in handle]
    for point in sorted((p for p in points if p.startswith(folder + "/")), key=len, reverse=True):
        umount(point, MNT_DETACH)
