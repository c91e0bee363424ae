"""``python doomed.py FILE nestbedd ...``: nestbedd, word for word, that is killed in the midst of an experiment's work.

Once FILE is there, it takes the number in it and ends by SIGKILL when it is about to take the step of that number. Steps are calls of nodes
and changes of an experiment's record and its copies; the first is the change with which ``up`` and ``down`` begin.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

from nestbed.node.node import Node
from nestbedd import __main__ as nestbedd
from nestbedd.settings import Settings


class Doom:
    def __init__(self, file: Path) -> None:
        self._file = file
        self._left = 0

    def begin(self) -> None:
        if self._file.exists():
            self._left = int(self._file.read_text())
            self._file.unlink()
        self.step()

    def step(self) -> None:
        if self._file.exists():  # what is to be counted has not begun
            self._left = 0
        self._left -= 1
        if self._left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    doom = Doom(Path(sys.argv[1]))
    serving = nestbedd._serving

    def doomed(node: Node, settings: Settings) -> AbstractAsyncContextManager[tuple[str, ...]]:
        arrange(doom)
        return serving(node, settings)

    nestbedd._serving = doomed
    sys.argv[:] = sys.argv[2:]
    nestbedd.main()


def arrange(doom: Doom) -> None:
    """gRPC comes after the keeper, as in nestbedd: so these are not imported before."""
    from nestbed.client import Client
    from nestbed.experiment import experiments, fleet, records

    class SteppingClient(Client):
        async def _call(self, *args: Any, **options: Any) -> Any:
            doom.step()
            return await super()._call(*args, **options)

        async def _stream(self, *args: Any) -> AsyncGenerator[Any, None]:
            doom.step()
            async for each in super()._stream(*args):
                yield each

    class SteppingStore(records.Store):
        def write(self, *args: Any) -> None:
            doom.begin()
            super().write(*args)

        def write_copies(self, *args: Any) -> None:
            doom.step()
            super().write_copies(*args)

        def remove(self, *args: Any) -> None:
            doom.step()
            super().remove(*args)

    vars(fleet)["Client"] = SteppingClient
    vars(experiments)["Store"] = SteppingStore


if __name__ == "__main__":
    main()
