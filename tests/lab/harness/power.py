"""The power switch of the lab's nodes, and what a person does afterwards: playbooks/resolve.yml."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate import lab_net, lab_store
from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate import resolve as rules
from tests.lab.harness import nodes
from tests.lab.harness.nodes import Node, playbook
from tests.lab.harness.run import Run

# Connections of their own: one that is shared would wait 45 s for a node that has gone without a word.
ALONE = "-o ControlMaster=no -o ControlPath=none -o ConnectTimeout={:.0f}"


def off(node: Node) -> None:
    """Pull the plug: the disk stays, memory, tmpfs and connections do not, and nobody is told."""
    lab_store.Lab(node.lab).stop_node(node.name)
    node.leave()


def on(node: Node) -> None:
    """Another boot; nothing when the node is on."""
    lab = lab_store.Lab(node.lab)
    if lab.start_node(node.name, ""):
        lab.wait_ssh(node.name, 60 * nodes.stretch)


def is_on(node: Node) -> bool:
    return lab_store.Lab(node.lab).running(node.name)


def slow(node: Node, rate: str) -> None:
    """Until its next boot the node's network sends with so little."""
    lab_net.shape(lab_store.Lab(node.lab).pin, node.name, node.init, rate)


def tried(run: Run, tmp: Path, *words: str) -> tuple[bool, str]:
    """Run playbooks/resolve.yml for a run: has it decided, and what it says."""
    inventory = ("-i", str(run.lab.inventory), "-e", f"run_id={run.run_id}")
    alone = ALONE.format(5 * nodes.stretch)
    environ = {"ANSIBLE_SSH_ARGS": alone, "ANSIBLE_TIMEOUT": f"{2 * nodes.stretch:.0f}"}
    done = playbook(tmp, "playbooks/resolve.yml", *inventory, *words, **environ)
    return done.returncode == 0, done.stdout + done.stderr


def resolve(run: Run, tmp: Path, *words: str, decided: bool = True) -> str:
    """Run playbooks/resolve.yml for a run and return what it says; it ends with an error where nothing is decided."""
    found, said = tried(run, tmp, *words)
    assert found == decided, f"{said}\n{run.story()}"
    return said


def verdict(run: Run) -> dict[str, Any]:
    """What resolve.yml decides by, of a run that has ended on both nodes."""
    found = {}
    for role in ("source", "destination"):
        record, boot_id = run.record(role), run.node(role).path("/proc/sys/kernel/random/boot_id").read_text().strip()
        found[role] = {"record": record, "rebooted": record["boot_id"] != boot_id, "incomplete": False}
    return rules.decide(found["source"], found["destination"])
