"""What the two records of a run allow, as a plain function: which copy is the process, and what may be done now."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Data = Mapping[str, Any]
ROLES = ("source", "destination")
NOTHING = {"source": "none", "destination": "none"}
RUNS = ("running", "done")
FINAL = ("done", "undone")
UNTOUCHED = ("armed", "iterating")  # states of the source in which the process runs as it did before
RAN_ON = " The process runs on the source, where nothing was stopped yet."
OLDER = "-e fence=destination-is-dead lets the source's copy run, which is older."
BOTH_DEAD = "-e fence=destination-is-dead ends this run; there is no process any more."


def pair(found: Mapping[str, Data], usual: Mapping[str, str]) -> dict[str, str]:
    """The hosts between which the run goes, by role.

    found: what criu_guard has found, by host. usual: the hosts where nothing says more: the first ones of the
    inventory's groups, which an evacuation need not have taken. A host that a record names is taken although it was not
    reached: of another one "it has no record of this run" would say nothing.
    """
    records = {host: item["record"] for host, item in found.items() if item.get("record")}
    chosen = {}
    for role in ROLES:
        named = [str(item["nodes"][role]) for item in records.values() if (item.get("nodes") or {}).get(role)]
        holders = sorted(host for host, item in records.items() if item.get("role") == role)
        preferred = [host for host in [*named, usual.get(role, "")] if host in holders]
        chosen[role] = [*preferred, *holders, *named, usual.get(role, "")][0]
    return chosen


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
    node was not reached), rebooted, died, incomplete. do: none | start (the guard, which goes on from its record) |
    undo | fence (a person's word: let the stopped copy run, if it can, else end the run) | done.
    where: source | destination | nowhere | undecided.
    """
    one, two = _state(source), _state(destination)
    if one not in FINAL and _contradicted({"source": source, "destination": destination}, fence):
        return _refused(fence)
    if not one:
        return _without_source(source, destination, fence)
    if one == "done":
        return _done(destination)
    if one == "undone":
        return _undone(source, destination)
    if source["record"].get("ending"):
        return _ending(destination)
    if source.get("rebooted"):
        return _anew(source, destination, fence)
    if fence == "destination-is-dead":
        return _answer("source", _without_destination(one), source="fence", destination="start" if two else "none")
    if one == "committed" or two in RUNS:
        return _committed(one, destination)
    text = f"The migration is under way (source {one}, destination {two or 'without a record'}): its guards go on."
    text += RAN_ON if one in UNTOUCHED else ""
    return _answer("source", text, source="start", destination="start" if two else "none")


def _without_destination(one: str) -> str:
    if one in UNTOUCHED:
        return f"You say that the destination is dead: the migration is undone.{RAN_ON}"
    return "You say that the destination's copy is dead: the source's, stopped at the freeze, runs again."


def _state(found: Data) -> str:
    return str((found.get("record") or {}).get("state", ""))


def _reached(found: Data) -> bool:
    return "record" in found


def _dead(found: Data) -> bool:
    """Whatever the node held of the process has died there."""
    return bool(found.get("rebooted") or found.get("died"))


def _how(found: Data) -> str:
    return "was started anew since" if found.get("rebooted") else "was killed before it ever ran"


def _contradicted(nodes: Mapping[str, Data], fence: str) -> bool:
    """The node that a person calls dead answers, and it, or its copy, still lives."""
    found = nodes.get(fence.replace("-is-dead", ""), {})
    return bool(_state(found)) and _state(found) != "undone" and not _dead(found)


def _refused(fence: str) -> dict[str, Any]:
    role = fence.replace("-is-dead", "")
    text = (
        f"You say that the {role} is dead, but it answers, in the boot in which the run began: its copy may run, or "
        "begin to. Nothing was done. Without that word resolve.yml does what the records allow. If the node is to be "
        f"given up, switch it off, then say -e fence={fence} again."
    )
    return _answer("undecided", text)


def _done(destination: Data) -> dict[str, Any]:
    do = "done" if _state(destination) == "running" else "none"
    if _dead(destination):
        text = f"The migration ended well. Later the process died with the destination, which {_how(destination)}."
        return _answer("nowhere", text, destination=do)
    text = "The migration ended well: the process runs on the destination."
    if not _reached(destination):
        text += " That cannot be reached now."
    return _answer("destination", text, destination=do)


def _undone(source: Data, destination: Data) -> dict[str, Any]:
    two = _state(destination)
    if two in RUNS and not _dead(destination):
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
    elif not _reached(destination):
        text += (
            " The destination cannot be reached: when it can, run resolve.yml again to remove what it may have left."
        )
    return _answer(where, text, destination="undo" if unclean else "none")


def _ending(destination: Data) -> dict[str, Any]:
    """The source had the destination's word that its copy runs and is whole, and has begun to end its own."""
    do = {"source": "start", "destination": "start" if _state(destination) else "none"}
    if _dead(destination):
        text = f"The process ran on the destination, which {_how(destination)}: it died with it, after the source had"
        return _answer("nowhere", f"{text} begun to end its own copy.", **do)
    return _answer("destination", "The process runs on the destination; the source is ending its stopped copy.", **do)


def _anew(source: Data, destination: Data, fence: str) -> dict[str, Any]:
    """The source was started anew: its copy is dead, so that only what the destination holds can be the process."""
    two, committed = _state(destination), _state(source) == "committed"
    why = "The source was started anew, and its copy of the process died with it."
    do = {"source": "start", "destination": "start" if two else "none"}
    if _dead(destination):
        gone = f"{why} That of the destination is dead too: it {_how(destination)}."
        # Where it ran, its guard leaves the end to a person, who could only let the source's run: both are dead
        return _answer("nowhere", gone, **{**do, "source": "fence" if two in RUNS else "start"})
    if fence == "destination-is-dead" and not two:
        return _answer("nowhere", f"{why} You say that the destination is dead too: there is no process any more.",
                       source="fence")  # fmt: skip
    if not two:
        text = "has no record of this run" if _reached(destination) else "cannot be reached"
        held = "had been handed over to it" if committed else "may have a stopped copy there"
        return _answer("undecided", f"{why} The destination {text}; the process {held}. If that is dead for good as "
                       f"well, say so: {BOTH_DEAD}", source="start")  # fmt: skip
    if committed and destination.get("incomplete"):
        return _lost("The source was started anew.", fence, source="start")
    if two in RUNS:
        return _answer("destination", f"{why} The process runs on the destination; the source ends its run.", **do)
    if two == "undone":
        return _answer("nowhere", f"{why} The destination has undone: there is no process any more.", **do)
    return _answer("undecided", f"{why} What the destination holds of it ({two}) decides.", **do)


def _committed(one: str, destination: Data) -> dict[str, Any]:
    """By the source's record the destination's copy is the process, or a person has said so there."""
    two = _state(destination)
    if two in RUNS and _dead(destination):
        return _answer("undecided", f"The copy that ran on the destination died: it {_how(destination)}. " + OLDER)
    if not two:
        text = "has no record of this run" if _reached(destination) else "cannot be reached"
        return _answer("undecided", f"The source has handed over, the destination {text}. If it is dead for good, say "
                       f"so: {OLDER}", source="start")  # fmt: skip
    do = {"source": "start", "destination": "start"}
    if two in RUNS:
        text = "The process runs on the destination; the source's guard still has to remove its stopped copy."
        if one != "committed":
            text = "A person had said that the source is dead. " + text
        return _answer("destination", text, **do)
    if two == "undone":
        return _answer(
            "source", "The source had handed over, but the destination has undone: the source goes on.", **do
        )
    text = "The source has handed over, the destination has not confirmed: both guards go on until it has."
    return _answer("undecided", text, **do)


def _lost(why: str, fence: str, **do: str) -> dict[str, Any]:
    """Post-copy, and the source's memory is gone."""
    why += " A part of the process's memory was only there: the copy on the destination waits for it and is lost"
    if fence == "source-is-dead":
        return _answer("nowhere", why + "; it is removed.", destination="fence", **do)
    return _answer("undecided", why + ". If so, say it, and the copy is removed: -e fence=source-is-dead.")


def _without_source(source: Data, destination: Data, fence: str) -> dict[str, Any]:
    two, reachable = _state(destination), _reached(source)
    why = "The source was reached and has no record of this run." if reachable else "The source cannot be reached."
    if not two:
        return _without_records(source, destination)
    if two in ("restored", "running") and destination.get("incomplete") and not _dead(destination):
        return _lost(why, fence)
    if two in RUNS and _dead(destination):
        text = f"{why} The copy that ran on the destination died: it {_how(destination)}."
        return _answer("nowhere" if two == "done" else "undecided", text)
    if two in RUNS:  # its guard may have been killed before the SIGCONT
        do = "start" if two == "running" else "none"
        return _answer("destination", "The process runs on the destination.", destination=do)
    if two == "undone":
        return _answer("source", f"{why} The destination has undone; whatever there is runs on the source.")
    if two in ("restoring", "restored") and not (_dead(destination) or destination.get("incomplete")):
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


def _without_records(source: Data, destination: Data) -> dict[str, Any]:
    if _reached(source) and _reached(destination):
        return _answer("nowhere", "Neither node has a record of this run: it never touched a process.")
    nodes = {"source": source, "destination": destination}
    away = " and ".join(role for role, found in nodes.items() if not _reached(found))
    seen = "".join(f" The {role} has no record of this run." for role, found in nodes.items() if _reached(found))
    return _answer("undecided", f"Not reached: {away}.{seen} What cannot be read decides nothing: bring it back.")


def _answer(where: str, text: str, **do: str) -> dict[str, Any]:
    return {"where": where, "text": text, "do": {**NOTHING, **do}}
