"""The proxy: a client that speaks criu's side of the page server's protocol gets what the store has."""

from __future__ import annotations

import socket
import struct
from typing import Any

from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate import lazy_proxy, lazy_source
from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate.errors import LinkLost
from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate.lazy_source import PAGE
from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate.lazy_store import RemoteStore
from tests.unit.channel import PAGES, Child, background, content
from tests.unit.waiting import wait_for

HEADER = struct.Struct("<I4xQQQ")


class Criu:
    """What criu lazy-pages says and hears on its end."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        sock.settimeout(10)

    def ask(self, pid: int, vaddr: int, pages: int) -> None:
        self.sock.sendall(HEADER.pack(7, pages, vaddr, pid))

    def exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            more = self.sock.recv(size - len(data))
            assert more
            data += more
        return data

    def hear(self) -> tuple[int, int, bytes]:
        command, pages, vaddr, pid = HEADER.unpack(self.exactly(HEADER.size))
        assert command == 6 | 4 << 16
        return pid, vaddr, self.exactly(pages * PAGE)


def test_the_proxy_answers_in_order_what_is_there_and_ends_as_criu_does(child: Child, dial: Any) -> None:
    near, far = socket.socketpair()
    source, destination = dial()
    store = RemoteStore(child.ranges(), print)
    serving, done = background(lambda: lazy_proxy.serve(far, store))
    criu = Criu(near)
    criu.ask(child.pid, child.address(500), 1)
    criu.ask(child.pid, child.address(0), 1)
    criu.ask(child.pid, child.address(1400), 1024)
    wait_for(lambda: len(store._urgent) == 3)
    sending, _counts = background(lambda: lazy_source.serve(source, lambda: {child.pid}))
    fetching, _same = background(lambda: store.attach(destination))
    assert criu.hear() == (child.pid, child.address(500), content(500))
    assert criu.hear() == (child.pid, child.address(0), content(0))
    pid, vaddr, data = criu.hear()
    assert (pid, vaddr) == (child.pid, child.address(1400)) and data[:PAGE] == content(1400)
    page = 30
    while page < PAGES:
        criu.ask(child.pid, child.address(page), min(1024, PAGES - page))
        _pid, vaddr, data = criu.hear()
        assert vaddr == child.address(page)
        assert data == b"".join(content(n) for n in range(page, page + len(data) // PAGE))
        page += len(data) // PAGE
    near.sendall(HEADER.pack(0x1024, 0, 0, 0))
    assert criu.exactly(4) == bytes(4)
    for thread in (serving, sending, fetching):
        thread.join(10)
    assert done == [True]


def test_the_proxy_ends_with_its_client_and_its_client_with_the_proxy(child: Child) -> None:
    store = RemoteStore(child.ranges(), print)
    near, far = socket.socketpair()
    serving, done = background(lambda: lazy_proxy.serve(far, store))
    near.close()
    serving.join(10)
    assert done == [False]
    near, far = socket.socketpair()
    serving, done = background(lambda: lazy_proxy.serve(far, store))
    Criu(near).ask(child.pid, child.address(1), 1)
    assert near.recv(1) == b""
    serving.join(10)
    assert "no lazy page" in str(done[0])
    near, far = socket.socketpair()
    serving, done = background(lambda: lazy_proxy.serve(far, store))
    Criu(near).ask(child.pid, child.address(0), 1)
    wait_for(lambda: store._urgent)
    store.refuse(LinkLost("never"))
    assert near.recv(1) == b""
    serving.join(10)
    assert isinstance(done[0], LinkLost)
