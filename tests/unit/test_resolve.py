"""What the records of a run allow."""

from __future__ import annotations

from typing import Any

import pytest

from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate import resolve

AWAY: dict[str, Any] = {"unreachable": True}
NONE: dict[str, Any] = {"record": None}


def found(state: str, **more: Any) -> dict[str, Any]:
    return {"record": {"state": state}, "rebooted": False, "incomplete": False, **more}


def anew(state: str, **more: Any) -> dict[str, Any]:
    return found(state, rebooted=True, **more)


def ending() -> dict[str, Any]:
    return {**found("committed"), "record": {"state": "committed", "ending": True}}


@pytest.mark.parametrize(
    ("source", "destination", "fence", "where", "do"),
    [
        (found("done"), found("done"), "", "destination", ("none", "none")),
        (found("done"), found("running"), "", "destination", ("none", "done")),
        (found("done"), anew("done"), "", "nowhere", ("none", "none")),
        (found("undone"), found("undone"), "", "source", ("none", "none")),
        (found("undone"), anew("restored"), "", "source", ("none", "undo")),
        (found("undone"), anew("running"), "", "source", ("none", "undo")),
        (found("undone"), found("running"), "", "undecided", ("none", "none")),
        (anew("undone"), found("undone"), "", "nowhere", ("none", "none")),
        (found("frozen"), found("receiving"), "", "source", ("start", "start")),
        (found("restored"), AWAY, "", "source", ("start", "none")),
        (anew("restored"), found("restored"), "", "undecided", ("start", "start")),
        (anew("restored"), found("done"), "", "destination", ("start", "start")),
        (found("committed"), found("restored"), "", "undecided", ("start", "start")),
        (found("committed"), found("running"), "", "destination", ("start", "start")),
        (found("committed"), anew("running"), "", "undecided", ("none", "none")),
        (found("committed"), anew("running"), "destination-is-dead", "source", ("fence", "start")),
        (found("committed"), AWAY, "", "undecided", ("start", "none")),
        (found("committed"), AWAY, "destination-is-dead", "source", ("fence", "none")),
        (ending(), found("running"), "", "destination", ("start", "start")),
        (ending(), AWAY, "destination-is-dead", "destination", ("start", "none")),
        (ending(), anew("running"), "destination-is-dead", "nowhere", ("start", "start")),
        (anew("committed"), found("running", incomplete=True), "", "undecided", ("none", "none")),
        (anew("committed"), found("running", incomplete=True), "source-is-dead", "nowhere", ("start", "fence")),
        (AWAY, found("restored"), "", "undecided", ("none", "none")),
        (AWAY, found("restored"), "source-is-dead", "destination", ("none", "fence")),
        (AWAY, found("restored", incomplete=True), "", "undecided", ("none", "none")),
        (AWAY, found("restored", incomplete=True), "source-is-dead", "nowhere", ("none", "fence")),
        (AWAY, found("restoring"), "", "undecided", ("none", "none")),
        (AWAY, found("restoring"), "source-is-dead", "destination", ("none", "fence")),
        (AWAY, found("restoring", incomplete=True), "source-is-dead", "nowhere", ("none", "undo")),
        (AWAY, anew("restored"), "", "undecided", ("none", "none")),
        (AWAY, anew("restored"), "source-is-dead", "nowhere", ("none", "undo")),
        (AWAY, found("receiving"), "source-is-dead", "nowhere", ("none", "undo")),
        (NONE, found("receiving"), "", "nowhere", ("none", "undo")),
        (AWAY, found("running"), "", "destination", ("none", "start")),
        (AWAY, anew("running"), "", "undecided", ("none", "none")),
        (NONE, NONE, "", "nowhere", ("none", "none")),
    ],
)
def test_decide(
    source: dict[str, Any], destination: dict[str, Any], fence: str, where: str, do: tuple[str, str]
) -> None:
    decided = resolve.decide(source, destination, fence)
    assert (decided["where"], (decided["do"]["source"], decided["do"]["destination"])) == (where, do), decided


def test_who_must_say_what_is_told() -> None:
    for state in ("armed", "receiving", "restored"):
        assert "fence=source-is-dead" in resolve.decide(AWAY, found(state))["text"]
    assert "fence=destination-is-dead" in resolve.decide(found("committed"), AWAY)["text"]


def test_states_in_words() -> None:
    words = resolve.states(source=anew("frozen"), destination=AWAY)
    assert words == {"source": "frozen, started anew since", "destination": "not reached"}
    assert resolve.states(source=NONE) == {"source": "no record"}
