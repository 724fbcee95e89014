"""Processes of this host: whether one still is the one that was meant, and how many died because memory was used up.

Standard library only: the watcher uses it too.
"""

from pathlib import Path


def process_state(pid: int) -> str:
    """Return the kernel's letter for a process: R, S, D, T (stopped), Z (ended, not yet collected), or "" without one."""
    fields = _stat(pid)
    return fields[0] if fields else ""


def parent_pid(pid: int) -> int | None:
    """Return the parent's number, None where there is no such process."""
    fields = _stat(pid)
    return int(fields[1]) if fields else None


def start_time(pid: int | None) -> str | None:
    """Return when a process began, in clock ticks since the host's start; None where there is no such process.

    Numbers are used again: only number and start time together name a process.
    """
    fields = _stat(pid)
    return fields[19] if fields else None


def group_runs(group: int) -> bool:
    """Return whether a process group has a process that has not ended; a launcher can end before those that it started."""
    pids = [int(path.name) for path in Path("/proc").glob("[0-9]*")]
    return any(fields[0] != "Z" and int(fields[2]) == group for pid in pids if (fields := _stat(pid)))


def boot_id() -> str:
    """Return what names the host's last start; numbers and start times of different starts do not compare.

    Containers of a host share it. Empty if it cannot be read.
    """
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def oom_kills() -> int:
    """Return how many processes of this process's cgroup the kernel has killed because memory was used up."""
    kills = 0
    try:
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, group = line.split(":", 2)
            file = {"": "memory.events", "memory": "memory.oom_control"}.get(controllers)  # cgroups version 2 and 1
            if file and (events := Path(f"/sys/fs/cgroup/{controllers}{group}/{file}")).exists():
                fields = events.read_text().split()
                kills += int(fields[fields.index("oom_kill") + 1])
    except (OSError, ValueError):
        pass
    return kills


def _stat(pid: int | None) -> list[str]:
    """The fields of /proc/PID/stat from the third, the state, on; empty where there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return []
