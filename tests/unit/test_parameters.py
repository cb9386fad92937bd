"""The conversion and the checks of a user's parameters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate import naming, parameters
from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate.limits import DEFAULTS
from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate.parameters import Spec

SPEC = Spec(
    {
        "mb_size": {"type": "int", "default": 256, "description": "Block size in MB. More."},
        "interval": {"type": "float", "default": 5.0},
        "max_memory": {"type": "int", "default": 8192},
        "pid": {"type": "int", "required": True, "description": ["PID of it. More."]},
    },
    {"mb_size": [1, 100000], "interval": [0.0, 3600.0]},
    [["mb_size", "max_memory"]],
)


def check(**given: Any) -> parameters.Checked:
    return parameters.check_spec(SPEC, {"pid": 1, **given}, "workload=memory")


def test_defaults_and_strings_get_their_types() -> None:
    checked = check(interval="0.5", pid="7")
    assert checked.values == {"mb_size": 256, "interval": 0.5, "max_memory": 8192, "pid": 7}
    assert checked.problems == []


@pytest.mark.parametrize(
    ("kind", "given", "expected"),
    [
        ("int", " 7 ", 7), ("int", 7.0, 7), ("float", "1e3", 1000.0), ("bool", "yes", True), ("bool", "False", False),
        ("bytes", "1M", 1 << 20), ("bytes", 4096, 4096), ("list", "/a, /b,", ["/a", "/b"]), ("list", ["x"], ["x"]),
        ("dict", "dump=3, link=4", {"dump": "3", "link": "4"}), ("dict", {"dump": 3}, {"dump": 3}),
        ("str", True, "true"),
    ],
)  # fmt: skip
def test_convert(kind: str, given: Any, expected: Any) -> None:
    converted = parameters.convert("x", {"type": kind}, given)
    assert converted == expected
    assert type(converted) is type(expected)


@pytest.mark.parametrize(
    ("kind", "given"),
    [("int", "7.5"), ("int", True), ("int", ""), ("float", "nan"), ("float", "inf"), ("float", False),
     ("bool", "maybe"), ("bytes", "1X"), ("list", 3), ("dict", "dump"), ("str", ["a"]), ("int", [1]), ("bool", [1])],
)  # fmt: skip
def test_convert_refuses(kind: str, given: Any) -> None:
    with pytest.raises(ValueError, match=r"^x=.*: it must be"):
        parameters.convert("x", {"type": kind}, given)


def test_every_problem_is_listed() -> None:
    checked = parameters.check_spec(SPEC, {"mb_size": "0", "interval": "often", "max_memory": 5}, "workload=memory")
    assert checked.problems == [
        "mb_size=0: it must lie between 1 and 100000.",
        "interval=often: it must be a number.",
        "workload=memory needs pid: PID of it.",
    ]


def test_order() -> None:
    assert check(mb_size=512, max_memory=256).problems == [
        "mb_size=512 is more than max_memory=256: it must be at most as much."
    ]


def test_choice_gets_a_hint() -> None:
    with pytest.raises(ValueError, match=r"did you mean full\? One of: auto, full"):
        parameters.convert("s", {"choices": ["auto", "full"]}, "ful")


def names(extra: list[str], workload: str | None = "redis") -> list[str]:
    others = {"memory": ["mb_size", "interval"], "dataproc": ["interval"]}
    return parameters.check_names(
        extra, ["num_keys", "migration_strategy", "redis_port"], ["strategy", "port"], others, workload
    )


def test_names() -> None:
    assert names(["num_keys", "ansible_user", "lab_name"]) == []
    assert names(["num_keyz"]) == ["num_keyz: there is no such parameter; did you mean num_keys?"]
    assert names(["colour"]) == ["colour: there is no such parameter."]
    assert names(["strategy"]) == ["strategy: Ansible reserves this word for itself; write migration_strategy."]
    assert names(["port"]) == ["port: Ansible reserves this word for itself; perhaps you mean redis_port."]
    assert names(["interval"]) == ["interval: this is a parameter of dataproc and memory, not of redis."]


@pytest.mark.parametrize(
    ("name", "given", "value", "problem"),
    [
        ("downtime_target", "0.05", 0.05, ""),
        ("downtime_target", "0", None, "must lie between 0.001 and 3600"),
        ("downtime_target", "-1", None, "must lie between 0.001 and 3600"),
        ("downtime_target", "soon", None, "must be a number"),
        ("predump_interval", "0", 0.0, ""),
        ("predump_interval", "3601", None, "must lie between 0 and 3600"),
        ("predump_interval", "-0.1", None, "must lie between 0 and 3600"),
        ("predump_iterations", "0", 0, ""),
        ("predump_iterations", "1001", None, "must lie between 0 and 1000"),
        ("predump_iterations", "2.5", None, "must be a whole number"),
    ],
)
def test_numbers_of_pre_copy(root: Path, name: str, given: str, value: Any, problem: str) -> None:
    text = (root / "roles" / "migration" / "meta" / "argument_specs.yml").read_text(encoding="utf-8")
    option = yaml.safe_load(text)["argument_specs"]["main"]["options"][name]
    checked = parameters.check_spec(Spec({name: option}, parameters.RANGES, []), {name: given}, "migration")
    if problem:
        assert len(checked.problems) == 1 and problem in checked.problems[0]
        assert checked.problems[0].startswith(f"{name}=")
    else:
        assert checked.problems == [] and checked.values[name] == value
        assert type(checked.values[name]) is type(value)


def test_without_an_interval_rounds_end_by_rule(root: Path) -> None:
    text = (root / "roles" / "migration" / "meta" / "argument_specs.yml").read_text(encoding="utf-8")
    options = yaml.safe_load(text)["argument_specs"]["main"]["options"]
    assert "default" not in options["predump_interval"]


COMMON: dict[str, Any] = {"migration_strategy": "auto", "transfer": "page_server", "limits": {}}


def common(**values: Any) -> tuple[dict[str, Any], list[str]]:
    given = {**COMMON, **values}
    return given, parameters.check_common(given, values)


@pytest.mark.parametrize(
    "strategy", [{"lazy_pages": True}, {"migration_strategy": "postcopy"}, {"migration_strategy": "hybrid"}]
)
def test_lazy_restore_is_not_for_post_copy(strategy: dict[str, Any]) -> None:
    problems = common(lazy_restore=True, **strategy)[1]
    assert problems[0].startswith("lazy_restore is for migration_strategy=full and precopy")
    assert common(**strategy)[1] == []


def test_object_storage_is_refused() -> None:
    problems = common(transfer="s3")[1]
    assert problems == ["transfer=s3: not in this version, which offers page_server and rsync."]


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [
        ("deadline", "aws", {"name": "aws", "limit": 120.0}), ("deadline", "45", {"name": "custom", "limit": 45.0}),
        ("guard_port_range", " 27000 - 27015", "27000-27015"), ("service_address", "10.77.0.9", "10.77.0.9"),
        ("service_address", "10.77.0.9/24", "10.77.0.9/24"), ("limits", {"dump": "7"}, {**DEFAULTS, "dump": 7.0}),
    ],
)  # fmt: skip
def test_shapes(name: str, given: Any, expected: Any) -> None:
    values, problems = common(**{name: given})
    assert problems == []
    assert values[name] == expected


@pytest.mark.parametrize(
    ("name", "given"),
    [("deadline", "azure"), ("deadline", "0"), ("deadline", "inf"), ("guard_port_range", "27000-27014"),
     ("guard_port_range", "80-9000"), ("guard_port_range", "60000-65536"), ("guard_port_range", "many"),
     ("service_address", "host"), ("service_address", "127.0.0.1"), ("service_address", "::1"),
     ("service_address", "10.0.0.1/33"), ("limits", {"dumb": 3}), ("limits", {"dump": 0}), ("limits", {"dump": "x"}),
     ("working_dir", "/"), ("working_dir", "srv"), ("working_dir", "/srv/../etc"), ("sync_paths", ["etc"])],
)  # fmt: skip
def test_shapes_refuse(name: str, given: Any) -> None:
    problems = common(**{name: given})[1]
    assert len(problems) == 1
    assert problems[0].startswith(name)


def test_tcp_close_excludes_what_keeps_connections() -> None:
    values, problems = common(tcp_close=True)
    assert (values["tcp_established"], problems) == (False, [])
    assert len(common(tcp_close=True, tcp_established=True, service_address="10.0.0.9")[1]) == 2


VALUES: dict[str, Any] = {
    "migration_strategy": "lazy", "lazy_pages": False, "experiment_name": None, "working_dir": None,
    "output_seconds": None, "output_capture": "file", "service_address": "10.0.0.9", "results_dir": "results",
}  # fmt: skip


def test_a_run_gets_names_of_its_own() -> None:
    run = naming.settle(VALUES, "process", {"pid": 7}, 1.8e9, "4f2a", "web")
    assert (run["run_id"], run["results_name"]) == ("web-20270115-080000-4f2a", "web_20270115_080000")
    assert (run["migration_strategy"], run["experiment_name"]) == ("postcopy", "web-postcopy")
    assert run["working_dir"] == "/srv/criu-migrate/web-20270115-080000-4f2a"
    assert run["workload"] == {"name": "process", "params": {"pid": 7}}


def test_what_was_asked_for_serves_a_later_run() -> None:
    first = naming.settle(VALUES, "process", {"pid": 7}, 1.8e9, "4f2a")
    kept = naming.kept({**first, "results_dir": "/here"})
    assert "run_id" not in kept and "results_dir" not in kept and kept["working_dir"] is None
    again = naming.settle(kept, "process", {"pid": 8}, 1.8e9 + 1, "0000")
    assert {name for name, value in again.items() if value != first.get(name)} == {
        "run_id", "began", "started", "results_name", "workload", "working_dir"
    }  # fmt: skip
    assert naming.kept({**first, "working_dir": "/srv/app"})["working_dir"] == "/srv/app"
