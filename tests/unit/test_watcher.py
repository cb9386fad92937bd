"""The watcher against real HTTP servers that speak both clouds' protocols and refuse whatever does not."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate import metadata, notices, record, watcher
from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate.metadata import Trouble, ask
from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate.metadata_aws import TOKEN, TTL, Aws
from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate.metadata_gcp import Gcp
from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate.notices import Notice
from tests.unit.metadata_servers import AwsService, GcpService, serving

LIMIT = 20.0  # seconds: of a test that hangs
ACTION = "/spot/instance-action"


@pytest.fixture(autouse=True)
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A node of its own, in whose environment a proxy is named that nobody may use."""
    monkeypatch.setattr(record, "RUNS", str(tmp_path / "runs"))
    monkeypatch.setattr(watcher, "FOLDER", str(tmp_path / "watch"))
    (tmp_path / "watch").mkdir()
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    return tmp_path


@pytest.fixture
def aws() -> Iterator[AwsService]:
    service = AwsService()
    with serving(service):
        yield service


@pytest.fixture
def gcp() -> Iterator[GcpService]:
    service = GcpService()
    with serving(service):
        yield service


class Watch:
    """A watcher in a thread, and what it has said."""

    def __init__(self, **config: Any) -> None:
        self.lines: list[str] = []
        settings = {**watcher.DEFAULTS, "interval": 0.02, "limit": 1.0, "wait": 1.0, **config}
        self.watcher = watcher.Watcher(settings, self.lines.append)
        self.notices: list[Notice] = []
        self.thread = threading.Thread(target=lambda: self.notices.append(self.watcher.run()), daemon=True)
        self.thread.start()

    def until(self, true: Any) -> None:
        deadline = time.monotonic() + LIMIT
        while not true():
            assert time.monotonic() < deadline and self.thread.is_alive(), self.lines
            time.sleep(0.005)

    def end(self) -> Notice:
        self.thread.join(LIMIT)
        assert self.notices, self.lines
        return self.notices[0]


# --- the servers themselves: a test that a lenient one would pass proves nothing ------------------------------------


def test_the_servers_refuse_what_the_real_ones_refuse(aws: AwsService, gcp: GcpService) -> None:
    url = aws.url + "/latest/meta-data" + ACTION
    aws.end_in(100)
    assert ask("GET", url, {}, 5).status == 401
    assert ask("GET", url, {TOKEN: "guessed"}, 5).status == 401
    for ttl in ("", "0", "21601", "long"):
        assert ask("PUT", aws.url + "/latest/api/token", {TTL: ttl}, 5).status == 400
    token = ask("PUT", aws.url + "/latest/api/token", {TTL: "60"}, 5).body
    assert ask("GET", url, {TOKEN: token}, 5).status == 200
    assert ask("GET", gcp.url + "/computeMetadata/v1/instance/preempted", {}, 5).status == 403


# --- Amazon -------------------------------------------------------------------------------------------------------


def test_nothing_is_announced(aws: AwsService) -> None:
    client = Aws(aws.url)
    assert client.look() is None and client.look() is None
    assert aws.count("/api/token") == 1, "one token serves for both questions of both looks"
    assert aws.count(ACTION) == 2 and aws.count("/rebalance") == 2


def test_the_end_of_a_spot_instance(aws: AwsService) -> None:
    aws.end_in(100, "stop")
    notice = Aws(aws.url).look()
    assert notice is not None and notice[:3] == ("aws", "interruption", "stop")
    assert notice.seconds is not None and 95 < notice.seconds <= 100


def test_the_clouds_clock_counts_not_the_nodes(aws: AwsService) -> None:
    aws.clock = 5000.0
    aws.end_in(100)
    notice = Aws(aws.url).look()
    assert notice is not None and notice.seconds is not None and 95 < notice.seconds <= 101


def test_an_end_that_has_passed_leaves_nothing(aws: AwsService) -> None:
    aws.end_in(-10)
    assert Aws(aws.url).look() == Notice("aws", "interruption", "terminate", 0.0)


@pytest.mark.parametrize("action", [{"action": "stop"}, {"action": "stop", "time": "soon"}])
def test_an_end_without_a_time_is_the_usual_one(aws: AwsService, action: dict[str, str]) -> None:
    aws.action = action
    assert Aws(aws.url).look() == Notice("aws", "interruption", "stop", 120.0)


def test_a_hint_and_the_end_that_hides_it(aws: AwsService) -> None:
    client = Aws(aws.url)
    aws.rebalance = {"noticeTime": "2026-11-27T08:22:00Z"}
    assert client.look() == Notice("aws", "rebalance")
    aws.end_in(100)
    notice = client.look()
    assert notice is not None and notice.kind == "interruption"


def test_a_token_is_renewed_before_it_ends(aws: AwsService) -> None:
    aws.most_ttl = 0.5  # less than was asked for
    client = Aws(aws.url)
    client.look()
    deadline = time.monotonic() + LIMIT
    while aws.count("/api/token") < 3 and time.monotonic() < deadline:
        assert client.look() is None
    assert aws.count("/api/token") >= 3
    assert not [fault for fault in aws.requests if "401" in fault]


def test_a_token_that_is_refused_is_renewed_at_once(aws: AwsService) -> None:
    client = Aws(aws.url)
    client.look()
    aws.tokens.clear()  # the instance was moved to another host, say
    assert client.look() is None
    assert aws.count("/api/token") == 2


def test_no_token_is_said(aws: AwsService) -> None:
    aws.faults = [403]
    with pytest.raises(Trouble, match=r"gives no token \(HTTP 403\)"):
        Aws(aws.url).look()


@pytest.mark.parametrize("fault", [500, 503, "garbage", "cut", "drop"])
def test_a_faulty_answer_is_trouble_and_no_notice(aws: AwsService, fault: int | str) -> None:
    client = Aws(aws.url)
    client.look()
    aws.faults = [fault]
    with pytest.raises(Trouble):
        client.look()
    aws.end_in(100)
    assert client.look() is not None


# --- Google -------------------------------------------------------------------------------------------------------


def test_a_look_hangs_until_the_instance_is_preempted(gcp: GcpService) -> None:
    client = Gcp(gcp.url, wait=LIMIT)
    assert client.look() is None, "the first answer comes at once"
    found: list[Notice | None] = []
    thread = threading.Thread(target=lambda: found.append(client.look()))
    thread.start()
    while gcp.count("/preempted") < 2:
        assert thread.is_alive()
        time.sleep(0.005)
    assert thread.is_alive() and not found, "nothing has changed yet"
    gcp.preempt()
    thread.join(LIMIT)
    assert found == [Notice("gcp", "preempted", "", 30.0)]


def test_a_look_ends_without_a_change(gcp: GcpService) -> None:
    client = Gcp(gcp.url, wait=1)
    assert client.look() is None and client.look() is None
    assert f"last_etag={gcp.etag}" in gcp.requests[1] and "timeout_sec=1" in gcp.requests[1]
    assert client.pause(2.0) == 0.0, "the look itself has waited"


def test_an_instance_that_was_preempted_before(gcp: GcpService) -> None:
    gcp.preempt()
    notice = Gcp(gcp.url).look()
    assert notice is not None and notice.kind == "preempted"


def test_a_server_that_does_not_wait_is_not_asked_without_end(gcp: GcpService) -> None:
    gcp.patient = False
    client = Gcp(gcp.url)
    client.look()
    client.look()
    assert client.pause(2.0) == 2.0


@pytest.mark.parametrize("fault", [503, 500, "garbage", "cut", "drop"])
def test_a_faulty_answer_of_google_is_trouble(gcp: GcpService, fault: int | str) -> None:
    client = Gcp(gcp.url)
    gcp.faults = [fault]
    with pytest.raises(Trouble):
        client.look()
    assert client.look() is None


def test_somebody_elses_answer_is_not_believed(aws: AwsService) -> None:
    aws.faults = [200]
    with pytest.raises(Trouble, match="not Google's"):
        Gcp(aws.url).look()


# --- the watcher --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("provider", ["auto", "aws"])
def test_a_watch_of_amazon(aws: AwsService, gcp: GcpService, provider: str) -> None:
    """With auto, Google's server is known too and is not to be asked once Amazon's answers."""
    watch = Watch(provider=provider, aws_url=aws.url, gcp_url=gcp.url)
    watch.until(lambda: aws.count(ACTION) > 2)
    aws.end_in(100)
    notice = watch.end()
    data = json.loads(Path(notices.path()).read_text())
    assert (data["provider"], data["kind"], data["action"]) == ("aws", "interruption", "terminate")
    assert data["ends"] - data["seen"] == pytest.approx(notice.seconds)
    assert not gcp.requests


def test_auto_finds_google(gcp: GcpService, aws: AwsService) -> None:
    aws.faults = [404] * 100  # somebody listens there, but has no tokens
    watch = Watch(aws_url=aws.url, gcp_url=gcp.url)
    watch.until(lambda: gcp.count("/preempted") >= 2)
    gcp.preempt()
    assert watch.end().provider == "gcp"


def test_nobody_answers_yet_and_that_is_said_once(aws: AwsService) -> None:
    with serving(AwsService()) as gone:
        url = gone.url
    watch = Watch(aws_url=url, gcp_url=url)
    watch.until(lambda: watch.watcher.pause > watcher.FIRST * 2)
    assert len(watch.lines) == 1 and "aws: " in watch.lines[0] and "gcp: " in watch.lines[0]
    status = json.loads(Path(watcher.place(watcher.STATUS)).read_text())
    assert "refused" in status["trouble"] and status["provider"] == ""
    with serving(AwsService(port=int(url.rpartition(":")[2]))) as back:
        assert isinstance(back, AwsService)
        back.end_in(90)
        assert watch.end().kind == "interruption"
    assert "answers" in watch.lines[1] and len(watch.lines) == 3
    assert json.loads(Path(watcher.place(watcher.STATUS)).read_text())["trouble"] == ""


def test_trouble_on_the_way_hides_no_notice(aws: AwsService) -> None:
    watch = Watch(provider="aws", aws_url=aws.url)
    watch.until(lambda: aws.count(ACTION) > 1)
    aws.faults = [500, "garbage", "drop", 503, "cut"]
    aws.end_in(100)
    assert watch.end().kind == "interruption"
    troubles = [line for line in watch.lines if "no word" in line]
    assert len(troubles) == 1, watch.lines


def test_a_hint_is_written_once_and_the_end_replaces_it(aws: AwsService) -> None:
    aws.rebalance = {"noticeTime": "2026-11-27T08:22:00Z"}
    watch = Watch(provider="aws", aws_url=aws.url)
    watch.until(lambda: aws.count(ACTION) > 4)
    first = notices.read()
    assert first is not None and (first["kind"], first["seconds_left"]) == ("rebalance", None)
    aws.end_in(100)
    watch.end()
    second = notices.read()
    assert second is not None and second["kind"] == "interruption" and 0 < second["seconds_left"] <= 100
    assert len([line for line in watch.lines if "notice of" in line]) == 2


def test_a_service_that_never_answers_is_given_up_for_the_moment(aws: AwsService) -> None:
    """A connection that nobody accepts from: as of an address that drops packets."""
    with serving(AwsService()) as deaf:
        deaf.shutdown()  # the kernel takes connections, nobody reads
        with pytest.raises(Trouble, match="timed out"):
            ask("GET", deaf.url, {}, 0.2)
        thread = threading.Thread(target=deaf.serve_forever, daemon=True)
        thread.start()


def test_an_answer_without_end_is_not_read_for_ever(aws: AwsService) -> None:
    aws.end_in(1)
    aws.action = "x" * (metadata.MOST + 2)
    with pytest.raises(Trouble, match="does not end"):
        Aws(aws.url).look()


# --- the notice's file --------------------------------------------------------------------------------------------


def test_seconds_left_go_by_the_uptime_and_end_at_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    data = notices.write(Notice("gcp", "preempted", "", 30.0))
    assert notices.left(data, data["uptime"] + 12.5) == 17.5
    assert notices.left(data, data["uptime"] + 500) == 0.0
    assert notices.left({**data, "seconds": None}, data["uptime"]) is None
    monkeypatch.setattr(record, "boot_id", lambda: "another")
    assert notices.read() is None, "the instance was started anew since"


def test_a_notice_is_taken_away() -> None:
    notices.write(Notice("aws", "rebalance"))
    assert notices.remove() and not notices.remove() and notices.read() is None
