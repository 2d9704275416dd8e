"""How many CPUs this process may use: by affinity, by the quota of its cgroups, and by ``METARL_CPUS``.

A container, or a job under Slurm or Kubernetes, often sees all CPUs of its machine but may use the time of a few. More
threads than that wait for each other.
"""

import contextlib
import math
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import torch

OWN_LIMIT = "METARL_CPUS"
"""Environment variable: the most CPUs that a process may use. Each process of a group of seeds has its share."""
CGROUPS, OWN_CGROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def usable_cpus() -> int:
    """Return how many CPUs this process may use: affinity, the cgroup's quota (rounded up) and METARL_CPUS, the least.

    Raises ValueError where METARL_CPUS is no number from 1.
    """
    seen = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cpu_quota()
    allowed = seen if quota is None else max(1, math.ceil(quota))
    return min(seen, allowed, _own_limit() or seen)


def limit_threads() -> None:
    """Let torch use no more threads than ``usable_cpus``; it looks at affinity only. A smaller number stays."""
    usable = usable_cpus()
    if torch.get_num_threads() > usable:
        torch.set_num_threads(usable)


def cpu_quota(mounted: Path = CGROUPS, own: Path = OWN_CGROUPS) -> float | None:
    """Return the CPUs' worth of time that this process's cgroups (v1 or v2) allow; None where there is no limit.

    A limit of an outer cgroup holds within it too. ``mounted`` is where the file systems of cgroups are, ``own`` the
    file that tells those of the process: https://docs.kernel.org/admin-guide/cgroup-v2.html (cpu.max), and
    https://docs.kernel.org/scheduler/sched-bwc.html (cpu.cfs_quota_us).
    """
    try:
        lines = own.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None  # not Linux
    found = [limit for line in lines for folder in _folders(line, mounted) for limit in _limits(folder)]
    return min(found, default=None)


def _folders(line: str, mounted: Path) -> Iterator[Path]:
    """Yield the folders of a line of /proc/self/cgroup that may hold limits of CPU time, inner ones first."""
    hierarchy, _, rest = line.partition(":")
    controllers, _, path = rest.partition(":")
    names = [controllers, "cpu"] if "cpu" in controllers.split(",") else []
    if hierarchy == "0" and not controllers:
        names = [".", "unified"]  # cgroup v2, alone or beside v1
    for name in names:
        # In a container, the path may be the host's: then only the root of the mount is there.
        inner = PurePosixPath(path.lstrip("/"))
        for part in (inner, *inner.parents):
            yield mounted / name / part


def _limits(folder: Path) -> Iterator[float]:
    with contextlib.suppress(OSError, ValueError):  # most cgroups have no such file
        quota, period = (folder / "cpu.max").read_text(encoding="utf-8").split()
        if quota != "max":
            yield int(quota) / int(period)
    with contextlib.suppress(OSError, ValueError):
        quota, period = (
            (folder / f"cpu.cfs_{name}_us").read_text(encoding="utf-8").strip() for name in ("quota", "period")
        )
        if int(quota) > 0:
            yield int(quota) / int(period)


def _own_limit() -> int | None:
    text = os.environ.get(OWN_LIMIT, "")
    if not text:
        return None
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"the environment variable {OWN_LIMIT}={text!r}: expected a number of CPUs, from 1")
    return int(text)
