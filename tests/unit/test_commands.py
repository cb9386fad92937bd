"""What a user types and reads: wrong input, the default inventory, the results. Runs ansible-core, no node."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import ROOT, Run

HOSTS = {
    "source": {"hosts": {"node-a": {"ansible_host": "10.0.0.1"}}},
    "destination": {"hosts": {"node-b": {"ansible_host": "10.0.0.2"}}},
}


def write(path: Path, data: Any) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(data), encoding="utf-8")
    return str(path)


@pytest.fixture
def check(ansible: Run, tmp_path: Path) -> Any:
    """Return a function that checks extra variables and returns the process and the parameters in a file."""
    out = tmp_path / "migration.json"
    play = {
        "hosts": "localhost",
        "gather_facts": False,
        "tasks": [
            {"migration_parameters": {}, "register": "checked"},
            {"ansible.builtin.copy": {"content": "{{ checked.migration | to_json }}", "dest": str(out)}},
        ],
    }
    book = write(tmp_path / "check.yml", [play])

    def run(*extra: str, inventory: Any = None) -> Any:
        hosts = write(tmp_path / "hosts.yml", inventory or {"all": {"children": HOSTS}})
        arguments = [word for one in extra for word in ("-e", one)]
        done = ansible("ansible-playbook", "-i", hosts, book, *arguments)
        return done, json.loads(out.read_text(encoding="utf-8")) if done.returncode == 0 else None

    return run


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        (["workload=reddis"], "there is no such workload; did you mean redis?"),
        (["workload=redis", "migration_strategy=fast"], "migration_strategy=fast: there is no such choice"),
        (["workload=redis", "strategy=full"], "write migration_strategy"),
        (["workload=redis", "num_keys=-1"], "num_keys=-1: it must lie between 1 and"),
        (["workload=redis", "num_keyz=5"], "did you mean num_keys?"),
        (["workload=redis", "mb_size=5"], "mb_size: this is a parameter of memory, not of redis."),
        (["workload=command"], "workload=command needs command"),
        (["mb_size=5"], "workload is missing"),
    ],
)
def test_wrong_input_is_one_clear_message(check: Any, extra: list[str], expected: str) -> None:
    done, _ = check(*extra)
    assert done.returncode != 0
    assert done.stdout.count(expected) == 1
    assert "1 problem with what you asked for; nothing was started:" in done.stdout
    assert "[ERROR]" not in done.stdout + done.stderr


def test_all_problems_at_once(check: Any) -> None:
    done, _ = check("workload=redis", "num_keyz=5", "read_ratio=2", "deadline=azure")
    assert "3 problems" in done.stdout


def test_values_are_typed_wherever_they_come_from(check: Any, tmp_path: Path) -> None:
    inventory = {"all": {"vars": {"num_keys": "77", "transfer": "rsync"}, "children": HOSTS}}
    settings = write(tmp_path / "settings.yaml", {"read_ratio": "0.5", "limits": {"dump": 9}})
    done, migration = check(
        "workload=redis", "redis_port=6380", "keep_images=true", f"@{settings}", inventory=inventory
    )
    assert done.returncode == 0, done.stdout
    params = migration["workload"]["params"]
    assert (params["num_keys"], params["read_ratio"], params["redis_port"]) == (77, 0.5, 6380)
    assert migration["transfer"] == "rsync"
    assert migration["keep_images"] is True
    assert migration["limits"]["dump"] == 9.0
    assert migration["run_id"].startswith("redis-")
    assert migration["working_dir"] == f"/srv/criu-migrate/{migration['run_id']}"


def test_a_command_line_keeps_its_words(check: Any) -> None:
    line = "env A=1 transfer=rsync python3 /srv/app.py --x=2 'a b'"
    for typed in (f"command={line}", json.dumps({"command": line})):
        done, migration = check("workload=command", typed, "experiment_name=my first run")
        assert done.returncode == 0, done.stdout
        assert migration["workload"]["params"]["command"] == line
        assert migration["transfer"] == "page_server"
        assert migration["experiment_name"] == "my first run"
    done, migration = check("workload=command command='sleep 9' transfer=rsync")
    assert (migration["workload"]["params"]["command"], migration["transfer"]) == ("sleep 9", "rsync")


def test_destination_that_is_the_source(check: Any) -> None:
    same = {**HOSTS, "destination": {"hosts": {"node-b": {"ansible_host": "10.0.0.1"}}}}
    done, _ = check("workload=redis", inventory={"all": {"children": same}})
    assert done.returncode != 0
    assert "The destination is the source" in done.stdout


def listed(ansible: Run, cwd: Path, **environ: str) -> dict[str, Any]:
    shutil.copytree(ROOT / "inventories" / "terraform", cwd / "sample", dirs_exist_ok=True)
    inventory = write(cwd / "inventories" / "default.yml", {"plugin": "criu.migrate.criu_nodes"})
    environ["ANSIBLE_CONFIG"] = str(ROOT / "ansible.cfg")
    done = ansible("ansible-inventory", "-i", inventory, "--list", cwd=cwd, **environ)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_nodes_come_from_the_first_place_that_names_any(ansible: Run, tmp_path: Path) -> None:
    assert "hosts" not in listed(ansible, tmp_path).get("source", {})
    lab = {"all": {"vars": {"where": "{{ inventory_dir }}"}, "children": HOSTS}}
    write(tmp_path / "inventories" / "lab" / "hosts.yml", lab)
    found = listed(ansible, tmp_path)
    assert found["source"]["hosts"] == ["node-a"]
    found = listed(ansible, tmp_path, AZ_A_INSTANCES_IP="10.8.0.1 10.8.0.2", AZ_C_INSTANCES_IP="10.8.2.1")
    assert (found["source"]["hosts"], found["destination"]["hosts"]) == (["az-a-node-0"], ["az-a-node-1"])
    assert sorted(found["all_nodes"]["children"]) == ["az_a", "az_c"]
    (tmp_path / "config").mkdir()
    shutil.copy(tmp_path / "sample" / "servers.yaml.example", tmp_path / "config" / "servers.yaml")
    found = listed(ansible, tmp_path)
    assert found["source"]["hosts"] == ["az-a-node-0"]
    assert sorted(found["all_nodes"]["children"]) == ["az_a", "az_c"]
    found = listed(ansible, tmp_path, SOURCE_NODE_IP="10.9.0.1", DEST_NODE_IP="10.9.0.2", SSH_USER="me")
    assert found["_meta"]["hostvars"]["10.9.0.1"]["ansible_user"] == "me"


def test_inventory_dir_of_the_lab_is_the_labs(ansible: Run, tmp_path: Path) -> None:
    write(tmp_path / "inventories" / "lab" / "hosts.yml", {"all": {"children": HOSTS}})
    inventory = write(tmp_path / "inventories" / "default.yml", {"plugin": "criu.migrate.criu_nodes"})
    done = ansible("ansible", "-i", inventory, "source", "-m", "debug", "-a", "var=inventory_dir")
    assert str(tmp_path / "inventories" / "lab") in done.stdout, done.stdout


def test_no_nodes_is_one_message_with_every_way(ansible: Run, tmp_path: Path) -> None:
    inventory = write(tmp_path / "default.yml", {"plugin": "criu.migrate.criu_nodes"})
    play = {"hosts": "localhost", "gather_facts": False, "tasks": [{"migration_parameters": {}}]}
    book = write(tmp_path / "book.yml", [play])
    done = ansible("ansible-playbook", "-i", inventory, book, "-e", "workload=redis")
    assert done.returncode != 0
    assert done.stdout.count("in one of these ways") == 1
    half = ansible("ansible-playbook", "-i", inventory, book, "-e", "workload=redis", SOURCE_NODE_IP="10.0.0.1")
    assert half.stdout.count("SOURCE_NODE_IP is set in the environment and DEST_NODE_IP is not") == 1


def test_results_and_summary(ansible: Run, tmp_path: Path) -> None:
    params = {"results_dir": str(tmp_path / "results"), "results_name": "redis_1", "run_id": "redis-1-aaaa"}
    arguments = {
        "params": params, "status": "failed", "files": {"source/criu-dump.log": "the log\n"},
        "metrics": {"run_id": "redis-1-aaaa", "status": "failed", "error": {"phase": "dump", "message": "no"}},
    }  # fmt: skip
    play = {"hosts": "localhost", "gather_facts": False, "tasks": [{"migration_results": arguments}]}
    book = write(tmp_path / "book.yml", [play])
    done = ansible("ansible-playbook", "-i", "/dev/null", book)
    assert done.returncode == 0, done.stdout
    folder = tmp_path / "results" / "redis_1_failed"
    assert (folder / "source/criu-dump.log").read_text(encoding="utf-8") == "the log\n"
    assert json.loads((folder / "metrics.json").read_text(encoding="utf-8"))["run_id"] == "redis-1-aaaa"
    assert "'schema_version' is a required property" in done.stderr + done.stdout
    summary = (folder / "summary.txt").read_text(encoding="utf-8")
    assert done.stdout.endswith(summary)
    assert "Result: FAILED\n  Phase: dump\n  Cause: no" in summary


def test_long_tasks_show_signs_of_life(ansible: Run, tmp_path: Path) -> None:
    task = {"name": "Wait", "ansible.builtin.command": "sleep 2"}
    book = write(tmp_path / "book.yml", [{"hosts": "localhost", "gather_facts": False, "tasks": [task]}])
    done = ansible("ansible-playbook", "-i", "/dev/null", book, CRIU_MIGRATE_PROGRESS_INTERVAL="0.5")
    assert "... still running after 1 s: Wait" in done.stdout
