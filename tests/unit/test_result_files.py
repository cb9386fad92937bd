"""What strace has written, in words; and what is collected of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate import metrics, output, result_files, tracing

RAW = r"""10 1795257813.1 write(1, "one\n", 4) = 4
11 1795257813.2 write(1, "two \"quoted\" \\ tab\t", 19 <unfinished ...>
10 1795257813.3 write(2, "\355\225\234\33[0m", 7) = 7
11 1795257813.4 <... write resumed>) = 19
10 1795257813.5 writev(1, [{iov_base="three", iov_len=5}, {iov_base="\n", iov_len=1}], 2) = 6
10 1795257813.6 write(1, "not written", 11) = -1 EPIPE (Broken pipe)
10 1795257813.7 write(1, "half", 4) = 2
10 1795257813.8 write(7, "secret", 6) = 6
10 1795257813.9 write(1</srv/output.log>, "end) = 3\n", 9) = 9
10 1795257814.0 +++ exited with 0 +++
"""
WORDS = 'one\ntwo "quoted" \\ tab\t한\x1b[0mthree\nhaend) = 3\n'


def test_parse() -> None:
    assert tracing.parse(RAW) == WORDS
    assert tracing.parse(RAW.replace("10 1795", "1795").replace("11 1795", "1795").splitlines()[0]) == "one\n"
    assert tracing.parse("") == ""
    assert tracing.parse('10 1.0 write(1, "cut off') == ""


def test_only_stdout_and_stderr_are_collected(tmp_path: Path) -> None:
    assert tracing.collect(str(tmp_path), "pre_dump", 1000) == {}
    (tmp_path / "strace-pre_dump.json").write_text(json.dumps({"pid": 1, "ended": 2.0}))
    (tmp_path / "strace-pre_dump.raw").write_text(RAW)
    found = tracing.collect(str(tmp_path), "pre_dump", 1 << 20)
    assert "secret" not in found["raw"]
    assert tracing.parse(found["raw"]) == WORDS
    assert found["info"]["raw_bytes"] == len(RAW)
    assert not found["info"]["cut_off"]
    assert tracing.end(str(tmp_path), "pre_dump") is False


def test_output_before_and_after_the_freeze(tmp_path: Path) -> None:
    path = tmp_path / "output.log"
    assert output.place(str(tmp_path)) == {}
    path.write_text("before\nafter\n")
    found = output.around_freeze(output.place(str(tmp_path)), 7, 1000)
    assert (found["before"], found["after"], found["cut_off"]) == ("before\n", "after\n", False)
    assert output.around_freeze(found, None, 4)["before"] == "ter\n"
    assert output.around_freeze(found, 5000, 1000)["before"] == "before\nafter\n"  # it was cut since
    link = tmp_path / "link"
    link.symlink_to(path)
    assert output.again({"path": str(link)}) == {}
    assert output.read(str(link), 0, 100, 100) == ("", False)


@pytest.mark.parametrize("collected", [{}, {"unreachable": True, "msg": "no route"}], ids=["nothing", "unreachable"])
@pytest.mark.parametrize("status", ["migrated", "rolled_back", "failed"])
def test_status_and_output_are_always_there(collected: dict[str, object], status: str) -> None:
    found = result_files.build(collected, collected, status=status)
    for side, phase in (("source", "pre_dump"), ("dest", "post_restore")):
        assert found[f"{side}/workload_status_{phase}.txt"].strip()
        assert found[f"{side}/workload_stdout_{phase}.log"] == ""
        assert json.loads(found[f"{side}/workload_stdout_{phase}.log.info"])["why"]
        assert ("not_reached.txt" in str(found)) == bool(collected)
    assert ("source/workload_status_post_rollback.txt" in found) == (status == "rolled_back")


def test_an_earlier_look_stands_in_for_what_was_ended() -> None:
    seen = {"memory": {"rss": 1, "pss": 2, "swap": 3}, "open_files": 4, "status": "PID"}
    earlier = {"record": None, "seen": seen, "output": {"path": "/o", "before": "said\n", "after": ""}}
    found = result_files.build({"record": None, "output": {}}, {"record": None}, earlier)
    assert "rss 1, pss 2, swap 3" in found["source/workload_status_pre_dump.txt"]
    assert found["source/workload_stdout_pre_dump.log"] == "said\n"


@pytest.mark.parametrize(("source", "destination", "status"), [
    ("done", "done", "migrated"), ("done", None, "migrated"), (None, "done", "migrated"), (None, "running", "failed"),
    ("committed", "running", "migrated"), ("committed", None, "failed"), (None, None, "failed"),
])  # fmt: skip
def test_what_one_record_alone_can_say(source: str | None, destination: str | None, status: str) -> None:
    one, two = ({"state": state} if state else {} for state in (source, destination))
    assert metrics.status_of(one, two) == status
