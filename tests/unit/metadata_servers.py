"""Both clouds' metadata services as real HTTP servers that hold to their protocols: also run in a node of the lab.

Standard library only: the lab's tests start this file with `python3 metadata_servers.py aws|gcp ADDRESS PORT FOLDER`.
What the service says lies in FOLDER: `action`, `rebalance` (aws) or `preempted` (gcp), as soon as the file is there.
"""

from __future__ import annotations

import json
import secrets
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit


class Service(ThreadingHTTPServer):
    """What is common: faults to be brought about, and a count of requests by path."""

    daemon_threads = True

    def __init__(self, handler: type[BaseHTTPRequestHandler], address: str = "127.0.0.1", port: int = 0) -> None:
        super().__init__((address, port), handler)
        self.requests: list[str] = []
        self.faults: list[int | str] = []  # what the next requests get: a status, or "garbage", "cut", "drop"
        self.change = threading.Condition()

    @property
    def url(self) -> str:
        return f"http://{self.server_address[0]!s}:{self.server_address[1]}"

    def count(self, path: str) -> int:
        return sum(1 for item in self.requests if item.split("?")[0].endswith(path))


class Handler(BaseHTTPRequestHandler):
    """An answer, or the fault that is due."""

    protocol_version = "HTTP/1.1"
    server: Service

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  (the name is the base class's)
        """Say nothing."""

    def answer(self, status: int, body: str = "", **headers: str) -> None:
        data = body.encode()
        self.send_response_only(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def faulty(self) -> bool:
        """Whether a fault was due, and has been brought about."""
        self.server.requests.append(f"{self.command} {self.path}")
        if not self.server.faults:
            return False
        fault = self.server.faults.pop(0)
        if isinstance(fault, int):
            self.answer(fault, "trouble")
        elif fault == "garbage":
            self.answer(200, "<html>\x00 no notice", Metadata_Flavor="Google", ETag="x")
        elif fault == "cut":
            self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 999\r\n\r\n{")
            self.close_connection = True
        else:
            self.close_connection = True
        return True


class AwsService(Service):
    """IMDSv2. `clock` is added to the time that it goes by (seconds)."""

    def __init__(self, address: str = "127.0.0.1", port: int = 0) -> None:
        super().__init__(AwsHandler, address, port)
        self.tokens: dict[str, float] = {}  # token: until when it is good (monotonic seconds)
        self.action: dict[str, str] | str = ""
        self.rebalance: dict[str, str] = {}
        self.most_ttl = 21600.0
        self.clock = 0.0

    def end_in(self, seconds: float, action: str = "terminate") -> None:
        end = time.gmtime(time.time() + self.clock + seconds)
        self.action = {"action": action, "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", end)}


class AwsHandler(Handler):
    """Paths and refusals as the EC2 User Guide has them."""

    server: AwsService

    def do_PUT(self) -> None:
        if self.faulty():
            return
        ttl = self.headers.get("X-aws-ec2-metadata-token-ttl-seconds", "")
        if self.path != "/latest/api/token":
            self.answer(405)
        elif self.headers.get("X-Forwarded-For"):
            self.answer(403)
        elif not ttl.isdigit() or not 1 <= int(ttl) <= 21600:
            self.answer(400)
        else:
            seconds = min(float(ttl), self.server.most_ttl)
            token = secrets.token_urlsafe(40)
            self.server.tokens[token] = time.monotonic() + seconds
            self.answer(200, token, X_aws_ec2_metadata_token_ttl_seconds=f"{seconds:g}")

    def do_GET(self) -> None:
        if self.faulty():
            return
        good_until = self.server.tokens.get(self.headers.get("X-aws-ec2-metadata-token", ""), 0.0)
        said = {
            "/latest/meta-data/spot/instance-action": self.server.action,
            "/latest/meta-data/events/recommendations/rebalance": self.server.rebalance,
        }.get(self.path)
        if time.monotonic() >= good_until:
            self.answer(401)
        elif not said:
            self.answer(404)
        else:
            text = said if isinstance(said, str) else json.dumps(said)
            self.answer(200, text, Date=formatdate(time.time() + self.server.clock, usegmt=True))


class GcpService(Service):
    """The metadata server with instance/preempted. `patient` off: it answers at once, whatever is asked for."""

    def __init__(self, address: str = "127.0.0.1", port: int = 0) -> None:
        super().__init__(GcpHandler, address, port)
        self.value, self.etag = "FALSE", secrets.token_hex(8)
        self.patient = True

    def preempt(self) -> None:
        with self.change:
            self.value, self.etag = "TRUE", secrets.token_hex(8)
            self.change.notify_all()


class GcpHandler(Handler):
    """Refusals and hanging requests as Google's documentation has them."""

    server: GcpService

    def do_PUT(self) -> None:
        if not self.faulty():
            self.answer(405, Metadata_Flavor="Google")

    def do_GET(self) -> None:
        if self.faulty():
            return
        parts = urlsplit(self.path)
        query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
        if self.headers.get("Metadata-Flavor") != "Google" or self.headers.get("X-Forwarded-For"):
            self.answer(403, Metadata_Flavor="Google")
        elif parts.path == "/computeMetadata/v1/instance/id":
            self.answer(200, "42", Metadata_Flavor="Google", ETag="1")
        elif parts.path != "/computeMetadata/v1/instance/preempted":
            self.answer(404, Metadata_Flavor="Google")
        else:
            if query.get("wait_for_change") == "true" and self.server.patient:
                self.wait(query.get("last_etag", ""), float(query.get("timeout_sec", "3600")))
            self.answer(200, self.server.value, Metadata_Flavor="Google", ETag=self.server.etag)

    def wait(self, known: str, seconds: float) -> None:
        with self.server.change:
            etag = known or self.server.etag
            self.server.change.wait_for(lambda: self.server.etag != etag, seconds)


@contextmanager
def serving(service: Service) -> Iterator[Service]:
    """Serve until the block ends."""
    thread = threading.Thread(target=service.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield service
    finally:
        service.shutdown()
        service.server_close()
        thread.join()


def main(kind: str, address: str, port: str, folder: str) -> None:
    """Serve for ever, by the files of a folder: for a node of the lab, where a test writes them."""
    service: AwsService | GcpService
    service = AwsService(address, int(port)) if kind == "aws" else GcpService(address, int(port))
    with serving(service):
        print(service.url, flush=True)
        while True:
            time.sleep(0.05)  # a folder of a test
            text = {path.name: path.read_text(encoding="ascii") for path in Path(folder).glob("[a-z]*")}
            if isinstance(service, GcpService):
                if "preempted" in text and service.value == "FALSE":
                    service.preempt()
                continue
            service.rebalance = json.loads(text.get("rebalance") or "{}")
            if "action" in text and not service.action:
                service.end_in(float(text["action"]))


if __name__ == "__main__":
    main(*sys.argv[1:])
