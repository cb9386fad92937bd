"""Files that a migration has to do with on the source: images, link_remaps, what the process maps."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from . import proc, sync


def image_frames(folder: str) -> Iterator[sync.Frame]:
    """Images as they are, without owner, mode and times: a process waits for them."""
    for name in sorted(entry.name for entry in os.scandir(folder) if entry.is_file(follow_symlinks=False)):
        with open(os.path.join(folder, name), "rb") as image:
            offset = 0
            while True:
                body = image.read(sync.BLOCK)
                if body or not offset:  # an empty one is an image, too
                    yield {"op": "image", "name": name, "offset": offset}, body
                offset += len(body)
                if len(body) < sync.BLOCK:
                    break


def image_bytes(folder: str) -> int:
    """Bytes of all images that lie on this node (the pages went elsewhere when a page server took them)."""
    total = 0
    for base, _folders, files in os.walk(folder):
        total += sum(os.lstat(os.path.join(base, name)).st_size for name in files)
    return total


def image_sizes(folder: str) -> dict[str, int]:
    """Bytes of every image by its path below the folder, {} where there is no such folder. Never fails."""
    found: dict[str, int] = {}
    for base, _folders, names in os.walk(folder):
        for name in sorted(names):
            with contextlib.suppress(OSError):
                path = os.path.join(base, name)
                found[os.path.relpath(path, folder)] = os.lstat(path).st_size
    return found


def link_remaps(roots: list[str], since: float) -> list[str]:
    """Names that a dump gave to open files whose own name was gone (criu/files-reg.c: link_remap.ID); only a dump that
    lets the process run removes them itself. `since`: CLOCK_REALTIME seconds, older ones are not ours."""
    found: list[str] = []
    for root in roots:
        for folder, _folders, names in os.walk(root):
            for name in names:
                path = os.path.join(folder, name)
                with contextlib.suppress(OSError):
                    if name.startswith("link_remap.") and name[11:].isdigit() and os.lstat(path).st_ctime >= since:
                        found.append(path)
    return found


def mapped_files(procs: list[proc.Proc]) -> set[str]:
    """Files that the tree maps shared and writable."""
    found: set[str] = set()
    for item in procs:
        try:
            with open(f"/proc/{item.pid}/maps", encoding="utf-8", errors="replace") as handle:
                for line in handle:
                    words = line.split(maxsplit=5)
                    if len(words) == 6 and words[1][1] == "w" and words[1][3] == "s" and words[5].startswith("/"):
                        found.add(words[5].rstrip("\n"))
        except OSError:
            continue
    return found
