"""What a workload needs of PyPI: into a virtual environment, or one message that says what cannot be had."""

from __future__ import annotations

import json
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Run

DEFINITION: dict[str, Any] = {"packages": [], "python_packages": ["tiny-thing==1.0"], "program": "tiny_standalone.py"}
PLAY = """
- hosts: all
  gather_facts: false
  connection: local
  tasks:
    - ansible.builtin.include_role:
        name: workload
        tasks_from: {entry}
"""


def wheel(folder: Path) -> None:
    """A package of which no registry knows."""
    info = "tiny_thing-1.0.dist-info"
    files = {
        "tiny_thing.py": "VALUE = 42\n",
        f"{info}/METADATA": "Metadata-Version: 2.1\nName: tiny-thing\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    with zipfile.ZipFile(folder / "tiny_thing-1.0-py3-none-any.whl", "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
        archive.writestr(f"{info}/RECORD", "".join(f"{name},,\n" for name in [*files, f"{info}/RECORD"]))


def play(ansible: Run, tmp_path: Path, hosts: str, entry: str, **extra: Any) -> subprocess.CompletedProcess[str]:
    path = tmp_path / "play.yml"
    path.write_text(PLAY.format(entry=entry), encoding="utf-8")
    values = {
        "workload_definition": DEFINITION, "workload_venvs": str(tmp_path / "{{ inventory_hostname }}"),
        "ansible_python_interpreter": "{{ ansible_playbook_python }}", "ansible_become": False, **extra,
    }  # fmt: skip
    pip = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path), "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    return ansible("ansible-playbook", "-i", hosts, str(path), "-e", json.dumps(values), **pip)


def test_python_packages_come_into_an_environment_of_their_own(ansible: Run, tmp_path: Path) -> None:
    wheel(tmp_path)
    done = play(ansible, tmp_path, "one,", "get_python")
    assert done.returncode == 0, done.stdout + done.stderr
    python = tmp_path / "one/tiny_standalone/bin/python3"
    found = subprocess.check_output([python, "-c", "import tiny_thing; print(tiny_thing.VALUE)"], text=True)
    assert found == "42\n"
    again = play(ansible, tmp_path, "one,", "get_python")
    assert again.returncode == 0 and "changed=0" in again.stdout, again.stdout


@pytest.mark.parametrize("lab", [True, False])
def test_one_message_says_what_cannot_be_had(ansible: Run, tmp_path: Path, lab: bool) -> None:
    """In a lab nothing can be fetched; elsewhere pip finds no such package here."""
    extra: dict[str, Any] = {"lab_service_address": "192.0.2.9"} if lab else {"__workload_missing": []}
    done = play(ansible, tmp_path, "one,two,", "install", **extra)
    assert done.returncode == 2
    said = done.stdout + done.stderr
    assert said.count("The workload needs packages that are missing") == 1, said
    assert "tiny-thing==1.0 on one, two" in " ".join(said.split()).replace("python3-venv, ", ""), said
    assert ("nodes of a lab have no network" in said) == lab and ("lab_workloads=NAME" in said) == lab


GPU = """
- hosts: source:destination
  gather_facts: false
  connection: local
  tasks:
    - ansible.builtin.include_role: {{name: workload_ml_training, tasks_from: gpu}}
      vars:
        ansible_python_interpreter: "{{{{ ansible_playbook_python }}}}"
        workload_ml_training_driver: {folder}/driver
        workload_ml_training_plugins: ["{folder}/{{{{ inventory_hostname }}}}/plugin.so"]
"""


@pytest.mark.parametrize(
    ("driver", "plugins", "lacking"),
    [(False, (), ""), (True, ("one", "two"), ""), (True, ("one",), "two"), (True, (), "one, two")],
)
def test_a_gpu_needs_criu_s_plugin_on_both_nodes(
    ansible: Run, tmp_path: Path, driver: bool, plugins: tuple[str, ...], lacking: str
) -> None:
    for name in plugins:
        (tmp_path / name).mkdir()
        (tmp_path / name / "plugin.so").touch()
    if driver:
        (tmp_path / "driver").touch()
    (tmp_path / "play.yml").write_text(GPU.format(folder=tmp_path), encoding="utf-8")
    (tmp_path / "hosts").write_text("[source]\none\n[destination]\ntwo\n", encoding="utf-8")
    done = ansible("ansible-playbook", "-i", str(tmp_path / "hosts"), str(tmp_path / "play.yml"))
    assert (done.returncode == 0) == (not lacking), done.stdout + done.stderr
    assert not lacking or f"as {lacking} lacks a GPU" in " ".join(done.stdout.split())
