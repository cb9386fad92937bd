"""What breaks while a node is evacuated: the others are saved, each ends as one whole copy, and the table is true.

Every fault is set off by a state of a record, never by a time. What becomes of one process by itself is in
test_faults.py and test_power.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.lab.conftest import Plays, Standing
from tests.lab.harness import power
from tests.lab.harness.evacuee import Cloud, Evacuee, Group, Play, registered, remove_watch
from tests.lab.harness.harm import await_gone, cut
from tests.lab.harness.nodes import Lab
from tests.lab.harness.power import resolve
from tests.lab.harness.run import FINAL

QUICK = {"connect": 2.0, "link": 3.0, "undo": 2.0}
PATIENT = {"connect": 2.0}
SIZES = {"first": 8, "hit": 32, "last": 16}
OTHERS = ("first", "last")
Told = dict[str, dict[str, Any]]


@pytest.fixture(autouse=True)
def healed(lab: Lab, standing: Standing, plays: Plays) -> Iterator[None]:
    """Before what was made is cleared away: cables in, power on."""
    yield
    lab.destination.link("up")
    for node in (lab.source, lab.destination):
        power.on(node)


def told_by(play: Play, rc: int) -> Told:
    """The lines of the table by process, as the JSON file has them; the table shows the same."""
    found: Told = {line["name"]: line for line in play.finish(rc)["lines"]}
    said = play.output()
    for name, line in found.items():
        rows = [row.split() for row in said.splitlines() if row.split()[:1] == [name]]
        shown = [*line["outcome"].split(), line["node"] or "-"]
        assert any(row[1 : len(shown)] == shown[:-1] and row[-1] == shown[-1] for row in rows), f"{line}\n{said}"
    return found


def saved(told: Told, *names: str, node: str = "node-2") -> None:
    for name in names:
        line = told[name]
        assert (line["outcome"], line["verified"], line["node"], line["why"]) == ("saved", True, node, ""), told


def stayed(told: Told, *names: str, why: str) -> None:
    """Undone: they run on the source."""
    for name in names:
        line = told[name]
        assert (line["outcome"], line["node"]) == ("not saved", "node-1") and why in line["why"], told


def results(play: Play) -> list[str]:
    """Of which runs there is a folder of results."""
    found = play.results.glob("*/metrics.json")
    return sorted(json.loads(path.read_text(encoding="utf-8"))["run_id"] for path in found)


def pausing(plays: Plays, group: Group, role: str, state: str) -> Play:
    """evacuate.yml, in which only `hit` stands still in this state."""
    play = plays("evacuate", pause={role: [state]}, alone=True)
    for name in sorted(set(group.made) - {"hit"}):
        group.made[name].pass_on(role, state)
    return play


def done(one: Evacuee) -> None:
    """It has moved, by both records."""
    for role in ("source", "destination"):
        record = one.await_state(role, *FINAL)
        assert record["state"] == "done", one.story()


# --- a node loses its power ------------------------------------------------------------------------------------------


@pytest.fixture
def wide(wide_lab: Lab, tmp_path: Path) -> Iterator[Callable[[], Group]]:
    """Return a function that starts four processes, of which every other one will go to node-3."""
    group = Group(tmp_path)
    far = wide_lab.towards("node-3")

    def begin() -> Group:
        places = {"a": wide_lab, "b": far, "c": wide_lab, "d": far}
        sizes = zip(places.items(), (8, 16, 24, 32))
        group.start(Evacuee(lab, name, size, -size, **QUICK) for (name, lab), size in sizes)
        return group

    yield begin
    power.on(far.destination)
    group.clean([wide_lab.source, wide_lab.destination, far.destination])


def soak(*values: Any) -> Any:
    return pytest.param(*values, marks=pytest.mark.soak)


@pytest.mark.parametrize(("state", "outcome"), [("dumped", "not saved"), soak("committed", "unknown")])
def test_one_of_two_destinations_dies(
    wide_lab: Lab, wide: Callable[[], Group], tmp_path: Path, state: str, outcome: str
) -> None:
    """What goes to the other one is saved. Its own are undone, as long as they have not been committed; who had moved
    there has died there, and is not called saved."""
    group = wide()
    play = Play(wide_lab, tmp_path, "evacuate", {"source": [state]}, True, evacuate_to="all_nodes")
    hit, gone = group.made["b"], group.made["d"]
    try:
        for name in ("a", "c", "d"):
            group.made[name].pass_on("source", state)
        hit.await_paused("source", state)
        done(gone)
        power.off(hit.lab.destination)
        hit.go("source", state)
        told = told_by(play, 2)
    finally:
        play.close()
    saved(told, "a", "c")
    line = told["b"]
    assert (line["outcome"], line["node"]) == (outcome, "node-1" if outcome == "not saved" else ""), told
    assert f"resolve.yml -e run_id={hit.run_id}" in line["why"], "a stopped copy is never forgotten"
    for name in ("b", "d"):
        assert "node-3 cannot be asked" in told[name]["why"], told
    assert (told["d"]["outcome"], told["d"]["node"]) == ("unknown", ""), told
    if outcome == "unknown":
        assert "-e fence=destination-is-dead" in resolve(hit, tmp_path, "-e", "resolve_seconds=1", decided=False)
    power.on(hit.lab.destination)
    assert "process is the one on the source" in resolve(hit, tmp_path) or outcome == "unknown"
    assert "the process died with the destination" in resolve(gone, tmp_path)
    group.check("destination", "a", "c")
    group.check("source", "b")
    group.after["d"].check_nowhere()
    assert registered(wide_lab.source) == ["b"] and registered(wide_lab.destination) == ["a", "c"]


def test_the_source_dies(lab: Lab, standing: Standing, plays: Plays, tmp_path: Path) -> None:
    """Who had moved runs on; whose copy was whole runs on a person's word; the rest died with its node."""
    group = standing(QUICK, moved=8, whole=16, frozen=24)
    moved, whole, frozen = group.made.values()
    play = plays("evacuate", pause={"source": ["frozen", "restored"]}, alone=True)
    moved.pass_on("source", "frozen", "restored")
    whole.pass_on("source", "frozen")
    done(moved)
    whole.await_paused("source", "restored")
    frozen.await_paused("source", "frozen")
    power.off(lab.source)
    told = told_by(play, 2)
    saved(told, "moved")
    for one in (whole, frozen):
        line = told[one.name]
        assert (line["outcome"], line["node"]) == ("unknown", "") and f"run_id={one.run_id}" in line["why"], told
        assert "node-1 cannot be asked" in line["why"], told
    assert "The record on node-2 says restored." in told["whole"]["why"], told
    assert "-e fence=source-is-dead" in resolve(whole, tmp_path, decided=False)
    resolve(whole, tmp_path, "-e", "fence=source-is-dead")
    assert "cleaned up" in resolve(frozen, tmp_path, "-e", "fence=source-is-dead")
    power.on(lab.source)
    for one in (whole, frozen):
        resolve(one, tmp_path)
    again = plays("evacuate")
    left = told_by(again, 2)
    saved(left, "moved")
    assert left["moved"]["run_id"] == moved.run_id and left["frozen"]["outcome"] == "not saved", left
    assert "frozen does not run here any more" in again.output() and set(left) == {"moved", "frozen"}, left
    group.check("destination", "moved", "whole")
    group.after["frozen"].check_nowhere()
    assert registered(lab.destination) == ["moved", "whole"] and registered(lab.source) == ["frozen"]


# --- the control node ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("when", ["frozen", pytest.param("done", marks=pytest.mark.soak)])
def test_ansible_playbook_is_killed(lab: Lab, standing: Standing, plays: Plays, when: str) -> None:
    """The guards finish. The next evacuation takes over, at once or later: it moves nothing twice, and tells of all."""
    group = standing(PATIENT, **SIZES)
    play = pausing(plays, group, "source", "frozen")
    hit = group.made["hit"]
    hit.await_paused("source", "frozen")
    for name in OTHERS:
        done(group.made[name])
    play.kill()
    if when == "done":
        hit.go("source", "frozen")
        done(hit)
    again = plays("evacuate")
    again.until(f"hit: is on its way to node-2 since earlier, {when}")
    hit.go("source", "frozen")
    told = told_by(again, 0)
    saved(told, *SIZES)
    assert {name: line["run_id"] for name, line in told.items()} == {
        name: one.run_id for name, one in group.made.items()
    }, "moved twice"
    assert results(again) == sorted(one.run_id for one in group.made.values())
    assert registered(lab.source) == [] and registered(lab.destination) == sorted(SIZES)
    group.check("destination", *SIZES)
    assert told_by(plays("evacuate"), 0) == {}, "nothing is left to be told"


@pytest.mark.soak
def test_ansible_playbook_is_killed_when_all_stand_by(lab: Lab, standing: Standing, plays: Plays) -> None:
    group = standing(PATIENT, **SIZES)
    play = plays("evacuate")
    group.made["last"].await_laid_out("source")
    play.kill()
    again = plays("evacuate")
    saved(told_by(again, 0), *SIZES)
    assert len(results(again)) == len(SIZES)
    for one in group.made.values():
        one.again()
    group.check("destination", *SIZES)


# --- guards ----------------------------------------------------------------------------------------------------------


@pytest.mark.soak
@pytest.mark.parametrize("keeper", [False, True], ids=["guard", "guard+keeper"])
@pytest.mark.parametrize("state", ["freezing", "dumped", "restored", "committed"])
def test_the_sources_guard_of_one_is_killed(
    lab: Lab, standing: Standing, plays: Plays, state: str, keeper: bool
) -> None:
    """Its keeper starts it again, or who watches them all."""
    group = standing(PATIENT, **SIZES)
    play = pausing(plays, group, "source", state)
    hit = group.made["hit"]
    before = hit.await_paused("source", state)
    hit.kill_guard("source", keeper)
    hit.go("source", state)
    hit.await_new_guard("source", before)
    saved(told_by(play, 0), *SIZES)
    group.check("destination", *SIZES)


def only_hit_stays(play: Play, group: Group) -> None:
    """Its destination was not heard of in time; the others were saved."""
    told = told_by(play, 2)
    saved(told, *OTHERS)
    stayed(told, "hit", why="No word from the destination's guard")
    group.check("destination", *OTHERS)
    group.check("source", "hit")


@pytest.mark.soak
@pytest.mark.parametrize("state", ["restoring", "restored", "running"])
def test_the_destinations_guard_of_one_is_killed(lab: Lab, standing: Standing, plays: Plays, state: str) -> None:
    group = standing(PATIENT, **SIZES)
    play = pausing(plays, group, "destination", state)
    hit = group.made["hit"]
    before = hit.await_paused("destination", state)
    hit.kill_guard("destination")
    hit.go("destination", state)
    hit.await_new_guard("destination", before)
    saved(told_by(play, 0), *SIZES)
    group.check("destination", *SIZES)


@pytest.mark.soak
def test_the_destinations_guard_of_one_stays_dead(lab: Lab, standing: Standing, plays: Plays) -> None:
    """Nobody starts it before the source has given up: undone, and its half of a copy goes when all is collected."""
    group = standing(QUICK, **SIZES)
    play = pausing(plays, group, "destination", "restored")
    hit = group.made["hit"]
    hit.await_paused("destination", "restored")
    hit.kill_guard("destination", keeper=True)
    only_hit_stays(play, group)


# --- the link --------------------------------------------------------------------------------------------------------


@pytest.mark.soak
@pytest.mark.parametrize("state", ["detached", "committed"])
def test_a_cut_is_only_a_stall(lab: Lab, standing: Standing, plays: Plays, state: str) -> None:
    group = standing(PATIENT, **SIZES)
    play = pausing(plays, group, "source", state)
    hit = group.made["hit"]
    hit.await_paused("source", state)
    with cut(lab.destination):
        hit.go("source", state)
        hit.await_log("source", "link to the other guard broke")
    saved(told_by(play, 0), *SIZES)
    group.check("destination", *SIZES)


@pytest.mark.soak
def test_a_cut_past_the_limit_is_undone(lab: Lab, standing: Standing, plays: Plays) -> None:
    """The stopped copy is removed as soon as its node can be asked again."""
    group = standing(QUICK, **SIZES)
    play = pausing(plays, group, "destination", "restored")
    hit = group.made["hit"]
    hit.await_paused("destination", "restored")
    for name in OTHERS:
        done(group.made[name])
    with cut(lab.destination):
        hit.go("destination", "restored")
        hit.await_state("source", "undone")
    only_hit_stays(play, group)


# --- between the look and the notice ---------------------------------------------------------------------------------


@pytest.mark.soak
def test_the_notice_finds_one_that_has_ended(
    lab: Lab, standing: Standing, plays: Plays, cloud: Cloud, tmp_path: Path
) -> None:
    group = standing(PATIENT, **SIZES)
    watch = plays("watch", alone=True, watch_aws_url=cloud.url, watch_provider="aws", watch_every=300)
    watch.until("the metadata service of aws answers")
    group.made["hit"].run_id  # noqa: B018 - while its process still says which run it is
    for item in group.after["hit"].copies(lab.source.look()):
        lab.source.kill(item["pid"])
        await_gone(lab.source, item["pid"])
    cloud.say("action", "60")
    told = told_by(watch, 2)
    saved(told, *OTHERS)
    assert (told["hit"]["outcome"], told["hit"]["node"]) == ("not saved", ""), told
    assert "is not running" in told["hit"]["why"], told
    cloud.close()
    remove_watch(lab, tmp_path)
    group.check("destination", *OTHERS)
    group.after["hit"].check_nowhere()


@pytest.mark.soak
def test_the_notice_finds_a_destination_that_does_not_answer(
    lab: Lab, standing: Standing, plays: Plays, cloud: Cloud, tmp_path: Path
) -> None:
    """Nobody is saved and nobody harmed; when it answers again there may still be time."""
    group = standing(QUICK, **SIZES)
    watch = plays("watch", alone=True, watch_aws_url=cloud.url, watch_provider="aws")
    watch.until("the metadata service of aws answers")
    for one in group.made.values():
        one.await_laid_out("source")
    with cut(lab.destination):
        cloud.say("action", "60")
        told = told_by(watch, 2)
    stayed(told, *SIZES, why="No word from the destination's guard")
    for name, one in group.made.items():
        assert "freezing" not in one.record("source")["times"], one.story()
        group.after[name].one_copy("source", "destination")
        one.again()
    saved(told_by(plays("evacuate"), 0), *SIZES)
    cloud.close()
    remove_watch(lab, tmp_path)
    group.check("destination", *SIZES)
