"""An update step: what happens to an update between the client and the server.

An *update* is the change that a client's training made of the shared tensors: name -> float64
tensor, what the client would send less what it was sent. Tensors in the method's ``delta_params``
are differences already, and are in it as they are. So clipping an update bounds what a client can
move, and an update of zeros leaves the shared tensors where they are.

A client's update goes through :meth:`UpdateStep.on_client` of every step before it is sent. The
strategy makes one change of all of them, the *aggregate*; it goes through
:meth:`UpdateStep.on_server` of every step, in the same order, before the method's own server part
has it.

K clients; tensors of an update have no client axis.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from torch import Tensor

from fedpgp.errors import FedPGPError
from fedpgp.registry import Registry

Update = dict[str, Tensor]
"""Changes of the shared tensors by name, float64."""
Value = bool | int | float | str | list
"""What JSON can hold."""
State = dict[str, Value | np.ndarray]
"""What a step keeps on the server from round to round: values for JSON, and arrays."""
Metrics = Mapping[str, float]
Range = tuple[float, float]
"""The least and the greatest that a number can be."""


class StopTraining(FedPGPError):
    """Ends the training before the next round; the message says why. The last model is evaluated
    and everything is saved, as after the last round."""


@dataclass(frozen=True)
class ClientContext:
    """Whose update it is, and of which round.

    Attributes:
        client: logical id.
        server_round: this round, from 1.
        num_rounds: of the whole run.
        num_clients: of the whole federation, K.
        participation: fraction of them that trains in a round.
        num_examples: training images of this client.
        global_params: the shared tensors as the server sent them, in the run's precision.
        delta_params: names of those whose update is a difference by itself.
        broadcast: what :meth:`UpdateStep.broadcast` of this step gave for the round.
        seed: of the run; draw from ``fedpgp.seeding.generator(seed, purpose, client,
            server_round)``.
    """

    client: int
    server_round: int
    num_rounds: int
    num_clients: int
    participation: float
    num_examples: int
    global_params: Mapping[str, Tensor]
    delta_params: Sequence[str]
    broadcast: Mapping[str, Value]
    seed: int


@dataclass(frozen=True)
class RoundStart:
    """A round that is about to begin.

    Attributes:
        server_round, num_rounds, num_clients, participation, seed: as in :class:`ClientContext`.
        num_trainers: how many clients can train.
        state: of this step; it may be changed in place, and is saved with the round.
    """

    server_round: int
    num_rounds: int
    num_clients: int
    participation: float
    num_trainers: int
    state: State
    seed: int


@dataclass(frozen=True)
class ServerContext:
    """A round whose updates the strategy has aggregated.

    Attributes:
        server_round, num_rounds, num_clients, participation, delta_params, seed: as in
            :class:`ClientContext`.
        num_trainers: how many clients can train.
        clients: logical ids of the S clients whose updates count, ascending.
        weights: client -> its weight in a mean; they sum to one.
        metrics: client -> what :meth:`UpdateStep.on_client` of this step said of it.
        global_params: the shared tensors as the clients were sent them.
        lr: the clients' learning rate in this round.
        state: of this step; it may be changed in place, and is saved with the round.
    """

    server_round: int
    num_rounds: int
    num_clients: int
    participation: float
    num_trainers: int
    clients: Sequence[int]
    weights: Mapping[int, float]
    metrics: Mapping[int, Metrics]
    global_params: Mapping[str, Tensor]
    delta_params: Sequence[str]
    lr: float
    state: State
    seed: int


@dataclass(frozen=True)
class NoSettings:
    """A step without settings of its own."""


class UpdateStep:
    """What happens to an update between client and server.

    A step has no memory of its own: it is made anew in every process. What has to last from round
    to round is its state (:meth:`init_state`), which the server keeps.

    Args:
        settings: an instance of the class's ``Settings``.

    Example:
        >>> @register("halve")
        ... class Halve(UpdateStep):
        ...     def on_client(self, update, context):
        ...         return {name: change / 2 for name, change in update.items()}, {}
    """

    name: str = "step"
    """As a configuration calls it: its registered name, or its import path."""
    Settings: ClassVar[type] = NoSettings
    """A frozen dataclass; it refuses values that cannot work."""
    equal_weights: ClassVar[bool] = False
    """True: the server averages clients alike, whatever the method would do."""
    combines: ClassVar[bool] = False
    """True: :meth:`draw` chooses a round's clients, and :meth:`combine` makes one change of their
    updates, which the strategy gets in the place of all replies; one step of a run at most. Its
    rounds are saved before anybody is sent them, and a run never goes back a round."""
    client_metrics: ClassVar[Mapping[str, Range]] = {}
    """Numbers that :meth:`on_client` gives, or the training itself, which are sent with every
    update: name -> the least and the greatest that each can be. A node with images of its own sends
    them in hundredths of that range (:mod:`clients.disclosure`)."""

    def __init__(self, settings: object):
        self.settings = settings

    def check(self, config: Mapping, method) -> None:
        """Refuse a run in which the step cannot do its work. Called before the first round.

        Args:
            config: the resolved configuration.
            method: the run's :class:`fedpgp.methods.Method`; ``method.needs_each_update`` says
                that its server reads every update by itself.

        Raises:
            FedPGPError: naming the setting, and why the two do not go together.
        """

    def on_client(self, update: Update, context: ClientContext) -> tuple[Update, Metrics]:
        """Return what the client sends instead of its update, and the numbers of
        :attr:`client_metrics`. Runs where the client's images are."""
        return update, {}

    def on_server(self, aggregate: Update, context: ServerContext) -> tuple[Update, Metrics]:
        """Return the change that the server makes instead of the aggregate, and what
        ``metrics.jsonl`` says of the round: ``updates.<name of the step>.<metric>``."""
        return aggregate, {}

    # Only of a step that combines. ----------------------------------------------------------------

    def extra_tensors(self) -> Mapping[str, tuple[int, ...]]:
        """Return the shapes of tensors that travel with every update, by name: :meth:`on_client`
        gives them beside the changes, and :meth:`combine` gets them there. What hides or sums
        updates on their way does the same with them, as with no number of
        :attr:`client_metrics`. They are sent in float32."""
        return {}

    def prepare(self, context: RoundStart) -> None:
        """Complete the state, before the first round of a run and when it is resumed."""

    def draw(self, able: Sequence[int], context: RoundStart) -> list[int]:
        """Return the clients of the round, of those that can train; there may be none."""
        raise NotImplementedError

    def combine(
        self, updates: Mapping[int, Update], context: ServerContext
    ) -> tuple[Update, Metrics]:
        """Return one change of the shared tensors made of the updates of a round (client ->
        update; there may be none), and what ``metrics.jsonl`` says of it."""
        raise NotImplementedError

    # Only of a step that combines, where the server sees sums alone (privacy.secure_sum). ---------

    def sum_limits(self, state: State) -> dict[str, float]:
        """Return what clients have to know of the sum: ``largest``, the largest number that a
        client's update may have, ``noise``, the deviation of the noise on the sum of all, which
        the clients add in parts, and what :meth:`in_sum` takes."""
        raise NotImplementedError

    def check_sum(self, limits: Mapping[str, float], context: RoundStart) -> None:
        """Refuse a sum whose limits, as the server says them, protect less than the configuration
        does; runs on the client, before anything of it is added up.

        Args:
            limits: what :meth:`sum_limits` gave.
            context: of the round, without a state.

        Raises:
            FedPGPError: naming what is wrong.
        """

    def in_sum(self, update: Update, limits: Mapping[str, float]) -> Update:
        """Return what of a client's update, with :meth:`extra_tensors`, is added up; runs on the
        client, after all else. ``limits``: what :meth:`sum_limits` gave."""
        return update

    def noise_in_sum(self, size: int, seed: int, client: int, server_round: int) -> np.ndarray:
        """Return standard normal numbers, (size,) float64, for the noise of one client; the seed is
        the run's."""
        raise NotImplementedError

    def combine_sum(self, total: Update, context: ServerContext) -> tuple[Update, Metrics]:
        """As :meth:`combine`, of the sum of what :meth:`in_sum` gave, with the clients' noise."""
        raise NotImplementedError

    # What lasts from round to round. --------------------------------------------------------------

    def init_state(self) -> State:
        """Return the state before the first round. It is saved in every checkpoint."""
        return {}

    def broadcast(self, state: State) -> Mapping[str, Value]:
        """Return what :meth:`on_client` has to know of the state; it is sent with the shared
        tensors of a round."""
        return {}

    def before_round(self, context: RoundStart) -> None:
        """Decide whether a round may begin.

        Raises:
            StopTraining: it may not, and no later one either.
        """

    def able(self, clients: Sequence[int], context: RoundStart) -> list[int]:
        """Return those of the clients that may still train."""
        return list(clients)

    def left_out(self, reasons: Mapping[int, str], context: RoundStart) -> bool:
        """Note in the state which clients may train no more.

        Args:
            reasons: client -> why it gave no usable update in this round.
            context: of the round.

        Returns:
            whether there are some that :meth:`able` had not left out before.
        """
        return False

    def after_rollback(self, lost: State, restored: State) -> State:
        """Return the state of a run that goes back to an earlier round: what was restored, or
        what must not be forgotten of the one that is lost."""
        return restored

    # What it promises. ----------------------------------------------------------------------------

    def privacy(self, state: State, rounds: int) -> dict | None:
        """Return what the step guarantees after so many rounds, for summary.json, with the keys of
        :meth:`fedpgp.methods.Method.privacy`; None: nothing."""
        return None


UPDATE_STEPS: Registry[type[UpdateStep]] = Registry("fedpgp.updates", UpdateStep)
"""Name -> step. A new file in this folder needs no mention anywhere else."""

register = UPDATE_STEPS.register
