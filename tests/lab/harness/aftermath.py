"""What must hold after every migration, whatever was done to it: one running copy, whole, and nothing left behind."""

from __future__ import annotations

import json
import secrets
import struct
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.lab.harness.nodes import RUNS, Node, wait_for
from tests.lab.harness.run import FINAL, Run

BOTH = ("source", "destination")
SLOT = struct.Struct("<d")
KEPT = ["record.json"]
# Directories that stay, empty, as the place for the next run.
PLACES = {"criu-migrate"}

KNOCK = """
import socket, sys
try:
    socket.create_connection((sys.argv[1], 7002), 0.5)
except OSError as error:
    print("refused" if isinstance(error, ConnectionRefusedError) else "silence")
"""


def newest_beat(node: Node, folder: str) -> float:
    """The newest stamp of a heartbeat file, 0 where there is none."""
    try:
        data = node.path(f"{folder}/heartbeat.bin").read_bytes()
    except FileNotFoundError:
        return 0.0
    return max((item[0] for item in SLOT.iter_unpack(data[: len(data) // 8 * 8])), default=0.0)


class Aftermath:
    """Made before a migration starts, so that it knows how the nodes looked."""

    def __init__(self, migration: Run, address: str = "", pid: int = 0) -> None:
        self.migration = migration
        self.address = address
        self.pid = pid  # of a process that was not started by the migration
        self.others: list[Aftermath] = []  # of migrations at the same time, to the same role
        self.before = {role: migration.node(role).look() for role in BOTH}

    # --- one copy ----------------------------------------------------------------------------------------------

    def copies(self, look: dict[str, Any]) -> list[dict[str, Any]]:
        """Processes of the workload."""
        folder = self.migration.working_dir
        found = [item for item in look["processes"] if belongs(item, folder)]
        tree = {item["pid"] for item in found} | ({self.pid} if self.pid else set())
        return [item for item in look["processes"] if item["pid"] in tree or item["ppid"] in tree]

    def check(self, where: str, client: bool | None = False, resolved: bool = True, verify: bool = True) -> None:
        """Everything at once. `where`: the role on which the process has to run now. `resolved`: the play has ended
        by itself or resolve.yml has run, so that nothing but the records is left of the run. `client`: whether there
        is one; None: what it has heard came from a newer copy, which died with its node."""
        other = BOTH[1 - BOTH.index(where)]
        self.await_end()
        self.one_copy(where, other)
        if verify:
            self.whole(where)
        if client or (client is not None and self.client_there()):
            self.client_content()
        self.nothing_left(where, resolved)

    def check_nowhere(self) -> None:
        """The process has died with its node: no copy, and nothing but the records is left."""
        self.await_end()
        looks = {role: self.migration.node(role).look() for role in BOTH}
        assert not any(map(self.copies, looks.values())), self.migration.story()
        self.nothing_left("", resolved=False)

    def await_end(self) -> None:
        """Both guards have written their last record and are gone, or never were."""
        if not self.migration.known():
            return
        for role in BOTH:
            self.migration.await_state(role, *FINAL, "absent", limit=90)

    def one_copy(self, where: str, other: str, mute_copy: bool = False) -> None:
        """One tree runs; with `mute_copy` a stopped one may still be on the other node, which nobody can reach."""
        looks = {role: self.migration.node(role).look() for role in BOTH}
        here, there = self.copies(looks[where]), self.copies(looks[other])
        story = self.migration.story
        roots = [item for item in here if item["ppid"] not in {found["pid"] for found in here}]
        assert len(roots) == 1, f"one copy has to run on the {where}, there are {roots}:\n{story()}"
        assert not [item for item in here if item["stopped"]], f"stopped on the {where}: {here}:\n{story()}"
        there = [item for item in there if not (mute_copy and item["stopped"])]
        assert not there, f"a second copy on the {other}: {there}:\n{story()}"
        self.one_heartbeat(where, other)

    def mute_copy(self, where: str) -> None:
        """A whole tree is kept there, stopped, and nobody can reach it."""
        node = self.migration.node(where)
        look = node.look()
        copy = self.copies(look)
        assert copy and all(item["stopped"] for item in copy), f"on the {where}: {copy}:\n{self.migration.story()}"
        assert self.migration.lab.client.python(KNOCK, self.address).strip() == "silence"

    def one_heartbeat(self, where: str, other: str) -> None:
        folder = self.migration.working_dir
        nodes = {role: self.migration.node(role) for role in BOTH}
        first = {role: newest_beat(nodes[role], folder) for role in BOTH}
        if not first[where]:
            return  # a program of the user's
        wait_for(
            f"heartbeats on the {where}", lambda: newest_beat(nodes[where], folder) > first[where] + 0.05 or None, 20
        )
        assert newest_beat(nodes[other], folder) == first[other], f"heartbeats on the {other} too"

    # --- whole -------------------------------------------------------------------------------------------------

    def whole(self, where: str) -> None:
        """The running program checks its own content; workloads that cannot are checked by their test."""
        if self.migration.workload in ("command", "process"):
            return
        found = self.proof(self.migration.node(where))
        assert found["verified"] is True, f"the data is not whole: {found}"

    def proof(self, node: Node) -> dict[str, Any]:
        """What the running program finds out about its own content."""
        folder = self.migration.working_dir
        token = secrets.token_hex(4)
        fresh = node.path(f"{folder}/verify_request.new")
        fresh.write_text(token, encoding="utf-8")
        fresh.replace(node.path(f"{folder}/verify_request"))

        def answer() -> dict[str, Any] | None:
            found = read_json(node.path(f"{folder}/verify_result.json"))
            return found if found.get("token") == token else None

        return wait_for("the workload's proof", answer, 120)

    def client_there(self) -> bool:
        return self.migration.lab.client.path(self.migration.working_dir + "-client").is_dir()

    def client_content(self) -> None:
        """The outside client: connected the whole time, no error, every acknowledged write there exactly once."""
        node, folder = self.migration.lab.client, self.migration.working_dir + "-client"
        node.path(f"{folder}/checkpoint_flag").unlink(missing_ok=True)
        path = node.path(f"{folder}/client_result.json")
        result = wait_for("the client's result", lambda: read_json(path) or None, 90)
        assert not result["errors"], f"the client saw {result['errors']}"
        assert result["verified"] is True, f"the client's writes are not all there: {result}"
        assert result["acknowledged"] > 0, f"the client did nothing: {result}"

    # --- nothing left ------------------------------------------------------------------------------------------

    def nothing_left(self, where: str, resolved: bool) -> None:
        moved = {item.address for item in [self, *self.others] if item.address}
        for role in BOTH:
            node = self.migration.node(role)
            expected = {item for item in self.before[role]["addresses"] if item.split()[1] not in moved}
            expected |= {f"eth0 {address}" for address in moved} if role == where else set()

            def difference(
                node: Node = node, before: dict[str, Any] = self.before[role], expected: set[str] = expected
            ) -> list[str]:
                return self.strange(node.look(), before, expected, resolved)

            self.await_none(role, difference)

    def check_untouched(self) -> None:
        """Nothing was started and nothing is there that was not there before."""
        for role in BOTH:
            node, before = self.migration.node(role), self.before[role]

            def difference(node: Node = node, before: dict[str, Any] = before) -> list[str]:
                look = node.look()
                new = [f"{key} {item}" for key in ("runs", "work") for item in look[key] if item not in before[key]]
                pids = {item["pid"] for item in before["processes"]}
                new += [f"started {item}" for item in self.copies(look) if item["pid"] not in pids]
                return new + self.strange(look, before, set(before["addresses"]), resolved=True)

            self.await_none(role, difference)

    def await_none(self, role: str, difference: Callable[[], list[str]]) -> None:
        """What Ansible has run there may need a moment to end; a guard that was started again stays for 30 s."""
        try:
            wait_for("a clean node", lambda: not difference(), 45)
        except AssertionError:
            raise AssertionError(f"left on the {role}: {difference()}\n{self.migration.story()}") from None

    def strange(self, look: dict[str, Any], before: dict[str, Any], addresses: set[str], resolved: bool) -> list[str]:
        """What differs from how the node looked before, without the workload itself and the record."""
        found = [f"addresses {look['addresses']}, not {addresses}"] * (set(look["addresses"]) != addresses)
        mine = {item["pid"] for run in [self, *self.others] for item in run.copies(look)}
        now = [item for item in look["processes"] if item["pid"] not in mine and not of_the_kernel(item)]
        count = Counter(" ".join(item["words"]) for item in now)
        count.subtract(Counter(" ".join(item["words"]) for item in before["processes"] if not of_the_kernel(item)))
        found += [f"process {words}" for words, more in count.items() if more > 0]
        for key in ("tables", "mounts"):
            found += [f"{key} {item}" for item in look[key] if item not in before[key]]
        found += [f"in TCP_REPAIR: {item}" for item in look["in_repair"]]
        found += [f"/dev/shm/{item}" for item in look["shm"] if item not in before["shm"] and item not in PLACES]
        for run_id, files in look["runs"].items():
            if resolved and run_id not in before["runs"] and files != KEPT:
                found.append(f"{RUNS}/{run_id}: {files}")
        return found

    # --- ready for the next test -------------------------------------------------------------------------------

    def clean(self) -> None:
        """End the workload wherever it is, and take away what the test itself has made; never fails."""
        self.migration.close()
        folder, run_id = self.migration.working_dir, self.migration.known()
        for node in self.migration.lab.nodes.values():
            node.link("up")
            for item in node.look()["processes"]:
                if belongs(item, folder) or (run_id and run_id in " ".join(item["words"])) or item["pid"] == self.pid:
                    node.run("kill", "-9", str(item["pid"]), check=False)
            node.run("sh", "-c", f"rm -rf {folder} {folder}-client /dev/shm/criu-migrate/*", check=False)
            if self.address:
                node.run("ip", "addr", "del", f"{self.address}/24", "dev", "eth0", check=False)
                # A client that was killed goes on asking who has the address, and the next one inherits the silence.
                node.run("ss", "--kill", "--all", "--tcp", "dst", self.address, check=False)
                node.run("ip", "neigh", "flush", "to", self.address, check=False)
            if run_id:
                node.run("rm", "-rf", f"{RUNS}/{run_id}", check=False)
            for line in node.run("nft", "list", "tables", check=False).splitlines():
                node.run("nft", "delete", *line.split(), check=False)


def of_the_kernel(item: dict[str, Any]) -> bool:
    """A thread of a virtual machine's kernel, which has more of them or fewer as it likes."""
    return not item["words"] and 2 in (item["pid"], item["ppid"])


def belongs(item: dict[str, Any], folder: str) -> bool:
    """A process works in `folder`, or was started from it or for it; guards and criu do not count."""
    if item["comm"].startswith("criu") or "guard.pyz" in " ".join(item["words"]):
        return False
    return item["cwd"] == folder or any(word == folder or folder + "/" in word for word in item["words"])


def read_json(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found
