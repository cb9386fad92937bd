"""The folder of one run under ``results/``: private, and no file in it is half written."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

SUFFIXES = {"migrated": "", "rolled_back": "_failed", "failed": "_failed", "exception": "_exception"}


def ending(metrics: Mapping[str, Any], status: str) -> str:
    """Return how a run ended, for its folder's name. A process that moved and then failed its proof is no success."""
    unproven = (metrics.get("integrity") or {}).get("verified") is False or bool(metrics.get("error"))
    return "failed" if status == "migrated" and unproven else status


def make_folder(parent: Path, name: str, run_id: str, status: str) -> Path:
    """Make and return the folder of a run, with mode 0700.

    Two runs of one workload in one second get two folders: the second carries the end of its run id.

    :raises OSError: it cannot be made
    """
    parent.mkdir(parents=True, exist_ok=True)
    for stem in (name, f"{name}_{run_id.rpartition('-')[2]}"):
        if any((parent / f"{stem}{suffix}").exists() for suffix in set(SUFFIXES.values())):
            continue
        folder = parent / f"{stem}{SUFFIXES[status]}"
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700)
            return folder
    raise FileExistsError(f"{parent / name}: there are results of this run already")


def write_text(path: Path, text: str) -> None:
    """Write a file of mode 0600 that is either whole or not there.

    :raises OSError: it cannot be written
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.new")
    handle = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(handle, "w", encoding="utf-8", errors="surrogateescape") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    new.replace(path)


def write_files(folder: Path, files: Mapping[str, Any]) -> list[str]:
    """Write files by their path below the folder; return the paths that were refused as they lead out of it."""
    refused = []
    for name, text in files.items():
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or not path.parts:
            refused.append(name)
        elif text is not None:
            write_text(folder / path, text if isinstance(text, str) else as_json(text))
    return refused


def as_json(data: Any) -> str:
    """Return data as JSON text for a reader."""
    return json.dumps(data, indent=2, ensure_ascii=False, default=str) + "\n"
