"""The destination's end of an eager dump, the tokens that open a channel for pages, and a service address to come."""

from __future__ import annotations

import abc
import base64
import contextlib
import os
import secrets
import threading
import time
from functools import partial
from typing import Any

from . import net, wire
from .errors import MigrationError
from .held import Held, tight
from .listening import Answer, ListeningGuard
from .page_images import PageImages, Receiver, lie_late
from .page_runs import LAZY
from .record import Record
from .reserve import available
from .secure import Secure


class ReceivingGuard(ListeningGuard, abc.ABC):
    """A guard that takes pages in."""

    def __init__(self, rec: Record, config: dict[str, Any]) -> None:
        super().__init__(rec, config)
        self.receiving = threading.Condition(self.busy)
        self.receiver: Receiver | None = None
        self.incoming: tuple[str, PageImages] | None = None  # the dump that comes: its name and directory
        self.complete: tuple[str, PageImages] | None = None  # the last one of which all pages are here
        self.token = ""
        self.lazy_token = False

    def on_pages(self, request: Answer) -> Answer:
        """A channel for the pages of one dump.

        A dump without a parent begins anew: what came before of this run goes away. One with a parent is put beside it.
        """
        self.refuse_unless("armed", "receiving")
        self.stop_receiving()
        name, parent = str(request.get("dump") or ""), str(request.get("parent") or "")
        if parent:
            images = self.beside(name, parent)
        else:
            self.begin_images()
            images = PageImages(self.folder_of(name), last=not name)
        self.incoming = (name, images)
        return self.new_token(lazy=False)

    def begin_images(self) -> None:
        """An empty image directory; the address is silent from here on."""
        self.complete = None  # first: what follows may fail with half of it gone
        self.forget_images()
        self.make_images_dir()
        self.silence_address()
        self.enter("receiving")
        self.give_back_images()

    def on_images(self, request: Answer) -> Answer:
        """An image directory for a dump whose pages do not come through a channel: empty, or on the last pre-dump."""
        self.refuse_unless("armed", "receiving")
        self.stop_receiving()
        if request.get("parent"):
            self.beside("", str(request["parent"]))
        else:
            self.begin_images()
        return {}

    def on_page_maps(self, _request: Answer) -> Answer:
        """Names of the page maps of the last pre-dump, for the source."""
        return {"names": sorted(self.last().maps())}

    def on_page_map(self, request: Answer) -> Answer:
        """One of them, with the pages of all pre-dumps."""
        images = self.last()
        return {"content": base64.b64encode(images.page_map(images.maps()[request["name"]])).decode()}

    def last(self) -> PageImages:
        """The images of the last pre-dump; MigrationError where there are none."""
        if self.complete is None:
            raise MigrationError("The destination has no pre-dump.", "The source begins anew.")
        return self.complete[1]

    def lazily_held(self, pid: int) -> list[Held] | None:
        """Pages of a process that may come late, where this guard has taken the whole dump in itself."""
        complete = self.complete  # which a request may take away: other threads ask
        if complete is None or complete[0] or self.postcopy:
            return None
        owner = pid << 8 | 1
        if owner not in complete[1].maps().values():
            return None
        return [item for item in complete[1].held(owner) if item.flags & LAZY]

    def mark_late(self) -> None:
        """The small images of a dump have come: those of its pages that are here already may come late as well."""
        if self.complete is not None and self.postcopy:
            last = self.complete[1]
            lie_late(self.images, last, partial(self.is_tight, last))

    @abc.abstractmethod
    def forget_images(self) -> None:
        """Whatever was begun with earlier images of this run."""

    @abc.abstractmethod
    def give_back_images(self) -> None:
        """Memory that was set aside for them."""

    @abc.abstractmethod
    def set_aside(self) -> int:
        """Bytes of memory that wait for the process."""

    def is_tight(self, last: PageImages, coming: int | None = None) -> bool:
        """Whether there may be no room for so many bytes, by default for all of its pages once more, beside the last
        pre-dump."""
        there = os.statvfs(self.images)
        held, free = last.size(), there.f_bavail * there.f_frsize
        return tight(held, held if coming is None else coming, free, available() + self.set_aside())

    def folder_of(self, dump: str) -> str:
        """The directory of a dump's images, made where there is none."""
        if dump != os.path.basename(dump) or dump.startswith("."):
            raise MigrationError(f"Refused {dump!r} as the name of a dump.", "Update both nodes.")
        path = os.path.join(self.images, dump) if dump else self.images
        os.makedirs(path, mode=0o700, exist_ok=True)
        return path

    def beside(self, name: str, parent: str) -> PageImages:
        """Images of a dump that leaves out what has not changed since its parent, which has to be the last one."""
        if self.complete is None or self.complete[0] != parent or self.complete[1].spent:
            raise MigrationError(f"The destination does not have the dump {parent}.", "The source begins anew.")
        last = self.complete[1]
        last.forget_parent()
        folder = self.folder_of(name)
        late = self.lazy and not name
        with contextlib.suppress(FileExistsError):  # asked for once more
            os.symlink(parent if folder == self.images else os.path.join("..", parent), os.path.join(folder, "parent"))
        return PageImages(folder, last, late, self.is_tight(last), last=not name)

    def on_token(self, _request: Answer) -> Answer:
        """For a connection over which pages come after the restore."""
        return self.new_token(lazy=True)

    def new_token(self, lazy: bool) -> Answer:
        self.token, self.lazy_token = secrets.token_hex(wire.TOKEN // 2), lazy
        return {"token": self.token}

    def use_token(self, token: str) -> None:
        """Each one opens one connection."""
        if not self.token or not secrets.compare_digest(token, self.token):
            raise MigrationError("A page channel with a wrong token was refused.", "Run the migration again.")
        self.token = ""

    def receive_pages(self, link: Secure, token: str) -> None:
        """Criu's own connection to a page server, or what comes out of TLS: there is no second port."""
        with self.receiving:
            self.use_token(token)
            if self.incoming is None:
                raise MigrationError("No pages were expected on the destination.", "Run the migration again.")
            self.receiver = Receiver(link, self.incoming[1], self.log_path("criu-page-server.log"))
            self.receiving.notify_all()

    def pages_so_far(self) -> int:
        """Of the dump that comes."""
        incoming = self.incoming
        return 0 if incoming is None else incoming[1].count

    def stop_receiving(self) -> None:
        receiver, self.receiver = self.receiver, None
        if receiver is not None:
            receiver.stop()

    def on_pages_ready(self, _request: Answer) -> Answer:
        """The channel is there: the source may freeze."""
        deadline = time.monotonic() + self.limits["connect"]
        with self.receiving:
            while self.receiver is None:
                left = deadline - time.monotonic()
                if left <= 0 or not self.receiving.wait(left):
                    raise MigrationError("The channel for pages did not come.", "See guard.log of the destination.")
        return {}

    def on_pages_done(self, _request: Answer) -> Answer:
        if self.receiver is None:
            raise MigrationError("No pages were expected on the destination.", "Run the migration again.")
        found = self.receiver.result(self.limits["dump"])
        self.complete = self.incoming
        return {"result": found}

    def silence_address(self) -> None:
        """Before the freeze: nobody hears of the address here, which comes later, until the commit."""
        if not self.address:
            return
        if net.is_local(self.address) and not self.rec.data.get("address_put"):
            raise self.address_taken()
        net.mute(self.address, self.run_id)
        net.stand_by(net.IP)  # to put it on
        if not self.config.get("service_interface"):
            self.rec.data["address_place"] = net.interface_for(self.address)

    def address_taken(self) -> MigrationError:
        return MigrationError(
            f"{self.address} is already on the destination.", "Take it off there, then migrate again."
        )

    def place_for_address(self, request: Answer) -> dict[str, Any]:
        if net.is_local(self.address):
            raise self.address_taken()
        name = self.config.get("service_interface")
        if name:
            return {"interface": name, "prefix": int((request.get("address_on") or {}).get("prefix", 32))}
        return self.rec.data.get("address_place") or net.interface_for(self.address)
