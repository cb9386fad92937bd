"""One workload on the road: started by migrate.yml, then moved on by it as a process, whichever node it is on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
LIMIT = 1800.0  # seconds for one play
# The sizes are the programs' own defaults but for these
DEFAULTS: dict[str, dict[str, Any]] = {
    "memory": {"max_memory": 1024},  # 8192 MB fit neither into both nodes of one machine nor into the time
    "matmul": {},
    "redis": {},
    "ml_training": {},
    "jupyter": {},
    "video": {},
    "dataproc": {},
}
VARIANTS: dict[str, dict[str, Any]] = {
    "full": {"migration_strategy": "full", "lazy_restore": False, "transfer": "page_server"},
    "full, lazy restore": {"migration_strategy": "full", "lazy_restore": True, "transfer": "page_server"},
    "postcopy": {"migration_strategy": "postcopy", "transfer": "page_server"},
    "full by rsync": {"migration_strategy": "full", "lazy_restore": False, "transfer": "rsync"},
}
START = "full"


def good(move: dict[str, Any]) -> bool:
    """Return whether the process has moved and has proved that it is whole."""
    return move["rc"] == 0 and move["status"] == "migrated" and move["verified"] is True


@dataclass
class Traveller:
    """A running workload: `pid` is the same on every node, `there` says whether it is on the destination."""

    workload: str
    pid: int
    working_dir: str
    there: bool = True


class Nodes:
    """An inventory for each direction, without the clients' host, which would only be prepared each time."""

    def __init__(self, inventory: Path, private: Path) -> None:
        """Write them into `private`, each with a link to ssh.cfg where there is one beside the given `inventory`."""
        found = yaml.safe_load(inventory.read_text(encoding="utf-8"))
        groups = found["all"]["children"]
        self.address = str((found["all"].get("vars") or {}).get("lab_service_address", ""))
        groups.pop("client", None)
        self.out = self._write(private / "out", inventory, found)
        groups["source"], groups["destination"] = groups["destination"], groups["source"]
        self.back = self._write(private / "back", inventory, found)

    @staticmethod
    def _write(folder: Path, like: Path, content: dict[str, Any]) -> Path:
        folder.mkdir(mode=0o700)
        config = like.parent / "ssh.cfg"
        if config.exists():
            (folder / config.name).symlink_to(config)
        path = folder / "hosts.yml"
        path.write_text(yaml.safe_dump(content), encoding="utf-8")
        return path


class Mover:
    """Runs migrate.yml and reads what it measured."""

    def __init__(self, nodes: Nodes, folder: Path, params: dict[str, Any]) -> None:
        """Results go below `folder`; `params` are for the workloads that know them."""
        self.nodes = nodes
        self.folder = folder
        self.params = params

    def start(self, workload: str, how: dict[str, Any] | None = None) -> tuple[dict[str, Any], Traveller | None]:
        """Start a workload on the source and move it to the destination, by START or as `how` says; no traveller where
        nothing was started."""
        known = yaml.safe_load(
            (ROOT / "roles" / f"workload_{workload}" / "meta" / "argument_specs.yml").read_text(encoding="utf-8")
        )["argument_specs"]["main"]["options"]
        params = {**DEFAULTS[workload], **{name: value for name, value in self.params.items() if name in known}}
        move = self._play(self.nodes.out, workload, {"workload": workload, **(how or VARIANTS[START]), **params})
        run_id = move["run_id"]
        record = {"workload": workload, "variant": "first", "direction": "out", "params": params, **move}
        traveller = Traveller(workload, move["pid"] or 0, f"/srv/criu-migrate/{run_id}") if run_id else None
        return record, traveller

    def move(self, traveller: Traveller, variant: str, how: dict[str, Any] | None = None) -> dict[str, Any]:
        """Move it to the other node, by one of VARIANTS or as `how` says."""
        inventory = self.nodes.back if traveller.there else self.nodes.out
        direction = "back" if traveller.there else "out"
        extra = {"workload": "process", "pid": traveller.pid, **(how or VARIANTS[variant])}
        move = self._play(inventory, traveller.workload, extra)
        traveller.there = not traveller.there
        return {"workload": traveller.workload, "variant": variant, "direction": direction, **move}

    def _play(self, inventory: Path, workload: str, extra: dict[str, Any]) -> dict[str, Any]:
        results = self.folder / "runs" / f"{workload}_{time.time_ns() // 1_000_000}"
        results.mkdir(parents=True)
        given = {"client": False, "results_dir": str(results), **extra}
        began = time.time()
        rc = self._run("migrate.yml", inventory, given, results / "play.log")
        found: dict[str, Any] = {}
        for path in results.glob("*/metrics.json"):
            found = json.loads(path.read_text(encoding="utf-8"))
        downtime = found.get("downtime") or {}
        move = {
            "rc": rc,
            "at": round(began, 3),
            "seconds": round(time.time() - began, 3),
            "load": round(os.getloadavg()[0], 2),
            "results": str(results),
            "run_id": found.get("run_id", ""),
            "status": found.get("status"),
            "pid": (found.get("process") or {}).get("pid"),
            "verified": (found.get("integrity") or {}).get("verified"),
            "method": (found.get("integrity") or {}).get("method"),
            "strategy": found.get("strategy"),
            "lazy_restore": found.get("lazy_restore"),
            "transfer": (found.get("transfer") or {}).get("method"),
            "bytes": (found.get("transfer") or {}).get("bytes"),
            **{name: downtime.get(name) for name in ("service", "usual_gap", "frozen")},
            "times": found.get("times"),
            "total": (found.get("times") or {}).get("total"),
            "deadlines": found.get("deadlines"),
            "reason": found.get("strategy_reason"),
        }
        if found.get("error"):
            move["error"] = found["error"]
        return move

    def end(self, traveller: Traveller | None, bad: dict[str, Any] | None = None) -> None:
        """End a workload on whichever node it is, after the `bad` move has been brought to an end."""
        log = self.folder / "ends.log"
        if bad and bad["run_id"]:
            inventory = self.nodes.back if bad["direction"] == "back" else self.nodes.out
            self._run("playbooks/resolve.yml", inventory, {"run_id": bad["run_id"]}, log)
        if traveller is not None:
            words = f"working_dir={traveller.working_dir} purge=true force=true"
            command = [self._program("ansible"), "-i", str(self.nodes.out), "source:destination", "-b"]
            self._call([*command, "-m", "workload_stop", "-a", words], log)
            if self.nodes.address:  # it stays where the process was, and would be in the way of the next
                words = f"address={self.nodes.address} state=absent"
                self._call([*command, "-m", "service_address", "-a", words], log)

    def _run(self, playbook: str, inventory: Path, extra: dict[str, Any], log: Path) -> int:
        command = [self._program("ansible-playbook"), "-i", str(inventory), playbook, "-e", json.dumps(extra)]
        return self._call(command, log)

    @staticmethod
    def _program(name: str) -> str:
        return str(Path(sys.executable).parent / name)

    @staticmethod
    def _call(command: list[str], log: Path) -> int:
        with log.open("a", encoding="utf-8") as stream:
            try:
                return subprocess.run(
                    command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream, timeout=LIMIT,
                    env={**os.environ, "ANSIBLE_NOCOLOR": "1"},
                ).returncode  # fmt: skip
            except subprocess.TimeoutExpired:
                return -1
