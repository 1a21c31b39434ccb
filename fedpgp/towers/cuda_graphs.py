"""CUDA graphs: a pass through a tower and its gradient, recorded once for each shape and replayed
from then on.

A pass is hundreds of small kernels, and a GPU runs many of them faster than Python starts them. A
recording keeps the memory of its activations; all recordings of a tower share it.
"""

import logging
import math
import weakref
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

log = logging.getLogger(__name__)

DEVICES = ("cuda",)
"""Kinds of devices that have them (torch calls AMD's so too)."""

RUNS_FIRST = 2
"""Times a pass runs as it is at a new shape: recording takes as long as several runs, and what the
first run sets up (libraries, their workspaces) must not be recorded."""

MOST = 32
"""Recordings of a tower; further shapes run as they are. A cohort whose clients finish one after
the other has one for each number still training."""


@contextmanager
def eager() -> Iterator[None]:
    """Inside the block nothing is recorded or replayed."""
    before, Graphs.enabled = Graphs.enabled, False
    try:
        yield
    finally:
        Graphs.enabled = before


class Graphs:
    """The recordings of one tower.

    They share one pool of memory, so one recording's forward and backward pass must
    not enclose another's. As long as a result may still be asked for its gradient,
    further calls run as they are.

    Attributes:
        enabled: False, everything runs as it is (a class attribute too, for benchmarks and tests).
        more: True, :meth:`record_more` records (a class attribute, for benchmarks and tests).
    """

    enabled, more = True, False

    def __init__(self):
        self._pool, self._too_large = None, math.inf
        self._in_use: Callable[[], object | None] = lambda: None
        self._seen: weakref.WeakKeyDictionary = (
            weakref.WeakKeyDictionary()
        )  # owner -> key -> (runs, bytes kept)
        self._forget()

    def __len__(self) -> int:
        return sum(len(kept) for kept in self._kept.values())

    def __call__(
        self, owner: object, function: Callable[..., Tensor], *xs: Tensor, variant: Hashable = None
    ) -> Tensor:
        """``function(*xs)``, replayed where that helps: on a CUDA device, with a gradient.

        Args:
            owner: whose function it is; its recordings go when it goes.
            function: depends on these tensors alone, and nothing in it waits for the GPU. Always
                the same one for the same owner and variant.
            xs: their shapes and types, and which of them have a gradient, with the owner are what a
                recording belongs to.
            variant: of the owner's function.
        """
        if not (
            self.enabled
            and xs[0].device.type in DEVICES
            and any(x.requires_grad for x in xs)
            and torch.is_grad_enabled()
        ):
            return function(*xs)
        if self._in_use() is not None:
            return function(*xs)
        key = (variant, *((x.shape, x.dtype, x.requires_grad) for x in xs))
        kept = self._kept.setdefault(owner, {})
        if key not in kept:
            seen = self._seen.setdefault(owner, {})
            runs, size = seen.get(key, (0, 0))
            if runs < RUNS_FIRST:
                device = xs[0].device
                before = torch.cuda.memory_allocated(device)
                y = function(*xs)
                seen[key] = (runs + 1, torch.cuda.memory_allocated(device) - before)
                return y
            if not self._record(owner, key, size, function, xs):
                return function(*xs)
            kept = self._kept[owner]
        lease = _Lease()
        self._in_use = weakref.ref(lease)
        return _Replay.apply(kept[key], lease, *xs)

    def record_more(
        self, owner: object, function: Callable[..., Tensor], *xs: Tensor, variant: Hashable = None
    ) -> Tensor:
        """As the call where :attr:`more` is set, else ``function(*xs)``: for passes whose
        recordings have not been tried on a GPU yet."""
        if not self.more:
            return function(*xs)
        return self(owner, function, *xs, variant=variant)

    def _record(
        self,
        owner: object,
        key: tuple,
        size: int,
        function: Callable[..., Tensor],
        xs: Sequence[Tensor],
    ) -> bool:
        """Whether there is a recording now. ``size``: bytes that a forward pass keeps
        for the backward pass."""
        if size >= self._too_large:
            return False
        if size > self._largest:  # blocks of smaller ones would not hold it, and stay beside it
            self._forget()
        if len(self) >= MOST:
            return False
        device = xs[0].device
        if not len(self) and _free(device) < 2 * size:
            self._too_large = size  # or it would drop the others each time that it comes
            return False
        stream = torch.cuda.current_stream(device)
        try:
            if self._pool is None:
                self._pool = torch.cuda.graph_pool_handle()
            recording = _Recording(function, xs, self._pool)
        except RuntimeError as error:
            log.warning("CUDA graphs are not used any more: %s", str(error).splitlines()[0])
            torch.cuda.set_stream(stream)  # torch leaves its own behind
            self.enabled = False
            self._forget()
            return False
        self._kept.setdefault(owner, {})[key] = recording
        self._largest = max(self._largest, size)
        return True

    def _forget(self) -> None:
        """Lets go of all recordings and their memory."""
        self._kept: weakref.WeakKeyDictionary = (
            weakref.WeakKeyDictionary()
        )  # owner -> key -> recording
        self._largest, self._pool = 0, None


def _free(device: torch.device) -> int:
    """Bytes that a recording may take: nobody's, and those that torch holds for nothing."""
    held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + held


class _Lease:
    """Held by a result for as long as its gradient may be asked for."""


class _Recording:
    def __init__(
        self, function: Callable[..., Tensor], xs: Sequence[Tensor], pool: tuple[int, int]
    ):
        self.xs = [x.detach().clone().requires_grad_(x.requires_grad) for x in xs]
        learned = [x for x in self.xs if x.requires_grad]
        self.forward, self.backward = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.forward, pool=pool, capture_error_mode="thread_local"):
            y = function(*self.xs)
        self.grad = torch.empty_like(y)
        with torch.cuda.graph(self.backward, pool=pool, capture_error_mode="thread_local"):
            self.d_xs = torch.autograd.grad(
                y, learned, self.grad, allow_unused=True, materialize_grads=True
            )
        self.y = y.detach()


class _Replay(torch.autograd.Function):
    @staticmethod
    def forward(ctx, recording: _Recording, lease: _Lease, *xs: Tensor) -> Tensor:
        ctx.recording, ctx.lease, ctx.spent = recording, lease, False
        for place, x in zip(recording.xs, xs, strict=True):
            place.copy_(x)
        recording.forward.replay()
        return recording.y.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        recording = ctx.recording
        if ctx.spent:  # the backward pass takes the room of what the forward pass kept for it
            recording.forward.replay()
        ctx.spent = True
        recording.grad.copy_(grad)
        recording.backward.replay()
        d_xs = iter(recording.d_xs)
        given = [next(d_xs).clone() if x.requires_grad else None for x in recording.xs]
        return None, None, *given
