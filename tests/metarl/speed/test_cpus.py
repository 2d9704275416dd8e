"""CPUs are counted by affinity, by the quota of cgroups of both versions, and by the own environment variable."""

import os
from pathlib import Path

import pytest
import torch

from metarl.speed import cpus


def cgroups(folder: Path, own: str, **files: str) -> dict[str, Path]:
    """Write a tree of cgroups: contents by path, ``__`` for a slash and ``_DOT_`` for a dot."""
    for name, contents in files.items():
        path = folder / "sys" / name.replace("__", "/").replace("_DOT_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(contents)
    (folder / "own").write_text(own)
    return {"mounted": folder / "sys", "own": folder / "own"}


@pytest.mark.parametrize(
    ("own", "files", "quota"),
    [
        ("0::/\n", {"cpu_DOT_max": "150000 100000\n"}, 1.5),
        ("0::/\n", {"cpu_DOT_max": "max 100000\n"}, None),
        ("0::/job\n", {"job__cpu_DOT_max": "max 100000\n"}, None),
        ("0::/job/step\n", {"job__step__cpu_DOT_max": "400000 100000\n", "job__cpu_DOT_max": "200000 100000\n"}, 2.0),
        ("0::/docker/of-the-host\n", {"cpu_DOT_max": "300000 100000\n"}, 3.0),
        ("1:name=systemd:/x\n0::/a\n", {"unified__a__cpu_DOT_max": "50000 100000\n"}, 0.5),
        (
            "5:cpu,cpuacct:/job\n3:cpuset:/\n",
            {"cpu,cpuacct__job__cpu_DOT_cfs_quota_us": "250000\n", "cpu,cpuacct__job__cpu_DOT_cfs_period_us": "100000"},
            2.5,
        ),
        ("5:cpu,cpuacct:/of-the-host\n", {"cpu__cpu_DOT_cfs_quota_us": "5", "cpu__cpu_DOT_cfs_period_us": "2"}, 2.5),
        ("5:cpu:/\n", {"cpu__cpu_DOT_cfs_quota_us": "-1", "cpu__cpu_DOT_cfs_period_us": "100000"}, None),
        ("7:cpuset:/\n", {"cpuset__cpu_DOT_cfs_quota_us": "5", "cpuset__cpu_DOT_cfs_period_us": "2"}, None),
        ("0::/\n", {"cpu_DOT_max": "broken"}, None),
        ("", {}, None),
    ],
)
def test_quotas_of_both_versions_are_read(own: str, files: dict[str, str], quota: float | None, tmp_path: Path) -> None:
    assert cpus.cpu_quota(**cgroups(tmp_path, own, **files)) == quota


def test_there_is_no_quota_without_cgroups(tmp_path: Path) -> None:
    assert cpus.cpu_quota(tmp_path, tmp_path / "absent") is None


@pytest.mark.parametrize(
    ("quota", "own", "expected"),
    [(None, "", 8), (2.5, "", 3), (0.5, "", 1), (64.0, "", 8), (None, "2", 2), (2.0, "5", 2)],
)
def test_the_smallest_limit_counts(
    quota: float | None, own: str, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(cpus, "cpu_quota", lambda: quota)
    monkeypatch.setenv(cpus.OWN_LIMIT, own)
    assert cpus.usable_cpus() == expected


@pytest.mark.parametrize("own", ["0", "-1", "two", "1.5"])
def test_a_limit_that_is_no_number_is_refused(own: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(cpus.OWN_LIMIT, own)
    with pytest.raises(ValueError, match=f"METARL_CPUS='{own}': expected a number of CPUs, from 1"):
        cpus.usable_cpus()


def test_torch_gets_no_more_threads_than_cpus_may_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpus, "usable_cpus", lambda: 2)
    for before, after in ((4, 2), (1, 1)):
        torch.set_num_threads(before)
        cpus.limit_threads()
        assert torch.get_num_threads() == after
