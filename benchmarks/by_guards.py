"""Our own moves without Ansible, whose tasks take minutes where nodes are emulated: the guards, armed as roles do."""

from __future__ import annotations

from typing import Any

from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate import metrics
from tests.lab.harness import nodes
from tests.lab.harness.guarded import Guarded
from tests.lab.harness.machine import MachineLab
from tests.lab.harness.nodes import RUNS

from .bench_redis import Redis
from .hosts import BenchmarkError
from .sequences import Move, Sequence

LIMIT = 900.0  # seconds
STRETCH = 16.0  # emulated, nodes are so much slower


class Placed(Guarded):
    """Guards for a redis that runs already."""

    def __init__(self, lab: MachineLab, redis: Redis, **config: Any) -> None:
        place: dict[str, Any] = {
            "working_dir": redis.folder,
            "heartbeat": f"{redis.folder}/heartbeat.bin",
            "roots": [redis.folder],
        }
        super().__init__(lab, "redis", service_address=redis.hosts.service_address, **place, **config)
        self.working_dir, self.pid = redis.folder, redis.pid

    def begin_workload(self) -> None:
        """It runs."""


def ours(
    lab: str, encryption: str, strategy: str = "full", lazy_restore: bool = False, rule: str = "downtime"
) -> Sequence:
    """A move by both guards; rounds end as the parameters of roles/migration say by default."""

    def move(redis: Redis, _run: str) -> Move:
        nodes.stretch = STRETCH
        rounds = {"memory": redis.memory, "rule": rule, "iterations": 8, "interval": None, "target": 0.3, "left": None}
        config = {"strategy": strategy, "lazy_restore": lazy_restore, "pre_copy": rounds}
        run = Placed(MachineLab(lab), redis, transfer_encryption=encryption, **config)
        try:
            run.start()
            run.finish(limit=LIMIT)
            source, destination = run.record("source"), run.record("destination")
            return _moved(source, destination, run.node("source").log(run.run_id))
        except AssertionError as error:
            raise BenchmarkError(str(error)) from error
        finally:
            for role in ("source", "destination"):
                run.node(role).run("rm", "-rf", f"{RUNS}/{run.run_id}", check=False)

    return move


def _moved(source: dict[str, Any], destination: dict[str, Any], log: str) -> Move:
    times, there = source["times"], destination["times"]
    frozen = there["resumed"] - source["clock"]["offset"] - times["stopping"]
    details = {name: source.get(name) for name in ("pre_dumps", "stop_reason", "predicted")}
    details["prediction"] = metrics.prediction(source, {"frozen": frozen}, "migrated")
    more = {"frozen": frozen, "strategy": source.get("strategy"), "marks": {**times, **there}, "log": log}
    return Move(times["armed"], times["done"], {**details, **more})
