"""CUDA graphs: a function of one tensor and its gradient, recorded once for each shape and replayed from then on.

A pass through the text tower is hundreds of small kernels, and a GPU runs many of them faster than Python starts them.
Replaying gives what running gives: the same kernels on the same shapes.
"""

import logging
import weakref
from collections import Counter, OrderedDict
from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

log = logging.getLogger(__name__)

Function = Callable[[Tensor], Tensor]

RUNS_FIRST = 2
"""Times a function runs as it is at a new shape: recording takes as long as several runs, and what the first run sets
up (libraries, their workspaces) must not be recorded."""

MOST = 32
"""Recordings kept; a cohort whose clients finish one after the other has one for each number still training."""


class Graphs:
    """The recordings of one model, in one pool of memory: as large as the largest of them needs.

    Because they share it, one recording's forward and backward pass must not enclose another's. As long as a result
    may still be asked for its gradient, further calls run as they are.

    Attributes:
        enabled: False, everything runs as it is (a class attribute too, for benchmarks and tests).
    """

    enabled = True

    def __init__(self):
        self._seen: Counter = Counter()
        self._kept: OrderedDict[tuple, _Recording] = OrderedDict()
        self._pool = None
        self._in_use: Callable[[], object | None] = lambda: None

    def __call__(self, function: Function, x: Tensor) -> Tensor:
        """``function(x)``, recorded where that helps: on a CUDA device, with a gradient.

        Args:
            function: a bound method whose result depends on x alone, with kernels that do not wait for the CPU.
            x: its shape, with the function, is what a recording belongs to.
        """
        if not (self.enabled and x.is_cuda and x.requires_grad and torch.is_grad_enabled()):
            return function(x)
        key = (function, x.shape, x.dtype)
        if self._in_use() is not None or (key not in self._kept and not self._record(key, function, x)):
            return function(x)
        self._kept.move_to_end(key)
        lease = _Lease()
        self._in_use = weakref.ref(lease)
        return _Replay.apply(x, self._kept[key], lease)

    def _record(self, key: tuple, function: Function, x: Tensor) -> bool:
        self._seen[key] += 1
        if self._seen[key] <= RUNS_FIRST:
            return False
        try:
            if not self._kept:
                self._pool = torch.cuda.graph_pool_handle()
            self._kept[key] = _Recording(function, x, self._pool)
        except RuntimeError as error:
            log.warning("CUDA graphs are not used, everything else is as before: %s", str(error).splitlines()[0])
            self.enabled = False
            return False
        del self._seen[key]
        if len(self._kept) > MOST:
            self._kept.popitem(last=False)
        return True


class _Lease:
    """Held by a result for as long as its gradient may be asked for."""


class _Recording:
    def __init__(self, function: Function, x: Tensor, pool: tuple[int, int]):
        self.x = x.detach().clone().requires_grad_()
        self.forward, self.backward = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.forward, pool=pool, capture_error_mode="thread_local"):
            y = function(self.x)
        self.grad = torch.empty_like(y)
        with torch.cuda.graph(self.backward, pool=pool, capture_error_mode="thread_local"):
            (self.d_x,) = torch.autograd.grad(y, self.x, self.grad)
        self.y = y.detach()


class _Replay(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, recording: _Recording, lease: _Lease) -> Tensor:
        ctx.recording, ctx.lease, ctx.spent = recording, lease, False
        recording.x.copy_(x)
        recording.forward.replay()
        return recording.y.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:
        recording = ctx.recording
        if ctx.spent:  # the backward pass takes the room of what the forward pass kept for it
            recording.forward.replay()
        ctx.spent = True
        recording.grad.copy_(grad)
        recording.backward.replay()
        return recording.d_x.clone(), None, None
