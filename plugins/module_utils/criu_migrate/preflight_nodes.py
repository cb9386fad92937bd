"""Checks of the two nodes against each other and against the parameters. Pure functions."""

from __future__ import annotations

import re
from collections.abc import Iterator

from .preflight import Case, Check, Facts, Finding, listed, size

OLDEST_PYTHON = (3, 9)
CLOCK_BOUND = 10.0  # seconds; a task on a busy node starts late by some, the guards measure it to microseconds
INSTALLS = "migrate.yml installs it"
# x86 features that programs and libraries use when they find them; the kernel's own (pti, ibrs, ...) do not matter.
_X86 = re.findall(r"\S+", """
    sse sse2 pni ssse3 fma cx16 sse4_1 sse4_2 movbe popcnt aes xsave avx f16c rdrand abm lzcnt sse4a misalignsse xop
    fma4 tbm bmi1 avx2 bmi2 erms invpcid rtm rdseed adx clflushopt clwb sha_ni xsaveopt xsavec xgetbv1 clzero rdpid
    vaes vpclmulqdq gfni serialize movdiri movdir64b fsrm pclmulqdq
""")  # fmt: skip


def check_python(case: Case) -> Iterator[Finding]:
    for name, facts in case.nodes():
        if tuple(int(part) for part in facts["python"].split(".")[:2]) < OLDEST_PYTHON:
            yield Finding(
                "python", name, f"Python {facts['python']} is too old.",
                "Install Python 3.9 or later and name it with ansible_python_interpreter.",
            )  # fmt: skip


def check_criu(case: Case) -> Iterator[Finding]:
    """Before the nodes were prepared a missing or broken CRIU is no problem: it would be installed."""
    for name, facts in case.nodes():
        criu = facts["criu"]
        if not criu["installed"]:
            if case.prepared:
                yield Finding("criu", name, "CRIU is not installed.", "Run migrate.yml, which installs it.")
            else:
                yield Finding("criu", name, f"CRIU is not installed yet; {INSTALLS}.", "", True)
        elif not criu["ok"]:
            text = f"CRIU {criu['version']} does not work on kernel {facts['kernel']}: {criu['reason'].rstrip('.')}."
            remedy = "Run migrate.yml, which installs a CRIU that works where there is one. Or install 4.2 or later."
            yield Finding("criu", name, text, remedy, not case.prepared)


def check_versions(case: Case) -> Iterator[Finding]:
    """The page server's wire format has no version: another CRIU on the other side misreads it."""
    one, other = case.source["criu"], case.destination["criu"]
    same = (one["version"], one["git_id"]) == (other["version"], other["git_id"])
    if one["installed"] and other["installed"] and not same:
        text = f"The nodes have different CRIUs: {_criu(one)} on the source, {_criu(other)} here."
        remedy = "Install the same version on both; migrate.yml does so."
        yield Finding("criu_version", case.names["destination"], text, remedy, not case.prepared)


def _criu(facts: Facts) -> str:
    return f"{facts['version']} ({facts['git_id']})" if facts["git_id"] else str(facts["version"])


def check_features(case: Case) -> Iterator[Finding]:
    for name, facts in case.nodes():
        if facts["criu"]["ok"] and not facts["criu"]["features"].get("network_lock_nftables", True):
            text = "CRIU cannot lock connections with nftables on this kernel."
            yield Finding("features", name, text, "Use a kernel with nf_tables, and a CRIU that was built with it.")


def check_cpu(case: Case) -> Iterator[Finding]:
    name = case.names["destination"]
    if case.source["arch"] != case.destination["arch"]:
        text = f"The source is {case.source['arch']}, this node is {case.destination['arch']}."
        yield Finding("arch", name, text, "Choose a destination of the same architecture.")
        return
    there = set(case.destination["cpu"]["flags"])
    x86 = case.source["arch"] in ("x86_64", "i686")
    missing = [
        flag
        for flag in case.source["cpu"]["flags"]
        if flag not in there and (not x86 or flag in _X86 or flag.startswith(("avx512", "avx_", "amx_")))
    ]
    if missing:
        yield Finding(
            "cpu", name, f"The CPU lacks features of the source's that a program may be using: {listed(missing, 12)}.",
            "Choose a destination with the same or a newer CPU, or the same instance type.",
        )  # fmt: skip
    elif case.there.get("cpu_complaint"):
        text = f"CRIU says that the source's CPU does not fit: {case.there['cpu_complaint']}"
        yield Finding("cpu", name, text, "Choose a destination with the same or a newer CPU.")


def check_capabilities(case: Case) -> Iterator[Finding]:
    for name, facts in case.nodes():
        missing = [key for key, there in facts["capabilities"].items() if not there and key != "CAP_SYS_RESOURCE"]
        if missing:
            text = f"Root lacks {listed(missing)} here, as in a container; CRIU needs it."
            yield Finding("capabilities", name, text, "Give the container these capabilities.")
    if not case.tree and not case.source["capabilities"]["CAP_SYS_RESOURCE"]:
        user = case.params.get("workload_user") or "root"  # workload_start takes root where it is not told otherwise
        if user != "root" and case.params.get("workload", {}).get("name") != "process":
            yield Finding(
                "user", case.names["source"],
                f"Root lacks CAP_SYS_RESOURCE here, so CRIU cannot dump a process of {user}.",
                "Run the workload as root: workload_user=root. Or give the container that capability.",
            )  # fmt: skip


def check_clock(case: Case) -> Iterator[Finding]:
    offset = case.destination["clock"]["ahead"] - case.source["clock"]["ahead"]
    if abs(offset) > CLOCK_BOUND:
        text = f"The clock is about {abs(offset):.0f} s {'ahead of' if offset > 0 else 'behind'} the source's."
        remedy = "Let both follow NTP (chrony, systemd-timesyncd)."
        yield Finding("clock", case.names["destination"], text, remedy, True)


def check_commands(case: Case) -> Iterator[Finding]:
    needed = {"ip", "nft"} | ({"rsync"} if case.params.get("transfer") == "rsync" else set())
    for name, facts in case.nodes():
        missing = sorted(needed & set(facts["missing_commands"]))
        if missing and case.prepared:
            text = f"Not installed: {listed(missing)}."
            yield Finding("commands", name, text, "Run migrate.yml, which installs the packages.")
        elif missing:
            yield Finding("commands", name, f"Not installed yet: {listed(missing)}; {INSTALLS}.", "", True)


def check_port(case: Case) -> Iterator[Finding]:
    if not case.there.get("free_port"):
        text = f"No port of guard_port_range={case.params['guard_port_range']} is free."
        yield Finding("guard_port", case.names["destination"], text, "Give another range: guard_port_range=FIRST-LAST.")


def check_working_dir(case: Case) -> Iterator[Finding]:
    place = case.there.get("working_dir") or {}
    name, path = case.names["destination"], case.params.get("working_dir")
    needed = case.tree.get("roots_bytes", 0)
    if place.get("problem"):
        text = f"working_dir={path} cannot be made: {place['problem']}."
        yield Finding("working_dir", name, text, "Give another working_dir, the same path on both nodes.")
    elif place and place["free"] < needed:
        text = f"{place['mount']} has {size(place['free'])} free, the directories that travel have {size(needed)}."
        yield Finding("working_dir", name, text, "Free space there.")


def _is_own(address: str) -> bool:
    return "." in address and not address.startswith("127.")


def check_service(case: Case) -> Iterator[Finding]:
    address = case.service_address
    if not address:
        return
    source, destination = case.names["source"], case.names["destination"]
    own = [item["address"] for item in case.source["addresses"] if _is_own(item["address"])]
    if address in case.reached_by or own == [address]:
        text = f"The service address {address} is the node's own: without it the node could not be reached."
        yield Finding("service_address", source, text, "Give an address of its own: service_address=ADDRESS.")
        return
    found = case.there.get("service") or {}
    if found.get("present"):
        text = f"The service address {address} is here already, on {found['present']['interface']}."
        remedy = f"Take it off, or give another address: ip addr del {address}/{found['present']['prefix']} dev "
        yield Finding("service_address", destination, text, f"{remedy}{found['present']['interface']}")
    if found.get("problem"):
        text = f"The service address {address} has no place here: {found['problem']}."
        yield Finding("service_address", destination, text, "Name the interface: service_interface=NAME.")
    elif found and found["interface"] not in {i["interface"] for i in case.destination["addresses"] if i["up"]}:
        text = f"The interface {found['interface']} for the service address is down."
        yield Finding("service_address", destination, text, f"ip link set {found['interface']} up")
    if case.tree and not any(item["address"] == address for item in case.source["addresses"]):
        text = f"The service address {address} is not here, so no client reaches the process by it."
        yield Finding("service_address", source, text, "Add it, or leave service_address out.")


CHECKS: tuple[Check, ...] = (
    check_python, check_criu, check_versions, check_features, check_cpu, check_capabilities, check_clock,
    check_commands, check_port, check_working_dir, check_service,
)  # fmt: skip
