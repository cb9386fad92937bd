"""What the user typed, brought into the shape of Ansible's extra variables. The playbook checks them."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from .places import CommandError

PAIR = re.compile(r"[A-Za-z_]\w*=")
VARIABLE = re.compile(r"\$\{(\w+)\}")
# The sections of the seed documents' configuration files, and what is in them by the names used here.
SECTIONS = {
    "experiment.name": "experiment_name",
    "experiment.workload_type": "workload",
    "experiment.save_metrics": "save_metrics",
    "checkpoint.strategy.mode": "migration_strategy",
    "checkpoint.strategy.predump_iterations": "predump_iterations",
    "checkpoint.strategy.predump_interval": "predump_interval",
    "checkpoint.strategy.lazy_pages": "lazy_pages",
    "transfer.method": "transfer",
}
NODES = {
    "nodes.source.ip": "SOURCE_NODE_IP",
    "nodes.destination.ip": "DEST_NODE_IP",
    "nodes.ssh_user": "SSH_USER",
    "nodes.ssh_key": "SSH_KEY",
}
IGNORED = ("nodes.source.name", "nodes.destination.name")
HEADS = {name.partition(".")[0] for name in (*SECTIONS, *NODES)}


def from_words(words: Sequence[str]) -> dict[str, Any]:
    """Return the parameters in `[WORKLOAD] name=value ... --name value ...`; a `--name` without a value is true.

    :raises CommandError: a word that is neither
    """
    found: dict[str, Any] = {}
    rest = list(words)
    if rest and "=" not in rest[0] and not rest[0].startswith("-"):
        found["workload"] = rest.pop(0)
    while rest:
        word = rest.pop(0)
        name, equals, value = word.lstrip("-").partition("=")
        flag = word.startswith("--")
        if not re.fullmatch(r"[A-Za-z_][\w-]*", name) or not (equals or flag):
            raise CommandError(f"{word}: a parameter is name=value, as in `criu-migrate run memory mb_size=512`.")
        if flag and not equals and rest and not rest[0].startswith("--") and not PAIR.match(rest[0]):
            value = rest.pop(0)
        elif flag and not equals:
            value = "true"
        found[name.replace("-", "_")] = value
    return found


def expand(value: Any, environ: Mapping[str, str], missing: set[str]) -> Any:
    """Return the value with every ${NAME} in its texts replaced; names that are not set are added to `missing`."""
    if isinstance(value, dict):
        return {key: expand(item, environ, missing) for key, item in value.items()}
    if isinstance(value, list):
        return [expand(item, environ, missing) for item in value]
    if not isinstance(value, str):
        return value
    missing.update(name for name in VARIABLE.findall(value) if name not in environ)
    return VARIABLE.sub(lambda match: environ.get(match.group(1), ""), value)


def _flat(section: Mapping[str, Any], before: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in section.items():
        name = f"{before}.{key}"
        known = any(one.startswith(f"{name}.") for one in (*SECTIONS, *NODES, *IGNORED))
        found.update(_flat(value, name) if isinstance(value, dict) and known else {name: value})
    return found


def from_file(path: Path, environ: Mapping[str, str] = os.environ) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the parameters of a file, and what it says of nodes as variables of the environment.

    The file holds names and values, or the sections of the seed documents (experiment, nodes, checkpoint, transfer),
    or both.

    :raises CommandError: it cannot be read, or names what is not there
    """
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise CommandError(f"{path} cannot be read: {error}") from None
    if not isinstance(data, dict):
        raise CommandError(f"{path}: it has to hold names and values, like `mb_size: 512`.")
    flat: dict[str, Any] = {}
    for key, value in data.items():
        flat.update(_flat(value, key) if key in HEADS and isinstance(value, dict) else {str(key): value})
    unknown = sorted(name for name in flat if "." in name and name not in (*SECTIONS, *NODES, *IGNORED))
    if unknown:
        raise CommandError(f"{path}: there is no {', '.join(unknown)}. Known are: {', '.join((*SECTIONS, *NODES))}.")
    # A fallback for nodes that nothing else names, so a variable that is not set there is no error.
    nodes = {NODES[name]: str(expand(value, environ, set())) for name, value in flat.items() if name in NODES}
    missing: set[str] = set()
    rest = {name: value for name, value in flat.items() if name not in NODES and name not in IGNORED}
    found = {SECTIONS.get(name, name): expand(value, environ, missing) for name, value in rest.items()}
    if missing:
        names = ", ".join(sorted(missing))
        raise CommandError(f"{path}: not set in the environment: {names}. Set them, or replace them in the file.")
    return found, {name: value for name, value in nodes.items() if value}


def node_environment(nodes: Mapping[str, str], environ: Mapping[str, str], here: Path) -> dict[str, str]:
    """Return what a configuration file says of nodes, unless the environment or a servers.yaml names them."""
    named = environ.get("SOURCE_NODE_IP") or environ.get("DEST_NODE_IP")
    if named or any((here / name).exists() for name in ("servers.yaml", "config/servers.yaml")):
        return {}
    return {name: value for name, value in nodes.items() if not environ.get(name)}
