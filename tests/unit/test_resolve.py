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


def died(state: str) -> dict[str, Any]:
    return found(state, died=True)


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
        (found("iterating"), found("receiving"), "", "source", ("start", "start")),
        (found("iterating"), AWAY, "", "source", ("start", "none")),
        (found("iterating"), anew("receiving"), "destination-is-dead", "source", ("fence", "start")),
        (anew("iterating"), found("receiving"), "", "undecided", ("start", "start")),
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
        (AWAY, AWAY, "", "undecided", ("none", "none")),
        (AWAY, NONE, "", "undecided", ("none", "none")),
        (NONE, AWAY, "", "undecided", ("none", "none")),
        (AWAY, NONE, "source-is-dead", "undecided", ("none", "none")),
        (AWAY, died("running"), "", "undecided", ("none", "none")),
        (found("done"), AWAY, "", "destination", ("none", "none")),
        (found("undone"), AWAY, "", "source", ("none", "none")),
        (anew("undone"), AWAY, "", "nowhere", ("none", "none")),
        (found("undoing"), found("undoing"), "", "source", ("start", "start")),
        (found("undoing"), AWAY, "", "source", ("start", "none")),
        (found("committed"), found("undone"), "", "source", ("start", "start")),
        (found("committed"), found("undone"), "destination-is-dead", "source", ("fence", "start")),
        (found("committed"), died("running"), "", "undecided", ("none", "none")),
        (found("committed"), died("running"), "destination-is-dead", "source", ("fence", "start")),
        (found("committed"), NONE, "", "undecided", ("start", "none")),
        (found("committed"), anew("done"), "", "undecided", ("none", "none")),
        (found("restored"), anew("running"), "", "undecided", ("none", "none")),
        # the source's copy died with its boot: nobody is offered to let it run
        (anew("committed"), AWAY, "", "undecided", ("start", "none")),
        (anew("committed"), AWAY, "destination-is-dead", "nowhere", ("fence", "none")),
        (anew("committed"), NONE, "", "undecided", ("start", "none")),
        (anew("committed"), anew("running"), "", "nowhere", ("fence", "start")),
        (anew("committed"), anew("running"), "destination-is-dead", "nowhere", ("fence", "start")),
        (anew("committed"), anew("running", incomplete=True), "", "nowhere", ("fence", "start")),
        (anew("committed"), anew("restored"), "", "nowhere", ("start", "start")),
        (anew("committed"), found("restored"), "", "undecided", ("start", "start")),
        (anew("committed"), found("running"), "", "destination", ("start", "start")),
        (anew("restored"), AWAY, "", "undecided", ("start", "none")),
        (anew("restored"), AWAY, "destination-is-dead", "nowhere", ("fence", "none")),
        (anew("restored"), anew("restored"), "", "nowhere", ("start", "start")),
        (anew("restored"), anew("running"), "", "nowhere", ("fence", "start")),
        (anew("frozen"), found("undone"), "", "nowhere", ("start", "start")),
    ],
)
def test_decide(
    source: dict[str, Any], destination: dict[str, Any], fence: str, where: str, do: tuple[str, str]
) -> None:
    decided = resolve.decide(source, destination, fence)
    assert (decided["where"], (decided["do"]["source"], decided["do"]["destination"])) == (where, do), decided


@pytest.mark.parametrize("state", ["armed", "restoring", "restored", "running", "done"])
def test_a_destination_that_answers_is_not_dead(state: str) -> None:
    """Only the guards' link is cut: to let the source's copy run as well would make two."""
    for source in (found("restored"), found("committed"), ending(), AWAY):
        decided = resolve.decide(source, found(state), "destination-is-dead")
        assert (decided["where"], decided["do"]) == ("undecided", resolve.NOTHING), decided
        assert "but it answers" in decided["text"]


@pytest.mark.parametrize("state", ["armed", "frozen", "restored", "committed", "undoing"])
def test_a_source_that_answers_is_not_dead(state: str) -> None:
    for destination in (found("restored"), found("running", incomplete=True), AWAY):
        decided = resolve.decide(found(state), destination, "source-is-dead")
        assert (decided["where"], decided["do"]) == ("undecided", resolve.NOTHING), decided
        assert "but it answers" in decided["text"]


def test_a_copy_that_is_dead_is_not_offered() -> None:
    for source in (anew("restored"), anew("committed")):
        said = resolve.decide(source, AWAY)["text"]
        assert "fence=destination-is-dead" in said and "lets the source's copy run" not in said, said


def test_what_was_not_reached_is_not_said_to_be_nothing() -> None:
    for source, destination in ((AWAY, AWAY), (AWAY, NONE), (NONE, AWAY)):
        assert "never touched" not in resolve.decide(source, destination)["text"]


def test_who_must_say_what_is_told() -> None:
    for state in ("armed", "receiving", "restored"):
        assert "fence=source-is-dead" in resolve.decide(AWAY, found(state))["text"]
    assert "fence=destination-is-dead" in resolve.decide(found("committed"), AWAY)["text"]


def test_states_in_words() -> None:
    words = resolve.states(source=anew("frozen"), destination=AWAY)
    assert words == {"source": "frozen, started anew since", "destination": "not reached"}
    assert resolve.states(source=NONE) == {"source": "no record"}


@pytest.mark.parametrize("fence", ["", "destination-is-dead"])
def test_before_the_freeze_nobody_is_told_that_something_stands_still(fence: str) -> None:
    texts = {state: resolve.decide(found(state), anew("receiving"), fence)["text"] for state in ("iterating", "frozen")}
    assert "runs on the source, where nothing was stopped yet" in texts["iterating"]
    assert "stopped at the freeze" not in texts["iterating"]
    assert "nothing was stopped" not in texts["frozen"]


# --- which hosts they are --------------------------------------------------------------------------------------------

USUAL = {"source": "node-1", "destination": "node-2"}


def held(role: str, **nodes: str) -> dict[str, Any]:
    return {"record": {"state": "running", "role": role, "nodes": nodes}}


@pytest.mark.parametrize(
    ("answers", "source", "destination"),
    [
        ({"node-1": NONE, "node-2": NONE}, "node-1", "node-2"),
        ({"node-1": held("source"), "node-2": NONE, "node-3": held("destination")}, "node-1", "node-3"),
        # It went to a node that is dead: that node-2 knows nothing of it must not count
        ({"node-1": held("source", destination="node-3"), "node-2": NONE, "node-3": AWAY}, "node-1", "node-3"),
        ({"node-1": held("source", destination="node-9"), "node-2": NONE}, "node-1", "node-9"),
        ({"node-1": NONE, "node-2": held("destination", source="node-4"), "node-4": AWAY}, "node-4", "node-2"),
        # A disk that was copied holds a record that is none of this node's
        ({"node-1": held("source", destination="node-3"), "node-2": held("destination"),
          "node-3": held("destination")}, "node-1", "node-3"),
        ({"node-1": AWAY, "node-2": held("destination"), "node-3": held("destination")}, "node-1", "node-2"),
        ({"a": held("source", source="node-1"), "node-1": NONE, "node-2": NONE}, "a", "node-2"),
    ],
)  # fmt: skip
def test_between_which_hosts(answers: dict[str, Any], source: str, destination: str) -> None:
    assert resolve.pair(answers, USUAL) == {"source": source, "destination": destination}
