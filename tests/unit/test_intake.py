"""Images on their way from node to node."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate.files import image_frames
from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate.intake import Intake
from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate.sync import BLOCK


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    made = tmp_path / "here", tmp_path / "there"
    for folder in made:
        folder.mkdir()
    return made


def test_images_arrive_as_they_are(folders: tuple[Path, Path]) -> None:
    here, there = folders
    contents = {"empty.img": b"", "small.img": b"x", "block.img": os.urandom(BLOCK), "long.img": os.urandom(BLOCK + 7)}
    for name, data in contents.items():
        (here / name).write_bytes(data)
    (here / "folder").mkdir()
    (there / "small.img").write_bytes(b"longer than what comes")
    intake = Intake([], str(there))
    for header, body in image_frames(str(here)):
        intake.take(header, body)
    assert intake.end() == {"files": intake.images.files, "bytes": 2 * BLOCK + 8}
    assert {path.name: path.read_bytes() for path in there.iterdir()} == contents
    assert (there / "long.img").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("name", ["../image", "/etc/image", "a/b", "", ".", ".."])
def test_no_image_leads_elsewhere(folders: tuple[Path, Path], name: str) -> None:
    intake = Intake([], str(folders[1]))
    intake.take({"op": "image", "name": name, "offset": 0}, b"x")
    assert "Refused" in intake.end()["error"]["message"]


def test_a_link_is_not_followed(folders: tuple[Path, Path]) -> None:
    here, there = folders
    (there / "core.img").symlink_to(here / "victim")
    intake = Intake([], str(there))
    intake.take({"op": "image", "name": "core.img", "offset": 0}, b"x")
    assert "error" in intake.end() and not (here / "victim").exists()
