"""The control node dies, has few hands, has to give a password, or has only the installed collection."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.lab.conftest import Prepare
from tests.lab.harness import power
from tests.lab.harness.migration import Migration
from tests.lab.harness.nodes import Lab, environment, playbook, program, wait_for

SMALL = {"mb_size": 16, "interval": 1.0, "max_memory": 32}
PASSWORD = "correct horse"  # noqa: S105 - of an account in the lab that lives as long as the test


def resolve(migration: Migration, *more: str) -> str:
    """Run resolve.yml for this run and return what it says."""
    words = ("-i", str(migration.lab.inventory), "playbooks/resolve.yml", "-e", f"run_id={migration.run_id}")
    done = playbook(migration.tmp, *words, *more)
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
    aftermath.nothing_left("destination", resolved=True)


@pytest.mark.soak
def test_ansible_playbook_is_killed_while_it_prepares(prepare: Prepare) -> None:
    migration, aftermath = prepare("memory", **SMALL)
    migration.start()
    wait_for("the nodes to be prepared", lambda: "[See that it can be reached]" in migration.output(), 60)
    migration.kill_play()
    aftermath.check_untouched()


def test_ansible_playbook_is_killed_when_the_workload_is_started(prepare: Prepare, lab: Lab) -> None:
    """No guard was armed: the program runs where it was started, and there is no run to resolve."""
    migration, aftermath = prepare("memory", **SMALL)
    migration.start()
    ready = lab.source.path(f"{migration.working_dir}/checkpoint_ready")
    wait_for("the workload", lambda: ready.exists() and ready.read_text().startswith("ready"), 60)
    migration.kill_play()
    if migration.known():
        resolve(migration)
    aftermath.check("destination" if migration.known() else "source")


@pytest.mark.soak
def test_ansible_playbook_is_killed_while_memory_comes(prepare: Prepare, lab: Lab) -> None:
    migration, aftermath = prepare("memory", **SMALL, migration_strategy="postcopy",
                                   migration_pause_at={"source": ["frozen"]})  # fmt: skip
    migration.start()
    migration.await_paused("source", "frozen")
    power.slow(lab.source, "20mbit")
    try:
        migration.go("source", "frozen")
        wait_for("pages on their way", lambda: migration.record("source").get("lazy"), 60)
        migration.kill_play()
        assert "pages are still to come" in resolve(migration, "-e", "resolve_seconds=2")
    finally:
        power.slow(lab.source, "")
    assert "the process runs on the destination" in resolve(migration)
    aftermath.check("destination")


@pytest.mark.parametrize("phase", ["verify", "report"])
def test_ansible_playbook_is_killed_when_the_process_has_moved(prepare: Prepare, phase: str) -> None:
    """Nobody collects the run any more: resolve.yml takes away what it has left, and the next play names it."""
    migration, aftermath = prepare("memory", **SMALL)
    migration.start()
    if phase == "verify":
        migration.await_state("source", "done")
    else:
        wait_for("results", lambda: migration.results.is_dir() and list(migration.results.iterdir()), 60)
    migration.kill_play()
    assert "the process runs on the destination" in resolve(migration)
    aftermath.check("destination")


def test_a_run_that_stalls_is_not_verified(prepare: Prepare) -> None:
    """Where the process is, is not known for certain: the play says so instead of asking a stopped copy."""
    migration, aftermath = prepare("memory", **SMALL, migration_pause_at={"source": ["committed"]})
    hasty = migration.tmp / "hasty.yml"
    hasty.write_text("all: {vars: {migration_watch_seconds: 5}}\n", encoding="utf-8")
    migration.inventories.append(hasty)
    migration.start()
    migration.finish(rc=None)
    said = migration.output()
    assert "still committed" in said and f"resolve.yml -e run_id={migration.run_id}" in said, said
    assert "verify | " not in said and migration.metrics()["error"]["phase"] == "hand_over", said
    migration.go("source", "committed")
    assert "the process runs on the destination" in resolve(migration)
    aftermath.check("destination")


def test_ansible_playbook_is_killed_when_the_guards_are_armed(prepare: Prepare, lab: Lab) -> None:
    """Nobody starts the source's guard: nothing happens to the process until a person lets it go on."""
    migration, aftermath = prepare("redis", service_address=lab.service_address(3), redis_port=7003, num_keys=5000)
    migration.start()
    migration.await_state("source", "armed")
    migration.kill_play()
    if migration.record("source").get("guard") is None:
        aftermath.one_copy("source", "destination")
    resolve(migration)
    aftermath.check("destination", client=True)


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
