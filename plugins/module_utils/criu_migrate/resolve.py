"""What the two records of a run allow, as a plain function: which copy is the process, and what may be done now."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Data = Mapping[str, Any]
NOTHING = {"source": "none", "destination": "none"}
RUNS = ("running", "done")
OLDER = "-e fence=destination-is-dead lets the source's copy run, which is older."


def states(**nodes: Data) -> dict[str, str]:
    """How each node is, in words."""
    words = {}
    for role, found in nodes.items():
        words[role] = _state(found) or ("no record" if "record" in found else "not reached")
        words[role] += ", started anew since" if found.get("rebooted") else ""
    return words


def decide(source: Data, destination: Data, fence: str = "") -> dict[str, Any]:
    """{where, text, do: {source, destination}}.

    source, destination: what criu_guard has found on each node: record (None where there is none, no such key where the
    node was not reached), rebooted, incomplete. do: none | start (the guard, which goes on from its record) | undo |
    fence (let the stopped copy run) | done. where: source | destination | nowhere | undecided.
    """
    one, two = _state(source), _state(destination)
    if not one:
        return _without_source(destination, "record" in source, fence)
    if one == "done":
        do = "done" if two == "running" else "none"
        if destination.get("rebooted"):
            text = "The migration ended well. Later the destination was started anew, and the process died with it."
            return _answer("nowhere", text, destination=do)
        return _answer("destination", "The migration ended well: the process runs on the destination.", destination=do)
    if one == "undone":
        return _undone(source, destination)
    if source["record"].get("ending"):
        return _ending(destination)
    if fence == "destination-is-dead":
        text = "You say that the destination's copy is dead: the source's, stopped at the freeze, runs again."
        return _answer("source", text, source="fence", destination="start" if two else "none")
    if one == "committed":
        return _committed(source, destination, fence)
    if two in RUNS:
        text = (
            "A person had said that the source is dead: the process runs on the destination, the source ends its run."
        )
        return _answer("destination", text, source="start", destination="start")
    if source.get("rebooted"):
        text = "The source was started anew, and the process died with it. What the destination holds of it decides."
        return _answer("undecided", text, source="start", destination="start" if two else "none")
    text = f"The migration is under way (source {one}, destination {two or 'without a record'}): its guards go on."
    return _answer("source", text, source="start", destination="start" if two else "none")


def _state(found: Data) -> str:
    return str((found.get("record") or {}).get("state", ""))


def _undone(source: Data, destination: Data) -> dict[str, Any]:
    two = _state(destination)
    if two in RUNS and not destination.get("rebooted"):
        text = (
            "Both copies may run: a person has said that a node is dead, which was not. The destination's is the newer "
            "one; end the other."
        )
        return _answer("undecided", text)
    text, where = "The migration was undone: the process is the one on the source.", "source"
    if source.get("rebooted"):
        text, where = "The migration was undone. The source was started anew, and the process died with it.", "nowhere"
    unclean = two not in ("", "undone")
    if unclean:
        text += " The destination still has something of a copy; it is removed."
    return _answer(where, text, destination="undo" if unclean else "none")


def _ending(destination: Data) -> dict[str, Any]:
    """The source had the destination's word that its copy runs and is whole, and has begun to end its own."""
    do = {"source": "start", "destination": "start" if _state(destination) else "none"}
    if destination.get("rebooted"):
        text = "The process ran on the destination, which was started anew since: it died with it, after the source had"
        return _answer("nowhere", f"{text} begun to end its own copy.", **do)
    return _answer("destination", "The process runs on the destination; the source is ending its stopped copy.", **do)


def _committed(source: Data, destination: Data, fence: str) -> dict[str, Any]:
    two = _state(destination)
    if not two:
        text = "The source has handed over, the destination cannot be reached. If it is dead for good, say so: " + OLDER
        return _answer("undecided", text, source="start")
    if source.get("rebooted") and destination.get("incomplete"):
        return _lost("The source was started anew.", fence, source="start")
    if two in RUNS:
        if two == "running" and destination.get("rebooted"):
            text = "The destination was started anew, and the copy that ran there died with it. " + OLDER
            return _answer("undecided", text)
        text = "The process runs on the destination; the source's guard still has to remove its stopped copy."
        return _answer("destination", text, source="start", destination="start")
    text = "The source has handed over, the destination has not confirmed: both guards go on until it has."
    return _answer("undecided", text, source="start", destination="start")


def _lost(why: str, fence: str, **do: str) -> dict[str, Any]:
    """Post-copy, and the source's memory is gone."""
    why += " A part of the process's memory was only there: the copy on the destination waits for it and is lost"
    if fence == "source-is-dead":
        return _answer("nowhere", why + "; it is removed.", destination="fence", **do)
    return _answer("undecided", why + ". If so, say it, and the copy is removed: -e fence=source-is-dead.")


def _without_source(destination: Data, reachable: bool, fence: str) -> dict[str, Any]:
    two = _state(destination)
    why = "The source was reached and has no record of this run." if reachable else "The source cannot be reached."
    if two in ("restored", "running") and destination.get("incomplete") and not destination.get("rebooted"):
        return _lost(why, fence)
    if two in RUNS and destination.get("rebooted"):
        text = f"{why} The destination was started anew, and the copy that ran there died with it."
        return _answer("nowhere" if two == "done" else "undecided", text)
    if two in RUNS:  # its guard may have been killed before the SIGCONT
        do = "start" if two == "running" else "none"
        return _answer("destination", "The process runs on the destination.", destination=do)
    if two == "undone":
        return _answer("source", "The destination has undone; whatever there is runs on the source.")
    if not two:
        return _answer("nowhere", "Neither node has a record of this run: it never touched a process.")
    if two in ("restoring", "restored") and not (destination.get("rebooted") or destination.get("incomplete")):
        if fence == "source-is-dead":
            text = f"{why} You say it is dead: the destination's copy runs now."
            return _answer("destination", text, destination="fence")
        holds = "is restoring" if two == "restoring" else "holds"
        text = (
            f"{why} The destination {holds} a stopped copy, which must not run while the source's may. If the source "
            "is dead for good, say so: -e fence=source-is-dead."
        )
        return _answer("undecided", text)
    if fence == "source-is-dead" or reachable:
        return _answer(
            "nowhere", f"{why} The destination has no copy that could run; it is cleaned up.", destination="undo"
        )
    return _answer(
        "undecided",
        f"{why} The destination (state {two}) has no copy that could run; it waits for the source. If that is dead for "
        "good, say so, and the destination is cleaned up: -e fence=source-is-dead.",
    )


def _answer(where: str, text: str, **do: str) -> dict[str, Any]:
    return {"where": where, "text": text, "do": {**NOTHING, **do}}
