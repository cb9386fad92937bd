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
from typing import Any

import pytest

from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate import lazymap, page_runs, sockets, stats
from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate.errors import LinkLost, MigrationError
from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate.page_images import (
    PageImages,
    Receiver,
    lie_late,
)
from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate.page_runs import HERE, PAGE
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
    receiver = Receiver(ends[1], PageImages(str(images)), str(tmp_path / "log"))
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
    receiver = Receiver(ends[1], PageImages(str(tmp_path)), str(tmp_path / "log"))
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
    receiver = Receiver(ends[1], PageImages(str(tmp_path)), str(tmp_path / "log"))
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
    receiver = Receiver(ends[1], PageImages(str(tmp_path)), str(tmp_path / "log"))
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


@pytest.mark.parametrize(
    ("wrong", "kind", "text"),
    [
        (MemoryError("no memory"), MigrationError, "failed to take the pages in: MemoryError"),
        (BrokenPipeError("gone"), LinkLost, "link for pages broke: gone"),
    ],
)
def test_what_breaks_at_the_last_word_is_told_for_what_it_is(
    tmp_path: Path, wrong: Exception, kind: type[Exception], text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A dump without an error counts as whole; and a link that is gone is no disk that is full."""
    near, far = tcp()
    link = Plain(far)

    def sendall(data: bytes) -> None:
        assert data == bytes(4)
        raise wrong

    monkeypatch.setattr(link, "sendall", sendall)
    with near:
        receiver = Receiver(link, PageImages(str(tmp_path)), str(tmp_path / "log"))
        Criu(Plain(near)).say(FORCE_CLOSE)
        with pytest.raises(kind, match=text):
            receiver.result(10)


def test_stopping_ends_it(ends: tuple[Secure, Secure], tmp_path: Path) -> None:
    receiver = Receiver(ends[1], PageImages(str(tmp_path)), str(tmp_path / "log"))
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


IN_PARENT = 1


def take(
    folder: Path, log: Path, parent: PageImages | None, dump: Callable[[Criu], None], late: bool, tight: bool = False
) -> PageImages:
    """One dump's pages through a receiver, in images of their own."""
    folder.mkdir()
    near, far = tcp()
    images = PageImages(str(folder), parent, late, tight)
    receiver = Receiver(Plain(far), images, str(log))
    with near:
        criu = Criu(Plain(near))
        dump(criu)
        criu.say(FORCE_CLOSE)
        assert criu.hear(4) == bytes(4)
        receiver.result(5.0)
    return images


def begin(criu: Criu, owner: int, inherits: bool) -> None:
    """What `criu dump` and `criu pre-dump` ask before they send anything of a process."""
    criu.say(PARENT, owner)
    assert criu.hear(4) == struct.pack("<i", inherits)
    criu.say(OPEN, owner)
    assert criu.hear(1) == bytes([inherits])


def three_rounds(tmp_path: Path, late: bool = False, tight: bool = False) -> tuple[list[PageImages], bytes]:
    """Sixteen pages; then the third and fourth are written to; then the fourth. And what the memory holds at last."""
    owner, memory = 7 << 8 | 1, bytearray(os.urandom(16 * PAGE))

    def write(first: int, pages: int) -> bytes:
        data = os.urandom(pages * PAGE)
        memory[first * PAGE : (first + pages) * PAGE] = data
        return data

    def first(criu: Criu) -> None:
        begin(criu, owner, False)
        criu.say(ADD | (PRESENT | LAZY) << 16, owner, 0x10000, 12, bytes(memory[: 12 * PAGE]))
        criu.say(ADD | PRESENT << 16, owner, 0x10000 + 12 * PAGE, 4, bytes(memory[12 * PAGE :]))

    def second(criu: Criu) -> None:
        begin(criu, owner, True)
        criu.say(ADD | IN_PARENT << 16, owner, 0x10000, 2)
        criu.say(ADD | (PRESENT | LAZY) << 16, owner, 0x10000 + 2 * PAGE, 2, write(2, 2))
        criu.say(ADD | IN_PARENT << 16, owner, 0x10000 + 4 * PAGE, 12)

    def third(criu: Criu) -> None:
        begin(criu, owner, True)
        criu.say(ADD | IN_PARENT << 16, owner, 0x10000, 3)
        criu.say(ADD | (PRESENT | LAZY) << 16, owner, 0x10000 + 3 * PAGE, 1, write(3, 1))
        criu.say(ADD | IN_PARENT << 16, owner, 0x10000 + 4 * PAGE, 12)

    made: list[PageImages] = []
    for number, dump in enumerate((first, second, third)):
        folder = tmp_path / f"pre-{number}"
        made.append(take(folder, tmp_path / "log", made[-1] if made else None, dump, late and number == 2, tight))
        if number:
            (folder / "parent").symlink_to(f"../pre-{number - 1}")
    return made, bytes(memory)


def varints(data: bytes) -> Iterator[int]:
    number = shift = 0
    for byte in data:
        number |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            yield number
            number = shift = 0


def decode(path: str) -> list[dict[str, Any]]:
    """What crit would say of a page map, as this machine may have no CRIU; one area takes all of the memory in."""
    if "pagemap" not in path:
        return [{"vmas": [{"start": 0x10000, "end": 0x10000 + 16 * PAGE}]}]
    data, at, found = Path(path).read_bytes(), 8, []
    names = {1: "vaddr", 4: "flags", 5: "nr_pages"}
    while at < len(data):
        size = struct.unpack_from("<I", data, at)[0]
        numbers = list(varints(data[at + 4 : at + 4 + size]))
        found.append({names.get(key >> 3, "old"): value for key, value in zip(numbers[::2], numbers[1::2])})
        at += 4 + size
    return [{"pages_id": found[0]["vaddr"]}, *found[1:]]


def test_pages_that_did_not_change_are_found_in_earlier_dumps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stats, "decode", decode)
    made, memory = three_rounds(tmp_path, late=True)
    (tmp_path / "pre-2" / "mm-7.img").touch()
    found = lazymap.ranges(str(tmp_path / "pre-2"), 7)
    content = b""
    for item in found:
        with Path(item.path).open("rb") as handle:
            handle.seek(item.offset)
            content += handle.read(item.end - item.start)
    assert [found[0].start, found[-1].end] == [0x10000, 0x10000 + 12 * PAGE]  # the last four cannot come late
    assert content == memory[: 12 * PAGE]
    assert made[-1].count == 1
    known = [item for item in made[-1].held(7 << 8 | 1) if item.flags & LAZY]
    (tmp_path / "pre-2" / "pagemap-7.img").unlink()  # who has taken the dump in need not read it again
    assert by_page(lazymap.ranges(str(tmp_path / "pre-2"), 7, known)) == by_page(found)


def by_page(ranges: list[lazymap.Range]) -> dict[int, tuple[str, int]]:
    """File and place of each page; files by what they are and not by what they are called."""
    return {
        item.start + offset: (os.path.realpath(item.path), item.offset + offset)
        for item in ranges
        for offset in range(0, item.end - item.start, PAGE)
    }


def pages_there(folder: Path) -> list[int]:
    """Pages that take memory, by dump."""
    return [path.stat().st_blocks * 512 // PAGE for path in sorted(folder.glob("pre-*/pages-*.img"))]


def contents(images: PageImages) -> bytes:
    held = images.held(7 << 8 | 1)
    return b"".join(Path(item.path).read_bytes()[item.offset :][: item.end - item.start] for item in held)


def test_memory_of_pages_that_nobody_needs_is_given_back(tmp_path: Path) -> None:
    made, memory = three_rounds(tmp_path)
    assert pages_there(tmp_path) == [16, 2, 1] and not any(images.spent for images in made)
    made[1].forget_parent()
    made[2].forget_parent()
    assert pages_there(tmp_path) == [14, 1, 1]
    assert contents(made[2]) == memory and made[2].size() == len(memory)


def test_where_room_is_tight_no_page_lies_there_twice(tmp_path: Path) -> None:
    made, memory = three_rounds(tmp_path, tight=True)
    assert pages_there(tmp_path) == [14, 1, 1]
    assert contents(made[2]) == memory
    assert [images.spent for images in made] == [True, True, False]
    made[2].forget_parent()
    assert pages_there(tmp_path) == [14, 1, 1] and contents(made[2]) == memory


def test_a_page_goes_when_its_successor_is_in_the_file_and_not_before(tmp_path: Path) -> None:
    made, memory = three_rounds(tmp_path)
    images = PageImages(str(tmp_path), made[-1], tight=True)
    images.open(7 << 8 | 1)
    images.add(0x10000, 2, PRESENT)
    assert contents(made[-1]) == memory and not made[-1].spent
    images.came()
    assert contents(made[-1]) == bytes(2 * PAGE) + memory[2 * PAGE :] and made[-1].spent
    images.add(0x10000 + 16 * PAGE, 1, PRESENT)  # memory that no earlier dump had
    images.came()
    assert contents(made[-1]) == bytes(2 * PAGE) + memory[2 * PAGE :]


def test_a_page_that_no_earlier_dump_has_is_refused(tmp_path: Path) -> None:
    made, _memory = three_rounds(tmp_path)
    images = PageImages(str(tmp_path / "pre-2"), made[-1])
    images.open(7 << 8 | 1)
    with pytest.raises(MigrationError, match="lack pages between 0x1f000 and 0x21000"):
        images.add(0x10000 + 15 * PAGE, 2, IN_PARENT)
    first = PageImages(str(tmp_path / "pre-0"))
    first.open(7 << 8 | 1)
    with pytest.raises(MigrationError, match="lack pages"):
        first.add(0x10000, 1, IN_PARENT)


def test_page_maps_of_a_lazy_dump_say_that_what_is_here_may_come_late(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hybrid: criu wrote the page map on the source, on page maps that the destination gave it."""
    monkeypatch.setattr(stats, "decode", decode)
    made, memory = three_rounds(tmp_path)
    last, owner = made[-1], 7 << 8 | 1
    (tmp_path / "given.img").write_bytes(last.page_map(owner))
    given = [(entry["vaddr"], entry["nr_pages"], entry["flags"]) for entry in decode_map(tmp_path / "given.img")]
    assert sum(pages for _at, pages, _flags in given) == 16
    assert all(flags & PRESENT and not flags & IN_PARENT for _at, _pages, flags in given)
    assert last.maps() == {"pagemap-7.img": owner}
    images = tmp_path / "images"
    source = PageImages(str(tmp_path), last)
    source.open(owner)
    for place, pages, how in ((0, 5, IN_PARENT), (5, 1, LAZY), (6, 10, IN_PARENT)):  # as criu does, in one entry each
        source._write(page_runs.entry(0x10000 + place * PAGE, how, pages))
    source.close()
    images.mkdir()
    (images / "parent").symlink_to("../pre-2")
    (tmp_path / "pagemap-7.img").rename(images / "pagemap-7.img")
    (images / "mm-7.img").touch()
    for _twice in range(2):
        lie_late(str(images), last)
        flags = [entry["flags"] for entry in decode_map(images / "pagemap-7.img")]
        assert {LAZY | HERE, LAZY, IN_PARENT} == set(flags)
    found = lazymap.ranges(str(images), 7)
    assert [(item.start, item.end) for item in found if not item.path] == [(0x10000 + 5 * PAGE, 0x10000 + 6 * PAGE)]
    held = [item for item in found if item.path]
    content = b"".join(Path(item.path).read_bytes()[item.offset :][: item.end - item.start] for item in held)
    assert content == memory[: 5 * PAGE] + memory[6 * PAGE : 12 * PAGE]
    assert contents(last) == memory and not last.spent
    for _twice in range(2):  # what the source still has is not kept where there is no room for it
        lie_late(str(images), last, lambda _coming: True)
        assert contents(last) == memory[: 5 * PAGE] + bytes(PAGE) + memory[6 * PAGE :] and last.spent


def decode_map(path: Path) -> list[dict[str, Any]]:
    """Entries of a page map under another name."""
    named = path.with_name("pagemap-0.img")
    named.write_bytes(path.read_bytes())
    return decode(str(named))[1:]
