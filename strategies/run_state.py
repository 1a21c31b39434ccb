"""All that a server must not lose: how a run stands after a round, and how that is
put into a checkpoint."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from fedpgp.prefixes import strip_prefix
from strategies.grid import Traffic

SECONDS = ("total", "encode", "train", "evaluate")


@dataclass
class RunState:
    """How a run stands.

    Attributes:
        server_round: the last finished round; 0 before training.
        shared: the global tensors, names in ascending order.
        committed: for each client the last round whose private state counts, 0 for none.
        server_state: what the method's server side keeps beside them.
        zero_shot: figure -> (clients,) float64, NaN where a client has none; computed once.
        traffic: bytes so far.
        seconds: ``total``, and ``encode``/``train``/``evaluate``: the slowest node's
            time, summed over messages.
        images: training images processed so far.
        placed: machine -> clients it has trained, summed over rounds.
    """

    server_round: int
    shared: dict[str, np.ndarray]
    committed: np.ndarray
    server_state: dict[str, np.ndarray] = field(default_factory=dict)
    zero_shot: dict[str, np.ndarray] = field(default_factory=dict)
    traffic: Traffic = field(default_factory=Traffic)
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(SECONDS, 0.0))
    images: int = 0
    placed: dict[str, int] = field(default_factory=dict)

    @classmethod
    def fresh(cls, federation, initial: Mapping[str, np.ndarray] | None = None) -> "RunState":
        """Before the first round of a :class:`fedpgp.federation.Federation`, with other shared
        tensors where they are given."""
        shared = dict(sorted((initial or federation.models.initial_shared()).items()))
        return cls(
            0,
            shared,
            np.zeros(federation.num_clients, dtype=np.int64),
            federation.server.initial_state(),
        )

    @classmethod
    def restored(cls, tensors: Mapping[str, np.ndarray], values: Mapping) -> "RunState":
        """From a checkpoint that holds :meth:`tensors` and :meth:`values`, beside others'
        perhaps."""
        tensors = dict(sorted(tensors.items()))
        return cls(
            values["round"],
            strip_prefix("shared/", tensors),
            tensors["committed"].copy(),
            strip_prefix("memory/", tensors),
            strip_prefix("zero_shot/", tensors),
            Traffic(**values["traffic"]),
            {**dict.fromkeys(SECONDS, 0.0), **values["seconds"]},
            values["images"],
            dict(values["placed"]),
        )

    def tensors(self) -> dict[str, np.ndarray]:
        """What of it is arrays, by name."""
        return {
            **{f"shared/{name}": tensor for name, tensor in self.shared.items()},
            **{f"memory/{name}": tensor for name, tensor in self.server_state.items()},
            **{f"zero_shot/{name}": values for name, values in self.zero_shot.items()},
            "committed": self.committed,
        }

    def values(self) -> dict:
        """The rest, for JSON; ``round`` is the checkpoint's own."""
        return {
            "traffic": vars(self.traffic),
            "seconds": self.seconds,
            "images": self.images,
            "placed": self.placed,
        }
