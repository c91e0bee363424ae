"""Whether the kernel killed a process of a container for want of memory: counted by the cgroup in which its memory is limited."""

from __future__ import annotations

from nestbed.linux.path import contents
from nestbed.process.protocol import Launch


class MemoryWatch:
    """One container's, from one run on. Reads files through the node's root directory ``host_root_fd``."""

    def __init__(self, host_root_fd: int) -> None:
        self._host_root_fd = host_root_fd
        self._file = ""
        self._before = 0

    def begin(self, launch: Launch) -> None:
        """A run begins: what was counted before is not of it."""
        self._file = _file_of(launch)
        self._before = self._count()

    def follow(self, launch: Launch) -> None:
        """Limits have changed. The first one of memory is counted elsewhere than what was before it."""
        if _file_of(launch) != self._file:
            self.begin(launch)

    def has_killed(self) -> bool:
        """Whether a process was killed since the run began."""
        return self._count() > self._before

    def _count(self) -> int:
        if not self._file:
            return 0
        try:
            text = contents(self._file.lstrip("/"), dir_fd=self._host_root_fd)
        except OSError:
            return 0
        return next((int(line.split()[1]) for line in text.splitlines() if line.startswith(b"oom_kill ")), 0)


def _file_of(launch: Launch) -> str:
    v1 = next((path for path in launch["cgroups"] if "/memory/" in path), "")
    v2 = f"{launch['cgroup2_mount']}/{launch['cgroup2']}" if launch["cgroup2"] else ""
    return f"{v1}/memory.oom_control" if v1 else f"{v2}/memory.events" if v2 else ""
