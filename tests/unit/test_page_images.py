"""Pages of a dump, sent as criu sends them, into the files that criu page-server would write."""

from __future__ import annotations

import fcntl
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate import sockets
from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate.errors import LinkLost, MigrationError
from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate.page_images import PAGE, Receiver
from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate.secure import Plain, Secure
from tests.unit.test_secure import contexts, pair

OPEN, PARENT, ADD, FORCE_CLOSE = 4, 5, 6, 0x1024
PRESENT, LAZY = 4, 2
MAGIC = bytes.fromhex("19435654" "25400856")
# images/pagemap.proto: pages_id 65537; vaddr 0x7f7b01848000, compat_nr_pages 0, flags 6, 300 pages; the same of 0x5000
MAP = MAGIC + bytes.fromhex(
    "04000000" "08818004"
    "0f000000" "088080928cb0ef1f" "1000" "2006" "28ac02"
    "0a000000" "0880a001" "1000" "2000" "2801"
)


def plain(_folder: Path) -> tuple[Secure, Secure]:
    near, far = tcp()
    return Plain(near), Plain(far)


def tcp() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        near = socket.create_connection(server.getsockname())
        return near, server.accept()[0]


def encrypted(folder: Path) -> tuple[Secure, Secure]:
    paths = contexts(folder)
    return pair(paths["source"], paths["destination"])


@pytest.fixture(params=[plain, encrypted])
def ends(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Secure, Secure]]:
    made = request.param(tmp_path)
    yield made
    for end in made:
        end.close()


class Criu:
    """The client of a page server."""

    def __init__(self, link: Secure) -> None:
        self.link = link

    def say(self, command: int, owner: int = 0, vaddr: int = 0, pages: int = 0, data: bytes = b"") -> None:
        self.link.sendall(struct.pack("<IIQQQ", command, 0, pages, vaddr, owner) + data)

    def hear(self, size: int) -> bytes:
        found = bytearray(size)
        view = memoryview(found)
        while view:
            count = self.link.recv_into(view)
            assert count
            view = view[count:]
        return bytes(found)


def test_a_dump_arrives(ends: tuple[Secure, Secure], tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    receiver = Receiver(ends[1], str(images), str(tmp_path / "log"))
    criu, first, second = Criu(ends[0]), os.urandom(300 * PAGE), os.urandom(2 * PAGE)
    criu.say(PARENT, 7 << 8 | 1)
    assert criu.hear(4) == bytes(4)
    criu.say(OPEN, 7 << 8 | 1)
    assert criu.hear(1) == b"\0"
    criu.say(ADD | (PRESENT | LAZY) << 16, 7 << 8 | 1, 0x7F7B01848000, 300, first)
    criu.say(ADD, 7 << 8 | 1, 0x5000, 1)
    criu.say(OPEN, 9 << 8 | 2)
    assert criu.hear(1) == b"\0"
    criu.say(ADD | PRESENT << 16, 9 << 8 | 2, 0, 2, second)
    criu.say(FORCE_CLOSE)
    assert criu.hear(4) == bytes(4)
    # what was confirmed is in the files already
    assert (images / "pages-65537.img").read_bytes() == first
    assert (images / "pages-65538.img").read_bytes() == second
    assert (images / "pagemap-7.img").read_bytes() == MAP
    assert (images / "pagemap-shmem-9.img").read_bytes().startswith(MAGIC + bytes.fromhex("04000000" "08828004"))
    result = receiver.result(10)
    assert (result["pages"], result["bytes"]) == (302, 302 * PAGE)
    assert "pagemap-shmem-9.img" in (tmp_path / "log").read_text()


def nothing(criu: Criu) -> None:
    criu.say(OPEN, 7 << 8 | 1)
    criu.hear(1)
    criu.say(ADD | PRESENT << 16, 7 << 8 | 1, PAGE, 3, bytes(PAGE))
    criu.link.close()


@pytest.mark.parametrize(
    ("harm", "error", "text"),
    [
        (nothing, LinkLost, "closed the link"),
        (lambda criu: criu.say(7, 7), MigrationError, "command 0x7"),
        (lambda criu: criu.say(OPEN, 7 << 8 | 3), MigrationError, "unknown kind"),
        (lambda criu: criu.say(ADD, 7 << 8 | 1, 0, 1), MigrationError, "before it said whose"),
    ],
)
def test_what_is_no_dump_is_an_error(
    ends: tuple[Secure, Secure], tmp_path: Path, harm: Callable[[Criu], None], error: type[Exception], text: str
) -> None:
    receiver = Receiver(ends[1], str(tmp_path), str(tmp_path / "log"))
    harm(Criu(ends[0]))
    with pytest.raises(error, match=text):
        receiver.result(10)


def test_a_file_that_takes_no_more(
    ends: tuple[Secure, Secure], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.open
    full = os.memfd_create("full", os.MFD_ALLOW_SEALING)
    fcntl.fcntl(full, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW)
    monkeypatch.setattr(os, "open", lambda path, *how: full if "pages-" in str(path) else real(path, *how))
    receiver = Receiver(ends[1], str(tmp_path), str(tmp_path / "log"))
    criu = Criu(ends[0])
    criu.say(OPEN, 7 << 8 | 1)
    criu.hear(1)
    criu.say(ADD | PRESENT << 16, 7 << 8 | 1, PAGE, 1, bytes(PAGE))
    with pytest.raises(MigrationError, match="cannot store the pages: Operation not permitted"):
        receiver.result(10)


@pytest.mark.parametrize(("last", "text"), [("close", "No space left on device"), ("nothing", "closed the link")])
def test_a_page_map_that_cannot_be_written(
    ends: tuple[Secure, Secure], tmp_path: Path, last: str, text: str
) -> None:
    (tmp_path / "pagemap-7.img").symlink_to("/dev/full")
    receiver = Receiver(ends[1], str(tmp_path), str(tmp_path / "log"))
    criu = Criu(ends[0])
    criu.say(OPEN, 7 << 8 | 1)
    criu.hear(1)
    criu.say(ADD, 7 << 8 | 1, PAGE, 1)
    if last == "close":
        criu.say(FORCE_CLOSE)
    else:
        criu.link.close()
    with pytest.raises(MigrationError, match=text):
        receiver.result(10)


def test_stopping_ends_it(ends: tuple[Secure, Secure], tmp_path: Path) -> None:
    receiver = Receiver(ends[1], str(tmp_path), str(tmp_path / "log"))
    receiver.stop()
    with pytest.raises(LinkLost):
        receiver.result(10)


def test_the_cork_comes_off_whenever_it_was_put_on() -> None:
    near, far = tcp()
    with near, far:
        def later() -> None:
            time.sleep(0.05)
            near.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)

        thread = threading.Thread(target=later)
        thread.start()
        sockets.uncork(near, lambda: True)
        assert not near.getsockopt(socket.IPPROTO_TCP, socket.TCP_CORK)
        thread.join()
        sockets.uncork(near, lambda: False)  # criu has died: nothing to wait for
    local, other = socket.socketpair()
    with local, other:
        sockets.uncork(local, lambda: True)  # a socket that knows no cork
