"""The lab's network and cgroups: what is computed before anything is made."""

from __future__ import annotations

import pytest

from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate import lab_cgroups, lab_net
from ansible_collections.criu.migrate.plugins.module_utils.criu_migrate.errors import MigrationError

V1 = """\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu,cpuacct
34 31 0:31 / /sys/fs/cgroup/cpuset rw,relatime shared:7 - cgroup cgroup rw,cpuset
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
42 23 0:31 / /elsewhere rw,relatime - cgroup cgroup rw,cpuset
"""
V2 = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"


@pytest.mark.parametrize(
    ("rate", "bits"),
    [("1gbit", 1e9), ("300mbit", 3e8), ("1.5Gbit", 1.5e9), ("10mbps", 8e7), ("64kibit", 65536), ("9600bit", 9600)],
)
def test_rates_are_read_as_tc_does(rate: str, bits: float) -> None:
    assert lab_net.rate_bits(rate) == bits


@pytest.mark.parametrize("rate", ["fast", "1", "1 gbit; reboot", "-1gbit", "0mbit", ""])
def test_what_is_no_rate_is_refused(rate: str) -> None:
    with pytest.raises(ValueError, match="rate"):
        lab_net.rate_bits(rate)


def test_the_bucket_holds_five_milliseconds_and_one_large_packet() -> None:
    fast, slow = lab_net.shaping("eth0", "1gbit"), lab_net.shaping("eth0", "1mbit")
    assert fast[:7] == ["qdisc", "replace", "dev", "eth0", "root", "tbf", "rate"]
    assert int(fast[fast.index("burst") + 1]) == 625000
    assert int(slow[slow.index("burst") + 1]) == 128 * 1024


def test_the_default_lab_has_the_first_network() -> None:
    assert lab_net.choose_subnet("lab", []) == 0


def test_a_taken_network_is_passed_over_and_the_choice_is_stable() -> None:
    first = lab_net.choose_subnet("dev", [])
    assert lab_net.choose_subnet("dev", []) == first
    assert lab_net.choose_subnet("dev", [first]) == (first + 1) % 256
    assert lab_net.choose_subnet("lab", range(255)) == 255
    with pytest.raises(MigrationError, match="256"):
        lab_net.choose_subnet("lab", range(256))


def test_addresses_of_link_and_network_go_together() -> None:
    assert (lab_net.address(5, 10), lab_net.hardware(5, 10)) == ("10.77.5.10", "02:00:0a:4d:05:0a")


def test_hierarchies_of_version_1_are_found_once_each() -> None:
    found = lab_cgroups.hierarchies(V1)
    assert [(item.path.rsplit("/", 1)[1], item.version, item.options) for item in found] == [
        ("cpu", 1, "cpu,cpuacct"),
        ("cpuset", 1, "cpuset"),
        ("systemd", 1, "name=systemd"),
        ("unified", 2, ""),
    ]
    assert [place for place, _ in lab_cgroups.mount_plan(found)] == ["cpu", "cpuset", "systemd", "unified"]


def test_a_host_with_version_2_alone_has_one_hierarchy_at_the_usual_place() -> None:
    found = lab_cgroups.hierarchies(V2)
    assert found == [lab_cgroups.Hierarchy("/sys/fs/cgroup", 2, "")]
    assert [place for place, _ in lab_cgroups.mount_plan(found)] == [""]
