"""metrics.json: which way memory and images went, and how much that was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate import metrics

SOURCE = {"bytes": 5000, "rsync": {"seconds": 2.0}}
DESTINATION = {"filled": {"pages_total": 120, "pages_inherited": 20, "pages_transferred": 120}}
STATS = {"dump": {"pages_written": 100}}
MARKS = {"frozen": 10.0, "sent": 11.0, "destination_filled": 14.0}


@pytest.mark.parametrize(
    ("strategy", "method", "asked", "pages", "images", "size", "seconds"),
    [
        ("full", "page_server", "none", ("page_server", "none"), "link", 100 * 4096 + 5000, 1.0),
        ("full", "rsync", "none", ("rsync", "tls"), "rsync", 5000, 2.0),  # with its pages
        ("postcopy", "page_server", "tls", ("link", "tls"), "link", 100 * 4096 + 5000, 4.0),
        ("postcopy", "rsync", "none", ("link", "none"), "rsync", 100 * 4096 + 5000, 4.0),
    ],
)
def test_the_ways_of_pages_and_images(
    root: Path,
    strategy: str,
    method: str,
    asked: str,
    pages: tuple[str, str],
    images: str,
    size: int,
    seconds: float,
) -> None:
    params: dict[str, Any] = {"transfer": method, "transfer_encryption": asked}
    found = metrics.transfer(params, {"strategy": strategy}, SOURCE, DESTINATION, STATS, MARKS)
    way, encryption = pages
    assert found["channels"]["pages"] == {"way": way, "encryption": encryption}
    assert found["channels"]["images"] == {"way": images, "encryption": "tls"}
    assert (found["method"], found["encryption"]) == (method, encryption)
    assert (found["bytes"], found["seconds"]) == (size, seconds)
    schema = json.loads((root / "schemas" / "metrics.schema.json").read_text(encoding="utf-8"))
    jsonschema.validate(found, schema["properties"]["transfer"], jsonschema.Draft202012Validator)


@pytest.mark.parametrize(("planned", "told"), [("none", "none"), ("tls", "tls"), (None, "tls")])
def test_the_encryption_that_was_planned_is_told(planned: str | None, told: str) -> None:
    params = {"transfer": "page_server", "transfer_encryption": "auto"}
    plan = {"strategy": "full", "encryption": planned}
    assert metrics.transfer(params, plan, SOURCE, DESTINATION, STATS, MARKS)["encryption"] == told
