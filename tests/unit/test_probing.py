"""How fast pages cross is tried out with a real page server, which is none the worse for it."""

from __future__ import annotations

import os
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate import probing, relay
from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate.errors import LinkLost
from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate.page_images import PageImages, Receiver
from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate.secure import Plain

from .test_page_images import encrypted, plain, tcp

MB = 1 << 20


class Slow(Plain):
    """A link on which each piece takes its time."""

    pause = 0.0

    def recv_into(self, buffer: memoryview, size: int = 0) -> int:
        time.sleep(self.pause)
        return super().recv_into(buffer, size)


def taken(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("pages-*.img"))


@pytest.mark.parametrize("ends", [plain, encrypted])
def test_as_many_pages_cross_as_take_a_moment(ends: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ENOUGH", "COLD"):
        monkeypatch.setattr(probing, name, 1e9)  # a link that is never slow enough to tell at once
    near, far = ends(tmp_path)
    images = tmp_path / "images"
    images.mkdir()
    receiver = Receiver(far, PageImages(str(images)), str(tmp_path / "log"))
    channel = relay.attach(near) if ends is encrypted else near.sock
    with channel:
        assert probing.speed(channel, 30.0) > 0
    assert receiver.result(10)["bytes"] == taken(images) == sum(probing.SIZES)


def test_a_slow_link_is_tried_with_little(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """16 pieces of 64 KB, each held up for as long as an answer may take."""
    near, far = tcp()
    images = tmp_path / "images"
    images.mkdir()
    monkeypatch.delattr(os, "splice", raising=False)  # so that it goes through recv_into
    slow = Slow(far)
    receiver = Receiver(slow, PageImages(str(images)), str(tmp_path / "log"))
    Slow.pause = 0.02
    monkeypatch.setattr(probing, "COLD", 0.01)
    with near:
        found = probing.speed(near, 30.0)
    assert receiver.result(10)["bytes"] == taken(images) == MB
    assert 0 < found < 1e12


def test_the_first_pages_alone_do_not_tell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    near, far = plain(tmp_path)
    images = tmp_path / "images"
    images.mkdir()
    receiver = Receiver(far, PageImages(str(images)), str(tmp_path / "log"))
    monkeypatch.setattr(probing, "ENOUGH", -1e9)
    with near.sock:
        probing.speed(near.sock, 30.0)
    assert receiver.result(10)["bytes"] == sum(probing.SIZES[:2])


@pytest.mark.parametrize("word", [b"", b"\0"])
def test_a_link_that_breaks_is_told_so(word: bytes) -> None:
    near, far = socket.socketpair()

    def end() -> None:
        far.recv(1 << 16)
        far.sendall(word)
        far.close()

    thread = threading.Thread(target=end)
    thread.start()
    with near, pytest.raises(LinkLost, match="could not be tried out"):
        probing.speed(near, 5.0)
    thread.join()


def test_one_that_says_nothing_is_not_waited_for_for_ever(tmp_path: Path) -> None:
    near, far = socket.socketpair()
    with near, far, pytest.raises(LinkLost):
        probing.speed(near, 0.05)
