"""The table of docs/faults.md from files that CRIU_MIGRATE_FAULTS names: python -m tests.lab.fault_table FILE..."""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from pathlib import Path

KINDS = ("full", "lazy_restore", "postcopy")
OUTCOMES = ("moved", "undone", "lost")
SAME = (
    (r"link cut.*", "link cut for 0.2 to 4 s"),
    (r"nothing to kill.*", "nothing left to kill (all had ended)"),
    (r"(\w+): killed guard.pyz", r"\1: guard or its keeper"),
    (r"(\w+): killed sleep infinity", r"\1: holder of a userfaultfd"),
    (r"(\w+): killed (.*)", r"\1: \2"),
)


def kind_of(fault: str) -> str:
    for pattern, name in SAME:
        if re.fullmatch(pattern, fault):
            return re.sub(pattern, name, fault)
    return fault


def main(paths: list[str]) -> None:
    """Print the table, and under it how many faults there are and how many ended otherwise than they may."""
    lines = [json.loads(line) for path in paths for line in Path(path).read_text(encoding="utf-8").splitlines()]
    good = [line for line in lines if line[5] != "VIOLATION"]
    count = Counter((kind_of(fault), kind, end.split()[0].rstrip(",")) for _, kind, _, _, fault, end in good)
    count.update(("all", kind, end) for _, kind, end in list(count.elements()))
    rows = sorted({fault for fault, _, _ in count} - {"all"})
    print("| fault | `" + "` | `".join(KINDS) + "` |\n|" + "---|" * 4)
    for row in [*rows, "all"]:
        cells = [" / ".join(str(count[row, kind, end]) for end in OUTCOMES) for kind in KINDS]
        print(f"| {row} | " + " | ".join(cells) + " |")
    asked = sum("a person decided" in line[5] for line in good)
    power = sum("power" in line[4] for line in good)
    print(f"\n{len(lines)} faults, {power} of them of nodes, {asked} decided by a person; "
          f"{len(lines) - len(good)} violations")  # fmt: skip


if __name__ == "__main__":
    main(sys.argv[1:])
