"""Requests that wait together are answered together: one pass of the model for all."""

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor

import torch
from torch import Tensor


class Busy(Exception):
    """More pictures wait than there is room for."""


class Batches:
    """Gives a model the pictures of all requests that wait.

    While it is at work on some, others gather; no request waits for another to come.

    Args:
        answer: pictures (B, 3, R, R) -> (B, classes); called in ``executor``.
        executor: of one thread: the model has all cores.
        most: pictures in one pass. A request with more is a pass of its own.
        room: pictures that may wait.

    Example:
        >>> import asyncio
        >>> from concurrent.futures import ThreadPoolExecutor
        >>> async def ask(executor):
        ...     batches = Batches(lambda pixels: pixels.flatten(1).sum(1), executor)
        ...     return await batches.ask([torch.ones(3, 2, 2)])
        >>> with ThreadPoolExecutor(1) as executor:
        ...     asyncio.run(ask(executor))
        tensor([12.])
    """

    def __init__(
        self,
        answer: Callable[[Tensor], Tensor],
        executor: Executor,
        most: int = 32,
        room: int = 512,
    ):
        self._answer, self._executor, self._most, self._room = answer, executor, most, room
        self._waiting: deque[tuple[list[Tensor], asyncio.Future]] = deque()
        self._work: asyncio.Task | None = None

    async def ask(self, pixels: list[Tensor]) -> Tensor:
        """Return the answer to each picture, (B, classes).

        Args:
            pixels: B pictures, (3, R, R) each.

        Raises:
            Busy: there is no room for them.
        """
        waiting = sum(len(others) for others, _ in self._waiting)
        if self._waiting and waiting + len(pixels) > self._room:
            raise Busy
        future = asyncio.get_running_loop().create_future()
        self._waiting.append((pixels, future))
        if self._work is None:
            self._work = asyncio.create_task(self._run())
        return await future

    async def _run(self) -> None:
        try:
            while self._waiting:
                batch = self._next()
                pixels = torch.stack([one for many, _ in batch for one in many])
                try:
                    answers = await asyncio.get_running_loop().run_in_executor(
                        self._executor, self._answer, pixels
                    )
                except Exception as error:
                    for _, future in batch:
                        if not future.done():
                            future.set_exception(error)
                    continue
                given = answers.split([len(many) for many, _ in batch])
                for (_, future), answer in zip(batch, given, strict=True):
                    if not future.done():  # nobody waits any more
                        future.set_result(answer)
        finally:
            self._work = None

    def _next(self) -> list[tuple[list[Tensor], asyncio.Future]]:
        batch = [self._waiting.popleft()]
        count = len(batch[0][0])
        while self._waiting and count + len(self._waiting[0][0]) <= self._most:
            batch.append(self._waiting.popleft())
            count += len(batch[-1][0])
        return batch
