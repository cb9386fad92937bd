"""Directories that travel: whole the first time, changed blocks the second, and never through a link."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate import sync
from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate.errors import MigrationError


def move(source: Path, target: Path, base: sync.Manifest) -> tuple[sync.Manifest, int]:
    receiver, new = sync.Receiver([str(target)]), sync.Manifest()
    for header, body in sync.frames(0, str(source), base, new):
        receiver.apply(header, body)
    receiver.finish()
    return new, receiver.bytes


def test_second_round_sends_changed_blocks_only(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "new" / "target"
    (source / "deep").mkdir(parents=True)
    (source / "deep" / "big").write_bytes(os.urandom(3 * sync.BLOCK + 5))
    (source / "link").symlink_to("deep/big")
    os.mkfifo(source / "pipe")
    (source / "gone").write_text("x")
    (source / "sparse").write_bytes(bytes(sync.BLOCK * 2))
    manifest, first = move(source, target, {})
    assert first == 3 * sync.BLOCK + 6
    with (source / "deep" / "big").open("r+b") as handle:
        handle.seek(sync.BLOCK + 1)
        handle.write(b"changed")
    (source / "gone").unlink()
    _manifest, second = move(source, target, manifest)
    assert second == sync.BLOCK
    assert (target / "deep" / "big").read_bytes() == (source / "deep" / "big").read_bytes()
    assert os.readlink(target / "link") == "deep/big"
    assert (target / "pipe").is_fifo()
    assert not (target / "gone").exists()
    assert (target / "sparse").stat().st_size == 2 * sync.BLOCK
    assert (target / "deep" / "big").stat().st_mtime_ns == (source / "deep" / "big").stat().st_mtime_ns
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o755


def test_file_that_shrank(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    (source / "log").write_bytes(b"a" * 100)
    manifest, _bytes = move(source, target, {})
    (source / "log").write_bytes(b"b")
    move(source, target, manifest)
    assert (target / "log").read_bytes() == b"b"


def test_file_that_grows_while_it_is_read(tmp_path: Path) -> None:
    """What was read past the size that was seen is cut off there, and so must not count as sent."""
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    growing = source / "segment"
    growing.write_bytes(os.urandom(100))
    receiver, manifest = sync.Receiver([str(target)]), sync.Manifest()
    for header, body in sync.frames(0, str(source), {}, manifest):
        if header["op"] == "entry" and header["path"] == "segment":
            with growing.open("ab") as handle:
                handle.write(os.urandom(200))
        receiver.apply(header, body)
    receiver.finish()
    assert (target / "segment").stat().st_size == 100
    move(source, target, manifest)
    assert (target / "segment").read_bytes() == growing.read_bytes()


def test_file_that_was_changed_just_now_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel's clock for files may stand still between a look at one and the next write to it."""
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    (source / "file").write_bytes(b"a" * 100)
    now = os.stat(source / "file").st_ctime_ns
    monkeypatch.setattr(time, "time_ns", lambda: now + sync.TICK // 2)
    manifest, _bytes = move(source, target, {})
    (target / "file").write_bytes(b"b" * 100)  # what the other side has, had the write been seen by nobody
    manifest["file"]["blocks"] = []
    move(source, target, manifest)
    assert (target / "file").read_bytes() == b"a" * 100


def test_file_at_rest_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    (source / "file").write_bytes(b"a" * 100)
    now = os.stat(source / "file").st_ctime_ns
    monkeypatch.setattr(time, "time_ns", lambda: now + 10 * sync.TICK)
    manifest, _bytes = move(source, target, {})
    monkeypatch.setattr(sync, "_digest", lambda _data: pytest.fail("it was read again"))
    move(source, target, manifest)


def test_single_file_as_a_root(tmp_path: Path) -> None:
    (tmp_path / "one").write_text("content")
    move(tmp_path / "one", tmp_path / "there" / "one", {})
    assert (tmp_path / "there" / "one").read_text() == "content"


def test_root_that_does_not_exist_sends_nothing(tmp_path: Path) -> None:
    assert list(sync.frames(0, str(tmp_path / "none"), {}, {})) == []


@pytest.mark.parametrize("path", ["/etc/passwd", "../outside", "a/../../outside"])
def test_path_out_of_the_root_is_refused(tmp_path: Path, path: str) -> None:
    receiver = sync.Receiver([str(tmp_path)])
    with pytest.raises(MigrationError, match="outside"):
        receiver.apply({"op": "gone", "root": 0, "path": path}, b"")


def test_planted_link_is_not_followed(tmp_path: Path) -> None:
    target, outside = tmp_path / "target", tmp_path / "outside"
    target.mkdir()
    outside.mkdir()
    (target / "deep").symlink_to(outside)
    (target / "file").symlink_to(outside / "file")
    receiver = sync.Receiver([str(target)])
    with pytest.raises(OSError):
        receiver.apply({"op": "block", "root": 0, "path": "deep/x", "offset": 0, "zero": 1}, b"x")
    with pytest.raises(OSError):
        receiver.apply({"op": "block", "root": 0, "path": "file", "offset": 0, "zero": 1}, b"x")
    assert list(outside.iterdir()) == []
