"""The lab's virtual machines: what is computed and said before and while one boots."""

from __future__ import annotations

import io
import json
import lzma
import os
import socket
import tarfile
import threading
from pathlib import Path

import pytest

from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate import (
    lab_store,
    lab_vm,
    lab_vm_guest,
    lab_vm_host,
    lab_vm_image,
)
from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate.errors import MigrationError
from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate.lab_qmp import Qmp, connected
from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate.proc import Proc, stat

VM = {"folder": "/images/k-vm-1", "memory": 1024, "cpus": 1, "clock_offset": 3}
RECORD = {
    "name": "one", "subnet": 7, "rate": "", "image": "/images/k",
    "hosts": {"node-1": 10, "node-2": 11, "client-1": 100}, "vm": VM,
}  # fmt: skip


def own() -> Proc:
    found = stat(os.getpid())
    assert found is not None
    return Proc(os.getpid(), found[2])


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> lab_store.Lab:
    """Return a recorded lab of machines, whose folders lie in tmp_path."""
    monkeypatch.setattr(lab_store, "DISK_ROOT", str(tmp_path / "disk"))
    monkeypatch.setattr(lab_store, "RUN_ROOT", str(tmp_path / "run"))
    for folder in ("disk/one/node-1", "run/one"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "disk/one/lab.json").write_text(json.dumps(RECORD))
    return lab_store.Lab("one")


def spec(tmp_path: Path, **more: object) -> lab_vm.Spec:
    hardware = lab_vm.Hardware(1024, 1, "tcg", "/k/vmlinuz", "/k/initrd", snapshot=str(more.pop("snapshot", "")))
    return lab_vm.Spec("one.node-1", hardware, str(tmp_path / "vm"), str(tmp_path / "console.log"), **more)  # type: ignore[arg-type]


def unpack(archive: bytes) -> dict[str, tuple[int, bytes]]:
    """Read an archive in the kernel's "newc" format: path -> mode and content."""
    found: dict[str, tuple[int, bytes]] = {}
    at = 0
    while True:
        assert archive[at : at + 6] == b"070701"
        fields = [int(archive[at + 6 + 8 * i : at + 14 + 8 * i], 16) for i in range(13)]
        name = archive[at + 110 : at + 110 + fields[11] - 1].decode()
        start = (at + 110 + fields[11] + 3) // 4 * 4
        if name == "TRAILER!!!":
            return found
        found[name] = (fields[1], archive[start : start + fields[6]])
        at = (start + fields[6] + 3) // 4 * 4


def test_the_initramfs_holds_busybox_the_drivers_in_order_and_its_init(tmp_path: Path) -> None:
    drivers = tmp_path / "usr/lib/modules/6.12-cloud/kernel"
    for name in ("net/core/failover", "drivers/net/net_failover", "drivers/net/virtio_net", "drivers/block/virtio_blk"):
        path = drivers / f"{name}.ko.xz"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(lzma.compress(name.encode()))
    (tmp_path / "usr/bin").mkdir()
    (tmp_path / "usr/bin/busybox").write_bytes(b"box")
    found = unpack(lab_vm_guest.initramfs(str(tmp_path), "6.12-cloud"))
    assert found["bin/busybox"] == (0o100755, b"box")
    assert found["bin/sh"] == (0o120777, b"busybox")
    assert found["init"] == (0o100755, lab_vm_guest.FIRST.encode())
    assert [found[f"drivers/{i}.ko"][1] for i in range(4)] == [
        b"net/core/failover", b"drivers/net/net_failover", b"drivers/net/virtio_net", b"drivers/block/virtio_blk",
    ]  # fmt: skip


def test_a_kernel_without_the_driver_is_named(tmp_path: Path) -> None:
    with pytest.raises(MigrationError, match="no module virtio_blk"):
        lab_vm_guest.driver(str(tmp_path), "virtio_blk")


def test_the_settings_disk_keeps_modes_and_owners() -> None:
    text = lab_vm_guest.archive([("/etc/hostname", 0o644, 0, b"n\n"), ("/home/u/.ssh/authorized_keys", 0o600, 9, b"k")])
    with tarfile.open(fileobj=io.BytesIO(text)) as tar:
        found = {item.name: (item.mode, item.uid, item.gid, item.isdir()) for item in tar}
    assert found == {
        "etc/hostname": (0o644, 0, 0, False),
        "home/u/.ssh": (0o700, 9, 9, True),
        "home/u/.ssh/authorized_keys": (0o600, 9, 9, False),
    }


def test_only_the_boot_for_the_snapshot_waits(tmp_path: Path) -> None:
    node = spec(tmp_path, disks=("/d/root.raw", "/d/settings.tar"), hardware_address="02:00:0a:4d:07:0a")
    words = lab_vm.command(node)
    assert lab_vm_guest.WAIT not in " ".join(words)
    assert any("file=/d/root.raw" in word and "read-only" not in word for word in words)
    assert any("file=/d/settings.tar" in word and "read-only=on" in word for word in words)
    assert "-incoming" not in words
    assert "-incoming" in lab_vm.command(spec(tmp_path, snapshot="/k/snapshot"))
    assert lab_vm_guest.WAIT in " ".join(lab_vm.command(spec(tmp_path, wait=True)))


def test_several_cpus_share_a_thread_where_qemu_is_too_old() -> None:
    assert lab_vm_image.release("QEMU emulator version 7.2.22 (Debian 1:7.2)") < lab_vm.SAFE_THREADS
    assert lab_vm_image.release("QEMU emulator version 10.0.2") >= lab_vm.SAFE_THREADS
    assert lab_vm_image.release("") < lab_vm.SAFE_THREADS


def test_a_boot_is_led_by_the_machines_words(tmp_path: Path) -> None:
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(tmp_path / "vm.ctl"))
    server.listen()
    answers: list[str] = []

    def machine() -> None:
        line, _ = server.accept()
        with line, line.makefile("rwb", buffering=0) as words:
            for _ in range(2):
                words.write(b"noise\r\nclock\n")
                answers.append(words.readline().decode())
            words.write(b"up\n")

    thread = threading.Thread(target=machine)
    thread.start()
    lab_vm.attend(spec(tmp_path), own(), clock_offset=1e9, limit=10)
    thread.join()
    server.close()
    assert all(float(answer) > 2.7e9 and answer[-11] == "." for answer in answers)
    assert len(answers) == 2


def test_a_machine_that_dies_is_told_by_its_last_words(tmp_path: Path) -> None:
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(tmp_path / "vm.ctl"))
    server.listen()
    (tmp_path / "console.log").write_text("booting\nKernel panic\x1b[0m\n")

    def dies() -> None:
        line, _ = server.accept()
        line.close()

    thread = threading.Thread(target=dies)
    thread.start()
    with pytest.raises(MigrationError, match="Kernel panic"):
        lab_vm.attend(spec(tmp_path), own(), limit=10)
    thread.join()
    server.close()


def test_qemu_that_ended_is_not_waited_for(tmp_path: Path) -> None:
    with pytest.raises(MigrationError, match="ended at once"):
        connected(str(tmp_path / "nothing"), 10, lambda: False)


def test_qemu_s_answers_are_told_from_its_events() -> None:
    ours, theirs = socket.socketpair()
    with theirs, theirs.makefile("rwb", buffering=0) as lines:
        said: list[dict[str, object]] = [
            {"QMP": {}}, {"return": {}}, {"event": "STOP"}, {"return": {"status": "paused"}},
            {"error": {"desc": "no such command"}}, {"return": {"status": "internal-error"}},
        ]  # fmt: skip
        for text in said:
            lines.write(json.dumps(text).encode() + b"\n")
        with Qmp(ours) as qmp:
            assert qmp.do("query-status") == {"status": "paused"}
            with pytest.raises(MigrationError, match="refuses x: no such command"):
                qmp.do("x")
            with pytest.raises(MigrationError, match="internal-error"):
                qmp.until("query-status", ("running",), 5)


def test_the_client_is_no_machine_and_only_the_destinations_clock_is_off(lab: lab_store.Lab) -> None:
    assert [lab.is_machine(name) for name in lab.hosts()] == [True, True, False]
    assert [lab.clock_offset(name) for name in lab.hosts()] == [0, 3, 0]


def test_a_machine_whose_boot_was_not_led_to_its_end_is_off(lab: lab_store.Lab) -> None:
    mark = Path(lab.run, "node-1.booting")
    Path(lab.run, "node-1.pid").write_text(f"{own().pid} {own().start}\n")
    assert lab.running("node-1")
    mark.touch()
    assert not lab.running("node-1")


def test_a_lab_that_becomes_one_of_machines_has_another_record(lab: lab_store.Lab) -> None:
    assert lab.planned(2, "", "/images/k", VM) == lab.record
    assert "vm" not in lab.planned(2, "", "/images/k", {})


def test_machines_that_were_never_tried_are_not_started(lab: lab_store.Lab) -> None:
    with pytest.raises(MigrationError, match="No machine has been tried"):
        lab.machine("node-1")


def test_memory_is_asked_for_the_machines_to_start_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(lab_vm_host, "tried", lambda _step: "")
    monkeypatch.setattr(lab_vm_host, "NODE_BYTES", 0)
    monkeypatch.setattr(lab_vm_host, "available_mib", lambda: 3000)
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    assert lab_vm_host.problems(0, 2048, str(tmp_path), True) == []
    assert lab_vm_host.problems(1, 2048, str(tmp_path), True) == []
    (problem,) = lab_vm_host.problems(2, 2048, str(tmp_path), True)
    assert "2 machines of 2048 MiB need 4608 MiB of memory, 3000 are free" in problem.message


def test_qemu_is_a_package_of_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lab_vm_host, "which", lambda _command: None)
    assert lab_vm_host.missing_packages() == ["e2fsprogs", "qemu-system-x86"]
