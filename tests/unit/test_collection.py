"""A clone and the collection that is built from it hold the same files and import them in the same way."""

from __future__ import annotations

import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import yaml

from tests.conftest import ROOT, Run

TASKS = """
- hosts: localhost
  gather_facts: false
  tasks:
    - {prefix}workload_heartbeat:
        path: /nonexistent/heartbeat.bin
      register: beat
    - {prefix}migration_parameters:
      register: checked
    - ansible.builtin.debug:
        msg: "beat {{{{ beat.present }}}} keys {{{{ checked.migration.workload.params.num_keys }}}}
          mean {{{{ [1, 2, 3] | {prefix}trimmed_mean(1) }}}}"
"""
EXPECTED = "beat False keys 100000 mean 2.0"
NODES = {"SOURCE_NODE_IP": "10.0.0.1", "DEST_NODE_IP": "10.0.0.2"}


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the collection, built from the clone."""
    out = tmp_path_factory.mktemp("build")
    program = str(Path(sys.executable).with_name("ansible-galaxy"))
    command = [program, "collection", "build", "--force", "--output-path", str(out), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return next(out.glob("criu-migrate-*.tar.gz"))


def test_a_clone_imports(ansible: Run, tmp_path: Path) -> None:
    book = tmp_path / "book.yml"
    book.write_text(TASKS.format(prefix=""), encoding="utf-8")
    done = ansible("ansible-playbook", str(book), "-e", "workload=redis", **NODES)
    assert EXPECTED in done.stdout, done.stdout + done.stderr


def test_the_installed_collection_imports(ansible: Run, tmp_path: Path, archive: Path) -> None:
    empty = tmp_path / "ansible.cfg"
    empty.touch()
    environ = {**NODES, "ANSIBLE_COLLECTIONS_PATH": str(tmp_path / "installed"), "ANSIBLE_CONFIG": str(empty)}
    # from within the clone, which must not be taken for an installed release
    into = ("--offline", "-p", str(tmp_path / "installed"))
    installed = ansible("ansible-galaxy", "collection", "install", str(archive), *into)
    assert "criu.migrate:0.1.0 was installed successfully" in installed.stdout, installed.stdout + installed.stderr
    (tmp_path / "nodes.yml").write_text(yaml.safe_dump({"plugin": "criu.migrate.criu_nodes"}), encoding="utf-8")
    (tmp_path / "book.yml").write_text(TASKS.format(prefix="criu.migrate."), encoding="utf-8")
    arguments = ("-i", "nodes.yml", "-e", "workload=redis")
    done = ansible("ansible-playbook", "book.yml", *arguments, cwd=tmp_path, **environ)
    assert EXPECTED in done.stdout, done.stdout + done.stderr
    for playbook in sorted((ROOT / "playbooks").glob("*.yml")):
        name = f"criu.migrate.{playbook.stem}"
        done = ansible("ansible-playbook", name, *arguments, "--syntax-check", cwd=tmp_path, **environ)
        assert done.returncode == 0, f"{name}: {done.stdout}{done.stderr}"


def test_only_what_belongs_into_it_is_in_the_archive(archive: Path) -> None:
    with tarfile.open(archive) as content:
        names = set(content.getnames())
    assert {"README.md", "meta/runtime.yml", "plugins/action/migration_parameters.py", "schemas/metrics.schema.json",
            "library/criu_guard.py", "roles/migration/meta/argument_specs.yml"} <= names  # fmt: skip
    strange = [name for name in names if name.startswith((".venv", ".git", "results/", "collections", "build"))]
    strange += [name for name in names if "__pycache__" in name or name.endswith((".pyc", ".egg-info", "ssh.cfg"))]
    strange += [name for name in names if name.startswith("inventories/") and "/." in name]
    assert strange == []
