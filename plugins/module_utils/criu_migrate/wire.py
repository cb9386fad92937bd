"""Frames between the two guards: a length, a JSON header, and as many raw bytes as the header says."""

from __future__ import annotations

import json
import socket
import ssl
import struct
from collections.abc import Iterable
from typing import Any

from .errors import LinkLost, MigrationError
from .secure import Secure

CHUNK = 1 << 20
MAX_HEADER = 64 << 20
PAGE_MAGIC = b"CRIUPAGE"  # a raw channel for CRIU's pages starts with this and a token of TOKEN bytes
TOKEN = 32
SILENCE = 10.0  # seconds without an answer from the other kernel until a connection counts as dead


def tune(sock: socket.socket, silence: float) -> None:
    """Small messages at once, and a dead link noticed after about `silence` seconds."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 2)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 2)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, min(127, max(2, int(silence / 2))))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(silence * 1000))


def context(server: bool, ca: str, cert: str, key: str) -> ssl.SSLContext:
    """Mutual authentication by the CA of this one run, TLS >= 1.2. It signs two keys only: no names to check."""
    purpose = ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT
    made = ssl.SSLContext(purpose)
    made.minimum_version = ssl.TLSVersion.TLSv1_2
    made.check_hostname = False
    if server:
        made.num_tickets = 0  # nothing is ever resumed
    made.verify_mode = ssl.CERT_REQUIRED
    made.load_verify_locations(ca)
    made.load_cert_chain(cert, key)
    return made


class Link:
    """One connection. Every failure of the network is a LinkLost."""

    def __init__(self, sock: socket.socket | Secure) -> None:
        self.sock = sock

    def close(self) -> None:
        try:
            self.sock.close()
        except OSError:
            pass

    def send(self, header: dict[str, Any], body: bytes = b"") -> None:
        self.send_all([(header, body)])

    def send_all(self, frames: Iterable[tuple[dict[str, Any], bytes]]) -> None:
        """Many small ones leave together: the images of a dump are a hundred frames, for which a process waits."""
        held = bytearray()
        for header, body in frames:
            data = json.dumps({**header, "body": len(body)}).encode()
            held += struct.pack("!I", len(data)) + data + body
            if len(held) >= CHUNK:
                self._put(held)
                held = bytearray()
        if held:
            self._put(held)

    def _put(self, data: bytearray) -> None:
        try:
            self.sock.sendall(data)
        except (OSError, ValueError) as error:
            raise LinkLost(f"The link to the other guard broke: {error}") from error

    def _exactly(self, size: int) -> bytes:
        data = bytearray(size)
        view = memoryview(data)
        got = 0
        try:
            while got < size:
                count = self.sock.recv_into(view[got:], min(size - got, CHUNK))
                if not count:
                    raise LinkLost("The other guard closed the link.")
                got += count
        except (OSError, ValueError) as error:
            raise LinkLost(f"The link to the other guard broke: {error}") from error
        return bytes(data)

    def receive(self, limit: float | None = None) -> tuple[dict[str, Any], bytes]:
        """The next frame; LinkLost after `limit` seconds of silence (None: as long as the link holds)."""
        try:
            self.sock.settimeout(limit)
            (size,) = struct.unpack("!I", self._exactly(4))
            if size > MAX_HEADER:
                raise MigrationError(
                    "The other guard sent a frame that is no frame of ours.", "Same version on both nodes?"
                )
            header: dict[str, Any] = json.loads(self._exactly(size))
            return header, self._exactly(int(header["body"]))
        finally:
            try:
                self.sock.settimeout(None)
            except OSError:
                pass


def read_preamble(sock: socket.socket) -> str:
    """The token of a page channel; '' when the peer is about to speak TLS (a ClientHello begins with 0x16)."""
    first = sock.recv(1, socket.MSG_PEEK)
    if first != PAGE_MAGIC[:1]:
        return ""
    data = b""
    while len(data) < len(PAGE_MAGIC) + TOKEN:
        more = sock.recv(len(PAGE_MAGIC) + TOKEN - len(data))
        if not more:
            return ""
        data += more
    return data[len(PAGE_MAGIC) :].decode("ascii", "replace")
