"""Which deadlines are met over which links: what `auto` chose, and what the strategies that it left would have done.

    .venv/bin/ansible-playbook playbooks/lab.yml -e lab_name=links
    PYTHONPATH=collections:. .venv/bin/python -m benchmarks.deadlines --lab links

Shapes the links of that lab, and moves processes of several sizes back and forth: by full, with and without a lazy
restore, by post-copy, and by what auto takes for each budget. What one of them has taken is held against every budget.
The exit code is 0 when no move went wrong and none that was rejected would have met what the chosen one missed.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate.lab_net import rate_bits

from .moves import ROOT, VARIANTS, Mover, Nodes, Traveller, good
from .workloads import read

Move = dict[str, Any]
BUDGETS = {"gcp": 30.0, "aws": 120.0}  # seconds from the notice
LEFT = ("full", "full, lazy restore", "postcopy")  # what auto may leave; full starts a process, so it is the first
UNSHAPED = "unshaped"
COSTS = "/var/cache/criu-migrate/costs.json"  # what nodes know of their links


def read_options(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lab", required=True, help="a lab of namespaces that exists; its links are shaped")
    parser.add_argument("--links", default=f"100mbit,1gbit,{UNSHAPED}", help="as tc writes them, comma separated")
    parser.add_argument("--memory", default="128,512,1024,4096", help="MB, comma separated, the smallest first")
    parser.add_argument("--output", type=Path, help="folder for the figures; one that has moves in it is gone on with")
    parser.add_argument("--table", action="store_true", help="only make the table of --output")
    options = parser.parse_args(words)
    options.links = [word.strip() for word in options.links.split(",")]
    options.memory = [int(word) for word in options.memory.split(",")]
    if options.table and not options.output:
        parser.error("--table needs --output")
    return options


def at_least(link: str, megabytes: int) -> float:
    """Seconds that the bytes alone need, whoever sends them."""
    return 0.0 if link == UNSHAPED else (megabytes << 20) * 8 / rate_bits(link)


def ways(link: str, megabytes: int) -> dict[str, dict[str, Any]]:
    """The moves of one size over one link. Where no budget can be met, only what auto makes of it."""
    auto = {f"auto, {name}": {"migration_strategy": "auto", "deadline": name} for name in BUDGETS}
    if at_least(link, megabytes) > max(BUDGETS.values()):
        return {"auto, aws": auto["auto, aws"]}
    left = {name: VARIANTS[name] for name in LEFT}
    # after the first two both nodes know the link
    return {LEFT[0]: left[LEFT[0]], LEFT[1]: left[LEFT[1]], **auto, LEFT[2]: left[LEFT[2]]}


class Lab:
    """The lab whose links are shaped, and a file with a line for each move in it."""

    def __init__(self, name: str, folder: Path, private: Path) -> None:
        """Go on with what `folder` has."""
        self.name = name
        self.inventory = ROOT / "inventories" / name / "hosts.yml"
        self.mover = Mover(Nodes(self.inventory.resolve(), private), folder, {})
        self.path, self.log = folder / "moves.jsonl", folder / "lab.log"
        self.moves = read(self.path)

    def shape(self, link: str) -> None:
        """Limit the link, and let both nodes forget what they know of it.

        :raises subprocess.CalledProcessError: the lab or its nodes refused
        """
        rate = "" if link == UNSHAPED else link
        extra = {"lab_name": self.name, "lab_rate": rate}
        self._ansible("ansible-playbook", "playbooks/lab.yml", "-e", json.dumps(extra))
        words = ("-i", str(self.inventory), "source:destination", "-b", "-m", "ansible.builtin.file")
        self._ansible("ansible", *words, "-a", f"path={COSTS} state=absent")

    def _ansible(self, program: str, *words: str) -> None:
        with self.log.open("a", encoding="utf-8") as log:
            command = [str(Path(sys.executable).parent / program), *words]
            subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log, check=True)

    def about(self, link: str, megabytes: int) -> None:
        """Make the moves of one size; what has gone wrong ends the row."""
        traveller: Traveller | None = None
        bad = None
        try:
            for name, how in ways(link, megabytes).items():
                if traveller is None:
                    self.mover.params = {"mb_size": megabytes, "max_memory": megabytes}
                    move, traveller = self.mover.start("memory", how)
                else:
                    move = self.mover.move(traveller, name, how)
                self.add({**move, "link": link, "megabytes": megabytes, "variant": name})
                if not good(move):
                    bad = move
                    return
        finally:
            self.mover.end(traveller, bad)

    def add(self, move: Move) -> None:
        """Keep a move and tell of it."""
        self.moves.append(move)
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(move) + "\n")
        state = f"{used(move)} s" if good(move) else f"NOT WHOLE, see {move['results']}"
        stamp = time.strftime("%H:%M:%S")
        print(f"{stamp} {move['link']} {move['megabytes']} MB {move['variant']}: {state}", flush=True)


def used(move: Move) -> float | None:
    """Seconds from the notice until it ran at the destination and nothing was left on the source."""
    return ((move.get("deadlines") or {}).get("aws") or {}).get("used")


def way_of(move: Move) -> str:
    """What was done, whoever chose it."""
    return f"{move['strategy']}, lazy restore" if move["lazy_restore"] else str(move["strategy"])


def rows(moves: Sequence[Move]) -> list[dict[str, Any]]:
    """One for each link, size and budget: what was chosen, what it took, what each rejected one took."""
    found = []
    for link, megabytes in dict.fromkeys((move["link"], move["megabytes"]) for move in moves):
        here = {m["variant"]: m for m in moves if (m["link"], m["megabytes"]) == (link, megabytes) and good(m)}
        for budget, limit in BUDGETS.items():
            chosen = here.get(f"auto, {budget}") or here.get("auto, aws")
            if chosen is None:
                continue
            others = {name: used(here[name]) for name in LEFT if name in here and name != way_of(chosen)}
            took = used(chosen)
            met = took is not None and took <= limit
            better = [name for name, seconds in others.items() if not met and seconds is not None and seconds <= limit]
            found.append({
                "link": link, "megabytes": megabytes, "limit": limit, "chosen": way_of(chosen), "took": took,
                "met": met, "rejected": others, "better": better, "bytes_alone": at_least(link, megabytes),
            })  # fmt: skip
    return found


def markdown(found: Sequence[dict[str, Any]]) -> str:
    """The table, and under it how many rejected ones would have met what the chosen one missed."""
    lines = ["| link | memory | budget | chosen | took | met | rejected, and what it took |", "|" + "---|" * 7]
    for row in found:
        took = {name: seconds for name, seconds in row["rejected"].items() if seconds is not None}
        others = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in took.items())
        others = others or f"none could: the bytes alone need {row['bytes_alone']:.0f} s"
        mine = "-" if row["took"] is None else f"{row['took']:.1f} s"
        lines.append(
            f"| {row['link']} | {row['megabytes']} MB | {row['limit']:.0f} s | {row['chosen']} | {mine} | "
            f"{'yes' if row['met'] else 'no'} | {others}{' **would have met it**' if row['better'] else ''} |"
        )
    met, wrong = sum(row["met"] for row in found), sum(bool(row["better"]) for row in found)
    lines += ["", f"{met} of {len(found)} met; in {wrong} a rejected one would have met what was missed."]
    return "\n".join(lines)


def main() -> int:
    """Run and write the table; 1 where a move went wrong or a rejected one would have been in time."""
    options = read_options()
    folder = (options.output or Path("results") / time.strftime("deadlines_%Y%m%d_%H%M%S")).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the process is ended and the table is made
    try:
        if not options.table:
            with tempfile.TemporaryDirectory(prefix="criu-") as private:
                lab = Lab(options.lab, folder, Path(private))
                try:
                    for link in options.links:
                        lab.shape(link)
                        for megabytes in options.memory:
                            if not any((move["link"], move["megabytes"]) == (link, megabytes) for move in lab.moves):
                                lab.about(link, megabytes)
                finally:
                    lab.shape(UNSHAPED)
    finally:
        moves = read(folder / "moves.jsonl")
        table = markdown(rows(moves))
        (folder / "table.md").write_text(table + "\n", encoding="utf-8")
        print(f"{table}\nFigures: {folder}")
    return 0 if moves and all(map(good, moves)) and not any(row["better"] for row in rows(moves)) else 1


if __name__ == "__main__":
    sys.exit(main())
