"""A node is announced to go: what is registered there moves to the other node, all at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.lab.conftest import Plays, Standing
from tests.lab.harness.evacuee import Cloud, registered, remove_watch
from tests.lab.harness.nodes import Lab, playbook

# A deleted file that is larger than what may travel inside of the images
STAYS = "import tempfile, time; f = tempfile.TemporaryFile(); f.write(bytes(3 << 20)); f.flush(); time.sleep(600)"


def all_saved(told: dict[str, Any], names: list[str]) -> None:
    assert sorted(line["name"] for line in told["lines"]) == sorted(names)
    assert all((line["outcome"], line["verified"], line["why"]) == ("saved", True, "") for line in told["lines"]), told


@pytest.mark.parametrize(
    ("cloud", "notice"), [("aws", ("action", "60")), ("gcp", ("preempted", "TRUE"))], indirect=["cloud"]
)
def test_from_the_notice_to_the_other_node(
    lab: Lab, standing: Standing, plays: Plays, cloud: Cloud, notice: tuple[str, str], tmp_path: Path
) -> None:
    names = {"small": 8, "middle": 24, "large": 48}
    moved = standing(**names)
    watch = plays("watch", **{f"watch_{cloud.kind}_url": cloud.url, "watch_provider": cloud.kind})
    for one in moved.made.values():
        one.play = watch
    watch.until(f"the metadata service of {cloud.kind} answers")
    assert registered(lab.source) == sorted(names)
    cloud.say(*notice)
    told = watch.finish()
    all_saved(told, list(names))
    assert told["notice"]["provider"] == cloud.kind and told["left"] is not None
    folders = {path.name.split("_")[0]: path for path in watch.results.iterdir() if path.is_dir()}
    assert sorted(folders) == sorted(names)
    for folder in folders.values():
        metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
        assert metrics["downtime"]["service"] > 0 and metrics["integrity"]["details"]["checksums"] > 0
        assert {path.name for path in folder.iterdir()} >= {"summary.txt", "report.html", "source", "dest"}
    assert (registered(lab.source), registered(lab.destination)) == ([], sorted(names))
    remove_watch(lab, tmp_path)
    cloud.close()
    moved.check("destination", *moved.made)


def test_one_that_cannot_move_hinders_no_other(
    lab: Lab, standing: Standing, plays: Plays, tmp_path: Path
) -> None:
    moved = standing(mover=8)
    lab.source.ssh(f"cd /; setsid python3 -c '{STAYS}' & echo $! >/run/stays.pid")
    try:
        extra = {"register_name": "stays", "register_pidfile": "/run/stays.pid"}
        done = playbook(tmp_path, "playbooks/register.yml", "-i", str(lab.inventory), "-e", json.dumps(extra))
        assert done.returncode == 0, done.stdout + done.stderr
        evacuate = plays("evacuate")
        told = evacuate.finish(rc=2)
        by_name = {line["name"]: line for line in told["lines"]}
        assert by_name["mover"]["outcome"] == "saved" and by_name["mover"]["verified"] is True
        assert by_name["stays"]["outcome"] == "not saved" and "ghost_limit=3M" in by_name["stays"]["why"]
        assert registered(lab.source) == ["stays"] and registered(lab.destination) == ["mover"]
    finally:
        lab.source.run("sh", "-c", "kill -9 $(cat /run/stays.pid)", check=False)
    moved.check("destination", *moved.made)


def test_what_stands_by_is_only_a_directory(lab: Lab, standing: Standing, plays: Plays) -> None:
    """A watch that ends without a notice has started nothing and touched nothing; removed, it leaves nothing."""
    moved = standing(waiter=8)
    before = lab.destination.look()["processes"]
    watch = plays("watch", watch_aws_url="http://127.0.0.1:1", watch_gcp_url="http://127.0.0.1:1", watch_seconds=5)
    watch.until("no word from the metadata service")
    assert watch.finish() == {}
    one, aftermath = moved.made["waiter"], moved.after["waiter"]
    assert (one.state("source"), one.state("destination")) == ("armed", "armed")
    after = lab.destination.look()["processes"]
    assert [item["words"] for item in after] == [item["words"] for item in before]
    aftermath.one_copy("source", "destination")
    aftermath.whole("source")
