"""One message to a node at work: its job, the federation, the private state, and the
replies as they come."""

import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import nullcontext
from functools import lru_cache
from pathlib import Path

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict

from clients.arrivals import with_images
from clients.disclosure import (
    Disclosure,
    Limits,
    Withheld,
    in_hundredths,
    keep,
    pin,
    updates_only,
)
from clients.expiry import expiring
from clients.failures import Failures, describe
from clients.machine import machine_name, peak_rss_mb
from clients.messages import CLIENT_ONLY, Job, Record, pack_reply, unpack
from clients.node_config import ERRORS, IncompatibleNode, NodeConfig, compatibility, mismatch
from clients.private_state import PrivateStore
from clients.progress import CLIENTS, Progress
from clients.sum_records import SUM_STEPS
from clients.watchdog import watched
from fedpgp.client_table import client_table
from fedpgp.config import PrivacySection, RuntimeSection
from fedpgp.errors import FedPGPError, MethodError

Shared = dict[str, np.ndarray]
ClientOnly = dict[int, Shared]


@lru_cache(maxsize=1)
def _store(folder: Path, run: str, attempt: int) -> PrivateStore:
    """The private store of a job; what it has open stays open between the job's messages."""
    return PrivateStore(folder, run, attempt)


class ClientRequest:
    """One message at work: the job, the federation, the private store, and the
    replies as they come."""

    def __init__(self, message: Message, context: Context, federation_of: Callable):
        self.message, self.content = message, message.content
        self.job = Job.of(message.content)
        node_config = dict(context.node_config)
        self.inline = bool(node_config.pop("inline", False))
        in_a_simulation = self.inline or "partition-id" in node_config
        self.waited = float(node_config.pop("waited", 0.0)) if in_a_simulation else 0.0
        # A simulation's nodes are told where; a real one lets nobody else choose a folder of its
        # disk.
        if self.job.private and not in_a_simulation:
            raise FedPGPError(
                "a server may choose a folder on the nodes of a simulation only, and this is none"
            )
        self.node_config = None if self.job.private else NodeConfig.of(node_config)
        folder = self.job.private or self.node_config.store_folder(self.job.run)
        self.store = _store(Path(folder), self.job.run, self.job.attempt)
        self.progress = Progress(Path(self.job.private) if self.job.private else None)
        self.committed = dict(zip(self.job.clients, self.job.committed, strict=True))
        self.replies: dict[int, RecordDict] = {}
        self.errors: dict[int, str] = {}
        self.failures = Failures()
        self.kept: list[int] = []
        self.seconds = 0.0
        self.updates_only = False  # before the run's configuration is known
        self._federation_of = federation_of

    def run(
        self,
        work: Callable[
            [object, Shared, list[int], ClientOnly], Iterable[tuple[int, RecordDict | str]]
        ],
        *,
        without_federation: bool = False,
    ) -> Message:
        """Runs ``work`` on every group of clients that were sent the same tensors,
        and packs what it yields.

        ``work`` yields a client with its reply, or with the reason why there is none. When it
        raises, the clients still missing are tried one by one, so that one client's broken data
        does not cost the others their round. (A client's numbers do not depend on its company.)
        ``without_federation``: the work is done without one, and it is not built.
        """
        with nullcontext() if self.inline else watched(self.store, self.job, self.waited):
            self.store.claim()
            if self.job.threads and not self.inline:
                import torch

                torch.set_num_threads(self.job.threads)
            try:
                text = self.configuration()
                federation = None if without_federation else self.federation(text)
            except Exception as error:
                if not (self.updates_only or self._own_images):
                    raise
                # Flower would send the text of what is raised here.
                self.errors = dict.fromkeys(self.job.clients, self.reason(error))
            else:
                self._work(work, federation)
        return Message(
            pack_reply(self.replies, self.errors, self._account()), reply_to=self.message
        )

    def _work(self, work: Callable, federation: object) -> None:
        start = time.perf_counter()
        client_only = self._client_only()
        try:
            for shared, clients in self._groups():
                self._collect(work, federation, shared, clients, client_only)
        finally:
            self.progress.end()
        if self.kept:
            self.store.flush()
        self.seconds = time.perf_counter() - start

    def configuration(self) -> str:
        """The run's configuration (JSON text), as this node has it.

        Raises:
            FedPGPError: the message is for a client of another node.
        """
        text = self.store.configuration(self.job.config)
        deployed = self.node_config is not None
        privacy = PrivacySection.of(json.loads(text).get("privacy", {}))
        self.updates_only = updates_only(privacy, deployed=deployed)
        if self.node_config is not None:
            if others := set(self.job.clients) - {self.node_config.client}:
                raise FedPGPError(
                    f"this is the node of client {self.node_config.client}, not of client "
                    f"{min(others)}"
                )
            text = self.node_config.configured(text)
        if self._own_images and self.job.ask not in SUM_STEPS:  # which need no image
            kind = self.message.metadata.message_type
            text = with_images(text, kind, self.job, self.node_config, self.store)
        return text

    def federation(self, text: str):
        """The federation of a configuration."""
        federation = self._federation_of(text)
        federation.progress = self.progress
        return federation

    def handshake(self) -> Message:
        """Answer the server's first message: which client this node is, and its row of the table,
        or why the node cannot take part, and whether that is transient.
        """
        reply: dict[str, object] = {
            "client": self.node_config.client,
            "name": self.node_config.name,
        }
        for text in expiring():
            print(f"warning: {text}", file=sys.stderr, flush=True)
        try:
            self.store.claim()
            text = str(self.content["configuration"]["json"])
            if self.node_config.data_dir is not None:
                pin(self.store, text)
            self.store.give_configuration(text)
            federation = self.federation(self.configuration())
            if differing := mismatch(
                dict(self.content["compatibility"]), compatibility(federation)
            ):
                raise IncompatibleNode(differing)
            # Encoded now, or found in the cache, so that no round pays for it.
            federation.inputs.encode()
            if self.node_config.data_dir is not None:  # of its own images its own log speaks
                for note in federation.dataset.notes:
                    print(f"note: {note}", file=sys.stderr, flush=True)
            (row,) = client_table(federation.federated_split, [self.node_config.client])
            if not self.updates_only:
                reply["row"] = row
            elif self.node_config.data_dir is not None and not row["train_images"]:
                raise FedPGPError("there is no image to train on, and with privacy all clients do")
        except IncompatibleNode as error:
            reply["rejection"] = str(error)
        except Exception as error:
            reply |= {"rejection": self.reason(error), "transient": True}
        return Message(json_reply(reply), reply_to=self.message)

    @property
    def _own_images(self) -> bool:
        """Whether this is a node with images of its own."""
        return self.node_config is not None and self.node_config.data_dir is not None

    def disclosure(self, federation) -> Disclosure | None:
        """What the node tells of its own images; None where they are of a public data set, or where
        privacy lets it tell nothing."""
        if self.updates_only or not self._own_images:
            return None
        config = json.loads(self.store.configuration(self.job.config))
        runtime = RuntimeSection.of(config["runtime"])
        limits, delta_params = Limits.of(self.node_config, runtime), federation.method.delta_params
        return Disclosure(self.store, limits, delta_params, config)

    def told(self, num_examples: int, figures: Mapping[str, float]) -> dict[str, int | float]:
        """Return what the server is told of a client's training or evaluation; nothing where
        privacy keeps it on the node."""
        figures = {name: float(value) for name, value in figures.items()}
        metrics = {"num-examples": int(num_examples), **figures}
        if not self.updates_only:
            return metrics
        keep(self.store, self.job.server_round, metrics)
        return {}

    def update_steps(self, federation) -> Callable[..., tuple[Shared, dict[str, float]]]:
        """What a client's update goes through before it is sent: called with the client, its
        tensors, those it was sent and its number of images; see
        :meth:`fedpgp.updates.pipeline.UpdatePipeline.on_client`."""
        from fedpgp.updates.configured import metrics_of
        from fedpgp.updates.pipeline import UpdatePipeline  # torch: when there is work, not before

        config = json.loads(self.store.configuration(self.job.config))
        pipeline = UpdatePipeline(config, federation.method, federation.num_clients)
        about = {"server_round": self.job.server_round, "broadcast": self.config()}
        own_images, ranges = self.updates_only or self._own_images, metrics_of(pipeline.steps)

        def steps(*update_of: object) -> tuple[Shared, dict[str, float]]:
            sent, said = pipeline.on_client(*update_of, **about)
            return sent, in_hundredths(said, ranges) if own_images else said

        return steps

    def joining(self, federation) -> Callable[..., ConfigRecord] | None:
        """What a client's update goes through instead of being sent, where the server sees sums
        alone (:meth:`clients.secure_sum.SumClient.joining`); None where it sees each."""
        part = self._sum_client()
        return part.joining(federation, self.config()) if part else None

    def sum_replies(
        self, federation: None, shared: Shared, clients: list[int], client_only: ClientOnly
    ) -> Iterator[tuple[int, RecordDict | str]]:
        """What the clients reply in a step of a secure sum: the work of :meth:`run`."""
        part, questions = self._sum_client(), unpack(self.content, clients)
        for client in clients:
            try:
                if part is None:
                    raise Withheld("this run has no secure sums")
                question = dict(questions[client].get("config", {}))
                yield client, part.reply(self.job.ask, client, question)
            except FedPGPError as error:
                yield client, self.reason(error)

    def _sum_client(self):
        from clients.kept_sum import KeptInFiles, kept_in_memory
        from clients.secure_sum import SumClient  # torch: when there is work, not before

        config = json.loads(self.store.configuration(self.job.config))
        if not PrivacySection.of(config.get("privacy", {})).secure_sum:
            return None
        deployed = self.node_config is not None
        if self.inline and not deployed:
            sums = kept_in_memory(self.store.folder, self.job.run, self.job.attempt)
        else:
            sums = KeptInFiles(self.store.folder, flush=deployed)
        return SumClient(sums, config, self.job.server_round, deployed=deployed)

    def attackers(self, federation):
        """The :class:`fedpgp.attacks.Attackers` of a simulation; None without an attack, and on a
        real node."""
        if self.node_config is not None:
            return None
        from fedpgp.attacks import attackers_of  # torch: when there is work, not before

        config = json.loads(self.store.configuration(self.job.config))
        return attackers_of(config, federation.federated_split, federation.method.delta_params)

    def load_state(self, client: int):
        """The client's private tensors as of its committed round, None when it never took part."""
        return self.store.load(client, self.committed[client])

    def save_state(self, client: int, state: dict) -> None:
        """Keeps a client's private tensors of this round."""
        if state:
            self.store.save(client, self.job.server_round, state, self.committed[client])
            self.kept.append(client)

    def _collect(
        self,
        work: Callable,
        federation: object,
        shared: Shared,
        clients: list[int],
        client_only: ClientOnly,
    ) -> None:
        try:
            for client, reply in work(federation, shared, clients, client_only):
                if isinstance(reply, str):
                    self.errors[client] = reply
                else:
                    self.replies[client] = reply
                self.progress(len(self.replies) + len(self.errors), len(self.job.clients), CLIENTS)
        except Exception as error:
            missing = [c for c in clients if c not in self.replies and c not in self.errors]
            if self.node_config is None and (
                not isinstance(error, FedPGPError) or isinstance(error, MethodError)
            ):
                self.failures.add(error, len(missing))
            if len(missing) > 1 and not self.job.debug:
                for client in missing:
                    self._collect(work, federation, shared, [client], client_only)
            else:
                self.errors.update({client: self.reason(error) for client in missing})

    def reason(self, error: Exception) -> str:
        """What the server is told of an error. One about a client's own images names files, folders
        or classes, so it stays in the node's log; with privacy any does."""
        reason = describe(error)
        if not (self.updates_only or self._own_images) or isinstance(error, Withheld):
            return reason
        print(f"error: {reason}", file=sys.stderr, flush=True)
        whole = (
            reason if isinstance(error, FedPGPError) else "".join(traceback.format_exception(error))
        )
        kept = self.node_config.keep_error(whole)
        where = f"{ERRORS} in its state-dir" if kept else "the log of its node"
        return f"something is wrong with its data or its machine; {where} says what"

    def _groups(self) -> Iterator[tuple[Shared, list[int]]]:
        """Clients that share the same tensors, together: usually all."""
        groups: list[tuple[ArrayRecord, list[int]]] = []
        for client, records in unpack(self.content, self.job.clients).items():
            shared = (
                r
                for name, r in records.items()
                if name != CLIENT_ONLY and isinstance(r, ArrayRecord)
            )
            arrays = next(shared, ArrayRecord())
            for known, members in groups:
                if known is arrays or known == arrays:
                    members.append(client)
                    break
            else:
                groups.append((arrays, [client]))
        for arrays, members in groups:
            yield {name: array.numpy() for name, array in arrays.items()}, members

    def _client_only(self) -> ClientOnly:
        """Client -> the tensors it was sent alone; empty where a method sends none."""
        records = unpack(self.content, self.job.clients)
        return {
            c: {n: a.numpy() for n, a in r[CLIENT_ONLY].items()}
            for c, r in records.items()
            if CLIENT_ONLY in r
        }

    def config(self) -> dict[str, Record]:
        """The strategy's own configuration record of this message."""
        return dict(self.content.get("config", {}))

    def _account(self) -> dict:
        # A deployed client does not tell the name of its machine.
        process = (
            f"{machine_name()}/{os.getpid()}"
            if self.node_config is None
            else f"client {self.node_config.client}"
        )
        account = {"seconds": self.seconds, "process": process, "rss_mb": peak_rss_mb()}
        account |= {"clients": len(self.replies), "kept": self.kept}
        if self.updates_only:  # time and memory grow with the number of images
            return account | {"seconds": 0.0, "rss_mb": 0.0}
        if failures := self.failures.account():
            account["failures"] = failures
        torch = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_available():
            account["gpu_mb"] = torch.cuda.max_memory_reserved() / 2**20  # CUDA graphs' memory too
        return account


def json_reply(value: object) -> RecordDict:
    """Return the answer to a question: a record with JSON."""
    return RecordDict({"answer": ConfigRecord({"json": json.dumps(value)})})
