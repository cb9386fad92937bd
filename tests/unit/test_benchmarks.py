"""The benchmark's arithmetic, its reading of an inventory, and the commands that it sends."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks import hosts, report


def run(pair: int, variant: str, seconds: float, **more: Any) -> dict[str, Any]:
    good = {"connected": True, "client_verified": True, "verified": True}
    seen = {"client": seconds, "heartbeat": seconds / 2, "total": 20.0}
    return {"pair": pair, "variant": variant, **seen, **good, **more}


def test_spread_of_one_and_of_many() -> None:
    assert report.spread([2.0]) == dict.fromkeys(("median", "low_quartile", "high_quartile", "min", "max"), 2.0) | {
        "count": 1
    }
    many = report.spread([4.0, 1.0, 3.0, 2.0, 5.0])
    assert (many["median"], many["low_quartile"], many["high_quartile"]) == (3.0, 2.0, 4.0)
    assert (many["min"], many["max"], many["count"]) == (1.0, 5.0, 5)


def test_ratios_are_taken_within_pairs_and_from_good_runs_only() -> None:
    runs = [
        run(0, "full", 1.0),
        run(0, "plain", 4.0),
        run(1, "full", 3.0),
        run(1, "plain", 6.0),
        run(2, "full", 1.0),
        run(2, "plain", 100.0, verified=False),
        run(3, "plain", 100.0),
        {"pair": 4, "variant": "full", "error": "it broke"},
    ]
    assert report.ratios(runs, "full", "plain", "client") == [0.25, 0.5]
    summary = report.summarise(runs, ["full", "plain"])
    assert summary["failed"] == 2
    assert summary["ratios"]["full / plain"]["client"]["median"] == 0.375
    assert summary["seconds"]["full"]["heartbeat"]["median"] == 0.5


def test_a_summary_of_failures_only_is_empty_but_whole() -> None:
    summary = report.summarise([{"pair": 0, "variant": "full", "error": "no"}], ["full", "plain"])
    assert summary == {"seconds": {}, "ratios": {}, "foretold": {}, "failed": 1}
    assert "downtime" in report.markdown(summary)


def test_predictions_are_held_against_what_came() -> None:
    errors = [0.5, -0.1, None, -0.3, 9.0]
    runs = [run(pair, "precopy", 1.0, details={"prediction": {"error": error}}) for pair, error in enumerate(errors)]
    runs[-1]["verified"] = False
    runs.append(run(9, "full", 1.0))
    summary = report.summarise(runs, ["precopy", "full"])
    assert report.foretold(runs) == [0.5, 0.1, 0.3]
    assert "| by this part of it | heartbeat | 0.30 | 0.20 | 0.40 | 0.10 | 0.50 | 3 |" in report.markdown(summary)


def test_figures_are_written_in_three_forms(tmp_path: Path) -> None:
    runs = [run(0, "full", 1.0, details={"dump": 0.5}), run(0, "plain", 4.0, error="")]
    report.write(tmp_path, {"command": "x"}, runs, report.summarise(runs, ["full", "plain"]))
    with open(tmp_path / "runs.csv", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["variant"] for row in rows] == ["full", "plain"]
    assert json.loads((tmp_path / "benchmark.json").read_text())["runs"][0]["details"] == {"dump": 0.5}
    table = (tmp_path / "table.md").read_text()
    assert "| full / plain | client | 0.25 |" in table
    assert "- command: x" in table


@pytest.fixture
def inventory(tmp_path: Path) -> Path:
    groups = {
        "source": {"hosts": {"node-1": {"ansible_host": "10.77.0.10"}}},
        "destination": {"hosts": {"node-2": {"ansible_host": "10.77.0.11"}}},
        "client": {"hosts": {"client-1": None}},
    }
    path = tmp_path / "hosts.yml"
    path.write_text(yaml.safe_dump({"all": {"vars": {"lab_service_address": "10.77.0.200"}, "children": groups}}))
    return path


def test_hosts_and_address_come_from_the_inventory(inventory: Path, tmp_path: Path) -> None:
    found = hosts.load(inventory, tmp_path)
    assert [host.name for host in found.all()] == ["node-1", "node-2", "client-1"]
    assert [host.address for host in found.all()] == ["10.77.0.10", "10.77.0.11", "client-1"]
    assert found.service_address == "10.77.0.200"
    assert found.source.options == ["-l", "ubuntu"]
    (tmp_path / "ssh.cfg").touch()
    assert hosts.load(inventory, tmp_path, "10.77.0.201").source.options == ["-F", str(tmp_path / "ssh.cfg")]


def test_an_inventory_without_a_client_is_refused(inventory: Path, tmp_path: Path) -> None:
    data = yaml.safe_load(inventory.read_text())
    del data["all"]["children"]["client"]
    inventory.write_text(yaml.safe_dump(data))
    with pytest.raises(hosts.BenchmarkError, match="client"):
        hosts.load(inventory, tmp_path)


def test_warm_connections_are_shared_and_others_are_new(tmp_path: Path) -> None:
    host = hosts.Host("node-1", "10.77.0.10", ["-F", "ssh.cfg"], tmp_path)
    assert "ControlMaster=auto" in host.ssh()
    assert "ControlPath=none" in host.ssh(warm=False)
    assert host.ssh()[-1] == "node-1"
