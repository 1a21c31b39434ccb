"""Low-rank adapters at the linear layers of a frozen tower (LoRA; Hu et al., ICLR 2022,
arXiv 2106.09685).

    W' = W + B A          A (b, in), B (out, b); B holds LoRA's factor alpha / b

Where a layer has a gate, its b directions are g adapters of b / g, and each token weighs them:

    y = W x + sum_j softmax(G x)_j B_j A_j x            G (g, in)

Every sequence has adapters of its own, so that those of K clients are batched products beside the
frozen layers. An adapter acts on each token by itself: what sequences have in common without
adapters, they have in common up to the first one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

TARGETS = {"q": ("q",), "k": ("k",), "v": ("v",), "out": ("out",), "mlp": ("fc", "proj")}
"""What ``method.targets`` names -> the linear layers of a block: queries, keys, values and output
of its attention, and both layers of its MLP."""


@dataclass(frozen=True)
class Placement:
    """Which linear layers of a tower have an adapter.

    Attributes:
        layers: of a block, by the names in :data:`TARGETS`.
        first: the first block with adapters, from 0; all behind it have them.
        blocks: of the tower.
        width: of the tower.
        hidden: width of its MLPs.
    """

    layers: tuple[str, ...]
    first: int
    blocks: int
    width: int
    hidden: int

    def sizes(self, layer: str) -> tuple[int, int]:
        """Inputs and outputs of a layer."""
        inputs = self.hidden if layer == "proj" else self.width
        outputs = self.hidden if layer == "fc" else self.width
        return inputs, outputs

    def start_A(self, rank: int, rng: np.random.Generator) -> dict[str, Tensor]:
        """``"LAYER.A"`` (L, b, in), L blocks with adapters: uniform in ±1/sqrt(in), as LoRA's
        public code starts it (microsoft/LoRA at 2eb74c2, loralib/layers.py)."""
        tensors = {}
        for layer in self.layers:
            inputs, _ = self.sizes(layer)
            bound, shape = inputs**-0.5, (self.blocks - self.first, rank, inputs)
            tensors[f"{layer}.A"] = torch.from_numpy(rng.uniform(-bound, bound, shape))
        return tensors

    def start_B(self, rank: int) -> dict[str, Tensor]:
        """``"LAYER.B"`` (L, out, b): zeros, so that training starts at the frozen model."""
        return {
            f"{layer}.B": torch.zeros(
                self.blocks - self.first, self.sizes(layer)[1], rank, dtype=torch.float64
            )
            for layer in self.layers
        }


@dataclass(frozen=True)
class Folds:
    """What a folded tower has put into its weights (:mod:`fedpgp.towers.folded`), and adapters
    have to put into theirs.

    Attributes:
        gains, shifts: of the norms before attention and before the MLP, (blocks, 2, d).
        head_scale: factor of the queries.
        activation_factor: of the MLP's hidden layer.
    """

    gains: Tensor
    shifts: Tensor
    head_scale: float
    activation_factor: float

    def down(self, layer: str, block: int, A: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return A (n, b, in) and its bias (n, b) for what the folded layer reads."""
        if layer == "out":
            return A, None
        if layer == "proj":
            return A / self.activation_factor, None
        norm = 1 if layer == "fc" else 0
        return A * self.gains[block, norm], A @ self.shifts[block, norm]

    def up(self, layer: str, B: Tensor) -> Tensor:
        """Return B (n, out, b) for what the folded layer gives."""
        if layer == "q":
            return B * self.head_scale
        return B * self.activation_factor if layer == "fc" else B


class Adapters:
    """The low-rank adapters of n sequences.

    Args:
        tensors: ``"LAYER.A"`` (n, L, b, in) and ``"LAYER.B"`` (n, L, out, b) of the L blocks with
            adapters; perhaps gates ``"LAYER.G"`` (n, L, g, in) of all these layers.
        first: the first of these blocks; the others follow it.
        folds: of the tower.
        dense: layer -> (L, out, in), what is added to its weights for all sequences alike.
    """

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        first: int,
        folds: Folds,
        dense: Mapping[str, Tensor] | None = None,
    ):
        self.tensors, self.first, self.folds, self.dense = tensors, first, folds, dense or {}

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))

    @property
    def names(self) -> tuple:
        """What tells them from others, whatever their values: names and first block."""
        return tuple(self.tensors), tuple(self.dense), self.first

    @property
    def flat(self) -> list[Tensor]:
        """All their tensors, dense ones last."""
        return [*self.tensors.values(), *self.dense.values()]

    def with_values(self, flat: Sequence[Tensor]) -> "Adapters":
        """Return others with the same names, of other tensors in the order of :attr:`flat`."""
        count = len(self.tensors)
        tensors = dict(zip(self.tensors, flat[:count], strict=True))
        dense = dict(zip(self.dense, flat[count:], strict=True))
        return Adapters(tensors, self.first, self.folds, dense)

    def of(self, sequences: slice) -> "Adapters":
        """Return those of some of the sequences."""
        some = {name: tensor[sequences] for name, tensor in self.tensors.items()}
        return Adapters(some, self.first, self.folds, self.dense)

    def add(self, block: int, layers: Sequence[str], y: Tensor, x: Tensor) -> Tensor:
        """Return what layers that stand side by side give with their adapters.

        Args:
            block: number of the block.
            layers: their names; they are equally wide.
            y: what they give without, (n, tokens, layers * out); or one for all sequences, (1, …);
                or several for each, (n * s, …).
            x: what they read, (n or 1 or n * s, tokens, in).
        """
        if len(y) > len(self):
            flat_y, flat_x = (tensor.reshape(len(self), -1, tensor.shape[-1]) for tensor in (y, x))
            return self.add(block, layers, flat_y, flat_x).view_as(y)
        at = block - self.first
        present = [
            layer
            for layer in layers
            if f"{layer}.A" in self.tensors and at < self.tensors[f"{layer}.A"].shape[1]
        ]
        if not present:
            return y
        out = y.shape[-1] // len(layers)
        if self.dense:
            y = y + self._dense(block, layers, out, x.to(y.dtype))
        downs, shifts, ups = [], [], []
        for layer in present:
            A, shift = self._down(layer, block, "A")
            B = self.folds.up(layer, self.tensors[f"{layer}.B"][:, at])
            before = layers.index(layer)
            downs.append(A)
            shifts += [] if shift is None else [shift]
            ups.append(F.pad(B, (0, 0, before * out, (len(layers) - 1 - before) * out)))
        A, B = torch.cat(downs, dim=1).to(y.dtype), torch.cat(ups, dim=2).to(y.dtype)
        low = x.to(y.dtype).expand(len(A), -1, -1) @ A.mT
        if shifts:
            low = low + torch.cat(shifts, dim=1).unsqueeze(1).to(y.dtype)
        if f"{present[0]}.G" in self.tensors:
            low = self._gated(block, present, low, x.to(y.dtype))
        return torch.baddbmm(y, low, B.mT)

    def _down(self, layer: str, block: int, part: str) -> tuple[Tensor, Tensor | None]:
        """A or G of a block for what its folded layer reads, as :meth:`Folds.down`."""
        return self.folds.down(layer, block, self.tensors[f"{layer}.{part}"][:, block - self.first])

    def _gated(self, block: int, layers: Sequence[str], low: Tensor, x: Tensor) -> Tensor:
        """What A gives, (n, tokens, layers * b), times what the gates say of x."""
        gates = [self._down(layer, block, "G") for layer in layers]
        logits = x.expand(len(low), -1, -1) @ torch.cat([G for G, _ in gates], dim=1).to(x.dtype).mT
        shifts = [shift for _, shift in gates if shift is not None]
        if shifts:
            logits = logits + torch.cat(shifts, dim=1).unsqueeze(1).to(x.dtype)
        weights = logits.unflatten(-1, (len(layers), -1)).softmax(-1)
        parts = low.unflatten(-1, (*weights.shape[-2:], -1))
        return (parts * weights.unsqueeze(-1)).flatten(-3)

    def _dense(self, block: int, layers: Sequence[str], out: int, x: Tensor) -> Tensor:
        """What the dense changes of these layers give."""
        weights, shifts = [], []
        for layer in layers:
            W = self.dense.get(layer)
            W = x.new_zeros(out, x.shape[-1]) if W is None else W[block - self.first].to(x.dtype)
            W, shift = self.folds.down(layer, block, self.folds.up(layer, W))
            weights.append(W.to(x.dtype))
            shifts += [] if shift is None else [shift.to(x.dtype)]
        return F.linear(x, torch.cat(weights), torch.cat(shifts) if shifts else None)
