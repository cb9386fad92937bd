"""What the two records of a run allow, as a plain function: which copy is the process, and what may be done now."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Data = Mapping[str, Any]
NOTHING = {"source": "none", "destination": "none"}


def decide(source: Data | None, destination: Data | None, source_reachable: bool, fence: str = "") -> dict[str, Any]:
    """{where, text, do: {source, destination}}.

    source, destination: the records, None where the node has none or was not reached. do: none | start (the
    guard, which goes on from its record) | undo | fence (let the stopped copy run) | done.
    where: source | destination | nowhere | undecided.
    """
    two = str((destination or {}).get("state", ""))
    if source is None:
        return _without_source(two, source_reachable, fence)
    one = str(source["state"])
    if one == "done":
        do = "done" if two == "running" else "none"
        return _answer("destination", "The migration ended well: the process runs on the destination.", destination=do)
    if one == "undone":
        unclean = two not in ("", "undone")
        text = "The migration was undone: the process is the one on the source."
        if unclean:
            text += " The destination still holds a copy that never ran; it is removed."
        return _answer("source", text, destination="undo" if unclean else "none")
    if fence == "destination-is-dead" and one not in ("done", "undone"):
        text = "You say that the destination's copy is dead: the source's, stopped at the freeze, runs again."
        return _answer("source", text, source="fence")
    if one == "committed":
        if two in ("running", "done"):
            text = "The process runs on the destination; the source's guard still has to remove its stopped copy."
            return _answer("destination", text, source="start", destination="start")
        text = "The source has handed over, the destination has not confirmed: both guards go on until it has."
        return _answer("undecided", text, source="start", destination="start")
    text = f"The migration is under way (source {one}, destination {two or 'without a record'}): its guards go on."
    return _answer("source", text, source="start", destination="start" if two else "none")


def _without_source(two: str, reachable: bool, fence: str) -> dict[str, Any]:
    if two in ("running", "done"):  # its guard may have been killed before the SIGCONT
        do = "start" if two == "running" else "none"
        return _answer("destination", "The process runs on the destination.", destination=do)
    if two == "undone":
        return _answer("source", "The destination has undone; whatever there is runs on the source.")
    if not two:
        return _answer("nowhere", "Neither node has a record of this run: it never touched a process.")
    why = "The source was reached and has no record of this run." if reachable else "The source cannot be reached."
    if two == "restored" and fence == "source-is-dead":
        return _answer(
            "destination", f"{why} You say it is dead: the destination's copy runs now.", destination="fence"
        )
    if two == "restored":
        text = (
            f"{why} The destination holds a stopped copy, which must not run while the source's may. If the source "
            "is dead for good, say so: -e fence=source-is-dead."
        )
        return _answer("undecided", text)
    if fence == "source-is-dead" or reachable:
        return _answer(
            "nowhere", f"{why} The destination has no copy that could run; it is cleaned up.", destination="undo"
        )
    return _answer(
        "undecided", f"{why} The destination (state {two}) has no copy that could run; it waits for the source."
    )


def _answer(where: str, text: str, **do: str) -> dict[str, Any]:
    return {"where": where, "text": text, "do": {**NOTHING, **do}}
