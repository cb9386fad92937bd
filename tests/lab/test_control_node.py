"""The control node dies, has few hands, has to give a password, or has only the installed collection."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.lab.conftest import Prepare
from tests.lab.harness.migration import Migration
from tests.lab.harness.nodes import Lab, environment, playbook, program

SMALL = {"mb_size": 16, "interval": 1.0, "max_memory": 32}
PASSWORD = "correct horse"  # noqa: S105 - of an account in the lab that lives as long as the test


def resolve(migration: Migration) -> str:
    """Run resolve.yml for this run and return what it says."""
    words = ("-i", str(migration.lab.inventory), "playbooks/resolve.yml", "-e", f"run_id={migration.run_id}")
    done = playbook(migration.tmp, *words)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("state", ["frozen", "restored", "committed"])
def test_ansible_playbook_is_killed(prepare: Prepare, lab: Lab, state: str) -> None:
    """The guards finish alone, and resolve.yml says how."""
    migration, aftermath = prepare(
        "redis", service_address=lab.service_address(3), redis_port=7003, num_keys=5000,
        migration_pause_at={"source": [state]},
    )  # fmt: skip
    migration.start()
    migration.await_paused("source", state)
    migration.kill_play()
    migration.go("source", state)
    aftermath.check("destination", client=True, resolved=False)
    assert "the process runs on the destination" in resolve(migration)


def test_ansible_playbook_is_killed_when_the_guards_are_armed(prepare: Prepare, lab: Lab) -> None:
    """Nobody starts the source's guard: nothing happens to the process until a person lets it go on."""
    migration, aftermath = prepare("redis", service_address=lab.service_address(3), redis_port=7003, num_keys=5000)
    migration.start()
    migration.await_state("source", "armed")
    migration.kill_play()
    if migration.record("source").get("guard") is None:
        aftermath.one_copy("source", "destination")
    resolve(migration)
    aftermath.check("destination", client=True, resolved=False)


def test_guards_and_keepers_are_killed_under_the_play(prepare: Prepare, lab: Lab) -> None:
    """The play starts the source's again. The destination's is up to resolve.yml; the play goes on with it."""
    migration, aftermath = prepare(
        "redis", service_address=lab.service_address(3), redis_port=7003, num_keys=5000,
        migration_pause_at={"source": ["frozen"], "destination": ["restored"]},
    )  # fmt: skip
    migration.start()
    for role, state in (("source", "frozen"), ("destination", "restored")):
        before = migration.await_paused(role, state)
        migration.kill_guard(role, keeper=True)
        migration.go(role, state)
        if role == "destination":
            resolve(migration)
        migration.await_new_guard(role, before)
    migration.finish()
    aftermath.check("destination", client=True)


@pytest.fixture
def account(lab: Lab) -> Iterator[str]:
    """An account on all hosts whose sudo wants a password."""
    name = "careful"
    for node in lab.nodes.values():
        node.run("useradd", "-m", "-s", "/bin/sh", name)
        node.run("chpasswd", text=f"{name}:{PASSWORD}\n")
        node.path(f"/etc/sudoers.d/{name}").write_text(f"{name} ALL=(ALL) PASSWD: ALL\n", encoding="utf-8")
        node.run("cp", "-a", "/home/ubuntu/.ssh", f"/home/{name}/")
        node.run("chown", "-R", f"{name}:{name}", f"/home/{name}/.ssh")
    yield name
    for node in lab.nodes.values():
        node.run("rm", f"/etc/sudoers.d/{name}")
        node.run("pkill", "-KILL", "-u", name, check=False)
        node.run("userdel", "-r", name, check=False)


def test_one_fork_and_a_sudo_password(prepare: Prepare, lab: Lab, account: str) -> None:
    migration, aftermath = prepare("memory", **SMALL, ansible_user=account, ansible_become_password=PASSWORD)
    migration.arguments = ["--forks", "1"]
    migration.run()
    aftermath.check("destination")
    assert PASSWORD not in migration.output()


def test_check_mode_changes_nothing(prepare: Prepare) -> None:
    migration, aftermath = prepare("memory", **SMALL)
    migration.arguments = ["--check"]
    migration.run()
    aftermath.check_untouched()


def test_the_installed_collection_migrates(prepare: Prepare, tmp_path: Path) -> None:
    """Built, installed elsewhere, run from a directory without an ansible.cfg."""
    galaxy = program("ansible-galaxy")
    build = [galaxy, "collection", "build", "--output-path", str(tmp_path), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    archive = str(next(tmp_path.glob("criu-migrate-*.tar.gz")))
    config = tmp_path / "ansible.cfg"
    config.write_text("[defaults]\n", encoding="utf-8")
    environ = {"ANSIBLE_CONFIG": str(config), "ANSIBLE_COLLECTIONS_PATH": str(tmp_path / "installed")}
    install = [galaxy, "collection", "install", archive, "--offline"]
    subprocess.run(install, check=True, capture_output=True, cwd=tmp_path, env=environment(tmp_path, **environ))
    migration, aftermath = prepare("memory", **SMALL)
    migration.playbook, migration.cwd, migration.environ = "criu.migrate.migrate", tmp_path, environ
    migration.run()
    assert migration.metrics()["status"] == "migrated"
    aftermath.check("destination")
