"""A deadline as the preflight sees it: the strategy that meets it, the encryption that it may cost, what is said."""

from __future__ import annotations

from typing import Any

import pytest

from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate import preflight, preflight_plan
from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate.planner import FULL, FULL_LAZY, Costs
from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate.preflight import Case
from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate.preflight_deadline import encryption

from .test_preflight import GIB, good

GBIT = 125e6  # bytes/s


def case(limit: float | None, reached: float | None = None, **params: Any) -> Case:
    """1 GiB; reached: bytes/s that earlier moves have found."""
    facts = good()
    facts["tree"]["memory"]["lazy"] = GIB
    facts["params"].update(params)
    facts["params"]["deadline"] = limit and {"name": str(limit), "limit": limit}
    facts["reached_by"] = ("10.0.0.2",)
    facts["source"]["links"] = {} if reached is None else {"10.0.0.2": reached}
    return Case(**facts)


def said(one: Case, check: str) -> list[str]:
    found = [finding for finding in preflight.judge(one) if finding.check == check]
    assert all(finding.warning for finding in found)
    return [finding.problem for finding in found]


def test_what_misses_the_deadline_says_what_it_needs() -> None:
    (text,) = said(case(15, GBIT), "deadline")
    assert text.startswith("The deadline of 15 s will be missed by full: it needs 19 s")
    assert " at 1 Gbit/s, 15 s left; " in text and text.endswith("Gbit/s would do.")
    assert said(case(120, GBIT), "deadline") == [] == said(case(None, GBIT), "deadline")


def test_of_a_link_that_no_move_has_used_nothing_bad_is_thought() -> None:
    assert said(case(30), "deadline") == []


def test_auto_gives_the_reason_of_the_planner() -> None:
    found = preflight_plan.decide(case(120, GBIT))
    assert found[:2] == ("full", True)
    assert "the shortest downtime that fits into 120 s" in found.reason


@pytest.mark.parametrize(("limit", "asked", "taken"), [
    (8.9, "auto", "none"), (8.9, "tls", "tls"), (8.9, None, "tls"), (120, "auto", "tls"), (None, "auto", "tls"),
    (120, "none", "none"),
])  # fmt: skip
def test_pages_cross_in_the_clear_only_where_that_was_allowed_and_nothing_else_is_in_time(
    limit: float | None, asked: str | None, taken: str
) -> None:
    """Nodes whose processors do 0.6 GB/s of TLS; what limits the link is not known then."""
    one = case(limit, 0.6e9, transfer_encryption=asked)
    assert encryption(one, FULL_LAZY) == taken
    assert preflight.result(one, [])["plan"]["encryption"] == taken
    warned = said(one, "encryption")
    assert bool(warned) is (asked == "auto" and taken == "none")
    assert all("in the clear" in text and f"of {limit:g} s" in text for text in warned)


def test_a_slow_link_is_no_reason_to_give_encryption_up() -> None:
    """Both would take as long: then the quicker one is taken, and that is the preferred one."""
    assert encryption(case(30, GBIT / 10, transfer_encryption="auto"), FULL) == "tls"
    assert Costs().tls / 2 > GBIT


def test_rsync_has_its_own_encryption() -> None:
    one = case(5, 0.6e9, transfer="rsync", transfer_encryption="auto")
    assert encryption(one, FULL) == "tls" and said(one, "encryption") == []
