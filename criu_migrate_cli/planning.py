"""criu-migrate plan: what would be saved, by which strategy, without any machine; and how far off plans have been."""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import places, plan_tables, runs
from .places import CommandError

if TYPE_CHECKING:
    from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate.calibration import Measured
    from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate.planner import Costs, Load, Strategy, Wish
    from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate.planner_choice import Choice
    from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate.planner_evacuation import Evacuation

PLAN = """\
Sizes are like 512M or 4G, of 1024 x 1024 bytes a MB; rates like 50M/s, or 1Gbit and 100Mbit a second, of 1000 x 1000
bits. With recorded runs each is predicted from the others between the same two nodes, and the error is shown; plans are
then made with the costs that those runs had. docs/planner.md tells of the model and its limits.

  criu-migrate plan --memory 512M --dirty-rate 20M/s --bandwidth 1Gbit --deadline gcp
  criu-migrate plan --memory 128M --memory 4G --bandwidth 100Mbit --deadline aws --allow-postcopy
  criu-migrate plan --memory 256M --processes 10 --nodes 2 --free-memory 8G --bandwidth 1Gbit --deadline gcp
  criu-migrate plan --results results
  criu-migrate plan --results results --deadline 20 --json

exit status: 0, whether or not anything would be saved; 2 for a wrong command line"""
POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}
SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?", re.IGNORECASE)
BITS = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)bit(?:/s)?", re.IGNORECASE)
MOST_PROCESSES = 1000
ENCRYPTIONS = ("tls", "none", "rsync")


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `plan`. All are texts: what is wrong with one is said by command() in one message."""
    parser.add_argument("run", nargs="*", metavar="RUN", help="recorded runs: folder, run id or `last`")
    parser.add_argument("--results", action="append", type=Path, default=[], metavar="DIR", help="every run below it")
    parser.add_argument(
        "--memory", action="append", default=[], metavar="SIZE", help="of a process; several are several"
    )
    parser.add_argument("--dirty-rate", action="append", default=[], metavar="RATE", help="writes; one, or one a size")
    parser.add_argument("--working-set", metavar="SIZE", help="memory that is written to at all; default all")
    parser.add_argument("--bandwidth", metavar="RATE", help="of the link; default as fast as the nodes")
    parser.add_argument("--deadline", metavar="WHEN", help="aws, gcp or seconds from the notice")
    parser.add_argument("--target", metavar="SECONDS", help="downtime that is short enough; default 0.3")
    parser.add_argument("--rounds", metavar="N", help="rounds of pre-copy at most; default 8")
    parser.add_argument("--processes", metavar="N", help="so many of each size have to leave one node")
    parser.add_argument("--nodes", metavar="N", help="so many nodes take them in; default 1")
    parser.add_argument("--free-memory", metavar="SIZE", help="of each of these nodes; default enough")
    parser.add_argument(
        "--encryption", action="append", default=[], choices=ENCRYPTIONS, help="default tls; several: in this order"
    )
    parser.add_argument("--allow-postcopy", action="store_true", help="take the risk that the source dies meanwhile")
    parser.add_argument("--no-soft-dirty", action="store_true", help="the source's kernel cannot do pre-copy")
    parser.add_argument("--no-userfaultfd", action="store_true", help="neither lazy restore nor post-copy")
    parser.add_argument("--json", action="store_true", help="for programs: seconds and bytes")


def size(text: str, option: str) -> float:
    """Bytes.

    :raises CommandError: it is no size above 0
    """
    found = SIZE.fullmatch(text.strip())
    value = float(found.group(1)) * 1024.0 ** POWERS[found.group(2).lower()] if found else 0.0
    if value <= 0 or not math.isfinite(value):
        raise CommandError(f"{option} {text}: it must be a size above 0 like 512M or 4G.")
    return value


def rate(text: str, option: str) -> float:
    """Bytes/s; 0 is a rate.

    :raises CommandError: it is none
    """
    bits = BITS.fullmatch(text.strip())
    if bits:
        value = float(bits.group(1)) * 1000.0 ** POWERS[bits.group(2).lower()] / 8
    else:
        found = SIZE.fullmatch(re.sub(r"(/s|ps)$", "", text.strip(), flags=re.IGNORECASE))
        value = float(found.group(1)) * 1024.0 ** POWERS[found.group(2).lower()] if found else math.nan
    if not math.isfinite(value):
        raise CommandError(f"{option} {text}: it must be a rate like 50M/s, 1Gbit or 100Mbit.")
    return value


def whole(text: str | None, option: str, default: int, most: int) -> int:
    """A number from 1 to most.

    :raises CommandError: it is none
    """
    if text is None:
        return default
    if not text.isdecimal() or not 1 <= int(text) <= most:
        raise CommandError(f"{option} {text}: it must be a whole number from 1 to {most}.")
    return int(text)


def command(given: argparse.Namespace) -> int:
    """criu-migrate plan

    :raises CommandError: the first thing that is wrong with the command line
    """
    places.open_collection()
    from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate import calibration

    base, wish = _base(given), _wish(given)
    number = whole(given.processes, "--processes", 1, MOST_PROCESSES)
    nodes = whole(given.nodes, "--nodes", 1, MOST_PROCESSES)
    leaving = given.processes is not None or given.nodes is not None
    loads = _loads(given)
    recorded = _recorded(given)
    if not loads and not recorded:
        raise CommandError("Say what is to be moved, --memory 512M, or name recorded runs, --results DIR.")
    if leaving and (wish.left is None or not loads):
        raise CommandError("--processes and --nodes need --memory and --deadline.")
    free = size(given.free_memory, "--free-memory") if given.free_memory else math.inf
    costs = calibration.costs_of(recorded, base) if recorded else base
    checked = calibration.predict(recorded, base) if recorded else []
    if not loads and wish.left is not None:
        loads = _sizes(recorded)
    strategies = _strategies(given)
    plans = [] if leaving else _plans(loads, costs, wish, strategies, given.encryption or ["tls"])
    left = None
    if leaving:
        left = _evacuation(
            loads, number, {f"node {one}": free for one in range(1, nodes + 1)}, costs, wish, strategies, given
        )
    if given.json:
        print(json.dumps(plan_tables.as_data(costs, wish, len(recorded), loads, plans, left, checked), indent=2))
    else:
        print("\n\n".join(plan_tables.texts(costs, wish, loads, plans, left, checked)))
    return 0


def _base(given: argparse.Namespace) -> Costs:
    from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate.planner import Costs

    if given.bandwidth is None:
        return Costs()
    bandwidth = rate(given.bandwidth, "--bandwidth")
    if bandwidth <= 0:
        raise CommandError(f"--bandwidth {given.bandwidth}: it must be above 0.")
    return Costs(bandwidth=bandwidth)


def _wish(given: argparse.Namespace) -> Wish:
    from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate.parameters import parse_deadline
    from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate.planner import Wish

    wish = Wish(most=whole(given.rounds, "--rounds", Wish().most, 99))
    if given.target is not None:
        try:
            wish = wish._replace(target=float(given.target))
        except ValueError:
            wish = wish._replace(target=-1.0)
        if not 0 <= wish.target < math.inf:
            raise CommandError(f"--target {given.target}: it must be seconds, 0 or more.")
    if given.deadline is None:
        return wish
    try:
        limit = float(parse_deadline(given.deadline)["limit"])
    except ValueError as error:
        raise CommandError(f"--{str(error).replace('=', ' ', 1)}") from None
    if not math.isfinite(limit):
        raise CommandError(f"--deadline {given.deadline}: it must be aws, gcp or seconds.")
    return wish._replace(left=limit)


def _loads(given: argparse.Namespace) -> list[Load]:
    from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate.planner import Load

    memories = [size(text, "--memory") for text in given.memory]
    rates = [rate(text, "--dirty-rate") for text in given.dirty_rate] or [0.0]
    if len(rates) not in (1, len(memories)) and memories:
        raise CommandError(
            f"--dirty-rate is given {len(rates)} times, --memory {len(memories)} times: one, or one a size."
        )
    writable = size(given.working_set, "--working-set") if given.working_set else None
    return [Load(memory, rates[place % len(rates)], writable) for place, memory in enumerate(memories)]


def _recorded(given: argparse.Namespace) -> list[Measured]:
    """The runs that were named, those that moved something."""
    from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate import calibration

    found = runs.named(given.run, given.results_dir)
    for parent in given.results:
        if not parent.is_dir():
            raise CommandError(f"--results {parent}: there is no such folder.")
        for path in sorted(parent.rglob("metrics.json")):
            try:
                found.append(runs.load(path.parent))
            except CommandError as error:
                print(f"criu-migrate: left out: {error}", file=sys.stderr)
    once = {run.folder.resolve(): run for run in found}.values()
    read = [calibration.read(run.metrics, run.name) for run in once]
    moved = [one for one in read if one is not None]
    if (given.run or given.results) and not moved:
        raise CommandError(
            "None of these runs has moved a process and says how much; there is nothing to compare with."
        )
    return moved


def _sizes(recorded: Sequence[Measured]) -> list[Load]:
    """One process of each size among the runs; sizes that differ by little are one."""
    from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate.planner import Load

    found: list[float] = []
    for memory in sorted(one.bytes for one in recorded):
        if not found or memory > found[-1] * 1.2:
            found.append(memory)
    return [Load(memory) for memory in found]


def _strategies(given: argparse.Namespace) -> tuple[Strategy, ...]:
    from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate.planner_choice import possible

    faults = not given.no_userfaultfd
    return possible(
        soft_dirty=not given.no_soft_dirty,
        lazy_local=faults,
        userfaultfd=faults,
        twice=True,
        accepted=given.allow_postcopy,
    )


def _plans(
    loads: Sequence[Load], costs: Costs, wish: Wish, strategies: Sequence[Strategy], encryptions: Sequence[str]
) -> list[Choice]:
    from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate.planner_choice import choose

    return [choose(load, costs, wish, strategies, encryptions) for load in loads]


def _evacuation(
    loads: Sequence[Load],
    number: int,
    free: dict[str, float],
    costs: Costs,
    wish: Wish,
    strategies: Sequence[Strategy],
    given: argparse.Namespace,
) -> Evacuation:
    from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate import planner_evacuation as planner

    if len(given.encryption) > 1:
        raise CommandError("--encryption: all processes of an evacuation go the same way; name one.")
    if number * len(loads) > MOST_PROCESSES:
        raise CommandError(f"--processes {number} of {len(loads)} sizes: more than {MOST_PROCESSES} are not planned.")
    some = [
        planner.Process(f"{given.memory[place]}-{place + 1}.{one:0{len(str(number))}d}", load)
        for place, load in enumerate(loads)
        for one in range(1, number + 1)
    ]
    encryption: Any = (given.encryption or ["tls"])[0]
    return planner.evacuation(some, free, costs, wish.left or 0.0, strategies, encryption, planner.EACH)
