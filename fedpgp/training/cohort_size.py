"""Which clients go through in one tensor program, and how many of them memory allows."""

import logging
from collections.abc import Iterator, Mapping, Sequence

import psutil
import torch

from fedpgp.methods import Method
from fedpgp.protocols import FederatedSplit
from fedpgp.task import ClassSet
from fedpgp.training.settings import TrainingSettings

log = logging.getLogger(__name__)

MEMORY_FRACTION = 0.1
"""Part of a machine's memory that one cohort's activations may take (several workers share it)."""


class Cohorts:
    """Puts clients together into cohorts.

    Args:
        method: what goes through the towers.
        federated_split: the clients.
        training: images a step.
        size: clients in a cohort; None takes what memory allows.
    """

    def __init__(
        self,
        method: Method,
        federated_split: FederatedSplit,
        training: TrainingSettings,
        size: int | None,
    ):
        self.method, self.federated_split = method, federated_split
        self.training, self.size = training, size

    def of(
        self,
        clients: Sequence[int],
        server_round: int,
        gradients: bool,
        epochs: Mapping[int, int] | None = None,
    ) -> Iterator[list[int]]:
        """Clients that go through in one tensor program: of the same classes in this round, and
        alike in whether and how long they train."""
        client_splits = self.federated_split.clients
        alike: dict[tuple, list[int]] = {}
        # Equal lengths finish together.
        for client in sorted(
            clients, key=lambda c: (-len(client_splits[c].train_at(server_round)), c)
        ):
            key = (
                client_splits[client].classes_at(server_round),
                client_splits[client].trains,
                epochs[client] if epochs else None,
            )
            alike.setdefault(key, []).append(client)
        for (classes, *_), members in alike.items():
            lists = (
                {classes}
                if gradients
                else {
                    eval_set.classes
                    for c in members
                    for eval_set in client_splits[c].eval_sets_at(server_round).values()
                }
            )
            size = self.size or min(
                self._affordable(self.method.task.class_set(ids), gradients) for ids in lists
            )
            for start in range(0, len(members), size):
                yield members[start : start + size]

    def _affordable(self, classes: ClassSet, gradients: bool) -> int:
        """Clients whose activations fit into memory, at least 1; where a single one does not fit,
        the text tower keeps less and computes more.

        From the memory the machine has, not from what is free just now: float32 results depend on
        the packing in their last digits, and the same run must give the same numbers twice.
        """
        task = self.method.task
        if task.device.type == "cuda":
            memory = torch.cuda.get_device_properties(task.device).total_memory
        else:
            memory = psutil.virtual_memory().total
        client = self._activations(classes, gradients)
        if gradients and client > MEMORY_FRACTION * memory and not task.checkpointing:
            log.info(
                "one client's activations (%.1f GB) do not fit: gradient checkpointing",
                client / 1e9,
            )
            task.checkpointing = True
            client = self._activations(classes, gradients)
        return max(1, int(memory * MEMORY_FRACTION / client))

    def _activations(self, classes: ClassSet, gradients: bool) -> float:
        """Bytes that one client's step takes in the towers at its highest."""
        task = self.method.task
        blocks = task.clip.text_blocks
        # Widths a token that autograd keeps; measured: 10 a block, and what is at work.
        kept = 12 * blocks
        if not gradients:
            kept = 24  # one block's peak
        elif task.checkpointing:
            kept = blocks + 24
        # The part in which padding counts.
        attention = 4 * (blocks if gradients and not task.checkpointing else 1)
        encoder = classes.encoder(task.n_ctx)
        tokens = encoder.tokens * kept + encoder.padding * attention
        values = self.method.contexts(gradients) * tokens * task.clip.width
        if gradients:
            values += 12 * self.method.image_values(self.training.batch_size)
        return values * torch.finfo(task.dtype).bits / 8
