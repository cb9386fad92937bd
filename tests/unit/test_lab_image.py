"""The image's key, where its packages come from, and what happens to half-made ones."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate import (
    lab_cache,
    lab_cgroups,
    lab_host,
    lab_image,
    lab_store,
)
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
    return lab_cache.Image.of(suite, [str(role)], contents, cache="/nowhere").path


def seal(image: lab_cache.Image) -> str:
    """What a Builder leaves in the cache."""
    record = Path(image.path, lab_cache.RECORD)
    record.parent.mkdir(parents=True)
    record.write_text(image.record())
    return image.path


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
    assert lab_cache.Image.of("trixie", [str(role)], []).base == lab_cache.Image.of("trixie", [], ["x"]).base


def test_an_image_that_holds_more_serves_a_lab(role: Path, tmp_path: Path) -> None:
    def of(*contents: str, current: str = "", exact: bool = False) -> lab_cache.Image:
        return lab_cache.Image.of("trixie", [str(role)], contents, str(tmp_path / "cache"), current, exact)

    first = of("redis")
    assert not first.exists() and first.start == first.base
    small, large = seal(first), seal(of("redis", "torch", "ffmpeg"))
    assert of("redis").path == small
    assert of("torch").path == large and of("torch").exists()
    assert of("torch").contents == ["ffmpeg", "redis", "torch"]
    # a lab stays on what it has
    assert of("redis", current=large).path == large
    # each virtual machine has a copy of it
    exact = of("torch", exact=True)
    assert not exact.exists() and exact.start == exact.base


def test_an_image_is_made_from_the_fullest_that_holds_nothing_else(role: Path, tmp_path: Path) -> None:
    def of(*contents: str, current: str = "") -> lab_cache.Image:
        return lab_cache.Image.of("trixie", [str(role)], contents, str(tmp_path / "cache"), current)

    small, middle = seal(of("redis")), seal(of("redis", "numpy"))
    seal(of("ffmpeg"))
    assert of("redis", "numpy", "torch").start == middle
    assert of("redis", "torch").start == small
    # what the lab has stays
    grown = of("torch", current=middle)
    assert grown.contents == ["numpy", "redis", "torch"] and grown.start == middle
    (role / "tasks/main.yml").write_text("a: 2\n")
    changed = of("redis", "torch", current=middle)
    assert changed.start == changed.base and changed.contents == ["redis", "torch"]


def test_only_stale_images_that_no_lab_uses_are_removed(
    role: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lab_store, "DISK_ROOT", str(tmp_path / "labs"))
    cache = tmp_path / "cache"

    def of(*contents: str) -> lab_cache.Image:
        return lab_cache.Image.of("trixie", [str(role)], contents, str(cache))

    old, used = seal(of("redis")), seal(of("numpy"))
    (role / "tasks/main.yml").write_text("a: 2\n")
    now, other = of("redis"), seal(of("ffmpeg"))
    seal(now)
    for name in (
        "k.7-9.part",
        "base-0",
        f"{Path(old).name}-vm-1",
        f"{Path(used).name}-vm-1",
        f"{Path(other).name}-vm-1",
    ):
        (cache / name).mkdir()
    (tmp_path / "labs/mine").mkdir(parents=True)
    (tmp_path / "labs/mine/lab.json").write_text(json.dumps({"image": used}))
    assert lab_cache.stale(now) == sorted([str(cache / "base-0"), old, f"{old}-vm-1"])


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
    owner = lab_cache.owner_of("/cache/0123456789abcdef.4242-1234567.part")
    assert owner is not None
    assert (owner.pid, owner.start) == (4242, 1234567)
    assert lab_cache.owner_of("/cache/strange.part") is None


def test_what_a_dead_run_left_is_removed_and_what_a_live_one_makes_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lab_cache, "FILLERS", str(tmp_path / "filling"))
    monkeypatch.setattr(lab_cgroups, "remove", lambda _name: False)
    own = stat(os.getpid())
    assert own is not None
    dead, alive = tmp_path / f"k.{os.getpid()}-1.part", tmp_path / f"k.{os.getpid()}-{own[2]}.part"
    for path in (dead, alive, tmp_path / "finished"):
        path.mkdir()
    lab_cache.clear_abandoned(str(tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == sorted([alive.name, "finished"])


def test_the_slower_of_two_runs_gives_way(tmp_path: Path) -> None:
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
        lab_cache.take_place(str(tmp_path / name), str(tmp_path / "image"))
    assert (tmp_path / "image/file").read_text() == "first"
    assert not (tmp_path / "second").exists()


def test_a_builder_belongs_to_the_run_that_started_it(tmp_path: Path) -> None:
    image = lab_cache.Image(str(tmp_path / "k"), str(tmp_path / "base-k"), str(tmp_path / "base-k"), "trixie", "", [])
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
