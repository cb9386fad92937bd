"""How long clients wait when a redis is moved: our own migration beside the same moved by hand. See docs/benchmarks.md.

Run from the clone, with the lab up or with an inventory of three hosts:
    make benchmark
    make benchmark BENCHMARK_ARGS="--inventory inventories/mine/hosts.yml --pairs 3"
"""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from . import bench_redis, by_guards, hosts, lazy_sequences, report, sequences

TARGETS = {
    "full / by hand": 1.15, "full / by tunnel": 1.15, "full / plain": 1 / 3,
    "lazy restore / full": 0.65, "postcopy / lazy by hand": 1.2, "postcopy / seed": 1 / 20,
    "precopy / full": 1 / 4, "precopy / phaul": 1.0, "precopy eager / full": 1.1,
}  # fmt: skip
IN_ALL = ("precopy eager / full",)  # whose total time has to meet the target as well


def read_options() -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inventory", type=Path, default=Path("inventories/lab/hosts.yml"), help="YAML inventory")
    parser.add_argument("--service_address", default="", help="address that moves; default: lab_service_address")
    parser.add_argument("--pairs", type=int, default=10, help="runs of each variant")
    parser.add_argument(
        "--variants", default="full,by hand,by tunnel,plain", help="which, comma separated; ratios are to the first"
    )
    parser.add_argument("--encryption", choices=["tls", "none"], default="tls", help="of full's and by hand's pages")
    parser.add_argument("--playbook", default="migrate.yml", help="the playbook of the variant full")
    parser.add_argument(
        "--by_guards", metavar="LAB", help="our own moves without Ansible, in this lab of virtual machines"
    )
    parser.add_argument("--num_keys", type=int, default=365000, help="365000 keys of 1024 bytes: about 528 MB")
    parser.add_argument("--value_size", type=int, default=1024, help="bytes")
    parser.add_argument("--ops_per_sec", type=float, default=1000.0, help="of the driver in the moved tree")
    parser.add_argument("--client_ops_per_sec", type=float, default=200.0, help="of the client outside")
    parser.add_argument("--redis_port", type=int, default=6390, help="TCP port")
    parser.add_argument("--output", type=Path, help="folder for the figures; default: results/benchmark_TIME")
    return parser.parse_args()


def machine() -> str:
    """Return what the figures depend on: processors, memory (bytes), kernel."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return f"{os.cpu_count()} processors, {memory / 1e9:.1f} GB memory, {platform.system()} {platform.release()}"


def run_once(
    where: hosts.Hosts, load: bench_redis.Load, variant: str, move: sequences.Sequence, pair: int, name: str
) -> dict[str, Any]:
    """One fresh redis, moved once; whatever happens, nothing of it stays."""
    run: dict[str, Any] = {"pair": pair, "variant": variant, "load_before": os.getloadavg()[0]}
    redis = bench_redis.start(where, load, name)
    try:
        run["memory"] = redis.memory
        moved = move(redis, name)
        time.sleep(1.0)  # what the client sees after the move belongs to its figures
        run.update(bench_redis.finish(redis, (moved.began, moved.ended + 1.0)), details=moved.details)
        run["total"] = (moved.details.get("times") or {}).get("total") or moved.ended - moved.began
    except hosts.BenchmarkError as error:
        run["error"] = str(error)
    finally:
        bench_redis.clean(where)
    return run


def say(run: dict[str, Any]) -> None:
    """One line about one run."""
    text = run.get("error") or f"client {run['client']:.3f} s, heartbeat {run['heartbeat']:.3f} s"
    state = "" if report.good(run) else "  NOT GOOD"
    print(f"{time.strftime('%H:%M:%S')} pair {run['pair']} {run['variant']}: {text}{state}", flush=True)


def guarded(lab: str, encryption: str) -> dict[str, sequences.Sequence]:
    """Our own variants, moved by the guards alone."""
    made: dict[str, dict[str, Any]] = {
        "full": {"strategy": "full"},
        "lazy restore": {"strategy": "full", "lazy_restore": True},
        "postcopy": {"strategy": "postcopy"},
        "precopy": {"strategy": "precopy", "lazy_restore": True},
        "precopy eager": {"strategy": "precopy"},
        "phaul": {"strategy": "precopy", "lazy_restore": True, "rule": "phaul"},
        "hybrid": {"strategy": "hybrid"},
    }
    return {name: by_guards.ours(lab, encryption, **how) for name, how in made.items()}


def run_all(options: argparse.Namespace, where: hosts.Hosts, variants: list[str]) -> list[dict[str, Any]]:
    """Every variant once a pair, the order rotated from pair to pair."""
    known: dict[str, sequences.Sequence] = {
        "full": sequences.ours(options.encryption, options.playbook),
        "lazy restore": sequences.ours(options.encryption, options.playbook, lazy_restore=True),
        "postcopy": sequences.ours(options.encryption, options.playbook, "postcopy"),
        "precopy": sequences.ours(options.encryption, options.playbook, "precopy"),
        "precopy eager": sequences.ours(options.encryption, options.playbook, "precopy", lazy_restore=False),
        "phaul": sequences.ours(options.encryption, options.playbook, "precopy", predump_rule="phaul"),
        "hybrid": sequences.ours(options.encryption, options.playbook, "hybrid"),
        "lazy by hand": lazy_sequences.by_hand(),
        "seed": lazy_sequences.seed,
        "by hand": sequences.by_hand(options.encryption),
        "by tunnel": sequences.by_hand("ssh"),
        "plain": sequences.plain,
    }
    if options.by_guards:
        known = guarded(options.by_guards, options.encryption)
    load = bench_redis.Load(
        options.num_keys, options.value_size, options.ops_per_sec, options.client_ops_per_sec, options.redis_port
    )
    runs: list[dict[str, Any]] = []
    stamp = time.strftime("%H%M%S")
    bench_redis.clean(where)
    sequences.introduce(where.source, where.destination)
    try:
        for pair in range(options.pairs):
            turn = pair % len(variants)
            for variant in variants[turn:] + variants[:turn]:
                name = f"bench-{stamp}-{pair}-{variant.replace(' ', '-')}"
                runs.append(run_once(where, load, variant, known[variant], pair, name))
                say(runs[-1])
    finally:
        sequences.part(where.source, where.destination)
        for host in where.all():
            host.close()
    return runs


def main() -> int:
    """Run, write the figures, say whether the targets were met; 1 where a run failed or a target was missed."""
    options = read_options()
    if not options.inventory.exists():
        print(f"{options.inventory} is not there: make the lab first (make lab), or name an --inventory.")
        return 2
    variants = [word.strip() for word in options.variants.split(",")]
    folder = options.output or Path("results") / time.strftime("benchmark_%Y%m%d_%H%M%S")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="criu-") as control:
        where = hosts.load(options.inventory.resolve(), Path(control), options.service_address)
        version = where.source.run("criu --version").split()[1]
        runs = run_all(options, where, variants)
    memory = [run["memory"] for run in runs if run.get("memory")]
    facts = {
        "command": "python -m benchmarks.full " + shlex.join(sys.argv[1:]),
        "machine": f"{machine()}; CRIU {version}; both nodes and the client on this one machine where it is the lab",
        "redis": f"{options.num_keys} keys of {options.value_size} bytes, tree resident "
        f"{min(memory, default=0) / 1e6:.0f} to {max(memory, default=0) / 1e6:.0f} MB",
        "encryption": f"{options.encryption} (full, by hand); ssh (by tunnel, plain)",
        "load before a run (1 min)": f"{max((run['load_before'] for run in runs), default=0.0):.2f} at most",
        "date": time.strftime("%Y-%m-%d"),
    }
    summary = report.summarise(runs, variants)
    report.write(folder, facts, runs, summary)
    print(report.markdown(summary))
    missed = summary["failed"] > 0
    for name, target in TARGETS.items():
        for measure, values in summary["ratios"].get(name, {}).items():
            if measure == report.TOTAL and name not in IN_ALL:
                continue
            met = values["median"] <= target
            missed |= not met
            print(
                f"{name} seen by {measure}: {values['median']:.2f}, target {target:.2f}: {'met' if met else 'MISSED'}"
            )
    print(f"Figures: {folder}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
