"""How many cores this process may keep busy."""

import math
import os
from collections.abc import Iterator
from pathlib import Path

_GROUPS = Path("/sys/fs/cgroup")


def usable_cores(groups: Path = _GROUPS, own: Path = Path("/proc/self/cgroup")) -> int:
    """Counts the cores that the process may run on, or that its container's quota is worth.

    A quota is rounded up. Threads beyond it would only use it up early in each period, and then
    all of them stand still.

    Args:
        groups: Where the control groups are mounted.
        own: Names the group of this process.
    """
    return max(1, math.ceil(min([len(os.sched_getaffinity(0)), *_quotas(groups, own)])))


def _quotas(groups: Path, own: Path) -> Iterator[float]:
    """Cores of each quota that holds for this process: version 2, its ancestors' too, or 1."""
    lines = _words(own)
    named = next((line[3:] for line in lines if line.startswith("0::")), "/").lstrip("/")
    for folder in (groups / named, *(groups / named).parents):
        if folder.is_relative_to(groups):
            quota, period = (*_words(folder / "cpu.max"), "max", "")[:2]
            if quota != "max":
                yield int(quota) / int(period)
    first = _words(groups / "cpu" / "cpu.cfs_quota_us")
    if first and int(first[0]) > 0:  # -1 is none
        yield int(first[0]) / int(_words(groups / "cpu" / "cpu.cfs_period_us")[0])


def _words(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except OSError:  # there is no such group here, or no such system
        return []
