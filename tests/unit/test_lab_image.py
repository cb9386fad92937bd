"""The image's key, where its packages come from, and what happens to half-made ones."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate import lab_cgroups, lab_host, lab_image
from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate.errors import MigrationError
from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate.proc import Proc, stat

TARGETS = """\
bookworm main http://mirror.example/debian/
bookworm contrib http://mirror.example/debian/
bookworm-updates main http://updates.example/debian/
bookworm-security main http://security.example/debian-security/
"""
ACQUIRE = """\
Acquire "";
Acquire::http "";
Acquire::http::Proxy "http://proxy.example:3128";
Acquire::https::CaInfo "/etc/ssl/own.pem";
Acquire::Check-Valid-Until "false";
Acquire::Languages "none";
Acquire::IndexTargets::deb::Packages::MetaKey "x";
"""


@pytest.fixture
def role(tmp_path: Path) -> Path:
    (tmp_path / "criu/tasks").mkdir(parents=True)
    (tmp_path / "criu/tasks/main.yml").write_text("a: 1\n")
    (tmp_path / "criu/README.md").write_text("words\n")
    return tmp_path / "criu"


def key(role: Path, *contents: str, suite: str = "trixie") -> str:
    return lab_image.Image.of(suite, [str(role)], contents).path


def test_the_key_follows_what_goes_into_the_image(role: Path) -> None:
    first = key(role, "redis-server")
    assert key(role, "redis-server") == first
    assert key(role, "redis-server", "ffmpeg") != first
    assert key(role, "redis-server", suite="sid") != first
    (role / "README.md").write_text("other words\n")
    assert key(role, "redis-server") == first
    (role / "tasks/main.yml").write_text("a: 2\n")
    assert key(role, "redis-server") != first


def test_the_base_does_not_depend_on_the_roles(role: Path) -> None:
    assert lab_image.Image.of("trixie", [str(role)], []).base == lab_image.Image.of("trixie", [], ["x"]).base


def test_the_mirror_is_the_one_of_the_hosts_own_release() -> None:
    assert lab_image.mirror(TARGETS, "bookworm") == "http://mirror.example/debian"
    assert lab_image.mirror("stable main http://s.example/debian/\n", "bookworm") == "http://s.example/debian"
    assert lab_image.mirror("noble main http://u.example/ubuntu/\n", "bookworm") == ""


def test_only_settings_for_fetching_are_taken_over() -> None:
    settings = lab_image.fetch_settings(ACQUIRE)
    assert [line.split(" ")[0] for line in settings.splitlines()] == [
        "Acquire::http::Proxy",
        "Acquire::https::CaInfo",
        "Acquire::Check-Valid-Until",
    ]
    assert lab_image.proxies(settings) == {"http_proxy": "http://proxy.example:3128"}


def test_the_owner_of_a_half_made_image_is_in_its_name() -> None:
    owner = lab_image.owner_of("/cache/0123456789abcdef.4242-1234567.part")
    assert owner is not None
    assert (owner.pid, owner.start) == (4242, 1234567)
    assert lab_image.owner_of("/cache/strange.part") is None


def test_what_a_dead_run_left_is_removed_and_what_a_live_one_makes_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lab_image, "FILLERS", str(tmp_path / "filling"))
    monkeypatch.setattr(lab_cgroups, "remove", lambda _name: False)
    own = stat(os.getpid())
    assert own is not None
    dead, alive = tmp_path / f"k.{os.getpid()}-1.part", tmp_path / f"k.{os.getpid()}-{own[2]}.part"
    for path in (dead, alive, tmp_path / "finished"):
        path.mkdir()
    lab_image.clear_abandoned(str(tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == sorted([alive.name, "finished"])


def test_the_slower_of_two_runs_gives_way(tmp_path: Path) -> None:
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
        lab_image.take_place(str(tmp_path / name), str(tmp_path / "image"))
    assert (tmp_path / "image/file").read_text() == "first"
    assert not (tmp_path / "second").exists()


def test_a_builder_belongs_to_the_run_that_started_it(tmp_path: Path) -> None:
    image = lab_image.Image(str(tmp_path / "k"), str(tmp_path / "base-k"), "trixie")
    builder = lab_image.Builder(image, Proc(7, 9))
    assert builder.part == str(tmp_path / "k.7-9.part")
    assert not builder.filled()


def test_a_tool_that_fails_says_its_last_words() -> None:
    with pytest.raises(MigrationError, match="no such mirror"):
        lab_image.run(["sh", "-c", "echo no such mirror; exit 3"])


def test_a_host_that_cannot_carry_the_lab_is_told_everything_at_once() -> None:
    text = lab_host.message([lab_host.Problem("No overlayfs.", "Load it."), lab_host.Problem("No root.", "sudo.")])
    assert text.splitlines() == ["This machine cannot carry the lab:", "- No overlayfs. Load it.", "- No root. sudo."]


def test_a_trial_tells_why_it_failed_and_stays_in_its_child() -> None:
    def fails() -> None:
        raise OSError(1, "not here")

    assert "not here" in lab_host.tried(fails)
    assert lab_host.tried(lambda: None) == ""


def test_only_the_first_build_needs_debootstrap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _name, path: None)
    assert lab_host.missing_packages(image_exists=True) == ["iproute2", "openssh-client", "util-linux"]
    assert "debootstrap" in lab_host.missing_packages(image_exists=False)
