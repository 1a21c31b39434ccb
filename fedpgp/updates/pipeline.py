"""All update steps of a run, one after the other: those that the method brings, that of
``privacy``, and those named in ``updates``."""

import copy
import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from fedpgp.arrays import Arrays, to_tensors
from fedpgp.config import PrivacySection
from fedpgp.errors import FedPGPError, MethodError
from fedpgp.prefixes import strip_prefix
from fedpgp.updates.base import (
    ClientContext,
    Metrics,
    RoundStart,
    ServerContext,
    State,
    Update,
    UpdateStep,
    Value,
)
from fedpgp.updates.configured import check_names, checked, configured_steps, extra_of
from fedpgp.updates.sum_check import check_secure_sum

SECURE_SUM = "secure_sum"
"""Before the names of what clients have to know of a secure sum."""
Fact = bool | int | float | str
"""A value of a message's configuration record."""


class UpdatePipeline:
    """The update steps of a run, one after the other. The client's and the server's are made of
    the same configuration.

    Args:
        config: resolved.
        method: brings steps of its own, which come first.
        num_clients: of the federation.
        num_trainers: how many of them can train; None: all.

    Attributes:
        combiner: the step that combines; None: none does.
        settings: of ``privacy``, whatever the choice.

    Raises:
        FedPGPError: as :func:`configured_steps`, or a step refuses the run.
    """

    def __init__(self, config: Mapping, method, num_clients: int, num_trainers: int | None = None):
        self.steps = [*method.update_steps(), *configured_steps(config)]
        check_names(self.steps)
        for step in self.steps:
            step.check(config, method)
        self.settings = PrivacySection.of(config.get("privacy", {}))
        if self.settings.secure_sum:
            check_secure_sum(config, method, self.steps)
        self.combiner = next((step for step in self.steps if step.combines), None)
        self._num_trainers = num_clients if num_trainers is None else num_trainers
        self._delta_params = tuple(method.delta_params)
        self._run = {
            "num_rounds": config["rounds"],
            "num_clients": num_clients,
            "participation": config["participation"],
            "seed": config["seed"],
        }

    @property
    def equal_weights(self) -> bool:
        """Whether a step wants clients averaged alike."""
        return any(step.equal_weights for step in self.steps)

    @property
    def sums(self) -> bool:
        """Whether updates are added up and nothing else: none is compared with the others."""
        return self.combiner is not None or self.settings.secure_sum

    @property
    def extra_tensors(self) -> dict[str, np.ndarray]:
        """The tensors that travel with an update beside the shared ones, ``<step>.<name>`` ->
        zeros of their shape and type."""
        return {
            f"{step.name}.{name}": np.zeros(shape, np.float32)
            for step in self.steps
            for name, shape in step.extra_tensors().items()
        }

    def initial_state(self) -> dict[str, State]:
        """Return the state of each step before the first round, of those that have one."""
        states = {step.name: step.init_state() for step in self.steps}
        return {name: state for name, state in states.items() if state}

    def privacy(self, states: Mapping[str, State], rounds: int) -> dict | None:
        """Return what the first step that guarantees something guarantees after so many rounds."""
        said = (step.privacy(states.get(step.name, {}), rounds) for step in self.steps)
        return next(filter(None, said), None)

    def broadcast(self, states: Mapping[str, State]) -> dict[str, Fact]:
        """Return what clients have to know in a round: ``<step>.<name>`` -> value."""
        return {
            f"{step.name}.{name}": value
            for step in self.steps
            for name, value in step.broadcast(states.get(step.name, {})).items()
        }

    def sum_facts(self, states: Mapping[str, State], clients: int) -> dict[str, Fact]:
        """Return what clients have to know of a round's secure sum, beside :meth:`broadcast`; empty
        where the server sees each update.

        Args:
            states: of the steps.
            clients: that take part in the round.
        """
        if not self.settings.secure_sum:
            return {}
        facts = {"largest": self.settings.secure_sum_range, "noise": 0.0}
        if self.combiner is not None:
            facts = self.combiner.sum_limits(states[self.combiner.name])
        facts = facts | {"clients": clients}
        return {f"{SECURE_SUM}.{name}": value for name, value in facts.items()}

    def check_sum(self, limits: Mapping[str, float], server_round: int) -> None:
        """Refuse, on a client, a sum that protects less than the configuration does
        (:meth:`fedpgp.updates.base.UpdateStep.check_sum`)."""
        if self.combiner is not None:
            self.combiner.check_sum(limits, self._start(server_round, {}))
        elif limits["noise"] != 0:
            raise FedPGPError("the server says that there is noise on the sum, and there is none")

    def in_sum(
        self, sent: Arrays, global_params: Arrays, limits: Mapping[str, float]
    ) -> dict[str, np.ndarray]:
        """Return what a client adds to a secure sum: its change of each tensor, and the tensors
        that travel beside it, float64.

        Args:
            sent: what :meth:`on_client` gave.
            global_params: as the server sent them.
            limits: what :meth:`sum_facts` gave, without its prefix.
        """
        update, step = self._update(sent, to_tensors(global_params)), self.combiner
        if step is not None:
            update = step.in_sum(update | extra_of(step, sent), limits)
        return {name: tensor.numpy() for name, tensor in update.items()}

    def sum_shapes(self, reference: Arrays) -> dict[str, tuple[int, ...]]:
        """Return the shapes of what :meth:`in_sum` gives, by name.

        Args:
            reference: the shared tensors.
        """
        extra = self.combiner.extra_tensors() if self.combiner is not None else {}
        return {name: array.shape for name, array in reference.items()} | dict(extra)

    def combine_sum(
        self,
        total: Arrays,
        weight: float,
        global_params: Arrays,
        states: Mapping[str, State],
        **about: object,
    ) -> tuple[Arrays, dict[str, dict[str, float]], dict[str, State]]:
        """As :meth:`combine`, of a secure sum; also where no step combines.

        Args:
            total: sum of the clients' changes, each times its weight, float64.
            weight: sum of their weights.
            global_params, states, about: as in :meth:`on_server`.
        """
        step, before, states = self.combiner, to_tensors(global_params), copy.deepcopy(dict(states))
        changes = to_tensors(total)
        if step is None:
            mean = {name: tensor / weight for name, tensor in changes.items()}
            return self._applied(mean, before), {}, states
        context = self._context(step, before, states, **about)
        zeros = {name: torch.zeros_like(tensor) for name, tensor in before.items()}
        combined, said = checked(step, zeros, step.combine_sum(changes, context))
        states[step.name] = context.state
        return self._applied(combined, before), {step.name: dict(said)}, states

    def prepared(self, states: Mapping[str, State]) -> dict[str, State]:
        """Return the steps' states before the first round of a run, or of one that is resumed."""
        states = {**self.initial_state(), **copy.deepcopy(dict(states))}
        if self.combiner is not None:
            self.combiner.prepare(self._start(1, states.setdefault(self.combiner.name, {})))
        return states

    def draw(
        self, able: Sequence[int], server_round: int, states: Mapping[str, State]
    ) -> list[int] | None:
        """Return the clients of a round, of those that can train; None: no step draws them."""
        if self.combiner is None:
            return None
        return self.combiner.draw(able, self._start(server_round, states[self.combiner.name]))

    def combine(
        self,
        updates: Mapping[int, Arrays],
        global_params: Arrays,
        states: Mapping[str, State],
        **about: object,
    ) -> tuple[Arrays, dict[str, dict[str, float]], dict[str, State]]:
        """Return the one reply that stands for those of all clients, what is said of the round, and
        the steps' states after it. Only where a step combines.

        Args:
            updates: client -> the shared tensors as it sent them.
            global_params, states, about: as in :meth:`on_server`.
        """
        step, before, states = self.combiner, to_tensors(global_params), copy.deepcopy(dict(states))
        context = self._context(step, before, states, **about)
        changes = {
            c: self._update(sent, before) | extra_of(step, sent) for c, sent in updates.items()
        }
        combined, said = step.combine(changes, context)
        zeros = {name: torch.zeros_like(tensor) for name, tensor in before.items()}
        checked(step, zeros, (combined, said))
        states[step.name] = context.state
        return self._applied(combined, before), {step.name: dict(said)}, states

    def _start(self, server_round: int, state: State) -> RoundStart:
        about = {"num_trainers": self._num_trainers, **self._run}
        return RoundStart(server_round=server_round, state=state, **about)

    def before_round(self, server_round: int, states: Mapping[str, State]) -> dict[str, State]:
        """Ask each step whether a round may begin; return their states.

        Raises:
            StopTraining: one of them says no.
        """
        states = copy.deepcopy(dict(states))
        for step in self.steps:
            state = states.get(step.name, {})
            step.before_round(self._start(server_round, state))
            if state:
                states[step.name] = state
        return states

    def able(self, clients: Sequence[int], server_round: int, states: Mapping) -> list[int]:
        """Return those of the clients that may train in a round, as all steps see it."""
        for s in self.steps:
            clients = s.able(clients, self._start(server_round, states.get(s.name, {})))
        return list(clients)

    def left_out(self, reasons: Mapping[int, str], server_round: int, states: dict) -> bool:
        """See :meth:`fedpgp.updates.base.UpdateStep.left_out`; the steps' states are changed."""
        starts = [self._start(server_round, states.setdefault(s.name, {})) for s in self.steps]
        return any([s.left_out(reasons, each) for s, each in zip(self.steps, starts, strict=True)])

    def after_rollback(
        self, lost: Mapping[str, State], restored: Mapping[str, State]
    ) -> dict[str, State]:
        """Return the steps' states of a run that goes back to an earlier round."""
        states = dict(restored)
        for step in self.steps:
            kept = step.after_rollback(lost.get(step.name, {}), states.get(step.name, {}))
            states |= {step.name: kept} if kept else {}
        return states

    def on_client(
        self,
        client: int,
        sent: Arrays,
        global_params: Arrays,
        num_examples: int,
        *,
        server_round: int,
        broadcast: Mapping[str, Value],
    ) -> tuple[Arrays, dict[str, float]]:
        """Return what a client sends, and its numbers of :attr:`client_metrics`. Without steps for
        clients the tensors are what they were, to the last bit.

        Args:
            client: logical id.
            sent: the shared tensors as its training left them.
            global_params: as the server sent them.
            num_examples: training images of the client.
            server_round: the round.
            broadcast: what :meth:`broadcast` gave.
        """
        steps = [s for s in self.steps if type(s).on_client is not UpdateStep.on_client]
        if not steps:
            return sent, {}
        before = to_tensors(global_params)
        update, metrics, extra = self._update(sent, before), {}, {}
        for step in steps:
            context = ClientContext(
                client=client,
                server_round=server_round,
                num_examples=num_examples,
                global_params=before,
                delta_params=self._delta_params,
                broadcast=strip_prefix(f"{step.name}.", broadcast),
                **self._run,
            )
            changed, said = step.on_client(update, context)
            for name in step.extra_tensors():
                extra[f"{step.name}.{name}"] = changed.pop(name).float().numpy()
            update, said = checked(step, update, (changed, said))
            if set(said) != set(step.client_metrics):
                raise MethodError(
                    f"update step {step.name}: on_client gives the metrics {sorted(said)}, and "
                    f"client_metrics names {sorted(step.client_metrics)}"
                )
            for name, value in said.items():
                least, most = step.client_metrics[name]
                if not (math.isfinite(value) and least <= value <= most):
                    raise MethodError(
                        f"update step {step.name}: on_client gives {float(value):g} as {name}; "
                        f"client_metrics says that it is a number from {least:g} to {most:g}"
                    )
            metrics |= {f"{step.name}.{name}": float(value) for name, value in said.items()}
        return {**self._applied(update, before), **extra}, metrics

    def on_server(
        self,
        averaged: Arrays,
        global_params: Arrays,
        states: Mapping[str, State],
        *,
        server_round: int,
        weights: Mapping[int, float],
        metrics: Mapping[int, Metrics],
        lr: float,
    ) -> tuple[Arrays, dict[str, dict[str, float]], dict[str, State]]:
        """Return the shared tensors that the method's server part has, what each step says of the
        round, and the steps' states after it. Without steps for the server the tensors are what
        they were, to the last bit.

        Args:
            averaged: the shared tensors as the strategy made them.
            global_params: as the clients were sent them.
            states: of the steps before the round.
            server_round: the round.
            weights: of each client whose update counts.
            metrics: of each of these, all its numbers.
            lr: the clients' learning rate.
        """
        steps = [s for s in self.steps if type(s).on_server is not UpdateStep.on_server]
        if not steps:
            return averaged, {}, dict(states)
        before, states, told = to_tensors(global_params), copy.deepcopy(dict(states)), {}
        aggregate = self._update(averaged, before)
        about = {"server_round": server_round, "weights": weights, "metrics": metrics, "lr": lr}
        for step in steps:
            context = self._context(step, before, states, **about)
            aggregate, said = checked(step, aggregate, step.on_server(aggregate, context))
            if said:
                told[step.name] = {name: float(value) for name, value in said.items()}
            if context.state:
                states[step.name] = {
                    name: value.item() if isinstance(value, np.generic) else value
                    for name, value in context.state.items()
                }
        return self._applied(aggregate, before), told, states

    def _context(
        self,
        step: UpdateStep,
        before: Mapping[str, Tensor],
        states: Mapping[str, State],
        *,
        server_round: int,
        weights: Mapping[int, float],
        metrics: Mapping[int, Metrics],
        lr: float,
    ) -> ServerContext:
        total = sum(weights.values())
        return ServerContext(
            server_round=server_round,
            num_trainers=self._num_trainers,
            clients=sorted(weights),
            weights={client: weight / total for client, weight in weights.items()},
            metrics={c: strip_prefix(f"{step.name}.", said) for c, said in metrics.items()},
            global_params=before,
            delta_params=self._delta_params,
            lr=lr,
            state=states.get(step.name, {}),
            **self._run,
        )

    def _update(self, after: Arrays, before: Mapping[str, Tensor]) -> Update:
        """Changes of the shared tensors; differences as they are."""
        values = {name: tensor.double() for name, tensor in to_tensors(after).items()}
        return {
            name: values[name] if name in self._delta_params else values[name] - tensor.double()
            for name, tensor in before.items()
        }

    def _applied(self, update: Update, before: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
        """The inverse of :meth:`_update`, in the precision of the tensors."""
        return {
            name: (update[name] if name in self._delta_params else tensor.double() + update[name])
            .to(tensor.dtype)
            .numpy()
            for name, tensor in before.items()
        }
