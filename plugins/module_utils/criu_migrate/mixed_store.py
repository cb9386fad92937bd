"""Hybrid: pages that pre-dumps have brought lie in the images, what has changed since comes from the source."""

from __future__ import annotations

from .lazy_store import RemoteStore
from .store import ImageStore
from .uffd import PAGE


class MixedStore:
    """Store (store.py), and Pages (lazy_proxy.py), of both. Ranges of one process that touch may lie in either."""

    def __init__(self, local: ImageStore, remote: RemoteStore) -> None:
        self.local, self.remote = local, remote

    @property
    def arrivals(self) -> int:
        """As Store says."""
        return self.remote.arrivals

    def there(self, pid: int, vaddr: int, pages: int, urgent: bool = False) -> int:
        """As Store says."""
        if self.local.holds(pid, vaddr):
            return self.local.locate(pid, vaddr, pages)[2]
        return self.remote.there(pid, vaddr, pages, urgent)

    def read(self, pid: int, vaddr: int, pages: int) -> bytes:
        """As Store says."""
        return (self.local if self.local.holds(pid, vaddr) else self.remote).read(pid, vaddr, pages)

    def locate(self, pid: int, vaddr: int, pages: int) -> tuple[int, int, int]:
        """As Pages says."""
        return (self.local if self.local.holds(pid, vaddr) else self.remote).locate(pid, vaddr, pages)

    def want(self, pid: int, vaddr: int, pages: int) -> None:
        """As Pages says."""
        if not self.local.holds(pid, vaddr):
            self.remote.want(pid, vaddr, pages)

    def release(self, pid: int, vaddr: int, pages: int) -> None:
        """As Store says: what is in the images stays."""
        while pages > 0:
            if self.local.holds(pid, vaddr):
                step = self.local.locate(pid, vaddr, pages)[2]
            else:
                step = min(pages, self.remote.extent(pid, vaddr))
                self.remote.release(pid, vaddr, step)
            vaddr, pages = vaddr + step * PAGE, pages - step

    def released(self, pid: int) -> list[tuple[int, int]]:
        """As Store says."""
        return self.remote.released(pid)
