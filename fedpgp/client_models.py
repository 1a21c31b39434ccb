"""The models of clients: where their tensors start, and the classifiers that are made of them."""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from fedpgp.arrays import Arrays, to_arrays
from fedpgp.errors import FedPGPError
from fedpgp.inputs import Inputs
from fedpgp.methods import PHASE, Batch, Classifier, Images, Method, Params
from fedpgp.protocols import FederatedSplit
from fedpgp.seeding import generator
from fedpgp.server_update import ServerUpdate
from fedpgp.task import ClassSet
from fedpgp.training.batches import gather

State = dict[str, Tensor]
LoadState = Callable[[int], State | None]
"""A client's newest private tensors; None for a client that never trained."""


class NeedsImages(FedPGPError):
    """A client's model is made from its own training images, and this federation has none."""


class ClientModels:
    """Shared and private tensors of clients, and their classifiers.

    Args:
        method: makes them.
        federated_split: the clients, their images and classes.
        inputs: of the method, for what it computes of a client's training images.
        server: what it sends to a client alone.
        seed: of the starting tensors.
        personal_start: ``shared`` or ``per_client``.
    """

    def __init__(
        self,
        method: Method,
        federated_split: FederatedSplit,
        inputs: Inputs,
        server: ServerUpdate,
        seed: int,
        personal_start: str,
    ):
        self.method, self.federated_split, self.inputs = method, federated_split, inputs
        self.server, self.seed, self.personal_start = server, seed, personal_start

    def initial_shared(self) -> dict[str, np.ndarray]:
        """The global tensors before round 1; private ones are tried too, so that
        impossible settings show here."""
        self.initial_state(0)
        return to_arrays(
            self.method.init_shared(generator(self.seed, "shared")), self.method.task.dtype
        )

    def initial_state(self, client: int) -> State:
        """A client's private tensors before its first round."""
        if self.personal_start == "per_client":
            rng = generator(self.seed, "personal", client)
        else:
            rng = generator(self.seed, "shared" if self.method.starts_as_shared else "personal")
        return self.method.init_personal(rng)

    @cached_property
    def personal_names(self) -> tuple[str, ...]:
        """Names of a client's private tensors."""
        return tuple(self._shapes)

    @cached_property
    def _shapes(self) -> dict[str, torch.Size]:
        """Of a client's private tensors."""
        return {name: tensor.shape for name, tensor in self.initial_state(0).items()}

    def params(
        self,
        shared: Arrays,
        clients: Sequence[int],
        states: Sequence[State],
        client_only: Mapping[int, Arrays] | None,
        training: bool = True,
        *,
        server_round: int,
    ) -> Params:
        """Return all tensors of these clients: shared, client-only, personal, and what the method
        precomputes of the images and classes that they have in a round.

        Raises:
            FedPGPError: a private state is not one of this method's.
        """
        task, method = self.method.task, self.method

        def tensor(array: np.ndarray | Tensor) -> Tensor:
            return torch.as_tensor(array).to(task.device, task.dtype)

        params = {
            name: tensor(array).expand(len(clients), *np.shape(array))
            for name, array in shared.items()
        }
        server_state = {} if client_only else self.server.initial_state()
        client_only = client_only or {
            client: self.server.download_for(client, server_state)
            for client in clients
            if server_state
        }
        for name in client_only.get(clients[0], ()):
            params[name] = torch.stack([tensor(client_only[client][name]) for client in clients])
        for name, shape in self._shapes.items():
            for client, state in zip(clients, states, strict=True):
                if name not in state or state[name].shape != shape:
                    found = list(state[name].shape) if name in state else "missing"
                    raise FedPGPError(
                        f"the private state of client {client} is not one of method={method.name} "
                        f"with these settings: {name} is {found} and must be {list(shape)}"
                    )
            params[name] = torch.stack([tensor(state[name]) for state in states])
        if PHASE in method.buffers:
            client_splits = [self.federated_split.clients[client] for client in clients]
            now = [client_split.phase_at(server_round) for client_split in client_splits]
            params[PHASE] = torch.tensor(now, device=task.device)
        if type(method).precompute is not Method.precompute and (
            training or method.precomputes_for_evaluation
        ):
            client_splits = [self.federated_split.clients[client] for client in clients]
            rows = [client_split.train_at(server_round) for client_split in client_splits]
            classes = client_splits[0].classes_at(server_round)

            def load_batch(images: bool = True) -> Batch:
                if self.inputs.dataset.train is None:
                    raise NeedsImages(
                        f"method {method.name} needs the client's own training images, and here "
                        "are none"
                    )
                read = self.inputs.images("train") if images else Images()
                return gather(read, self.inputs.labels("train", classes), rows, task.dtype)

            with torch.no_grad():
                params |= method.precompute(params, load_batch, self.method.task.class_set(classes))
        if extra := set(params) - set(shared) - set(self.personal_names) - set(method.buffers):
            raise FedPGPError(
                f"method {method.name}: {sorted(extra)} are not trainable, so they belong into "
                "`buffers`"
            )
        return params

    def personal_classifier(
        self,
        shared: Arrays,
        clients: Sequence[int],
        load_state: LoadState,
        class_sets: Sequence[ClassSet],
        client_only: Mapping[int, Arrays] | None = None,
        *,
        server_round: int,
    ) -> list[Classifier]:
        """Return the classifiers of these clients' personal models after a round, (K, ...), for
        each set of classes."""
        params = self.personal_params(
            shared, clients, load_state, client_only, server_round=server_round
        )
        return [self.method.personal_classifier(params, classes) for classes in class_sets]

    def personal_params(
        self,
        shared: Arrays,
        clients: Sequence[int],
        load_state: LoadState,
        client_only: Mapping[int, Arrays] | None = None,
        *,
        server_round: int,
    ) -> Params:
        """Return all tensors of these clients' personal models after a round, (K, ...)."""
        states = [load_state(client) or self.initial_state(client) for client in clients]
        return self.params(
            shared, clients, states, client_only, training=False, server_round=server_round
        )

    def global_classifier(self, shared: Arrays, classes: ClassSet) -> Classifier | None:
        """Return the global model's classifier, with a client axis of one; None
        where the method has none."""
        return self.method.global_classifier(self.global_params(shared), classes)

    def global_params(self, shared: Arrays) -> Params:
        """Return the global model's tensors, with a client axis of one."""
        task = self.method.task
        return {
            n: torch.as_tensor(a).to(task.device, task.dtype).unsqueeze(0)
            for n, a in shared.items()
        }
