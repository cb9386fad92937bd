"""What a lab is called, where it lies on disk, and the operations on a whole lab."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from typing import Any

from . import lab_cgroups, lab_net, lab_node, lab_vm, lab_vm_guest
from .errors import MigrationError
from .proc import Proc

RUN_ROOT = "/run/criu-migrate-lab"
DISK_ROOT = "/var/lib/criu-migrate-lab"
FIRST_NODE, CLIENT, SERVICE = 10, 100, 200  # last parts of the addresses
MAX_NODES = 80
USER, USER_ID = "ubuntu", 1000
ZONES = ("az_a", "az_c")
Files = list[tuple[str, int, int, bytes]]  # path, mode, owner, content
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
        self._booting: dict[str, Proc] = {}  # machines that this process has started and not yet attended

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
            json.dump(record, handle, indent=1)
        os.replace(path + ".new", path)
        self.record = record
        return True

    def exists(self) -> bool:
        """Whether there is anything of this lab, a half-made one included."""
        return os.path.isdir(self.run) or os.path.isdir(self.disk)

    def hosts(self) -> dict[str, str]:
        """Host name -> address of every host of the lab, nodes first, as recorded."""
        subnet = int(self.record["subnet"])
        return {name: lab_net.address(subnet, int(host)) for name, host in self.record["hosts"].items()}

    def planned(self, nodes: int, rate: str, image: str, vm: dict[str, Any] | None = None) -> dict[str, Any]:
        """The record of the lab as it is asked for; the addresses of one that exists stay.

        vm, for nodes that are virtual machines: folder (of lab_vm_image), memory (MiB), cpus, clock_offset (seconds).
        """
        subnet = self.record.get("subnet")
        if subnet is None:
            subnet = lab_net.choose_subnet(self.name, taken_subnets(self.name))
        hosts = planned_hosts(nodes)
        record = {"name": self.name, "subnet": subnet, "rate": rate, "image": image, "hosts": hosts}
        return {**record, "vm": vm} if vm else record

    def ensure_network(self, nodes: int, rate: str, image: str, vm: dict[str, Any] | None = None) -> bool:
        """The namespace, bridge and record of a lab with so many nodes; True when something was changed.

        Nodes that are no longer asked for are removed, and all of them when the image (an overlay must not change
        under its upper layer) or the machines are others. A changed rate reaches the running nodes.
        """
        for folder in (RUN_ROOT, DISK_ROOT, self.run, self.disk):
            os.makedirs(folder, 0o755, exist_ok=True)
        record = self.planned(nodes, rate, image, vm)
        other_image = self.record.get("image", image) != image or (self.record.get("vm") or None) != (vm or None)
        for name in self.record.get("hosts", {}):
            if other_image or name not in record["hosts"]:
                self.remove_node(name)
        rate_changed = self.record.get("rate", rate) != rate
        changed = self._save(record)
        changed = lab_net.create_hub(self.pin, int(record["subnet"])) or changed
        for name in record["hosts"]:
            self.host_key(name)
        if rate_changed:
            for name in self.hosts():
                init = self.init_of(name)
                if init is not None and init.alive():
                    lab_net.shape(self.pin, name, init.pid, rate)
        return changed

    def _pid_file(self, node: str) -> str:
        return os.path.join(self.run, f"{node}.pid")

    def init_of(self, node: str) -> Proc | None:
        return lab_node.read_proc(self._pid_file(node))

    def running(self, node: str) -> bool:
        """Whether a node is on; a machine whose boot nobody attended to its end is not."""
        init = self.init_of(node)
        return init is not None and init.alive() and not os.path.exists(self._state(node) + ".booting")

    def is_machine(self, node: str) -> bool:
        """Whether a host is a virtual machine; the client's never is."""
        return bool(self.record.get("vm")) and node.startswith("node-")

    def _state(self, node: str) -> str:
        return os.path.join(self.run, node)

    def machine(self, node: str) -> lab_vm.Spec:
        """What a start of this virtual machine is made of."""
        vm, layers = self.record["vm"], os.path.join(self.disk, node)
        return lab_vm.Spec(
            name=f"{self.name}.{node}",
            hardware=lab_vm.known_hardware(vm["folder"], vm["memory"], vm["cpus"]),
            state=self._state(node),
            console=os.path.join(layers, "console.log"),
            disks=(os.path.join(layers, "root.raw"), os.path.join(layers, "settings.tar")),
            hardware_address=lab_net.hardware(int(self.record["subnet"]), int(self.record["hosts"][node])),
            cgroup=self._cgroup(node),
        )

    def known(self, node: str) -> None:
        """Raise MigrationError unless the lab has such a node."""
        hosts = self.record.get("hosts", {})
        if node not in hosts:
            has = f"it has {', '.join(hosts)}" if hosts else "it does not exist"
            raise MigrationError(f"The lab {self.name} has no node {node!r}: {has}.", "See playbooks/lab.yml.")

    def start_node(self, node: str, authorized_key: str) -> bool:
        """Power a node on; its disk is what it was, or new. False when it was on.

        `wait_ssh` tells when its sshd answers. The key is kept for later starts, which need not give it.
        """
        self.known(node)
        if self.running(node):
            return False
        lab_cgroups.remove(self._cgroup(node))
        os.makedirs(os.path.join(self.disk, node), 0o755, exist_ok=True)
        files = self._node_files(node, authorized_key)
        init = self._start_machine(node, files) if self.is_machine(node) else self._start_namespaces(node, files)
        with open(self._pid_file(node), "w", encoding="ascii") as handle:
            handle.write(f"{init.pid} {init.start}\n")
        return True

    def _start_namespaces(self, node: str, files: Files) -> Proc:
        apply_sysctls(self.record["image"])
        layers = os.path.join(self.disk, node)
        mount_point = os.path.join(self.run, f"{node}.root")
        for folder in (f"{layers}/upper", f"{layers}/work", mount_point):
            os.makedirs(folder, 0o755, exist_ok=True)
        spec = lab_node.Spec(
            name=node,
            hostname=node,
            image=self.record["image"],
            mount_point=mount_point,
            command=["/usr/sbin/sshd", "-D", "-e"],
            layers=layers,
            cgroup=self._cgroup(node),
            files=files,
            pid_place=self._pid_place(node),
        )
        subnet, host, rate = int(self.record["subnet"]), int(self.record["hosts"][node]), self.record["rate"]
        return lab_node.start(spec, lambda pid: lab_net.plug(self.pin, node, pid, subnet, host, rate))

    def _start_machine(self, node: str, files: Files) -> Proc:
        """Start QEMU; the boot goes on in `wait_ssh`, so that several can boot at once."""
        vm, spec = self.record["vm"], self.machine(node)
        first = lab_node.first_pid(self._pid_place(node), lab_vm_guest.PID_MAX)
        own = lab_vm_guest.settings(spec.hardware_address, self.hosts()[node], first, self.clock_offset(node))
        scripts = [(lab_vm_guest.SETTINGS, 0o644, 0, own), (lab_vm_guest.INIT, 0o755, 0, lab_vm_guest.SECOND.encode())]
        lab_vm.make_disks(spec, os.path.join(vm["folder"], "root.raw"), [*files, *scripts])
        with open(self._state(node) + ".booting", "w", encoding="ascii"):
            pass
        init = lab_vm.start(spec, lambda pid: lab_vm.plug(self.pin, node, pid, self.record["rate"]))
        self._booting[node] = init
        return init

    def clock_offset(self, node: str) -> float:
        """Seconds by which a node's clock is set off on purpose: the destination's."""
        return float(self.record["vm"]["clock_offset"]) if self.is_machine(node) and node == "node-2" else 0.0

    def _pid_place(self, node: str) -> float:
        """Where a node's PIDs begin, 0 to 1: each at another place, so that a restored PID is likely free."""
        return list(self.record["hosts"]).index(node) / len(self.record["hosts"])

    def wait_ssh(self, node: str, limit: float) -> None:
        """Wait until the node's sshd greets, at most `limit` seconds."""
        log = os.path.join(self.disk, node, "upper/var/log/console.log")
        if node in self._booting:
            spec = self.machine(node)
            lab_vm.attend(spec, self._booting.pop(node), self.clock_offset(node), limit)
            os.unlink(self._state(node) + ".booting")
            log = spec.console
        if not lab_net.greeted(self.pin, self.hosts()[node], 22, limit):
            raise MigrationError(f"No sshd answers on {node} within {limit:g} s.", f"Its messages are in {log}.")

    def stop_node(self, node: str, silent: bool = True) -> bool:
        """Cut a node's power; its disk stays. False when it was off.

        `silent`: nobody hears of it, as of a dead machine; else the kernel says goodbye for the killed processes.
        """
        if silent:
            lab_net.unplug(self.pin, node)
        init = self.init_of(node)
        stopped = init is not None and lab_node.stop(init)
        lab_cgroups.remove(self._cgroup(node))
        return stopped

    def set_link(self, node: str, state: str) -> bool:
        """Cut ("down") or restore ("up") a node's cable; False when it was so already."""
        changed = lab_net.set_link(self.pin, node, state)
        init = self.init_of(node)
        if changed and init is not None and self.is_machine(node):
            lab_vm.set_carrier(self._state(node), state == "up", init)
        return changed

    def remove_node(self, node: str) -> bool:
        """Stop a node and remove its disk; False when there was nothing."""
        # Whoever is still connected (Ansible keeps its connections) has to know, or a new lab could not be reached.
        changed = self.stop_node(node, silent=False)
        changed = lab_cgroups.remove(self._cgroup(node)) or changed
        for kind in ("pid", "ctl", "qmp", "booting"):
            if os.path.exists(f"{self._state(node)}.{kind}"):
                os.unlink(f"{self._state(node)}.{kind}")
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

    def _node_files(self, node: str, authorized_key: str) -> Files:
        public = self.host_key(node)
        with open(os.path.join(self.disk, node, "ssh_host_ed25519_key"), "rb") as handle:
            private = handle.read()
        keys = os.path.join(self.disk, "authorized_keys")
        if authorized_key:
            with open(keys, "w", encoding="ascii") as handle_text:
                handle_text.write(authorized_key.strip() + "\n")
        with open(keys, "rb") as handle:
            authorized = handle.read()
        names = "".join(f"{address} {name}\n" for name, address in self.hosts().items())
        return [
            ("/etc/ssh/ssh_host_ed25519_key", 0o600, 0, private),
            ("/etc/ssh/ssh_host_ed25519_key.pub", 0o644, 0, f"{public}\n".encode()),
            (f"/home/{USER}/.ssh/authorized_keys", 0o600, USER_ID, authorized),
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
        if not (os.path.isdir(DISK_ROOT) and os.listdir(DISK_ROOT)):
            restore_sysctls()
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


SYSCTLS_BEFORE = os.path.join(RUN_ROOT, "sysctls.json")  # in /run: a reboot resets the settings, and this


def _sysctl_path(name: str) -> str:
    return "/proc/sys/" + name.replace(".", "/")


def wanted_sysctls(text: str) -> dict[str, str]:
    """The settings in the text of a sysctl.d file."""
    pairs = (line.split("=", 1) for line in text.splitlines() if "=" in line and line.strip()[0] not in "#;")
    return {name.strip().lstrip("-"): value.strip() for name, value in pairs}


def apply_sysctls(image: str) -> None:
    """What a machine does at boot with its sysctl.d: these settings hold for the whole host, so note the old ones.

    Only what the project's own roles put into the image counts; a maximum is never lowered.
    """
    folder = os.path.join(image, "etc/sysctl.d")
    before: dict[str, str] = {}
    if os.path.exists(SYSCTLS_BEFORE):
        with open(SYSCTLS_BEFORE, encoding="ascii") as handle:
            before = json.load(handle)
    for file in sorted(os.listdir(folder)) if os.path.isdir(folder) else []:
        if "criu-migrate" not in file:
            continue
        with open(os.path.join(folder, file), encoding="utf-8") as handle:
            wanted = wanted_sysctls(handle.read())
        for name, value in wanted.items():
            with open(_sysctl_path(name), encoding="ascii") as handle:
                current = handle.read().strip()
            if current != value and not ("max" in name and int(current) > int(value)):
                before.setdefault(name, current)
                with open(SYSCTLS_BEFORE, "w", encoding="ascii") as handle:
                    json.dump(before, handle)
                with open(_sysctl_path(name), "w", encoding="ascii") as handle:
                    handle.write(value)


def restore_sysctls() -> None:
    """Give the host its own settings back, when the last lab goes."""
    if not os.path.exists(SYSCTLS_BEFORE):
        return
    with open(SYSCTLS_BEFORE, encoding="ascii") as handle:
        before = json.load(handle)
    for name, value in before.items():
        with open(_sysctl_path(name), "w", encoding="ascii") as handle:
            handle.write(value)
    os.unlink(SYSCTLS_BEFORE)
