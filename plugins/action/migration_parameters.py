"""Check a user's parameters all at once and give them their types."""

from __future__ import annotations

DOCUMENTATION = r"""
name: migration_parameters
short_description: Check the parameters of a migration and give them their types
description:
  - Reads the options of the role C(migration) and of the role of the chosen workload, takes their values from
    extra variables and from the inventory, and refuses what is unknown, misspelt, out of range, not built yet
    or reserved by Ansible. Every problem is listed at once. Changes nothing.
  - Runs on the control node.
options:
  also_known:
    description: Names of further extra variables that the calling playbook reads.
    type: list
    elements: str
    default: []
  nodes:
    description: Whether the groups C(source) and C(destination) must have one host each.
    type: bool
    default: true
  names_only:
    description:
      - Only refuse extra variables that no playbook reads; for those that take no workload of their own.
    type: bool
    default: false
"""

EXAMPLES = r"""
- name: Check the parameters
  migration_parameters:
  register: parameters_checked

- name: Keep them
  ansible.builtin.set_fact:
    migration: "{{ parameters_checked.migration }}"
"""

RETURN = r"""
migration:
  description:
    - Every parameter with its type, besides C(run_id), C(results_name) and C(workload) (C(name), C(params)).
    - Durations are seconds, sizes are bytes. What was not given and has no default is null.
  returned: success
  type: dict
"""

import secrets
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from ansible import context
from ansible.parsing.splitter import parse_kv
from ansible.plugins.action import ActionBase
from ansible.utils.vars import load_extra_vars
from ansible.vars.reserved import get_reserved_names

from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate import naming, nodes, parameters

ROOT = Path(__file__).resolve().parents[2]
NODES = ("source_ip", "dest_ip", "ssh_user", "ssh_key")


def load_options(role: str) -> dict[str, Any]:
    """Return the options of all entry points of a role of this collection."""
    path = ROOT / "roles" / role / "meta" / "argument_specs.yml"
    specs = yaml.safe_load(path.read_text(encoding="utf-8"))["argument_specs"]
    return {name: option for entry in specs.values() for name, option in (entry.get("options") or {}).items()}


def load_spec(role: str) -> parameters.Spec:
    """Return the options, ranges and orders of a role of this collection."""
    path = ROOT / "roles" / role / "vars" / "main.yml"
    more: dict[str, Any] = {}
    if path.is_file():
        more = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    return parameters.Spec(load_options(role), more.get(f"{role}_ranges", {}), more.get(f"{role}_orders", ()))


def load_workloads() -> dict[str, parameters.Spec]:
    """Return the spec of every workload that there is a role for, by name."""
    found = sorted((ROOT / "roles").glob("workload_*/meta/argument_specs.yml"))
    return {path.parents[1].name.removeprefix("workload_"): load_spec(path.parents[1].name) for path in found}


def whole_texts(typed: Iterable[str], known: set[str], texts: set[str]) -> tuple[dict[str, str], set[str]]:
    """Return texts with spaces as they were typed, and the names of the pieces that Ansible made of them.

    C(-e command='python3 /srv/app.py') reaches Ansible without the quotes, which takes the second word for another
    variable. Where what follows is nothing that is known, all of it belongs to the first.
    """
    whole: dict[str, str] = {}
    pieces: set[str] = set()
    others: set[str] = set()
    for text in map(str, typed):
        name, _equals, value = text.partition("=")
        if text[:1] in ("@", "{", "["):
            continue
        rest = set(parse_kv(text)) - {name}
        if name in texts and not rest <= known:
            whole[name] = value
            pieces |= rest
        else:
            others |= rest | {name}
    return whole, pieces - others


class ActionModule(ActionBase):
    """Validation on the control node, without a connection."""

    TRANSFERS_FILES = False
    _requires_connection = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the fact ``migration``, or fail with every problem that was found."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        _validation, arguments = self.validate_argument_spec({
            "also_known": {"type": "list", "elements": "str", "default": []},
            "nodes": {"type": "bool", "default": True},
            "names_only": {"type": "bool", "default": False},
        })
        variables = task_vars or {}
        migration: dict[str, Any] = {}
        if arguments["names_only"]:
            problems = self._names(arguments["also_known"])
        else:
            problems, migration = self._check(arguments, variables)
        if problems:
            lines = "\n".join(f"  - {problem}".replace("\n", "\n    ") for problem in problems)
            many = f"{len(problems)} problems" if len(problems) > 1 else "1 problem"
            return {**result, "failed": True,
                    "msg": f"{many} with what you asked for; nothing was started:\n{lines}"}
        return {**result, "changed": False, "migration": migration}

    def _check(
        self, arguments: Mapping[str, Any], variables: Mapping[str, Any]
    ) -> tuple[list[str], dict[str, Any]]:
        common, workloads = load_spec("migration"), load_workloads()
        common = parameters.Spec(common.options, {**parameters.RANGES, **common.ranges}, common.orders)
        name, problems = self._workload(common, workloads, variables)
        chosen = workloads[name] if name in workloads else parameters.Spec({})
        others = {other: spec.options for other, spec in workloads.items() if other != name}
        known = [*common.options, *chosen.options, *arguments["also_known"], *self._role_options()]
        if name not in workloads:
            known += [option for options in others.values() for option in options]
        options = {**common.options, **chosen.options}
        texts = {option for option, spec in chosen.options.items() if spec.get("type", "str") == "str"}
        texts.add("experiment_name")
        whole, pieces = whole_texts(context.CLIARGS.get("extra_vars") or (), set(known), texts)
        extra = set(load_extra_vars(self._loader)) - pieces
        problems += parameters.check_names(extra, known, get_reserved_names(), others, name)
        given = {**self._given([option for option in options if option not in pieces], variables), **whole}
        checked = parameters.check_spec(common, {**given, "workload": name or "-"}, "A migration")
        problems += checked.problems + parameters.check_common(checked.values, given)
        of_workload = parameters.check_spec(chosen, given, f"workload={name}")
        problems += of_workload.problems
        groups = variables.get("groups", {})
        if arguments["nodes"]:
            problem = str(variables.get("criu_nodes_problem", ""))
            addresses = self._addresses(groups, variables.get("hostvars", {}))
            problems += nodes.check_pair(groups, addresses, problem)
            of_nodes = {name: given.get(name) for name in NODES if name in extra}  # an inventory may have its own
            problems += nodes.check_options(of_nodes, str(variables.get("criu_nodes_from", "")))
        problems += _client(checked.values, groups)
        if problems:
            return problems, {}
        return [], _finish(checked.values, str(name), of_workload.values)

    def _names(self, also_known: list[str]) -> list[str]:
        known = {*load_options("migration"), *also_known, *self._role_options()}
        extra = set(load_extra_vars(self._loader))
        return parameters.check_names(extra, known, get_reserved_names(), {}, None)

    def _workload(
        self, common: parameters.Spec, workloads: Mapping[str, Any], variables: Mapping[str, Any]
    ) -> tuple[str | None, list[str]]:
        value = self._given(["workload"], variables).get("workload")
        one_of = f"One of: {', '.join(sorted(workloads))}."
        if value is None or str(value).strip() == "":
            what = parameters.first_sentence(common.options["workload"])
            return None, [f"workload is missing: {what} {one_of}"]
        if str(value) not in workloads:
            hint = parameters.did_you_mean(str(value), workloads) or "."
            shown = parameters.shown(value)
            return str(value), [f"workload={shown}: there is no such workload{hint} {one_of}"]
        return str(value), []

    def _given(self, names: list[str], variables: Mapping[str, Any]) -> dict[str, Any]:
        found = {name: variables[name] for name in names if name in variables}
        return {name: self._templar.template(value) for name, value in found.items()}

    def _addresses(self, groups: Mapping[str, Any], hostvars: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        names = {*groups.get("source", ()), *groups.get("destination", ())}
        wanted = ("ansible_host", "ansible_port")
        return {name: {key: hostvars[name][key] for key in wanted if key in hostvars[name]} for name in names}

    def _role_options(self) -> list[str]:
        """Return the options of the roles that prepare nodes: they may be set beside a migration's own."""
        roles = [path.parents[1].name for path in (ROOT / "roles").glob("*/meta/argument_specs.yml")]
        return [option for role in roles if role != "migration" and not role.startswith("workload_")
                for option in load_options(role)]


def _client(values: dict[str, Any], groups: Mapping[str, Any]) -> list[str]:
    """Settle ``client``: is there a third host that drives the workload?"""
    there = bool(groups.get("client"))
    if values.get("client") == "true" and not there:
        return ["client=true: the inventory has no host in the group client."]
    values["client"] = there and values.get("client") != "false"
    return []


def _finish(values: dict[str, Any], name: str, params: dict[str, Any]) -> dict[str, Any]:
    results_dir = str(Path.cwd() / Path(values["results_dir"]).expanduser())
    return {**naming.settle(values, name, params, time.time(), secrets.token_hex(2)), "results_dir": results_dir}
