"""criu-migrate on the lab: run, results, report and compare, as a user types them."""

from __future__ import annotations

import html
import json
import os
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.lab.conftest import Prepare
from tests.lab.harness.migration import LIMIT
from tests.lab.harness.nodes import Lab, environment, program, wait_for
from tests.lab.test_migrate import schema_errors

CHROMIUM = shutil.which("chromium")
BROWSER = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
           "--disable-background-networking", "--disable-component-update", "--disable-sync",
           "--hide-scrollbars")  # fmt: skip
# Written into the page: how far it could be scrolled sideways, what leaves it, and what text lies over another.
LOOK = """
<style>html { overflow: auto }</style><script>addEventListener('load', () => {
  const width = document.documentElement.clientWidth, wide = [];
  for (const one of document.querySelectorAll('body *')) {
    const box = one.getBoundingClientRect();
    if (box.right > width + 1 || box.left < -1) wide.push(one.tagName + ' ' + one.textContent.slice(0, 40));
  }
  for (const picture of document.querySelectorAll('svg')) {
    const texts = [...picture.querySelectorAll('text')].filter(one => one.textContent);
    texts.forEach((one, place) => texts.slice(place + 1).forEach(other => {
      const a = one.getBoundingClientRect(), b = other.getBoundingClientRect();
      const over = Math.min(a.right, b.right) - Math.max(a.left, b.left);
      if (over > 1 && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 4)
        wide.push(one.textContent + ' lies over ' + other.textContent);
    }));
  }
  parent.document.title = JSON.stringify({width, scroll: document.documentElement.scrollWidth, wide,
    dark: matchMedia('(prefers-color-scheme: dark)').matches, page: getComputedStyle(document.body).backgroundColor});
});</script>
"""


class Command:
    """criu-migrate, with temporary files of its own."""

    def __init__(self, lab: Lab, tmp: Path) -> None:
        self.lab = lab
        self.tmp = tmp
        self.temporary = tmp / "temporary"
        self.temporary.mkdir()
        self.results = tmp / "results"
        self.working_dir = f"/srv/criu-migrate/test-{secrets.token_hex(4)}"

    def environ(self) -> dict[str, str]:
        return environment(self.tmp, TMPDIR=str(self.temporary))

    def run(self, *words: str, rc: int = 0) -> str:
        done = subprocess.run(
            [program("criu-migrate"), *words], cwd=ROOT, env=self.environ(), capture_output=True, text=True,
            timeout=LIMIT, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        assert done.returncode == rc, f"{words} ended with {done.returncode}:\n{done.stdout}{done.stderr}"
        assert list(self.temporary.iterdir()) == []
        return done.stdout

    def migration(self, *words: str) -> list[str]:
        return ["run", "memory", "mb_size=32", "interval=1", "max_memory=64", f"results_dir={self.results}",
                f"working_dir={self.working_dir}", "-i", str(self.lab.inventory), *words]  # fmt: skip

    def read(self, *words: str) -> str:
        return self.run(*words, "--results-dir", str(self.results))


@pytest.fixture
def command(lab: Lab, tmp_path: Path, prepare: Prepare) -> Iterator[Command]:
    """Return the command, with what it leaves on the nodes cleared away after the test."""
    found = Command(lab, tmp_path)
    # Knows how to end the workload and to look at both nodes, whoever has started the playbook.
    migration, _aftermath = prepare("memory", working_dir=found.working_dir)
    found.working_dir = migration.working_dir
    yield found


class Page(HTMLParser):
    """What a page would fetch, and its text."""

    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.pictures = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.pictures += tag == "svg"
        self.fetched += [str(value) for name, value in attrs if name in ("src", "href") and value != "data:,"]


def check_page(path: Path) -> None:
    page = Page()
    page.feed(path.read_text(encoding="utf-8"))
    assert page.fetched == [] and page.pictures >= 3


def check_ansible(metrics: dict[str, Any]) -> None:
    section = metrics["ansible"]
    assert section["rc"] == 0
    assert 0 < metrics["downtime"]["frozen"] < section["handover"] < section["total"]
    assert 0 < section["startup"] + section["between"] < section["overhead"] < section["total"]
    tasks = {row["task"]: row for row in section["tasks"]}
    hand_over = next(row for name, row in tasks.items() if name.startswith("hand_over | Start"))
    # No task boundary lies between the freeze and the thaw: all of it is within one task.
    assert hand_over["seconds"] > metrics["downtime"]["frozen"]
    assert sum(row["seconds"] for row in section["tasks"]) <= section["total"]


def look(path: Path, width: int, dark: bool, tmp: Path) -> dict[str, Any]:
    """What a real browser makes of a page at a width in pixels."""
    page = path.read_text(encoding="utf-8").replace("default-src 'none'", "script-src 'unsafe-inline'")
    inner = html.escape(page.replace("</head>", LOOK + "</head>"))
    # In a frame: a window has a least width that is more than a phone's.
    outer = f'<title></title><iframe width="{width}" height="900" style="border: 0" srcdoc="{inner}"></iframe>'
    copy = tmp / f"{path.stem}-{width}-{dark}.html"
    copy.write_text(f"<!DOCTYPE html><meta charset=utf-8>{outer}", encoding="utf-8")
    scheme = ["--blink-settings=preferredColorScheme=0"] if dark else []
    words = [str(CHROMIUM), *BROWSER, *scheme, f"--user-data-dir={tmp / 'browser'}", "--window-size=1400,1000",
             "--virtual-time-budget=2000", "--dump-dom", copy.as_uri()]  # fmt: skip
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    title = done.stdout.partition("<title>")[2].partition("</title>")[0]
    assert title.startswith("{"), f"{done.stdout[:500]}{done.stderr[-2000:]}"
    found: dict[str, Any] = json.loads(html.unescape(title))
    return found


def check_in_browser(path: Path, tmp: Path) -> None:
    backgrounds = set()
    for width in (390, 1280):
        for dark in (False, True):
            seen = look(path, width, dark, tmp)
            assert seen["width"] == width and seen["dark"] is dark
            assert seen["scroll"] == width and seen["wide"] == [], f"{path.name} at {width}: {seen['wide']}"
            backgrounds.add(seen["page"])
    assert len(backgrounds) == 2


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
@pytest.mark.parametrize("name", ["redis_20261121_054636", "redis_20261121_035059_failed", "memory_20261121_074229"])
def test_reports_of_recorded_runs_in_a_browser(name: str, tmp_path: Path) -> None:
    """No text leaves the page, on a phone or a desktop, light or dark."""
    page = tmp_path / "report.html"
    recorded = ROOT / "tests" / "unit" / "data" / "runs" / name
    done = subprocess.run([program("criu-migrate"), "report", str(recorded), "-o", str(page)], cwd=ROOT)
    assert done.returncode == 0
    check_in_browser(page, tmp_path)


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_a_comparison_in_a_browser(tmp_path: Path) -> None:
    recorded = ROOT / "tests" / "unit" / "data" / "runs"
    words = [program("criu-migrate"), "compare", "--results-dir", str(recorded), "-o", str(tmp_path)]
    assert subprocess.run(words, cwd=ROOT).returncode == 0
    check_in_browser(tmp_path / "compare.html", tmp_path)


def test_run_results_report_and_compare(command: Command, tmp_path: Path) -> None:
    shown = command.run(*command.migration("deadline=aws"))
    assert "Result: migrated" in shown and "hand_over | Start the source's guard" in shown
    (folder,) = command.results.iterdir()
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["status"] == "migrated" and metrics["integrity"]["verified"] is True
    assert schema_errors(metrics) == []
    check_ansible(metrics)
    page = folder / "report.html"
    check_page(page)
    assert "Ansible's share" in page.read_text(encoding="utf-8").replace("&#39;", "'")
    assert folder.name in command.read("results")
    assert json.loads(command.read("results", "--json"))[0]["status"] == "migrated"
    page.unlink()
    assert command.read("report", "last").strip() == str(page)
    check_page(page)
    compared = command.read("compare", "--workload", "memory", "--output", str(tmp_path / "compared"))
    assert "1/1" in compared
    check_page(tmp_path / "compared" / "compare.html")
    if CHROMIUM:
        check_in_browser(page, tmp_path)
        check_in_browser(tmp_path / "compared" / "compare.html", tmp_path)


def test_a_run_that_is_interrupted(command: Command, lab: Lab) -> None:
    with (command.tmp / "log").open("w+", encoding="utf-8") as log:
        words = [program("criu-migrate"), *command.migration()]
        child = subprocess.Popen(
            words, cwd=ROOT, env=command.environ(), stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip

        def records() -> list[dict[str, Any]]:
            found = [node.record(name) for node in (lab.source, lab.destination) for name in node.runs()]
            return [one for one in found if one and one.get("working_dir") == command.working_dir]

        def told() -> str:
            return Path(log.name).read_text(encoding="utf-8")

        wait_for("both guards to be armed", lambda: len(records()) == 2, 90)
        os.kill(child.pid, signal.SIGINT)
        began = time.monotonic()
        rc = child.wait(60)
        assert rc == 99, told()
        assert time.monotonic() - began < 30
    assert "finished or undone by the guards" in told() and "playbooks/resolve.yml -e run_id=memory-" in told()
    assert list(command.temporary.iterdir()) == []
    # Nobody of that run is left on the control node.
    assert (
        str(command.results) not in subprocess.run(["ps", "-eww", "-o", "args"], capture_output=True, text=True).stdout
    )
