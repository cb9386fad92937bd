"""A lab's record, names and inventory."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest
import yaml

from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate import lab_inventory, lab_node, lab_store
from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate.errors import MigrationError
from tests.conftest import ROOT, Run

HOSTS = {"node-1": "10.77.0.10", "node-2": "10.77.0.11", "node-3": "10.77.0.12", "client-1": "10.77.0.100"}


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder that stands for /var/lib/criu-migrate-lab; /run/... is beside it."""
    monkeypatch.setattr(lab_store, "DISK_ROOT", str(tmp_path / "disk"))
    monkeypatch.setattr(lab_store, "RUN_ROOT", str(tmp_path / "run"))
    monkeypatch.setattr(lab_store, "SYSCTLS_BEFORE", str(tmp_path / "run/sysctls.json"))
    return tmp_path / "disk"


@pytest.mark.parametrize("name", ["lab", "dev", "lab-2", "a" * 30])
def test_good_names(name: str) -> None:
    assert lab_store.Lab(name).name == name


@pytest.mark.parametrize("name", ["", "Lab", "2lab", "../lab", "a b", "a" * 31])
def test_names_that_could_not_be_a_folder_are_refused(name: str) -> None:
    with pytest.raises(MigrationError, match="lab_name"):
        lab_store.Lab(name)


def test_hosts_of_a_lab() -> None:
    assert lab_store.planned_hosts(3) == {"node-1": 10, "node-2": 11, "node-3": 12, "client-1": 100}
    for count in (1, 81):
        with pytest.raises(MigrationError, match="is not possible"):
            lab_store.planned_hosts(count)


def test_the_pids_of_two_nodes_begin_apart() -> None:
    first = [lab_node.first_pid(index / 3, 32768) for index in range(3)]
    assert first[0] >= 300
    assert first[1] - first[0] > 5000 < first[2] - first[1]


def test_a_lab_keeps_its_network_and_another_gets_a_free_one(disk: Path) -> None:
    (disk / "one").mkdir(parents=True)
    subnet = lab_store.Lab("two").planned(2, "", "/i")["subnet"]
    record = {"name": "one", "subnet": subnet, "rate": "", "image": "/i", "hosts": {"node-1": 10}}
    (disk / "one/lab.json").write_text(json.dumps(record))
    assert lab_store.taken_subnets("two") == [subnet]
    assert lab_store.taken_subnets("one") == []
    assert lab_store.Lab("one").planned(2, "", "/i")["subnet"] == subnet
    assert lab_store.Lab("two").planned(2, "", "/i")["subnet"] == (subnet + 1) % 256
    assert lab_store.Lab("one").hosts() == {"node-1": f"10.77.{subnet}.10"}


def test_a_node_that_is_not_there_is_named_with_those_that_are(disk: Path) -> None:
    with pytest.raises(MigrationError, match="does not exist"):
        lab_store.Lab("none").known("node-1")


def test_settings_of_a_sysctl_file() -> None:
    text = "# comment\n; another = one\nfs.pipe-max-size = 16777216\n-fs.pipe-user-pages-soft=0\n\n"
    assert lab_store.wanted_sysctls(text) == {"fs.pipe-max-size": "16777216", "fs.pipe-user-pages-soft": "0"}


def test_settings_are_applied_noted_and_given_back(
    disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "run").mkdir()
    folder = tmp_path / "image/etc/sysctl.d"
    folder.mkdir(parents=True)
    (folder / "60-criu-migrate.conf").write_text("a.soft = 0\na.max = 100\nb.max = 100\n")
    (folder / "10-other.conf").write_text("c.d = 7\n")
    before = {"a.soft": "16384", "a.max": "10", "b.max": "500", "c.d": "1"}
    for name, value in before.items():
        (tmp_path / name).write_text(value + "\n")
    monkeypatch.setattr(lab_store, "_sysctl_path", lambda name: str(tmp_path / name))

    def current() -> dict[str, str]:
        return {name: (tmp_path / name).read_text().strip() for name in before}

    lab_store.apply_sysctls(str(tmp_path / "image"))
    lab_store.apply_sysctls(str(tmp_path / "image"))
    assert current() == {"a.soft": "0", "a.max": "100", "b.max": "500", "c.d": "1"}
    lab_store.restore_sysctls()
    assert current() == before


def test_the_inventory_has_the_groups_that_playbooks_name() -> None:
    data = yaml.safe_load(lab_inventory.hosts_yaml(HOSTS, "10.77.0.200"))["all"]
    groups = data["children"]
    assert groups["source"]["hosts"] == {"node-1": {"ansible_host": "10.77.0.10"}}
    assert groups["destination"]["hosts"] == {"node-2": {"ansible_host": "10.77.0.11"}}
    assert groups["client"]["hosts"] == {"client-1": {"ansible_host": "10.77.0.100"}}
    zones = groups["all_nodes"]["children"]
    assert {zone: list(part["hosts"]) for zone, part in zones.items()} == {
        "az_a": ["node-1", "node-3"],
        "az_c": ["node-2"],
    }
    assert zones["az_a"]["hosts"]["node-3"] == {"ansible_host": "10.77.0.12"}
    assert data["vars"]["lab_service_address"] == "10.77.0.200"
    assert data["vars"]["ansible_user"] == "ubuntu"


@pytest.mark.parametrize(
    ("extra", "expected"),
    [({"workload": "redis"}, "10.77.0.200"), ({"workload": "memory"}, ""), ({}, ""),
     ({"workload": "redis", "service_address": ""}, "")],
)  # fmt: skip
def test_redis_in_the_lab_has_an_address_that_moves(
    ansible: Run, tmp_path: Path, extra: dict[str, str], expected: str
) -> None:
    inventory = tmp_path / "hosts.yml"
    inventory.write_text(lab_inventory.hosts_yaml(HOSTS, "10.77.0.200"), encoding="utf-8")
    words = ["-i", str(inventory), "-m", "debug", "-a", "msg=[{{ service_address }}]", "-e", json.dumps(extra)]
    assert f"[{expected}]" in ansible("ansible", "localhost", *words).stdout


def test_ssh_knows_every_host_and_checks_its_key() -> None:
    text = lab_inventory.ssh_config(HOSTS, "/there is/lab", "/run/x/net", "/usr/bin/python3")
    assert "Host node-2 10.77.0.11\n  HostName 10.77.0.11\n" in text
    assert "StrictHostKeyChecking yes" in text
    assert 'ProxyCommand /usr/bin/python3 -I -S "/there is/lab/.ssh/connect.py" /run/x/net %h %p' in text
    keys = dict.fromkeys(HOSTS, "ssh-ed25519 AAAA comment")
    assert lab_inventory.known_hosts(HOSTS, keys).splitlines()[0] == "node-1,10.77.0.10 ssh-ed25519 AAAA"


def test_the_inventory_is_written_once_and_its_key_is_private(disk: Path, tmp_path: Path) -> None:
    record = {"name": "x", "subnet": 9, "rate": "", "image": "/i", "hosts": lab_store.planned_hosts(2)}
    (disk / "x").mkdir(parents=True)
    (disk / "x/lab.json").write_text(json.dumps(record))
    folder = tmp_path / "inventories/x"
    connect = ROOT / "roles/lab/files/connect.py"
    arguments = (lab_store.Lab("x"), str(folder), str(connect), "/usr/bin/python3")
    assert lab_inventory.ensure(*arguments) is True
    assert lab_inventory.ensure(*arguments) is False
    assert stat.S_IMODE((folder / ".ssh/id_ed25519").stat().st_mode) == 0o600
    assert (folder / ".gitignore").read_text() == "*\n"
    assert lab_inventory.remove(str(folder)) is True
    assert lab_inventory.remove(str(folder)) is False


def test_an_inventory_of_somebody_else_is_not_removed(tmp_path: Path) -> None:
    (tmp_path / "hosts.yml").write_text("---\n")
    with pytest.raises(MigrationError, match="not made by"):
        lab_inventory.remove(str(tmp_path))
