"""Free memory of the host as this process may use it: the machine's, or less in a container or a batch job."""

from __future__ import annotations

from pathlib import Path

PROC, CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")
LIMIT_USED_CACHE = (
    ("memory.max", "memory.current", "inactive_file"),  # cgroup 2
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),  # cgroup 1
)
"""Files with a group's limit and use, and the line of memory.stat that tells which part of the use is given back on demand."""


def free_host_memory(proc: Path = PROC, cgroups: Path = CGROUPS) -> int | None:
    """Bytes that may still be taken before the machine, or the tightest control group round this process, is full.

    Docker, Kubernetes, SLURM and systemd set such limits and kill what goes beyond without a word.

    Args:
        proc, cgroups: where the kernel tells.

    Returns:
        None where it does not (macOS, Windows).
    """
    meminfo = proc / "meminfo"
    if not meminfo.is_file():
        return None
    available = next(line for line in meminfo.read_text().splitlines() if line.startswith("MemAvailable:"))
    rooms = [room for folder in _memory_groups(proc, cgroups) if (room := _room(folder)) is not None]
    return max(0, min([int(available.split()[1]) * 1024, *rooms]))


def _memory_groups(proc: Path, cgroups: Path) -> list[Path]:
    """Folders of the groups that this process is in, with all groups above."""
    folders = []
    listing = proc / "self" / "cgroup"
    for line in listing.read_text().splitlines() if listing.is_file() else ():
        number, controllers, path = line.split(":", 2)
        if number == "0" or "memory" in controllers.split(","):
            top = cgroups if number == "0" else cgroups / "memory"
            group = Path(path.lstrip("/"))
            folders += [top / group, *(top / parent for parent in group.parents)]
    return folders


def _room(folder: Path) -> int | None:
    """Bytes left in one group; None where it has no limit, or is not to be seen from inside a container."""
    for limit_name, used_name, cache_name in LIMIT_USED_CACHE:
        try:
            limit, used = ((folder / name).read_text().strip() for name in (limit_name, used_name))
            stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        except (OSError, ValueError):
            continue
        if limit != "max":
            return int(limit) - int(used) + int(stat.get(cache_name, 0))
    return None
