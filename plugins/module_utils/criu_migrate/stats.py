"""CRIU's own images, read with CRIU's own library: pycriu where Python finds it, else the program crit."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
from typing import Any

from .errors import MigrationError
from .limits import TOOL
from .net import tables


def decode(path: str) -> list[dict[str, Any]]:
    """The entries of one image file, [] where there is no such file; MigrationError when it cannot be decoded."""
    if not os.path.exists(path):
        return []
    try:
        import pycriu  # type: ignore[import-not-found]

        with open(path, "rb") as handle:
            return list(pycriu.images.load(handle, True).get("entries", []))
    except Exception as error:  # not there, older than the installed protobuf, or its word on the image
        why = str(error) or type(error).__name__
    remedy = "Install criu's python3-pycriu, of CRIU's own version, on that node."
    crit = shutil.which("crit", path="/usr/local/bin:/usr/bin:/bin")
    if crit is None:
        raise MigrationError(f"{path} cannot be read: {why}.", remedy)
    done = subprocess.run([crit, "decode", "-i", path], capture_output=True, text=True, timeout=TOOL, check=False)
    if done.returncode:
        why = (done.stderr.strip().splitlines() or [f"crit ended with {done.returncode}"])[-1]
        raise MigrationError(f"{path} cannot be read: {why}.", remedy)
    return list(json.loads(done.stdout).get("entries", []))


def read(folder: str) -> dict[str, Any]:
    """stats-dump and stats-restore of a work directory: {dump: {...}, restore: {...}}, and `problem` where one of them
    is there and cannot be read: a migration does not fail for want of its figures, but somebody is told.

    CRIU counts times in microseconds (images/stats.proto); here they are seconds, page counts stay counts.
    """
    result: dict[str, Any] = {}
    for kind in ("dump", "restore"):
        try:
            entries = decode(os.path.join(folder, f"stats-{kind}"))
        except MigrationError as error:
            result["problem"] = error.text()
            continue
        for entry in entries:
            values = entry.get(kind) or {}
            result[kind] = {
                (name[:-5] if name.endswith("_time") else name): (
                    int(value) / 1e6 if name.endswith("_time") else int(value)
                )
                for name, value in values.items()
            }
    return result


def run_id(images: str, log: str) -> str:
    """The id of one dump: from its log, or from inventory.img where the log does not have it; '' when unknown."""
    try:
        with open(log, encoding="utf-8", errors="replace") as handle:
            for line in handle:
                match = re.search(r"CRIU run id = ([0-9a-f-]+)", line)
                if match:
                    return match.group(1)
    except FileNotFoundError:
        pass
    with contextlib.suppress(MigrationError):  # an undo goes on without it
        for entry in decode(os.path.join(images, "inventory.img")):
            return str(entry.get("dump_criu_run_id", ""))
    return ""


def lock_tables(images: str, log: str) -> list[str]:
    """Names of the nft tables that one dump made to lock the network: CRIU-<run id>, cut off by CRIU's buffer."""
    wanted = run_id(images, log)
    if not wanted:
        return []
    return [name for _family, name in tables() if len(name) > 13 and f"CRIU-{wanted}".startswith(name)]
