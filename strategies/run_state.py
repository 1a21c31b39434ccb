"""All that a server must not lose: how a run stands after a round, and how that is
put into a checkpoint."""

import copy
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord
from flwr.serverapp.strategy import Strategy

from fedpgp.prefixes import strip_prefix
from fedpgp.updates.base import State
from strategies.checkpoint import save_checkpoint
from strategies.exchange import Traffic
from strategies.flower_strategies import restore_strategy, strategy_state
from strategies.membership import admitted, without_left
from strategies.spent_record import record_spent

SECONDS = ("total", "encode", "train", "evaluate")


@dataclass
class RunState:
    """How a run stands.

    Attributes:
        server_round: the last finished round; 0 before training.
        shared: the global tensors, names in ascending order.
        committed: for each client the last round whose private state counts, 0 for none.
        server_state: what the method's server side keeps beside them.
        step_state: update step -> what it keeps (:mod:`fedpgp.updates.base`).
        stopped: why an update step ended the training; empty: none did.
        zero_shot: figure -> (clients,) float64, NaN where a client has none; computed once.
        zero_shot_asked: for each client after which round it was last asked for them, -1 for never;
            None: after round 0 where there are some.
        unevaluated: it was saved before the round's evaluation, which is due.
        sum_keys: digests of the public keys that clients have sent for secure sums, (n, 16) uint8,
            and whose and of which round they are, (n, 2) int64.
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
    step_state: dict[str, State] = field(default_factory=dict)
    stopped: str = ""
    zero_shot_asked: np.ndarray | None = None
    unevaluated: bool = False
    sum_keys: tuple[np.ndarray, np.ndarray] | None = None

    def __post_init__(self):
        if self.zero_shot_asked is None:
            self.zero_shot_asked = np.full(len(self.committed), 0 if self.zero_shot else -1)

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
            _step_state(tensors, values.get("updates", {})),
            values.get("stopped", ""),
            tensors["zero_shot_asked"].copy() if "zero_shot_asked" in tensors else None,
            values.get("unevaluated", False),
            (tensors["sum_keys/digests"].copy(), tensors["sum_keys/owners"].copy())
            if "sum_keys/digests" in tensors
            else None,
        )

    def arrays(self) -> ArrayRecord:
        """The global tensors as clients are sent them."""
        return ArrayRecord({name: Array(tensor) for name, tensor in self.shared.items()})

    def finish_round(
        self,
        server_round: int,
        committed: Iterable[int],
        images: Mapping[int, int],
        epochs: Mapping[int, float],
    ) -> None:
        """Count a round as finished.

        Args:
            server_round: the round.
            committed: clients whose private state of this round counts from now on.
            images: client -> its training images, of those that count.
            epochs: client -> epochs that it trained.
        """
        for client in committed:
            self.committed[client] = server_round
        self.server_round, self.stopped = server_round, ""
        self.images += sum(int(images[client] * epochs[client]) for client in images)

    def keep_zero_shot(
        self, figures: Mapping[int, Mapping[str, float]], asked: Sequence[int], server_round: int
    ) -> None:
        """Keep the zero-shot figures among the clients' figures; those that are known stay.

        Args:
            figures: client -> figure -> value.
            asked: the clients that were asked.
            server_round: after which round.
        """
        kept = {name: values.copy() for name, values in self.zero_shot.items()}
        for client, own in figures.items():
            for name in own:
                if name.startswith("zero_shot."):
                    if name not in kept:
                        kept[name] = np.full(len(self.committed), np.nan)
                    values = kept[name]
                    values[client] = own[name] if np.isnan(values[client]) else values[client]
        self.zero_shot = dict(sorted(kept.items()))
        self.zero_shot_asked[list(asked)] = server_round

    def zero_shot_of(self, client: int) -> dict[str, float]:
        """A client's zero-shot figures."""
        return {
            name: float(values[client])
            for name, values in self.zero_shot.items()
            if not np.isnan(values[client])
        }

    def tensors(self) -> dict[str, np.ndarray]:
        """What of it is arrays, by name."""
        return {
            **{f"shared/{name}": tensor for name, tensor in self.shared.items()},
            **{f"memory/{name}": tensor for name, tensor in self.server_state.items()},
            **{f"zero_shot/{name}": values for name, values in self.zero_shot.items()},
            **{
                f"updates/{step}/{name}": value
                for step, state in self.step_state.items()
                for name, value in state.items()
                if isinstance(value, np.ndarray)
            },
            "committed": self.committed,
            "zero_shot_asked": self.zero_shot_asked,
            **({} if self.sum_keys is None else _named("sum_keys", *self.sum_keys)),
        }

    def values(self) -> dict:
        """The rest, for JSON; ``round`` is the checkpoint's own."""
        return {
            "traffic": vars(self.traffic),
            "seconds": self.seconds,
            "images": self.images,
            "placed": self.placed,
            "updates": {
                step: {n: v for n, v in state.items() if not isinstance(v, np.ndarray)}
                for step, state in self.step_state.items()
            },
            "stopped": self.stopped,
            "unevaluated": self.unevaluated,
        }


def _named(prefix: str, digests: np.ndarray, owners: np.ndarray) -> dict[str, np.ndarray]:
    return {f"{prefix}/digests": digests, f"{prefix}/owners": owners}


def _step_state(
    tensors: Mapping[str, np.ndarray], values: Mapping[str, Mapping]
) -> dict[str, State]:
    """The update steps' states, from a checkpoint."""
    states = {step: dict(state) for step, state in values.items()}
    for name, array in strip_prefix("updates/", tensors).items():
        step, _, key = name.partition("/")
        states[step][key] = array.copy()
    return states


def save_run(folder: Path, state: RunState, strategy: Strategy, about: Mapping) -> None:
    """Write the checkpoint of a run's last finished round.

    Args:
        folder: of the checkpoints.
        state, strategy: how they stand.
        about: what it says of the run beside them.

    Raises:
        FedPGPError: it could not be written.
    """
    of_strategy, values = strategy_state(strategy)
    # "rule" is a name in the file: checkpoints of earlier versions have it.
    tensors = {**state.tensors(), **{f"rule/{path}": array for path, array in of_strategy.items()}}
    info = {**about, "rule": values, **state.values()}
    record_spent(folder, state.step_state)  # first: no checkpoint has a sum that is not counted
    save_checkpoint(folder, state.server_round, tensors, info)


def restore_run(
    tensors: Mapping[str, np.ndarray],
    info: Mapping,
    unused: Strategy,
    federation,
    left: Collection[int] = (),
) -> tuple[RunState, Strategy]:
    """Return a run's state and strategy from a checkpoint.

    Args:
        tensors, info: the checkpoint.
        unused: the strategy as it is before the first round; it is copied.
        federation: the server's; it may have more clients than the checkpoint.
        left: clients that have left for good.
    """
    strategy, tensors = copy.deepcopy(unused), admitted(tensors, federation)
    tensors = without_left(tensors, federation, left)
    restore_strategy(strategy, strip_prefix("rule/", tensors), info["rule"])
    return RunState.restored(tensors, info), strategy
