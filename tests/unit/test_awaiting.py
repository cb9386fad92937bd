"""The wait for a notice, over connections that come and go; the node's answers are a list."""

from __future__ import annotations

from typing import Any

import pytest

from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate.awaiting import LONGEST, Lost, Wait

QUIET: dict[str, Any] = {"notice": None, "registered": "a", "provider": "aws", "trouble": ""}
NOTICE = {**QUIET, "notice": {"kind": "preempted"}}


class Node:
    """Gives its answers in turn; `waits` is for how long it was asked."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.waits: list[float] = []
        self.said: list[str] = []
        self.rests: list[float] = []

    def ask(self, seconds: float) -> dict[str, Any]:
        self.waits.append(seconds)
        answer: Any = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return dict(answer)

    def until(self, **given: Any) -> dict[str, Any]:
        wait = Wait("node-1", self.ask, self.said.append, self.rests.append)
        asked = {"seconds": 0.0, "at_most": 0.0, "every": 20.0, "registered": "a", "once": False, **given}
        return wait.until(**asked)


def test_until_the_notice() -> None:
    node = Node(QUIET, QUIET, NOTICE)
    assert node.until() == {"notice": {"kind": "preempted"}, "registered": "a", "stale": False}
    assert node.waits == [0.0, 20.0, 20.0], "the first answer comes at once"
    assert node.said == ["node-1: watching, the metadata service of aws answers"], "once, as nothing changes"


def test_a_connection_that_is_lost_ends_nothing() -> None:
    """Neither does it when the processes are due to be looked at again meanwhile (`seconds`)."""
    node = Node(QUIET, *[Lost("no route")] * 6, QUIET, NOTICE)
    assert node.until()["notice"]
    assert node.rests == [0.5, 1.0, 2.0, 4.0, LONGEST, LONGEST]
    assert len([line for line in node.said if "cannot be reached" in line]) == 1
    assert node.said[-1].endswith("of aws answers"), "it is back"
    assert Node(*[Lost("no route")] * 3, QUIET).until(seconds=1e-9)["notice"] is None


def test_a_node_that_is_gone_is_given_up_at_the_limit() -> None:
    found = Node(Lost("no route"), Lost("no route")).until(seconds=1e-9, at_most=1e-9)
    assert found == {"failed": True, "msg": "node-1 cannot be reached: no route"}


def test_the_time_is_over() -> None:
    node = Node(QUIET)
    assert node.until(seconds=1e-9) == {"notice": None, "registered": "a", "stale": False}


def test_what_is_registered_has_changed() -> None:
    assert Node(QUIET, {**QUIET, "registered": "b"}).until() == {"notice": None, "registered": "b", "stale": True}
    assert Node(QUIET, NOTICE).until(registered="")["notice"], "where nobody has asked, nothing is stale"


@pytest.mark.parametrize("answer", [QUIET, NOTICE])
def test_one_look(answer: dict[str, Any]) -> None:
    node = Node(answer)
    assert node.until(once=True)["notice"] == answer["notice"] and node.waits == [0.0]
    assert Node(Lost("no route")).until(once=True)["failed"] is True


def test_trouble_of_the_service_is_told_when_it_changes() -> None:
    trouble = {**QUIET, "trouble": "refused", "provider": ""}
    node = Node(trouble, trouble, {**QUIET, "provider": ""}, QUIET, NOTICE)
    node.until()
    assert [line.partition(": ")[2] for line in node.said] == [
        "no word from the metadata service: refused",
        "watching, the metadata service of nobody yet answers",
        "watching, the metadata service of aws answers",
    ]


def test_what_the_module_refuses_ends_the_wait() -> None:
    failure = {"failed": True, "msg": "No watcher is installed", "error": {}}
    assert Node(QUIET, failure).until() == failure
