"""What runs in a virtual machine of the lab before sshd does: an initramfs of its own, and the root's first process.

The initramfs stops where a snapshot can be taken that fits any disk and any host: kernel and drivers are up, no disk
and no network card has been seen. What makes a machine this or that host comes from a second disk, a tar archive,
at every boot. On its second serial line it tells how far it is and asks the lab for the time of day.
"""

from __future__ import annotations

import io
import lzma
import os
import tarfile
from collections.abc import Iterable

from .errors import MigrationError

WAIT = "criu-migrate-lab.wait"  # on the kernel's command line: the boot that a snapshot is taken of
INIT = "/usr/lib/criu-migrate-lab/init"
SETTINGS = "/etc/criu-migrate-lab.conf"
PID_MAX = 4194304
READY, CLOCK, UP = "ready", "clock", "up"  # the machine's words on its second serial line
DRIVERS = ("core/failover", "net_failover", "virtio_net", "virtio_blk")
APPLETS = ("cat", "insmod", "mount", "sh", "sleep", "stty", "switch_root", "tar", "umount")
BUSYBOX = "usr/bin/busybox"

FIRST = f"""\
#!/bin/sh
export PATH=/bin
mount -t devtmpfs dev /dev
mount -t proc proc /proc
exec </dev/null >/dev/ttyS0 2>&1 3<>/dev/ttyS1
stty raw -echo <&3
case "$(cat /proc/cmdline)" in
  *{WAIT}*) echo {READY} >&3; read -r go <&3 ;;
esac
for driver in /drivers/*; do insmod "$driver"; done
until [ -b /dev/vda ] && [ -b /dev/vdb ]; do sleep 0.01; done
mount -t ext4 /dev/vda /root
tar -xf /dev/vdb -C /root
umount /proc
mount -o move /dev /root/dev
exec switch_root /root {INIT}
"""

# Asks three times, as the first answers come before the programs on their way are in the page cache. 227 is
# clock_settime on x86_64; Perl is in every Debian and starts in a tenth of Python's time.
SET_CLOCK = f"""\
open(my $line, "+<", "/dev/ttyS1") or exit 1;
my $wanted = ""; vec($wanted, fileno($line), 1) = 1;
for (1 .. 3) {{
  syswrite($line, "{CLOCK}\\n");
  my $answer = "";
  while ($answer !~ /\\n/) {{
    exit 1 unless select(my $ready = $wanted, undef, undef, 5);
    sysread($line, $answer, 64, length($answer));
  }}
  exit 1 unless $answer =~ /^(\\d+)\\.(\\d{{9}})$/m;
  exit 1 if syscall(227, 0, pack("qq", $1, $2));
}}
"""

# What lab_node.py does for a node of namespaces. Where nobody tells the time (the machine rebooted by itself) the clock
# is the board's, plus the offset.
SECOND = f"""\
#!/usr/bin/busybox sh
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8
exec </dev/null >>/var/log/console.log 2>&1
. {SETTINGS}
mount -t proc -o nosuid,nodev,noexec proc /proc
mount -t sysfs -o nosuid,nodev,noexec sysfs /sys
mount -t cgroup2 -o nosuid,nodev,noexec cgroup2 /sys/fs/cgroup
mkdir -p /dev/pts /dev/shm /dev/mqueue /dev/net
[ -e /dev/net/tun ] || mknod -m 666 /dev/net/tun c 10 200
[ -e /dev/fuse ] || mknod -m 666 /dev/fuse c 10 229
mount -t devpts -o nosuid,noexec,ptmxmode=0666,mode=620,gid=5 devpts /dev/pts
mount -t tmpfs -o nosuid,nodev,mode=1777,size=80% tmpfs /dev/shm
mount -t mqueue -o nosuid,nodev,noexec mqueue /dev/mqueue
mount -t tmpfs -o nosuid,nodev,mode=755,size=20% tmpfs /run
mount -t tmpfs -o nosuid,nodev,mode=1777,size=50% tmpfs /tmp
ln -sfn /proc/self/fd /dev/fd
mkdir -p /run/sshd /run/lock
busybox hostname "$(cat /etc/hostname)"
ip link set lo up
ip link set eth0 address "$HARDWARE" up
ip address add "$ADDRESS/24" dev eth0
echo {PID_MAX} >/proc/sys/kernel/pid_max
for file in /etc/sysctl.d/*criu-migrate*; do sysctl -q -p "$file"; done
echo "$FIRST_PID" >/proc/sys/kernel/ns_last_pid
exec 3<>/dev/ttyS1
stty raw -echo <&3
perl -e '{SET_CLOCK}' || /usr/bin/date -u -s "@$(($(/usr/bin/date +%s) + CLOCK_OFFSET))"
echo {UP} >&3
exec 3>&-
exec /usr/bin/tini -- /usr/sbin/sshd -D -e
"""


def cpio(entries: Iterable[tuple[str, int, bytes]]) -> bytes:
    """An archive in the kernel's "newc" format of (path, mode with file type, content or link target)."""
    parts = []
    for number, (path, mode, content) in enumerate([*entries, ("TRAILER!!!", 0, b"")], 1):
        name = path.encode() + b"\0"
        fields = (number, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name), 0)
        head = b"070701" + b"".join(b"%08x" % value for value in fields) + name
        parts += [head, b"\0" * (-len(head) % 4), content, b"\0" * (-len(content) % 4)]
    return b"".join(parts)


def driver(modules: str, name: str) -> bytes:
    """A kernel module, unpacked, from the folder of a kernel's modules; `name` may hold the end of its folder."""
    for folder, _, files in os.walk(modules):
        for file in files:
            path = os.path.join(folder, file)
            if path.endswith((f"/{name}.ko", f"/{name}.ko.xz")):
                with lzma.open(path) if file.endswith(".xz") else open(path, "rb") as handle:
                    return handle.read()
    raise MigrationError(f"The kernel in {modules} has no module {name}.", "Use the cloud kernel of Debian 13.")


def initramfs(tree: str, kernel: str) -> bytes:
    """The initramfs for the kernel of this version, made of what is installed in the tree."""
    with open(os.path.join(tree, BUSYBOX), "rb") as handle:
        busybox = handle.read()
    entries = [(folder, 0o40755, b"") for folder in ("bin", "dev", "drivers", "proc", "root")]
    entries += [("bin/busybox", 0o100755, busybox), ("init", 0o100755, FIRST.encode())]
    entries += [(f"bin/{name}", 0o120777, b"busybox") for name in APPLETS]
    modules = os.path.join(tree, "usr/lib/modules", kernel)
    # a shell's * sorts by name: the numbers keep the order in which they depend on each other
    entries += [(f"drivers/{i}.ko", 0o100644, driver(modules, name)) for i, name in enumerate(DRIVERS)]
    return cpio(entries)


def archive(files: Iterable[tuple[str, int, int, bytes]]) -> bytes:
    """The second disk: a tar of (path, mode, owner, content). Folders above are made by tar, a user's are his."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for path, mode, owner, content in files:
            if owner:
                folder = tarfile.TarInfo(os.path.dirname(path).lstrip("/"))
                folder.type, folder.mode, folder.uid, folder.gid = tarfile.DIRTYPE, 0o700, owner, owner
                tar.addfile(folder)
            item = tarfile.TarInfo(path.lstrip("/"))
            item.size, item.mode, item.uid, item.gid = len(content), mode, owner, owner
            tar.addfile(item, io.BytesIO(content))
    return buffer.getvalue()


def settings(hardware: str, address: str, first_pid: int, clock_offset: float) -> bytes:
    """The text of SETTINGS: shell variables, the offset in whole seconds."""
    return (
        f"HARDWARE={hardware}\nADDRESS={address}\nFIRST_PID={first_pid}\nCLOCK_OFFSET={round(clock_offset)}\n"
    ).encode()
