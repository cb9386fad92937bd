"""A user's parameters: which there are, what is wrong with them, what they mean.

Everything here is a plain function of data. Every problem is collected, none stops the search for the others.
"""

from __future__ import annotations

import difflib
import ipaddress
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ansible.module_utils.common.text.formatters import human_to_bytes
from ansible.module_utils.parsing.convert_bool import boolean

from .limits import DEFAULTS as LIMITS
from .metrics import NOTICES as DEADLINES

RANGES: dict[str, tuple[float, float]] = {
    "predump_iterations": (0, 1000),
    "predump_interval": (0, 3600),
    "downtime_target": (0.001, 3600),
    "ghost_limit": (0, 1 << 40),
    "heartbeat_interval": (0.001, 60),
    "output_seconds": (0, 600),
}
BUILT_TRANSFERS = ("page_server", "rsync")
# What Ansible and the lab's inventory set themselves.
FREE_PREFIXES = ("ansible_", "lab_")


@dataclass(frozen=True)
class Spec:
    """The options of one role: argument_specs, and what argument_specs cannot say.

    ``ranges`` maps an option to its least and greatest value, ``orders`` lists pairs of which the first is at
    most the second.
    """

    options: Mapping[str, Mapping[str, Any]]
    ranges: Mapping[str, Sequence[float]] = field(default_factory=dict)
    orders: Sequence[Sequence[str]] = ()


@dataclass
class Checked:
    """Typed values, and every problem in words for the user."""

    values: dict[str, Any]
    problems: list[str]


def _to_bool(value: Any) -> bool:
    return bool(boolean(value))


def _to_int(value: Any) -> int:
    if isinstance(value, bool):
        raise ValueError(value)
    if isinstance(value, float):
        if not value.is_integer():
            raise ValueError(value)
        return int(value)
    return int(value if isinstance(value, int) else str(value).strip())


def _to_float(value: Any) -> float:
    if isinstance(value, bool):
        raise ValueError(value)
    number = float(value)
    if number != number or number in (float("inf"), float("-inf")):
        raise ValueError(value)
    return number


def _to_str(value: Any) -> str:
    if isinstance(value, (Mapping, list, tuple)):
        raise ValueError(value)
    return str(value).lower() if isinstance(value, bool) else str(value)


def _to_bytes(value: Any) -> int:
    return int(human_to_bytes(str(value))) if not isinstance(value, bool) else _to_int(value)


def _to_list(value: Any) -> list[Any]:
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    if isinstance(value, (list, tuple)):
        return list(value)
    raise ValueError(value)


def _to_dict(value: Any) -> dict[str, Any]:
    if isinstance(value, Mapping):
        return {str(key): item for key, item in value.items()}
    pairs = [part.split("=", 1) for part in re.split(r"[,\s]+", str(value).strip()) if part]
    if any(len(pair) != 2 for pair in pairs):
        raise ValueError(value)
    return {key.strip(): item.strip() for key, item in pairs}


CONVERTERS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "bool": (_to_bool, "true or false"),
    "int": (_to_int, "a whole number"),
    "float": (_to_float, "a number"),
    "str": (_to_str, "a text"),
    "path": (_to_str, "a path"),
    "bytes": (_to_bytes, "a size in bytes, like 1048576 or 1M"),
    "list": (_to_list, "a list, like a,b"),
    "dict": (_to_dict, "pairs, like dump=300,link=30 or {dump: 300}"),
}


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return ``; did you mean X?`` for the nearest known word, or nothing."""
    near = difflib.get_close_matches(word, sorted(known), n=1, cutoff=0.6)
    return f"; did you mean {near[0]}?" if near else ""


def convert(name: str, option: Mapping[str, Any], value: Any) -> Any:
    """Return the value in the type that the option has.

    :raises ValueError: its text says what was expected
    """
    converter, expected = CONVERTERS[option.get("type", "str")]
    try:
        typed = converter(value)
        if option.get("type") == "list" and "elements" in option:
            typed = [CONVERTERS[option["elements"]][0](item) for item in typed]
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{name}={shown(value)}: it must be {expected}.") from None
    choices = option.get("choices")
    if choices and typed not in choices:
        hint = did_you_mean(str(typed), map(str, choices)) or "."
        one_of = ", ".join(map(str, choices))
        raise ValueError(f"{name}={shown(value)}: there is no such choice{hint} One of: {one_of}.")
    return typed


def shown(value: Any) -> str:
    """Return a value as it stands in a message: short, and without surprises."""
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def check_spec(spec: Spec, given: Mapping[str, Any], owner: str) -> Checked:
    """Convert what is given to the types of a spec, fill in defaults, and check ranges and orders."""
    checked = Checked({}, [])
    for name, option in spec.options.items():
        value = given.get(name, option.get("default"))
        if value is None or (value == "" and not option.get("required")):
            checked.values[name] = None
            if option.get("required"):
                checked.problems.append(f"{owner} needs {name}: {first_sentence(option)}")
            continue
        try:
            checked.values[name] = convert(name, option, value)
        except ValueError as error:
            checked.problems.append(str(error))
            continue
        if option.get("required") and str(value).strip() == "":
            checked.problems.append(f"{name} is empty: {first_sentence(option)}")
        checked.problems += _check_range(name, checked.values[name], spec.ranges)
    for low, high in spec.orders:
        below, above = checked.values.get(low), checked.values.get(high)
        if below is not None and above is not None and below > above:
            checked.problems.append(f"{low}={below} is more than {high}={above}: it must be at most as much.")
    return checked


def _check_range(name: str, value: Any, ranges: Mapping[str, Sequence[float]]) -> list[str]:
    if name not in ranges or isinstance(value, str):
        return []
    low, high = ranges[name]
    if low <= value <= high:
        return []
    return [f"{name}={value}: it must lie between {low} and {high}."]


def first_sentence(option: Mapping[str, Any]) -> str:
    """Return the first sentence of an option's description, without Ansible's markup."""
    text = option.get("description", "")
    text = text if isinstance(text, str) else " ".join(text)
    text = re.sub(r"\b[A-Z]\(([^)]*)\)", r"\1", text)
    return text.split(". ")[0].rstrip(".") + "."


def check_names(
    extra: Iterable[str],
    known: Iterable[str],
    reserved: Iterable[str],
    others: Mapping[str, Iterable[str]],
    workload: str | None,
) -> list[str]:
    """Say of each extra variable that nothing reads why it is refused.

    :param known: what the migration and the chosen workload read
    :param reserved: words that Ansible keeps for itself
    :param others: the parameters of each other workload
    """
    names, kept, problems = set(known), set(reserved), []
    for name in sorted(extra):
        if name in names or name.startswith(FREE_PREFIXES):
            continue
        if name in kept:
            problems.append(f"{name}: Ansible reserves this word for itself{_instead(name, names)}.")
            continue
        owners = sorted(other for other, options in others.items() if name in options)
        if owners and workload:
            problems.append(f"{name}: this is a parameter of {' and '.join(owners)}, not of {workload}.")
        else:
            problems.append(f"{name}: there is no such parameter{did_you_mean(name, names) or '.'}")
    return problems


def _instead(name: str, known: set[str]) -> str:
    if name == "strategy":
        return "; write migration_strategy"
    longer = sorted(word for word in known if name in word.split("_"))
    return f"; perhaps you mean {' or '.join(longer[:3])}" if longer else ""


def check_common(values: dict[str, Any], given: Mapping[str, Any]) -> list[str]:
    """Check the parameters of every migration against each other, and put them into their final shape."""
    problems = _check_built(values)
    for name, parse in SHAPES.items():
        if values.get(name) is None:
            continue
        try:
            values[name] = parse(values[name])
        except ValueError as error:
            problems.append(str(error))
    for name in ("working_dir", "image_dir"):
        if values.get(name) and not _absolute(values[name]):
            problems.append(f"{name}={values[name]}: it must be an absolute path without '..', not / itself.")
    problems += [f"sync_paths: {path} must be an absolute path without '..', not / itself."
                 for path in values.get("sync_paths") or [] if not _absolute(path)]
    if values.get("tcp_close"):
        if "tcp_established" in given and values.get("tcp_established"):
            problems.append("tcp_close=true closes what tcp_established=true carries over: choose one.")
        if values.get("service_address"):
            problems.append("tcp_close=true closes the connections that service_address keeps: choose one.")
        values["tcp_established"] = False
    return problems


def _check_built(values: Mapping[str, Any]) -> list[str]:
    problems = []
    strategy = values.get("migration_strategy", "auto")
    follows = values.get("lazy_pages") or strategy in ("postcopy", "lazy", "hybrid")
    if values.get("lazy_restore") is not None and follows:
        problems.append("lazy_restore is for migration_strategy=full and precopy; post-copy and hybrid "
                        "(lazy_pages=true) bring memory after the restore anyway: leave lazy_restore out.")
    transfer = values.get("transfer", "page_server")
    if transfer not in BUILT_TRANSFERS:
        offered = " and ".join(BUILT_TRANSFERS)
        problems.append(f"transfer={transfer}: not in this version, which offers {offered}.")
    return problems


def _absolute(path: str) -> bool:
    return path.startswith("/") and path.strip("/") != "" and ".." not in path.split("/")


def parse_address(text: str) -> str:
    """Return an IPv4 address, with its prefix if one was given.

    :raises ValueError: not an address that a service can have
    """
    try:
        address = ipaddress.IPv4Interface(text)
    except ValueError:
        raise ValueError(f"service_address={text}: it must be an IPv4 address, like 10.77.0.100 or "
                         "10.77.0.100/24.") from None
    ip = address.ip
    if ip.is_loopback or ip.is_multicast or ip.is_unspecified or ip.is_reserved:
        raise ValueError(f"service_address={text}: no address that can move between two nodes.")
    return str(address) if "/" in text else str(ip)


def parse_deadline(text: str) -> dict[str, Any]:
    """Return ``{name, limit}`` with the limit in seconds.

    :raises ValueError: neither a cloud that is known nor a number of seconds
    """
    if text in DEADLINES:
        return {"name": text, "limit": DEADLINES[text]}
    try:
        limit = _to_float(text)
    except ValueError:
        limit = 0.0
    if limit <= 0:
        raise ValueError(f"deadline={text}: it must be aws (120 s), gcp (30 s) or seconds above 0.")
    return {"name": "custom", "limit": limit}


def parse_port_range(text: str) -> str:
    """Return the first and the last port as ``FIRST-LAST``.

    :raises ValueError: not a range of at least 16 unprivileged ports
    """
    match = re.fullmatch(r"\s*(\d+)\s*-\s*(\d+)\s*", text)
    first, last = (int(match.group(1)), int(match.group(2))) if match else (0, 0)
    if not 1024 <= first <= last - 15 <= 65535 - 15:
        raise ValueError(f"guard_port_range={text}: it must be FIRST-LAST, at least 16 ports, 1024-65535.")
    return f"{first}-{last}"


def parse_limits(given: Mapping[str, Any]) -> dict[str, float]:
    """Return every limit in seconds: the defaults, and in their place what is given.

    :raises ValueError: an unknown name, or no number of seconds above 0
    """
    limits, wrong = dict(LIMITS), []
    for name, value in given.items():
        if name not in LIMITS:
            hint = did_you_mean(name, LIMITS) or f"; there are {', '.join(LIMITS)}"
            wrong.append(f"{name} is no limit{hint}")
            continue
        try:
            limits[name] = _to_float(value)
        except (TypeError, ValueError):
            limits[name] = 0.0
        if not 0 < limits[name] <= 86400:
            wrong.append(f"{name}={shown(value)} must be seconds above 0 and at most 86400")
    if wrong:
        raise ValueError(f"limits: {'; '.join(wrong)}.")
    return limits


SHAPES: dict[str, Callable[[Any], Any]] = {
    "service_address": parse_address,
    "deadline": parse_deadline,
    "guard_port_range": parse_port_range,
    "limits": parse_limits,
}
