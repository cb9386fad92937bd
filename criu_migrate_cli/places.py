"""Where the playbooks lie. Their code is imported as ansible_collections.criu.migrate, as Ansible does it."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

COLLECTION = Path("ansible_collections", "criu", "migrate")


class CommandError(Exception):
    """The command cannot be carried out; the text says why and what to do. Ends with status 2."""


def _candidates(environ: Mapping[str, str]) -> list[Path]:
    found = [Path(environ["CRIU_MIGRATE_HOME"])] if environ.get("CRIU_MIGRATE_HOME") else []
    found += [Path(__file__).resolve().parents[1], Path.cwd()]
    paths = environ.get("ANSIBLE_COLLECTIONS_PATH", "~/.ansible/collections:/usr/share/ansible/collections")
    return found + [Path(one).expanduser() / COLLECTION for one in paths.split(":") if one]


def root(environ: Mapping[str, str] = os.environ) -> Path:
    """The clone, or the installed collection.

    :raises CommandError: there is none
    """
    for path in _candidates(environ):
        if (path / "playbooks" / "migrate.yml").is_file() and (path / "templates" / "report.html.j2").is_file():
            return path.resolve()
    raise CommandError(
        "The playbooks of criu-migrate were not found. Install with `pip install --editable CLONE`, name the clone in "
        "CRIU_MIGRATE_HOME, or install the collection criu.migrate."
    )


def open_collection() -> Path:
    """Make the collection's code importable; return the root.

    :raises CommandError: there is no collection
    """
    found = root()
    # A clone has collections/ with links to its folders; an installed collection lies in such a tree already.
    tree = found / "collections" if (found / "collections").is_dir() else found.parents[2]
    if str(tree) not in sys.path:
        sys.path.insert(0, str(tree))
    return found
