"""Asking a cloud's metadata service: plain HTTP to a link-local address, never by a proxy, never redirected."""

from __future__ import annotations

import http.client
import time
from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import urlsplit

MOST = 1 << 16  # bytes of an answer; those that are asked for have a hundred


class Trouble(Exception):
    """The service does not answer, or not as its protocol says; it may do so again at any moment."""


class Reply(NamedTuple):
    """An answer; the names of headers are in lower case."""

    status: int
    headers: dict[str, str]
    body: str


def ask(method: str, url: str, headers: Mapping[str, str], limit: float) -> Reply:
    """One request, within about `limit` seconds. Trouble where no whole answer comes."""
    parts = urlsplit(url)
    target = parts.path + (f"?{parts.query}" if parts.query else "")
    link = http.client.HTTPConnection(parts.hostname or "", parts.port or 80, timeout=limit)
    deadline = time.monotonic() + limit
    try:
        link.request(method, target, headers={**headers, "Accept": "*/*", "Connection": "close"})
        answer = link.getresponse()
        body = b""
        while True:
            piece = answer.read1(MOST)
            body += piece
            if not piece:
                break
            if len(body) > MOST or time.monotonic() > deadline:
                raise Trouble(f"{url}: the answer does not end")
        if answer.length:  # read1() does not mind that less has come than was announced
            raise Trouble(f"{url}: the answer was cut off")
        return Reply(answer.status, {k.lower(): v for k, v in answer.getheaders()}, body.decode("utf-8", "replace"))
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise Trouble(f"{url}: {str(error) or repr(error)}") from error
    finally:
        link.close()
