"""The command line of criu-migrate."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from . import listing, parameters, places, planning, runs
from .places import CommandError

DESCRIPTION = "Move a running process tree from one machine to another with CRIU and Ansible, and read what it took."
RUN = """\
Parameters are those of the playbook: workload first, then name=value (or --name value, as in the seed documents).
They are described by `ansible-doc -t role -r roles migration` and in roles/workload_NAME/meta/argument_specs.yml, and
checked all at once before anything starts.

  criu-migrate run redis num_keys=1000 migration_strategy=full
  criu-migrate run memory --mb-size 512 --lazy-pages
  criu-migrate run command command='python3 /srv/app.py' deadline=aws
  criu-migrate run -c experiment.yaml -i inventories/example
  criu-migrate run process pid=4242 --check

A file given with -c holds names and values, or the sections of the seed documents; ${NAME} in it is taken from the
environment. What is typed wins over files, later files win over earlier ones.

Ctrl-C ends Ansible, not a migration that has begun: the guards on the nodes finish or undo it. Once more kills Ansible.

exit status: that of ansible-playbook (0 moved, 2 not moved or refused, 99 interrupted); 2 for a wrong command line"""
REPORT = """\
RUN is the name of a folder in results/, its path, a run id, or `last`.

  criu-migrate report last
  criu-migrate report redis_20261121_054636 --output /tmp/redis.html"""
COMPARE = """\
Without RUN all runs in results/ are taken. Groups are workload, strategy and transfer; only migrated runs count in
medians and quartiles. Writes compare.html, groups.csv and runs.csv (seconds and bytes).

  criu-migrate compare --workload memory --since 2h
  criu-migrate compare --workload memory --by mb_size --output /tmp/compared"""
RESULTS = """\
Newest first. Times are seconds: service is the gap that clients or the workload's heartbeat saw, frozen lasts from the
freeze to the thaw, total is the whole run; whole: did the workload prove that its state is whole?"""
WORDS = {"strategy": "migration_strategy"}  # Ansible reserves it, this command does not


def parser() -> argparse.ArgumentParser:
    """The options of all commands."""
    top = argparse.ArgumentParser(prog="criu-migrate", description=DESCRIPTION, allow_abbrev=False)
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, short: str, more: str, usage: str | None = None) -> argparse.ArgumentParser:
        return commands.add_parser(
            name, help=short, description=f"{short[0].upper()}{short[1:]}.", epilog=more, allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter, usage=usage,
        )  # fmt: skip

    run = add("run", "migrate, and show how it goes", RUN, "criu-migrate run [WORKLOAD] [name=value ...] [options]")
    run.add_argument("-e", "--extra-vars", action="append", default=[], metavar="VARS", help="as for ansible-playbook")
    run.add_argument("-c", "--config", action="append", default=[], metavar="FILE", help="parameters in a YAML file")
    run.add_argument("-i", "--inventory", action="append", default=[], metavar="PATH", help="nodes; see README.md")
    run.add_argument("-C", "--check", action="store_true", help="only look at both nodes, change nothing")
    run.add_argument("-v", "--verbose", action="count", default=0, help="Ansible's own output; more with -vv")

    report = add("report", "write report.html of a run: one file, with the timeline as a picture", REPORT)
    report.add_argument("run", metavar="RUN", help="folder, run id or `last`")
    report.add_argument("-o", "--output", type=Path, metavar="FILE", help="by default report.html in the run's folder")

    compare = add("compare", "tabulate runs by workload and strategy: median, quartiles, a plot", COMPARE)
    compare.add_argument("run", nargs="*", metavar="RUN", help="folder, run id or `last`")
    compare.add_argument("--by", action="append", default=[], metavar="PARAM", help="group by a parameter as well")
    compare.add_argument("-o", "--output", type=Path, metavar="DIR", help="by default results/compare_TIMESTAMP")

    results = add("results", "list the runs", RESULTS)
    results.add_argument("--json", action="store_true", help="for programs")
    plan = add("plan", "say what would be saved, by which strategy, without any machine", planning.PLAN)
    planning.add_options(plan)
    for one in (compare, results):
        one.add_argument("--workload", action="append", default=[], metavar="NAME", help="only of this workload")
        one.add_argument("--strategy", action="append", default=[], metavar="NAME", help="only by full, postcopy, ...")
        one.add_argument("--since", metavar="WHEN", help="from then on: 2026-11-21, 2026-11-21T03:15, 30m, 2h, 3d")
    for one in (report, compare, results, plan):
        one.add_argument("--results-dir", type=Path, default=Path("results"), metavar="DIR", help="default ./results")
    return top


def command_run(given: argparse.Namespace, words: Sequence[str]) -> int:
    """criu-migrate run"""
    from . import running

    extra: dict[str, Any] = {}
    environ: dict[str, str] = {}
    for name in given.config:
        found, nodes = parameters.from_file(Path(name).expanduser())
        extra.update(found)
        environ.update(nodes)
    environ = {} if given.inventory else parameters.node_environment(environ, os.environ, Path.cwd())
    typed = {WORDS.get(name, name): value for name, value in parameters.from_words(words).items()}
    extra.update(typed)
    request = running.Request(extra, given.extra_vars, given.inventory, environ, given.check, given.verbose)
    return running.run(request)


def command_report(given: argparse.Namespace) -> int:
    """criu-migrate report"""
    places.open_collection()
    from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate import report, results

    run = runs.named([given.run], given.results_dir)[0]
    path = given.output or run.folder / report.NAME
    try:
        results.write_text(path, report.html(run.metrics, runs.logs(run.folder), run.name))
    except OSError as error:
        raise CommandError(f"{path}: {error}. Name another file with --output.") from error
    print(path)
    return 0


def _selected(given: argparse.Namespace, found: Sequence[runs.Run]) -> list[runs.Run]:
    after = runs.since(given.since, datetime.now(timezone.utc)) if given.since else None
    return runs.chosen(found, given.workload, given.strategy, after)


def command_results(given: argparse.Namespace) -> int:
    """criu-migrate results"""
    found = _selected(given, runs.every(given.results_dir))
    if given.json:
        print(listing.as_json(found))
        return 0
    if not found:
        raise CommandError(f"There are no such runs in {given.results_dir}. `criu-migrate run WORKLOAD` makes one.")
    print(listing.table(found, sys.stdout.isatty() and not os.environ.get("NO_COLOR")))
    for run in found:
        if run.problem:
            print(f"criu-migrate: {run.problem}", file=sys.stderr)
    return 0


def command_compare(given: argparse.Namespace) -> int:
    """criu-migrate compare"""
    places.open_collection()
    there = runs.named(given.run, given.results_dir) if given.run else runs.every(given.results_dir)
    found = [run for run in _selected(given, there) if not run.problem]
    for run in there:
        if run.problem:
            print(f"criu-migrate: left out: {run.problem}", file=sys.stderr)
    if not found:
        raise CommandError(f"There are no such runs in {given.results_dir}. `criu-migrate results` lists all.")
    from . import comparing

    data = comparing.frame(found, given.by)
    summary, warnings = comparing.groups(data, given.by), comparing.mixed(data, given.by)
    asked = {"workload": given.workload, "strategy": given.strategy, "by": given.by, "since": [given.since or ""]}
    filters = [f"{name} {' or '.join(value)}" for name, value in asked.items() if "".join(value)]
    page = comparing.html(data, summary, given.by, ", ".join(filters) or "all runs", warnings)
    print(comparing.as_text(*comparing.table(summary, given.by)))
    for warning in warnings:
        print(warning)
    folder = given.output or given.results_dir / time.strftime("compare_%Y%m%d_%H%M%S", time.gmtime())
    for path in comparing.write(folder, data, summary, page):
        print(path)
    return 0


def main(words: Sequence[str] | None = None) -> int:
    """Carry out a command; return its exit status."""
    command_line = parser()
    given, rest = command_line.parse_known_args(words)
    if rest and given.command != "run":
        command_line.error(f"unrecognized arguments: {' '.join(rest)}")
    commands: dict[str, Callable[[], int]] = {
        "run": lambda: command_run(given, rest),
        "report": lambda: command_report(given),
        "compare": lambda: command_compare(given),
        "results": lambda: command_results(given),
        "plan": lambda: planning.command(given),
    }
    try:
        return commands[given.command]()
    except CommandError as error:
        print(f"criu-migrate: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # head has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


if __name__ == "__main__":
    sys.exit(main())
