"""SGD, Adam and AdamW as torch defines them, on tensors with a leading client axis.

torch's own optimizers hold one step count a parameter; a cohort's clients finish at different
steps, so the state carries the client axis too and is a plain dictionary of tensors that can be
kept with a client's private state.
"""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fedpgp.errors import FedPGPError, unknown

Rate = float | Tensor
"""A learning rate; as a tensor it broadcasts to the parameter (K, ...)."""


class SGD:
    """``d = g + wd p;  buf = momentum buf + d;  p -= lr buf`` (no dampening, no Nesterov)."""

    slots = ("momentum",)

    def __init__(self, momentum: float = 0.9, weight_decay: float = 5e-4):
        self.momentum, self.weight_decay = momentum, weight_decay

    def update(
        self, p: Tensor, grad: Tensor, state: Mapping[str, Tensor], lr: Rate, step: Tensor
    ) -> None:
        """One step in place: p, grad and each slot (K, ...), step (K,) counts from 1."""
        buffer = state["momentum"]
        buffer.mul_(self.momentum).add_(grad).add_(p, alpha=self.weight_decay)
        if isinstance(lr, Tensor):
            p.sub_(lr * buffer)
        else:
            p.sub_(buffer, alpha=lr)


class Adam:
    """Adam with torch's defaults; weight decay is added to the gradient (Adam) or taken from
    the parameter (AdamW)."""

    slots = ("mean", "square")

    def __init__(
        self,
        weight_decay: float = 0.0,
        decoupled: bool = False,
        betas: Sequence[float] = (0.9, 0.999),
        eps: float = 1e-8,
    ):
        self.weight_decay, self.decoupled, self.betas, self.eps = (
            weight_decay,
            decoupled,
            betas,
            eps,
        )

    def update(
        self, p: Tensor, grad: Tensor, state: Mapping[str, Tensor], lr: Rate, step: Tensor
    ) -> None:
        """One step in place: p, grad and each slot (K, ...), step (K,) counts from 1."""
        if self.decoupled:
            p.mul_(1 - lr * self.weight_decay)
        else:
            grad = grad + self.weight_decay * p
        mean, square = state["mean"], state["square"]
        mean.lerp_(grad, 1 - self.betas[0])
        square.mul_(self.betas[1]).addcmul_(grad, grad, value=1 - self.betas[1])
        step = step.to(p.dtype).view(-1, *[1] * (p.dim() - 1))
        # 1 - beta^step; the difference itself would lose three digits of float32 in the first
        # steps.
        first, second = (-torch.expm1(step * math.log(beta)) for beta in self.betas)
        denominator = (square / second).sqrt_().add_(self.eps)
        p.sub_(lr / first * mean / denominator)


def make_optimizer(
    name: str, momentum: float, weight_decay: float, betas: Sequence[float], eps: float
) -> SGD | Adam:
    """``sgd | adam | adamw`` by name: SGD takes ``momentum``, the others ``betas`` and ``eps``.

    Raises:
        FedPGPError: unknown name.
    """
    if name == "sgd":
        return SGD(momentum, weight_decay)
    if name in ("adam", "adamw"):
        return Adam(weight_decay, name == "adamw", betas, eps)
    raise FedPGPError(unknown("training.optimizer", name, ["sgd", "adam", "adamw"]))


def train_step(
    optimizer: SGD | Adam,
    p: Tensor,
    grad: Tensor,
    slots: Mapping[str, Tensor],
    count: Tensor,
    lr: float,
    factor: Tensor | None = None,
) -> None:
    """One step of a tensor in place.

    Args:
        optimizer: makes it.
        p, grad: (K, ...).
        slots: the optimizer's tensors for it, each (K, ...).
        count: steps that each client trained it before, (K,).
        lr: of the run.
        factor: times ``lr``, broadcasts to p. Where it is 0, tensor, slots and count stay as they
            are, as torch leaves a parameter without a gradient.
    """
    if factor is None:
        count += 1
        optimizer.update(p, grad, slots, lr, count)
        return
    trains = (factor != 0).expand_as(p)
    before = {slot: tensor.clone() for slot, tensor in slots.items()}
    count += trains.reshape(len(p), -1).any(1)
    # Before its first step a tensor would have Adam divide by 0.
    optimizer.update(p, grad, slots, lr * factor, count.clamp(min=1))
    for slot, tensor in before.items():
        slots[slot].copy_(torch.where(trains, slots[slot], tensor))


def fresh_state(optimizer: SGD | Adam, params: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Zero state for these parameters: ``slot/name`` -> like the parameter, and ``step/name`` ->
    (K,), the steps that each client trained it."""
    state = {
        f"{slot}/{name}": torch.zeros_like(p)
        for slot in optimizer.slots
        for name, p in params.items()
    }
    for name, p in params.items():
        state[f"step/{name}"] = torch.zeros(len(p), dtype=torch.int64, device=p.device)
    return state
