"""The guard as one file: this package, packed from wherever Ansible has put it on the node."""

from __future__ import annotations

from . import packing

NAMES = (
    "calling", "cli", "costs", "destination", "detaching", "dirty", "errors", "files", "fill", "filling",
    "forecast", "guard", "held", "holding", "intake", "iterating", "iteration", "job", "layout", "lazy_file",
    "lazy_proxy", "lazy_source", "lazy_store", "lazy_window", "lazymap", "limits", "listening", "mixed_store",
    "moved", "net", "output", "page_images", "page_runs", "planner", "planner_choice", "polling", "probing", "proc",
    "receiving", "record", "relay", "replay", "reserve", "secure", "sending", "serving", "sockets", "source",
    "stats", "store", "sync", "tracing", "uffd", "wire",
)  # fmt: skip
# Ansible packs only modules that it sees imported; payload needs the text of every one of them.
from . import (  # noqa: E402,F401  (after NAMES: the two lists are read side by side)
    calling,
    cli,
    costs,
    destination,
    detaching,
    dirty,
    errors,
    files,
    fill,
    filling,
    forecast,
    guard,
    held,
    holding,
    intake,
    iterating,
    iteration,
    job,
    layout,
    lazy_file,
    lazy_proxy,
    lazy_source,
    lazy_store,
    lazy_window,
    lazymap,
    limits,
    listening,
    mixed_store,
    moved,
    net,
    output,
    page_images,
    page_runs,
    planner,
    planner_choice,
    polling,
    probing,
    proc,
    receiving,
    record,
    relay,
    replay,
    reserve,
    secure,
    sending,
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
    """The guard's zip; the same bytes for the same sources."""
    return packing.build(NAMES, "guard")
