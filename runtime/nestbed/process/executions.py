"""Further programs in one container, as the keeper runs them: born, watched, and told of when they end."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from nestbed.process.birth import Birth, Completion, Join, Refusal

if TYPE_CHECKING:
    from nestbed.process.keeper import Keeper


class Executions:
    """Those of one container that run now, by the id that nestbedd gave them."""

    def __init__(self, keeper: Keeper, container_id: str) -> None:
        self._keeper = keeper
        self._id = container_id
        self._pidfds: dict[str, int] = {}

    def __contains__(self, exec_id: str) -> bool:
        return exec_id in self._pidfds

    def begin(self, exec_id: str, launch: Any, join: Join, complete: Completion) -> None:
        """Run one; ``complete`` hears when it has been executed, or why not.

        Raises:
            Refusal: as :class:`Birth`.
        """
        birth = Birth(self._keeper, launch, -1, join=join)
        birth.go(lambda refusal: self._launched(exec_id, birth, refusal, complete))

    def _launched(self, exec_id: str, birth: Birth, refusal: Refusal | None, complete: Completion) -> None:
        if refusal is not None:
            birth.bury()
            complete(refusal, {}, [])
            return
        self._pidfds[exec_id] = birth.pidfd
        self._keeper.loop.watch(birth.pidfd, lambda: self._ended(exec_id))
        streams = [birth.terminal_fd] if birth.terminal_fd >= 0 else []
        complete(None, {"pid": birth.pid, "start_time": birth.start_time}, [os.dup(birth.pidfd), *streams])

    def _ended(self, exec_id: str) -> None:
        pidfd = self._pidfds.pop(exec_id)
        self._keeper.loop.watch(pidfd, None)
        found = os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
        os.close(pidfd)
        code = signum = None
        if found is not None:
            if found.si_code == os.CLD_EXITED:
                code = found.si_status
            else:
                signum = found.si_status
        self._keeper.send({"event": "exec_exited", "id": self._id, "exec_id": exec_id, "code": code, "signal": signum})
