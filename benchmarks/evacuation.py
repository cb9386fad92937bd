"""Many processes of one node, from the notice until the last runs elsewhere, and how busy the link is meanwhile.

    .venv/bin/ansible-playbook playbooks/lab.yml -e lab_name=gigabit -e lab_rate=1gbit
    PYTHONPATH=collections:. .venv/bin/python -m benchmarks.evacuation --lab gigabit

Starts and registers the processes, lets playbooks/watch.yml wait, and has the metadata service of that cloud announce
the end, as tests/lab/test_evacuate.py does.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate.lab_net import rate_bits
from tests.lab.harness.evacuee import REGISTRY, Cloud, Evacuee, Play, start
from tests.lab.harness.nodes import Lab, playbook

NOTICES = {"aws": ("action", "120"), "gcp": ("preempted", "TRUE")}
PERIOD = 0.05  # seconds between two looks at the source's card


class Card:
    """Bytes that the source has sent, by time (seconds since 1970, the clock that both nodes share)."""

    def __init__(self, lab: Lab) -> None:
        self.path = Path(f"/proc/{lab.source.init}/net/dev")
        self.samples: list[tuple[float, int]] = []
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._look, daemon=True)
        self.thread.start()

    def _look(self) -> None:
        while not self.ended.wait(PERIOD):
            for line in self.path.read_text(encoding="ascii").splitlines():
                name, _colon, numbers = line.partition(":")
                if name.strip() == "eth0":
                    self.samples.append((time.time(), int(numbers.split()[8])))

    def sent(self, first: float, last: float) -> int:
        """Bytes between two moments."""
        inside = [count for moment, count in self.samples if first - PERIOD <= moment <= last + PERIOD]
        return inside[-1] - inside[0] if inside else 0

    def close(self) -> None:
        self.ended.set()
        self.thread.join()


def figures(results: Path, told: dict[str, Any], card: Card, rate: float) -> dict[str, Any]:
    """What it took. rate: bytes/s of the link, 0 where it has no limit; seconds are counted from the notice."""
    seen = float(told["notice"]["seen"])
    runs = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(results.glob("*/metrics.json"))]
    marks = [run["marks"] for run in runs]
    first = min((one["frozen"] for one in marks if "frozen" in one), default=seen)
    last = max((one["dumped"] for one in marks if "dumped" in one), default=first)
    sent, seconds = card.sent(first, last), last - first
    return {
        "saved": sum(line["outcome"] == "saved" for line in told["lines"]),
        "verified": sum(line["verified"] is True for line in told["lines"]),
        "of": len(told["lines"]),
        "first_frozen": first - seen,
        "last_dumped": last - seen,
        "last_ended": max((line["seconds"] or 0.0 for line in told["lines"]), default=None),
        "bytes": sent,
        "busy": sent / (rate * seconds) if rate and seconds else None,
        "downtimes": sorted(run["downtime"]["frozen"] for run in runs if run["downtime"]["frozen"] is not None),
    }


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks.evacuation", description=__doc__)
    parser.add_argument("--lab", required=True, help="a lab that exists; its lab_rate is the link")
    parser.add_argument("--processes", type=int, default=10)
    parser.add_argument("--size", type=int, default=256, help="MB of each process")
    parser.add_argument("--notice", choices=sorted(NOTICES), default="gcp")
    parser.add_argument("--rate", default="", help="of the lab's link, as tc writes it: 1gbit")
    parser.add_argument("--output", type=Path, help="a file for the figures, as JSON")
    return parser.parse_args()


def clear(lab: Lab, tmp: Path, evacuees: list[Evacuee]) -> None:
    """End the processes wherever they are, and remove the watch."""
    playbook(tmp, "playbooks/watch.yml", "-i", str(lab.inventory), "-e", "watch_state=absent")
    for node in (lab.source, lab.destination):
        for one in evacuees:
            for pid, _words in node.find([one.working_dir]):
                node.slay(pid)
            node.run("rm", "-rf", one.working_dir, check=False)
        node.run("rm", "-rf", REGISTRY)


def main() -> int:
    """Run once and print the figures; 1 where a process was not saved or not proved."""
    options = read_options()
    lab = Lab(options.lab)
    lab.keep_pids_apart()
    evacuees = [Evacuee(lab, f"p{number:02d}", options.size) for number in range(options.processes)]
    with tempfile.TemporaryDirectory(prefix="criu-") as private:
        tmp = Path(private)
        cloud = Cloud(lab, options.notice)
        try:
            start(tmp, evacuees)
            service: dict[str, Any] = {f"watch_{options.notice}_url": cloud.url}
            watch = Play(lab, tmp, "watch", watch_seconds=600, **service)
            watch.until(f"the metadata service of {options.notice} answers")
            card = Card(lab)
            cloud.say(*NOTICES[options.notice])
            watch.process.wait()
            told = watch.finish(watch.process.returncode)
            card.close()
            rate = rate_bits(options.rate) / 8 if options.rate else 0.0
            found = figures(watch.results, told, card, rate)
            print(watch.output().partition("PLAY RECAP")[2])
        finally:
            cloud.close()
            clear(lab, tmp, evacuees)
    print(json.dumps(found, indent=2))
    if options.output:
        options.output.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return 0 if found["verified"] == found["of"] == options.processes else 1


if __name__ == "__main__":
    sys.exit(main())
