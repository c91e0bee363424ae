"""The steps of one run of an experiment, for those who follow it: from the first step on, whenever they come."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from nestbed.v1 import experiment_pb2

GATHER_SECONDS = 0.05


class Progress:
    """Steps as they come, and ``outcome`` at the end: the experiment without its elements. For one event loop."""

    def __init__(self) -> None:
        self.outcome = experiment_pb2.Experiment()
        self._steps: list[experiment_pb2.ElementProgress] = []
        self._news = asyncio.Event()
        self._is_over = False

    def step(self, element: str, state: experiment_pb2.ElementState.ValueType, detail: str = "") -> None:
        """An element is in a state now."""
        self._steps.append(experiment_pb2.ElementProgress(element=element, state=state, detail=detail))
        self._news.set()

    def end(self) -> None:
        """There will be no more."""
        self._is_over = True
        self._news.set()

    async def follow(self) -> AsyncIterator[list[experiment_pb2.ElementProgress]]:
        """All steps from the first on, those of some time together, until the end."""
        place = 0
        while True:
            news = self._news
            if place < len(self._steps):
                batch, place = self._steps[place:], len(self._steps)
                yield batch
            if self._is_over and place == len(self._steps):
                return
            await news.wait()
            if self._news is news and not self._is_over:
                self._news = asyncio.Event()
                await asyncio.sleep(GATHER_SECONDS)
