"""How memory moves: what auto takes, what it says, and what it never does by itself."""

from __future__ import annotations

from typing import Any

import pytest

from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate import inspect_source, preflight, preflight_plan
from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate.inspect_node import IMAGES_TMPFS
from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate.preflight import Case

from .test_preflight import GIB, Change, good, put


def plan(*changes: Change, **params: Any) -> preflight_plan.Plan:
    facts = good()
    facts["tree"]["memory"]["lazy"] = GIB
    facts["params"].update(params)
    for change in changes:
        change(facts)
    return preflight_plan.decide(Case(**facts))


def no_uffd(node: str) -> Change:
    return put(f"{node}.criu.features", {"uffd-noncoop": False})


OBSTACLES = [
    (no_uffd("destination"), "node-2 has no userfaultfd"),
    (
        put(f"destination.space.{IMAGES_TMPFS}.free", 0),
        "too large for the destination's tmpfs (/dev/shm/criu-migrate has 0 B",
    ),
    (put("destination.memory.available", GIB), "does not fit"),
    (put("tree.memory.lazy", GIB // 4), "only 256.0 MiB of 1.0 GiB can come later"),
]


def test_auto_takes_a_lazy_restore_and_never_post_copy() -> None:
    found = plan()
    assert found[:2] == ("full", True)
    assert "post-copy only when asked for" in found.reason


@pytest.mark.parametrize(("change", "why"), OBSTACLES)
def test_auto_restores_eagerly_where_something_speaks_against_it(change: Change, why: str) -> None:
    found = plan(change)
    assert found[:2] == ("full", False)
    assert why in found.reason
    assert found.findings == []


@pytest.mark.parametrize(("change", "why"), OBSTACLES)
def test_what_was_asked_for_and_cannot_be_is_a_problem(change: Change, why: str) -> None:
    for strategy in ("full", "auto"):
        found = plan(change, migration_strategy=strategy, lazy_restore=True)
        assert found.lazy_restore
        assert why in found.findings[0].problem
        assert not found.findings[0].warning


@pytest.mark.parametrize(("change", "why"), [OBSTACLES[0], *OBSTACLES[2:], (no_uffd("source"), "node-1 has no")])
def test_post_copy_needs_the_same_and_the_source_too_else_it_moves_eagerly(change: Change, why: str) -> None:
    found = plan(change, migration_strategy="postcopy")
    assert found[:2] == ("full", False)
    assert why in found.reason
    assert [finding.warning for finding in found.findings] == [True]
    assert why in found.findings[0].problem


def test_what_is_as_it_was_asked_for_needs_no_reason() -> None:
    for params in ({"migration_strategy": "postcopy"}, {"migration_strategy": "full", "lazy_restore": True}):
        assert (plan(**params).reason, plan(**params).findings) == ("", [])


def test_images_that_shall_not_lie_in_memory_are_not_too_large_for_it() -> None:
    assert "the images do not lie in memory" in plan(image_storage="disk").reason


def test_post_copy_that_cannot_be_is_refused_where_an_eager_move_cannot_be_either() -> None:
    facts = good()
    facts["tree"]["memory"]["lazy"] = GIB
    facts["params"]["migration_strategy"] = "postcopy"
    facts["destination"]["memory"]["available"] = GIB // 2
    found = preflight.judge(Case(**facts))
    assert [finding.check for finding in found if not finding.warning] == ["images"]
    assert [finding.check for finding in found if finding.warning] == ["strategy"]


def test_full_is_eager_unless_told_otherwise() -> None:
    assert plan(migration_strategy="full")[:2] == ("full", False)
    assert plan(migration_strategy="full", lazy_restore=True)[:2] == ("full", True)
    assert plan(lazy_restore=False)[:2] == ("full", False)


def test_post_copy_says_what_it_risks() -> None:
    facts = good()
    facts["tree"]["memory"]["lazy"] = GIB
    facts["params"]["migration_strategy"] = "postcopy"
    found = [finding for finding in preflight.judge(Case(**facts)) if finding.check == "lazy"]
    assert [finding.warning for finding in found] == [True]
    assert "when the source goes down in that time" in found[0].problem


def test_an_unknown_process_and_an_unprepared_node_speak_against_nothing() -> None:
    assert plan(put("tree", {})).lazy_restore
    assert plan(put("destination.criu.features", {})).lazy_restore


def tracks(mem_dirty_track: bool | None = True) -> Change:
    features = {"network_lock_nftables": True}
    return put("source.criu.features", features if mem_dirty_track is None else
               {**features, "mem_dirty_track": mem_dirty_track})  # fmt: skip


def test_auto_makes_rounds_where_the_kernel_tells_which_pages_change() -> None:
    found = plan(tracks())
    assert found[:2] == ("precopy", True)
    assert found.findings == []
    assert "tells which pages change" in found.reason and "post-copy only when asked for" in found.reason


@pytest.mark.parametrize("known", [False, None])
def test_auto_makes_none_where_it_does_not(known: bool | None) -> None:
    assert plan(tracks(known))[:2] == ("full", True)


@pytest.mark.parametrize(
    "against",
    [
        put("tree.memory.pages", preflight_plan.WORTH - 1),
        put("tree", {}),
        put("params.transfer", "rsync"),
        put("params.migration_strategy", "full"),
    ],
)
def test_auto_makes_no_rounds_of_little_memory_or_by_rsync(against: Change) -> None:
    assert plan(tracks(), against).strategy == "full"


def test_rounds_of_just_enough_memory() -> None:
    assert plan(tracks(), put("tree.memory.pages", preflight_plan.WORTH)).strategy == "precopy"


def test_some_memory_may_cross_while_the_process_stands_still() -> None:
    """Each pre-dump sends shared memory before CRIU lets the tree run again."""
    assert plan(tracks(), put("tree.memory.lazy", GIB - preflight_plan.WORTH)).strategy == "precopy"
    assert plan(tracks(), put("tree.memory.lazy", GIB - preflight_plan.WORTH - 1)).strategy == "full"


@pytest.mark.parametrize("strategy", ["auto", "precopy"])
@pytest.mark.parametrize(("wanted", "lazily"), [(None, True), (True, True), (False, False)])
def test_rounds_end_in_a_lazy_restore_unless_told_otherwise(strategy: str, wanted: bool | None, lazily: bool) -> None:
    found = plan(tracks(), migration_strategy=strategy, lazy_restore=wanted)
    assert found[:2] == ("precopy", lazily)
    assert found.findings == []
    assert bool(found.reason) is (strategy == "auto"), "what was asked for needs no reason"


@pytest.mark.parametrize("deadline", [None, {"limit": 120.0}])
@pytest.mark.parametrize("tracking", [True, False])
@pytest.mark.parametrize(
    ("wanted", "obstacle", "words"),
    [
        (None, [], []),
        (False, [], ["lazy_restore=false"]),
        (None, [no_uffd("destination")], ["restored eagerly: "]),
    ],
)
def test_auto_says_every_reason_once(
    deadline: dict[str, float] | None, tracking: bool, wanted: bool | None, obstacle: list[Change], words: list[str]
) -> None:
    found = plan(tracks(tracking), *obstacle, deadline=deadline, lazy_restore=wanted)
    for text in ["post-copy only when asked for", *words]:
        assert found.reason.count(text) == 1, found.reason


@pytest.mark.parametrize("strategy", ["auto", "precopy"])
@pytest.mark.parametrize(("change", "why"), OBSTACLES[:3])
def test_rounds_are_made_where_a_lazy_restore_cannot_be(change: Change, why: str, strategy: str) -> None:
    found = plan(tracks(), change, migration_strategy=strategy)
    assert found[:2] == ("precopy", False)
    assert why in found.reason and found.findings == []
    asked = plan(tracks(), change, migration_strategy=strategy, lazy_restore=True)
    assert asked[:2] == ("precopy", True)
    assert why in asked.findings[0].problem and not asked.findings[0].warning


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (tracks(False), "node-1 does not track changed pages"),
        (put("params.transfer", "rsync"), "not by rsync"),
        (put("tree.memory.lazy", GIB - preflight_plan.WORTH - 1), "64.0 MiB (shared, locked, huge pages) would cross"),
    ],
)
@pytest.mark.parametrize(("wanted", "lazily"), [(None, True), (True, True), (False, False)])
def test_pre_copy_that_cannot_be_becomes_the_best_that_can(
    change: Change, why: str, wanted: bool | None, lazily: bool
) -> None:
    found = plan(tracks(), change, migration_strategy="precopy", lazy_restore=wanted)
    assert found[:2] == ("full", lazily)
    assert found.reason.startswith("no pre-copy: ") and why in found.reason
    assert [finding.warning for finding in found.findings] == [True]
    assert why in found.findings[0].problem
    assert found.findings[0].problem.endswith("full with lazy_restore." if lazily else "is full.")


def test_pre_copy_that_cannot_be_does_not_hide_a_lazy_restore_that_cannot_be_either() -> None:
    found = plan(tracks(False), OBSTACLES[0][0], migration_strategy="precopy", lazy_restore=True)
    assert [finding.warning for finding in found.findings] == [False, True]


@pytest.mark.parametrize(
    ("tracking", "uffd", "taken", "lazily"),
    [
        (True, (True, True), "hybrid", False),
        (False, (True, True), "postcopy", False),
        (True, (False, True), "precopy", True),
        (True, (True, False), "precopy", False),
        (False, (True, False), "full", False),
    ],
)
def test_hybrid_is_what_of_it_can_be(tracking: bool, uffd: tuple[bool, bool], taken: str, lazily: bool) -> None:
    here, there = uffd
    found = plan(
        put("source.criu.features", {"mem_dirty_track": tracking, "uffd-noncoop": here}),
        put("destination.criu.features", {"uffd-noncoop": there}),
        migration_strategy="hybrid",
    )
    assert found[:2] == (taken, lazily)
    assert found.reason.startswith("no hybrid: ") is (taken != "hybrid")
    assert any("No hybrid here" in finding.problem for finding in found.findings) is (taken != "hybrid")


SMAPS = """\
5600-5700 rw-p 00000000 00:00 0 [heap]
Anonymous: 8 kB
Swap: 4 kB
VmFlags: rd wr mr mw me ac
5700-5800 rw-p 00000000 08:01 7 /lib/x.so
Anonymous: 16 kB
Swap: 0 kB
VmFlags: rd wr mr mw me ac
5800-5900 rw-s 00000000 00:01 7 /dev/zero (deleted)
Anonymous: 32 kB
VmFlags: rd wr sh mr mw me ms
5900-6000 rw-p 00000000 00:00 0
Anonymous: 64 kB
Swap: 0 kB
VmFlags: rd wr mr mw me lo ac
"""


def test_what_can_come_later_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspect_source, "_read", lambda _path: SMAPS)
    assert inspect_source._lazy_bytes(SMAPS) == 12 * 1024
