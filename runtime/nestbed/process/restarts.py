"""When a container that ended is started again. Pure."""

from __future__ import annotations

from nestbed.process.protocol import Launch

BACKOFF_FIRST_SECONDS = 0.1
BACKOFF_MAX_SECONDS = 60.0
BACKOFF_RESET_SECONDS = 10.0
"""A run of at least this long makes the next restart quick again."""


class Restarts:
    """One container's restart policy, ``no`` at first, and how often it failed in a row."""

    def __init__(self) -> None:
        self._mode, self._most = "no", 0
        self._failures = 0

    def obey(self, mode: str, max_retries: int) -> None:
        """The policy from now on."""
        self._mode, self._most = mode, max_retries

    def obey_launch(self, launch: Launch) -> None:
        """The policy that ``launch.json`` has."""
        self.obey(launch["restart"]["mode"], launch["restart"]["max_retries"])

    def forget_failures(self) -> None:
        """Somebody started it: the next restart is quick."""
        self._failures = 0

    def is_due(self, code: int | None, restarts: int) -> bool:
        """Whether one that ended by itself with this exit code, and was restarted so often, is to be started again."""
        if self._mode == "no":
            return False
        return self._mode == "always" or (code != 0 and (self._most == 0 or restarts < self._most))

    def delay_seconds(self, run_seconds: float) -> float:
        """How long to wait after a run of that length: twice as long each time, unless it was a long one."""
        if run_seconds >= BACKOFF_RESET_SECONDS:
            self._failures = 0
        delay = min(BACKOFF_FIRST_SECONDS * 2.0**self._failures, BACKOFF_MAX_SECONDS)
        self._failures += 1
        return delay
