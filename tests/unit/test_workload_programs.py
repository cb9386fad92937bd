"""The programs that run on the nodes: contract, memory, and the redis mix with its one-connection client."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import memory_standalone
import pytest
import redis_client
import redis_load
import redis_standalone
from contract import SLOT, SLOTS, Contract, Heartbeat, Pace


@pytest.fixture
def contract(tmp_path: Path) -> Contract:
    (tmp_path / "checkpoint_flag").touch()
    return Contract(str(tmp_path), 0.0)


class Memory:
    """A store as the mix expects it, in a dict."""

    def __init__(self) -> None:
        self.data: dict[str, bytes] = {}

    def get(self, key: str) -> bytes | None:
        return self.data.get(key)

    def get_many(self, keys: list[str]) -> list[bytes | None]:
        return [self.data.get(key) for key in keys]

    def write(self, key: str, value: bytes, counter: str) -> int:
        self.data[key] = value
        self.data[counter] = b"%d" % (int(self.data.get(counter, b"0")) + 1)
        return int(self.data[counter])


def load(store: redis_load.Store, keys: int = 20) -> redis_load.Load:
    return redis_load.Load(store, "k:%d", "count", keys, 8, 0.5, "seed")


def test_heartbeat_has_its_size_from_the_start_and_wraps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [1000.0]
    monkeypatch.setattr(time, "time", lambda: clock[0])
    ring = Heartbeat(str(tmp_path / "ring"), 0.005)
    assert (tmp_path / "ring").stat().st_size == SLOTS * 8
    ring.beat()
    clock[0] += 0.001
    ring.beat()  # too young
    clock[0] -= 500.0
    ring.beat()  # another machine's clock
    data = (tmp_path / "ring").read_bytes()
    assert data[:24] == b"".join(SLOT.pack(stamp) for stamp in (1000.0, 500.001, 0.0))


def test_contract_answers_a_token(contract: Contract, tmp_path: Path) -> None:
    assert contract.requested_proof() is None and not contract.ended()
    contract.ready()
    assert (tmp_path / "checkpoint_ready").read_text(encoding="utf-8") == f"ready:{os.getpid()}\n"
    (tmp_path / "verify_request").write_text("t1", encoding="utf-8")
    assert contract.requested_proof() == "t1"
    contract.answer("t1", True, "m", {"n": 1})
    answer = json.loads((tmp_path / "verify_result.json").read_text(encoding="utf-8"))
    assert answer == {"token": "t1", "verified": True, "method": "m", "details": {"n": 1}}
    assert contract.requested_proof() is None
    (tmp_path / "checkpoint_flag").unlink()
    assert contract.ended()


def test_pace_does_not_catch_up_a_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    slept: list[float] = []
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(time, "sleep", slept.append)
    pace = Pace(100)
    pace.wait()
    clock[0] = 50.0
    pace.wait()
    pace.wait()
    assert slept == pytest.approx([0.01, 0.01])


def test_memory_notices_a_single_changed_byte(contract: Contract, tmp_path: Path) -> None:
    blocks = memory_standalone.Blocks("seed", 2)
    for _ in range(3):
        blocks.grow()
    assert blocks.full_blocks() == 1 and len(blocks.pieces()) == 3

    def proof() -> dict[str, object]:
        (tmp_path / "verify_request").write_text("t", encoding="utf-8")
        memory_standalone.prove(contract, "t", blocks)
        found: dict[str, object] = json.loads((tmp_path / "verify_result.json").read_text(encoding="utf-8"))
        return found

    assert proof()["verified"] is True
    blocks.blocks[1][17] ^= 1
    assert proof()["verified"] is False
    blocks.checksums[1][0] = hashlib.sha256(blocks.read(1, 0)).digest()
    assert proof()["verified"] is False  # memory and checksum changed alike: the seed tells


@pytest.mark.parametrize("fault", ["none", "lost", "doubled", "damaged"])
def test_the_mix_shows_every_fault(fault: str) -> None:
    store = Memory()
    mix = load(store)
    for _ in range(200):
        mix.operate()
    key = next(mix.key(number) for number, version in enumerate(mix.versions) if version)
    if fault == "lost":
        store.data["count"] = b"%d" % (int(store.data["count"]) - 1)
    elif fault == "doubled":
        store.data["count"] = b"%d" % (int(store.data["count"]) + 1)
    elif fault == "damaged":
        store.data[key] = b"wrong"
    proof = mix.prove(lambda: None, version_zero_is_absent=True)
    assert redis_load.is_whole(proof) is (fault == "none")
    assert mix.reads + mix.written == 200


def test_redis_configuration_writes_nothing_to_disk() -> None:
    text = redis_standalone.configuration(7000, redis_standalone.ANY, "/d")
    assert 'save ""' in text and "appendonly no" in text and "protected-mode no" in text
    assert "protected-mode yes" in redis_standalone.configuration(7000, "127.0.0.1", "/d")


def test_a_taken_port_is_refused_clearly() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(redis_standalone.Refused, match="choose another redis_port"):
            redis_standalone.refuse_taken_port(other.getsockname()[1], "127.0.0.1")


class Server:
    """Speaks enough of redis's protocol for the client, on a loopback port; can hang up after some commands."""

    def __init__(self, hang_up_after: int = 1 << 30) -> None:
        self.store = Memory()
        self.connections = 0
        self._left = hang_up_after
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join(10)

    def _run(self) -> None:
        while True:
            try:
                link = self._socket.accept()[0]
            except OSError:
                return
            self.connections += 1
            with link, link.makefile("rb") as stream:
                while self._left > 0 and (words := self._command(stream)):
                    self._left -= 1
                    link.sendall(self._answer(words))

    def _command(self, stream: BinaryIO) -> list[str]:
        line = stream.readline()
        words = []
        for _ in range(int(line[1:]) if line else 0):
            words.append(stream.read(int(stream.readline()[1:]) + 2)[:-2].decode("latin-1"))
        return words

    def _answer(self, words: list[str]) -> bytes:
        if words[0] == "MULTI":
            return b"+OK\r\n"
        if words[0] == "SET":
            self._set = (words[1], words[2].encode("latin-1"))
            return b"+QUEUED\r\n"
        if words[0] == "INCR":
            self._count = words[1]
            return b"+QUEUED\r\n"
        if words[0] == "EXEC":
            return b"*2\r\n+OK\r\n:%d\r\n" % self.store.write(*self._set, self._count)
        values = [b"$-1\r\n" if v is None else b"$%d\r\n%b\r\n" % (len(v), v) for v in self.store.get_many(words[1:])]
        return values[0] if words[0] == "GET" else b"*%d\r\n" % len(values) + b"".join(values)


@pytest.fixture
def server() -> Iterator[Server]:
    serving = Server()
    yield serving
    serving.close()


def options(port: int) -> argparse.Namespace:
    return argparse.Namespace(
        host="127.0.0.1", port=port, client_id="c", num_keys=50, value_size=16, ops_per_sec=2000.0, read_ratio=0.5,
        patience=1.0,
    )  # fmt: skip


def test_the_client_proves_what_was_acknowledged(contract: Contract, server: Server, tmp_path: Path) -> None:
    client = redis_client.Client(contract, options(server.port))
    timer = threading.Timer(0.3, (tmp_path / "checkpoint_flag").unlink)
    timer.start()
    result = client.work()
    timer.join()
    assert result["connected_whole_time"] and result["verified"] and result["errors"] == []
    assert result["acknowledged"] > 0
    lines = (tmp_path / "acknowledged.log").read_text(encoding="utf-8").splitlines()
    assert [int(line.split()[3]) for line in lines] == list(range(1, result["acknowledged"] + 1))
    assert result["longest_gap"]["seconds"] >= result["longest_gaps"][-1]["seconds"]
    assert server.connections == 1


def test_the_client_never_connects_again(contract: Contract) -> None:
    serving = Server(hang_up_after=40)
    result = redis_client.Client(contract, options(serving.port)).work()
    assert not result["connected_whole_time"] and not result["verified"]
    assert "closed the connection" in result["errors"][0]
    serving.close()
    assert serving.connections == 1


def test_gaps_keep_the_longest_and_one_apart_from_it(monkeypatch: pytest.MonkeyPatch) -> None:
    moments = [0.0, 0.01, 0.05, 10.0, 12.0, 12.5, 20.0, 20.01]
    clock = iter(moments)
    monkeypatch.setattr(time, "time", lambda: next(clock))
    gaps = redis_client.Gaps()
    for _ in moments:
        gaps.acknowledged()
    report = gaps.report()
    assert report["longest_gap"]["seconds"] == pytest.approx(9.95)
    assert report["usual_gap"] == pytest.approx(7.5)
