"""What a user sees: closed connections said, a failed run reported, results that are private, a lab made once."""

from __future__ import annotations

import json
import os
from pathlib import Path

from tests.lab.conftest import Prepare
from tests.lab.harness.nodes import RUNS, Lab, playbook


def test_closing_connections_is_said(prepare: Prepare, lab: Lab) -> None:
    """Without a service address a connection to the outside is refused, and closed only where that was asked for."""
    text = (
        "import socket, time\n"
        f"s = socket.create_connection(('{lab.client.address}', 22))\n"
        "open('checkpoint_ready', 'w').write('ready:1')\n"
        "while True: time.sleep(0.05)"
    )
    lab.source.path("/srv/outward.py").write_text(text, encoding="utf-8")
    migration, aftermath = prepare("command", command="python3 /srv/outward.py", wait_ready=True)
    migration.run(rc=None)
    assert "tcp_close=true" in migration.output()
    second, aftermath = prepare("command", command="python3 /srv/outward.py", wait_ready=True, tcp_close=True)
    second.run()
    assert "closed" in second.output()
    aftermath.check("destination")


def test_the_lab_twice_changes_nothing(lab: Lab, tmp_path: Path) -> None:
    done = playbook(tmp_path, "playbooks/lab.yml", "-e", f"lab_name={lab.name}")
    assert done.returncode == 0, done.stdout
    recap = [line for line in done.stdout.splitlines() if "changed=" in line]
    assert recap
    assert all("changed=0 " in line for line in recap), recap


def test_no_results_are_readable_by_others(prepare: Prepare) -> None:
    migration, _aftermath = prepare("memory", mb_size=8, interval=0.5, max_memory=32)
    migration.run()
    folder = next(migration.results.iterdir())
    assert folder.stat().st_mode & 0o077 == 0
    names = {os.path.relpath(path, folder) for path in folder.rglob("*") if path.is_file()}
    wanted = {
        "metrics.json", "summary.txt", "source/criu-dump.log", "source/workload_status_pre_dump.txt",
        "source/workload_stdout_pre_dump.log", "dest/criu-page-server.log", "dest/criu-restore.log",
        "dest/workload_status_post_restore.txt", "dest/workload_stdout_post_restore.log",
    }  # fmt: skip
    assert wanted <= names, wanted - names
    text = "".join(path.read_text(errors="replace") for path in folder.rglob("*") if path.is_file())
    assert "PRIVATE KEY" not in text


def test_a_failed_run_is_reported_and_cleaned_up(prepare: Prepare, lab: Lab) -> None:
    """The second one wants the port that the first one holds on the destination."""
    lab.source.path("/srv/listen.py").write_text(
        "import socket, time\ns = socket.socket(); s.bind(('0.0.0.0', 7030)); s.listen()\n"
        "open('checkpoint_ready', 'w').write('ready:1')\nwhile True: time.sleep(0.05)",
        encoding="utf-8",
    )
    first, _aftermath = prepare("command", command="python3 /srv/listen.py", wait_ready=True)
    first.run()
    second, aftermath = prepare("command", command="python3 /srv/listen.py", wait_ready=True)
    second.run(rc=None)
    assert "7030" in second.output()
    folder = next(second.results.iterdir())
    assert folder.name.endswith("_failed")
    assert json.loads((folder / "metrics.json").read_text())["status"] == "failed"
    for role in aftermath.before:
        assert not second.node(role).path(second.working_dir).exists(), f"left on the {role}"
        assert not [
            name for name in second.node(role).runs() if os.path.exists(second.node(role).path(f"{RUNS}/{name}/tls"))
        ]
