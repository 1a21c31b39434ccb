"""Recordings of passes on a CPU, that tell whether their memory was still theirs."""

from types import SimpleNamespace

import pytest
import torch

from fedpgp.towers import cuda_graphs


class Recording:
    """Does on a CPU what a recorded pass does on a GPU: from fixed places to fixed places, in a
    memory that all share and that the backward pass spends."""

    holders: dict[object, "Recording | None"] = {}  # of each pool of memory

    def __init__(self, function, xs, pool):
        if xs[0].numel() == 13:
            raise RuntimeError("operation not permitted when stream is capturing\nand more")
        self.function, self.pool = function, pool
        self.xs = [x.detach().clone().requires_grad_(x.requires_grad) for x in xs]
        self.learned = [x for x in self.xs if x.requires_grad]
        self.y = torch.zeros_like(function(*xs)).detach()
        self.d_xs = [torch.zeros_like(x) for x in self.learned]
        self.grad = torch.zeros_like(self.y)
        self.forward, self.backward = (
            SimpleNamespace(replay=self._forward),
            SimpleNamespace(replay=self._backward),
        )
        self.replays = 0

    def _forward(self):
        with torch.enable_grad():
            self.kept = self.function(*self.xs)
        self.y.copy_(self.kept.detach())
        Recording.holders[self.pool] = self
        self.replays += 1

    def _backward(self):
        assert Recording.holders[self.pool] is self, (
            "another pass went over the memory, or the backward pass spent it"
        )
        found = torch.autograd.grad(
            self.kept, self.learned, self.grad, allow_unused=True, materialize_grads=True
        )
        for place, d in zip(self.d_xs, found, strict=True):
            place.copy_(d)
        Recording.holders[self.pool] = None


def record_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let passes be recorded on a CPU, by :class:`Recording`, from now on."""
    allocated = iter(range(0, 10**9, 100))
    monkeypatch.setattr(cuda_graphs, "_Recording", Recording)
    monkeypatch.setattr(cuda_graphs, "DEVICES", ("cpu",))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: next(allocated))
    monkeypatch.setattr(cuda_graphs, "_free", lambda device: 10**6)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", object)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: None)
    monkeypatch.setattr(torch.cuda, "set_stream", lambda stream: None)
