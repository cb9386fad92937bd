"""SSH's ProxyCommand for the lab (with ProxyUseFdpass): connect inside the lab's network namespace.

Usage: connect.py NAMESPACE_FILE ADDRESS PORT. No address of the lab exists outside that namespace; once connected, the
socket is handed to ssh, so no byte passes through this program.
"""

import array
import ctypes
import os
import socket
import sys


def main() -> int:
    namespace, address, port = sys.argv[1:4]
    if os.geteuid() != 0:  # only root may enter a namespace
        os.execvp("sudo", ["sudo", "-n", sys.executable, "-I", "-S", *sys.argv])
    libc = ctypes.CDLL(None, use_errno=True)
    try:
        entered = os.open(namespace, os.O_RDONLY)
        if libc.setns(entered, 0x40000000):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        connection = socket.create_connection((address, int(port)), timeout=10)
    except OSError as exc:
        sys.stderr.write(f"lab: {address} is not reachable: {exc}. Is the lab up? ansible-playbook playbooks/lab.yml\n")
        return 1
    connection.settimeout(None)
    with socket.socket(fileno=1) as ssh:
        ssh.sendmsg([b"\0"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [connection.fileno()]))])
    return 0


if __name__ == "__main__":
    sys.exit(main())
