"""Pages of which some lie in the images and some are still on the source."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate.lazy_file import GONE, THERE, all_came
from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate.lazy_store import RemoteStore
from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate.lazymap import Range
from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate.mixed_store import MixedStore
from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate.store import ImageStore
from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate.uffd import PAGE

BASE = 0x100000


def at(page: int) -> int:
    return BASE + page * PAGE


@pytest.fixture
def stores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[MixedStore, RemoteStore, bytes]:
    """Pages 0 to 3 and 6 to 7 in images, 4 and 5 on the source, without a gap between them."""
    memory = os.urandom(8 * PAGE)
    one, two = tmp_path / "pages-1.img", tmp_path / "pages-2.img"
    one.write_bytes(bytes(PAGE) + memory[: 4 * PAGE])
    two.write_bytes(memory[6 * PAGE :])
    ranges = [Range(at(0), at(4), str(one), PAGE), Range(at(4), at(6)), Range(at(6), at(8), str(two), 0)]
    local = ImageStore(str(tmp_path))
    monkeypatch.setattr(
        "ansible_collections.criu.migrate.plugins.module_utils.criu_migrate.lazymap.ranges", lambda *_: ranges
    )
    remote = RemoteStore({7: [(at(4), at(6))]}, lambda _text: None, str(tmp_path / "lazy-pages"), ahead=False)
    return MixedStore(local, remote), remote, memory


def come(remote: RemoteStore, memory: bytes) -> None:
    """The source's pages are here."""
    remote.write(memoryview(memory[4 * PAGE : 6 * PAGE]), 0)
    remote._file.mark(0, THERE * 2)


def test_each_page_is_read_from_where_it_lies(stores: tuple[MixedStore, RemoteStore, bytes]) -> None:
    mixed, remote, memory = stores
    assert [mixed.there(7, at(2), 16), mixed.there(7, at(4), 16), mixed.there(7, at(6), 1)] == [2, 0, 1]
    come(remote, memory)
    assert mixed.there(7, at(4), 16) == 2
    found, page = b"", 0
    while page < 8:
        data = mixed.read(7, at(page), 8)
        found, page = found + data, page + len(data) // PAGE
    assert found == memory
    found, page = b"", 0
    while page < 8:
        fd, place, pages = mixed.locate(7, at(page), 8)
        found, page = found + os.pread(fd, pages * PAGE, place), page + pages
    assert found == memory
    with pytest.raises(KeyError):
        mixed.there(7, at(8), 1)


def test_what_is_released_across_the_border(stores: tuple[MixedStore, RemoteStore, bytes], tmp_path: Path) -> None:
    mixed, remote, memory = stores
    assert not all_came(str(tmp_path))
    come(remote, memory)
    assert all_came(str(tmp_path))
    mixed.release(7, at(3), 4)
    assert mixed.released(7) == [(at(4), at(6))]
    assert bytes(remote._file.state[:2]) == GONE * 2
    assert mixed.read(7, at(6), 2) == memory[6 * PAGE :]


def test_nothing_is_left_on_the_source(tmp_path: Path) -> None:
    """A process that wrote to nothing between the last round and the freeze."""
    remote = RemoteStore({7: []}, lambda _text: None, str(tmp_path / "lazy-pages"), ahead=False)
    assert remote.complete.is_set()
    assert all_came(str(tmp_path))
