"""The guard as one file: this package, packed from wherever Ansible has put it on the node."""

from __future__ import annotations

import importlib
import inspect
import io
import zipfile

NAMES = (
    "calling", "cli", "destination", "errors", "files", "fill", "filling", "guard", "holding", "intake", "layout",
    "lazy_file", "lazy_proxy", "lazy_source", "lazy_store", "lazy_window", "lazymap", "limits", "listening", "net",
    "output", "page_images", "polling", "proc", "receiving", "record", "relay", "replay", "reserve", "secure",
    "serving", "sockets", "source", "stats", "store", "sync", "tracing", "uffd", "wire",
)  # fmt: skip
_MAIN = "import sys\nfrom criu_migrate.guard import main\nsys.exit(main(sys.argv))\n"
# Ansible packs only modules that it sees imported; payload needs the text of every one of them.
from . import (  # noqa: E402,F401  (after NAMES: the two lists are read side by side)
    calling,
    cli,
    destination,
    errors,
    files,
    fill,
    filling,
    guard,
    holding,
    intake,
    layout,
    lazy_file,
    lazy_proxy,
    lazy_source,
    lazy_store,
    lazy_window,
    lazymap,
    limits,
    listening,
    net,
    output,
    page_images,
    polling,
    proc,
    receiving,
    record,
    relay,
    replay,
    reserve,
    secure,
    serving,
    sockets,
    source,
    stats,
    store,
    sync,
    tracing,
    uffd,
    wire,
)


def build() -> bytes:
    """A zip that Python runs (PEP 441); the same bytes for the same sources."""
    package = __name__.rsplit(".", 1)[0]
    sources = {"__main__.py": _MAIN, "criu_migrate/__init__.py": ""}
    for name in NAMES:
        sources[f"criu_migrate/{name}.py"] = inspect.getsource(importlib.import_module(f"{package}.{name}"))
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, text in sorted(sources.items()):
            archive.writestr(zipfile.ZipInfo(path, (2020, 1, 1, 0, 0, 0)), text)
    return out.getvalue()
