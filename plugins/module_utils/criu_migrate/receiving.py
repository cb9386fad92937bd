"""The destination's end of an eager dump, the tokens that open a channel for pages, and a service address to come."""

from __future__ import annotations

import abc
import secrets
import threading
import time
from typing import Any

from . import net, wire
from .errors import MigrationError
from .listening import Answer, ListeningGuard
from .page_images import Receiver
from .record import Record
from .secure import Secure


class ReceivingGuard(ListeningGuard, abc.ABC):
    """A guard that takes pages in."""

    def __init__(self, rec: Record, config: dict[str, Any]) -> None:
        super().__init__(rec, config)
        self.receiving = threading.Condition(self.busy)
        self.receiver: Receiver | None = None
        self.token = ""

    def on_token(self, _request: Answer) -> Answer:
        self.token = secrets.token_hex(wire.TOKEN // 2)
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
            self.receiver = Receiver(link, self.images, self.log_path("criu-page-server.log"))
            self.receiving.notify_all()

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
        return {"result": self.receiver.result(self.limits["dump"])}

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
