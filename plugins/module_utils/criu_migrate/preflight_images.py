"""Where images lie on each node: in tmpfs where they fit, else on disk. Pure functions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from .inspect_node import IMAGES_DISK, IMAGES_TMPFS
from .preflight import Case, Check, Facts, Finding, size

RESERVE = 1.1  # of the pages: the process goes on growing between here and the freeze
SMALL_IMAGES = 64 << 20  # bytes: everything but pages, with room to spare


class Choice(NamedTuple):
    """The base directory of the images on each node, and what spoke against it."""

    images: dict[str, str]
    findings: list[Finding]


class Need(NamedTuple):
    """Bytes that one node has to find: for images, and in memory for the process itself."""

    images: int
    process: int


def needs(case: Case) -> dict[str, Need]:
    """With the page server only the destination gets pages, with rsync both nodes hold all of them."""
    pages = int(case.tree.get("memory", {}).get("pages", 0) * RESERVE)
    on_source = SMALL_IMAGES + (pages if case.params.get("transfer") == "rsync" else 0)
    return {"source": Need(on_source, 0), "destination": Need(SMALL_IMAGES + pages, pages)}


def choose(case: Case) -> Choice:
    """A base directory for each node by image_dir and image_storage."""
    images: dict[str, str] = {}
    findings: list[Finding] = []
    wanted = needs(case)
    for role, facts in (("source", case.source), ("destination", case.destination)):
        candidates = _candidates(case.params)
        objections = [_objection(facts, path, wanted[role], tmpfs) for path, tmpfs in candidates]
        good = [path for (path, _tmpfs), objection in zip(candidates, objections) if not objection]
        images[role] = good[0] if good else candidates[0][0]
        if not good:
            text = f"The images of the process do not fit: {'; '.join(objections)}."
            findings.append(Finding("images", case.names[role], text, _remedy(case.params)))
    return Choice(images, findings)


def tmpfs_too_small(case: Case) -> str:
    """What the destination's tmpfs lacks for the images; '' where it was not tried, or is none that can be used."""
    place = case.destination["space"].get(IMAGES_TMPFS) or {}
    if (IMAGES_TMPFS, True) not in _candidates(case.params) or place.get("problem") or place.get("fstype") != "tmpfs":
        return ""
    return _objection(case.destination, IMAGES_TMPFS, needs(case)["destination"], True)


def _candidates(params: Facts) -> list[tuple[str, bool]]:
    """(directory, must it be tmpfs) in the order of preference."""
    if params.get("image_dir"):
        return [(str(params["image_dir"]), False)]
    kinds = {"tmpfs": [(IMAGES_TMPFS, True)], "disk": [(IMAGES_DISK, False)]}
    return kinds.get(str(params.get("image_storage") or "auto"), [*kinds["tmpfs"], *kinds["disk"]])


def _objection(facts: Facts, path: str, need: Need, tmpfs: bool) -> str:
    place: dict[str, Any] = facts["space"].get(path, {"problem": f"{path} was not looked at"})
    if place["problem"]:
        return str(place["problem"])
    in_memory = place["fstype"] in ("tmpfs", "ramfs")
    if tmpfs and not in_memory:
        return f"{path} is not on a tmpfs"
    if place["free"] < need.images:
        return f"{path} has {size(place['free'])} free of {size(need.images)} needed"
    wanted = need.process + (need.images if in_memory else 0)
    if facts["memory"]["available"] < wanted:
        what = "images and process" if need.process and in_memory else "images" if in_memory else "the process"
        return f"{size(facts['memory']['available'])} of memory are available of {size(wanted)} for {what} ({path})"
    return ""


def _remedy(params: Facts) -> str:
    if params.get("image_dir"):
        return "Free space there, or give another image_dir."
    if params.get("image_storage") == "tmpfs":
        return "Use image_storage=auto or disk, or free memory on that node."
    return "Free memory or disk space on that node, or give a directory with space: image_dir=/DIRECTORY."


def check_images(case: Case) -> Iterator[Finding]:
    yield from choose(case).findings


CHECKS: tuple[Check, ...] = (check_images,)
