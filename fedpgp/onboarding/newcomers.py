"""Newcomers, what a trained federation has for them, and what they get of it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from fedpgp.arrays import Arrays
from fedpgp.client_models import State

Adjust = Callable[[Tensor, Tensor], Tensor]
"""Logits (n, C) of a prompt and unit-norm features (n, e) of the images -> logits (n, C)."""


@dataclass(frozen=True)
class Trained:
    """What a trained federation has for newcomers.

    Attributes:
        shared: the global tensors after the last round.
        server_state: what the method's server keeps.
        terms: client -> private tensors, of clients that share them (``method.share_terms``).
        descriptions: client -> its description, (n,) float64, of the same clients.
    """

    shared: Arrays
    server_state: Arrays = field(default_factory=dict)
    terms: Mapping[int, State] = field(default_factory=dict)
    descriptions: Mapping[int, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class Newcomer:
    """A client that comes after the training, with what it may use.

    Attributes:
        client: its number in the split; its seeds are made of it.
        rows: its images, in the train split, (n,) int64; empty with a budget of 0.
        labels: the classes that it knows to have, whose names describe it.
        classes: labels among which it chooses.
        steps: of its own training.
    """

    client: int
    rows: np.ndarray
    labels: tuple[int, ...]
    classes: tuple[int, ...]
    steps: int = 0


@dataclass(frozen=True)
class Onboarded:
    """A newcomer's model, and what it took.

    Attributes:
        state: its private tensors, by the names of ``Method.init_personal``; None: the global
            model answers.
        adjust: what changes its logits; None: nothing does.
        bytes_up, bytes_down: what it told the server, and what it was sent beside the global
            prompt.
    """

    state: State | None = None
    adjust: Adjust | None = None
    bytes_up: int = 0
    bytes_down: int = 0


def state_bytes(state: State) -> int:
    """Return the bytes of private tensors when they are sent."""
    return sum(tensor.element_size() * tensor.numel() for tensor in state.values())
