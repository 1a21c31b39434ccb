"""The Flower ClientApp: trains, evaluates and answers questions for the logical
clients named in a message.

The same app runs in a simulation (inline or on Ray, where a message names many clients and
they are trained as one cohort) and in a deployment (one client a node,
:mod:`clients.node_config`). What a client keeps for itself goes through
:class:`clients.private_state.PrivateStore` and never into a reply.
"""

import base64
import json
from collections.abc import Callable

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from clients.disclosure import KEPT
from clients.private_rounds import keep_account
from clients.private_rounds import train as train_round
from clients.private_state import finite
from clients.request import ClientOnly, ClientRequest, Shared, json_reply
from clients.sum_records import SUM_STEPS
from fedpgp.client_table import client_table
from fedpgp.errors import FedPGPError
from fedpgp.evaluation.samples import samples
from fedpgp.process import set_up_process

_federation: tuple[str, object] | None = None  # of this process: (configuration, Federation)


def federation_of(config: str):
    """The :class:`fedpgp.federation.Federation` of a configuration (JSON text); the last one
    is kept in the process."""
    global _federation
    if _federation is None or _federation[0] != config:
        set_up_process()
        from fedpgp.build import (
            build_federation,
        )  # torch is imported when there is work, not before

        _federation = (config, build_federation(json.loads(config)))
    return _federation[1]


def client_app(federation_of: Callable = federation_of) -> ClientApp:
    """The ClientApp.

    Args:
        federation_of: configuration (JSON text) -> federation; tests put a small one here.
    """
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        """Trains the clients from the shared tensors and their own; replies with "arrays"
        and "metrics" for each."""
        request = ClientRequest(message, context, federation_of)

        def work(federation, shared: Shared, clients: list[int], client_only: ClientOnly):
            disclosure = request.disclosure(federation)
            if disclosure:
                disclosure.admit(shared, request.job.server_round - 1)
            steps = request.update_steps(federation)
            attackers, join = request.attackers(federation), request.joining(federation)
            for result in train_round(request, federation, shared, clients, client_only):
                if result.error is None and not finite(result.state):
                    result.error = (
                        f"a private tensor is NaN or Inf after round {request.job.server_round}"
                    )
                if result.error is not None:
                    keep_account(request, result)
                    yield result.client, result.error
                    continue
                request.save_state(result.client, result.state)
                if disclosure:
                    begun = federation.method.begun_with(shared, result.update)
                    disclosure.trained(begun, result.update)
                    result.metrics |= disclosure.loss(
                        result.metrics.pop("loss"), result.num_examples
                    )
                if attackers:
                    result.update = attackers.forge(
                        result.client, result.update, shared, request.job.server_round
                    )
                sent, said = steps(result.client, result.update, shared, result.num_examples)
                records = {
                    "metrics": MetricRecord(
                        request.told(result.num_examples, result.metrics) | said
                    )
                }
                if join:  # the update stays here; the server gets the sum of all
                    about = (result.client, sent, shared, result.num_examples)
                    try:
                        records["answer"], sent = join(*about), {}
                    except FedPGPError as error:
                        yield result.client, request.reason(error)
                        continue
                records["arrays"] = ArrayRecord(
                    {name: Array(np.ascontiguousarray(value)) for name, value in sent.items()}
                )
                yield result.client, RecordDict(records)

        return request.run(work)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        """Evaluates the clients on their own test images; replies with "metrics" for each."""
        request = ClientRequest(message, context, federation_of)

        def work(federation, shared: Shared, clients: list[int], client_only: ClientOnly):
            zero_shot = request.job.ask == "zero_shot"
            disclosure = request.disclosure(federation)
            if disclosure:
                disclosure.admit(shared, request.job.server_round)
                alone = {
                    f"client_only/{n}": tensor
                    for sent in client_only.values()
                    for n, tensor in sent.items()
                }
                disclosure.count({**shared, **alone}, request.job.server_round)
            for result in federation.evaluate(
                shared,
                clients,
                request.load_state,
                client_only,
                zero_shot=zero_shot,
                server_round=request.job.server_round,
            ):
                if disclosure:
                    client_split = federation.federated_split.clients[result.client]
                    eval_sets = client_split.eval_sets
                    images = {name: len(each.indices) for name, each in eval_sets.items()}
                    result.metrics = disclosure.figures(result.metrics, images)
                metrics = request.told(result.num_examples, result.metrics)
                yield result.client, RecordDict({"metrics": MetricRecord(metrics)})

        return request.run(work)

    @app.query()
    def query(message: Message, context: Context) -> Message:
        """Answers a question, as JSON: "clients" (a client's row of the table; its images are
        encoded), "samples" (images, predictions), "handshake" (see
        :meth:`clients.request.ClientRequest.handshake`), and the steps of a secure sum
        (:mod:`clients.secure_sum`).
        """
        request = ClientRequest(message, context, federation_of)
        if request.job.ask == "handshake":
            return request.handshake()
        if request.job.ask in SUM_STEPS:
            return request.run(request.sum_replies, without_federation=True)

        def work(federation, shared: Shared, clients: list[int], client_only: ClientOnly):
            if request.updates_only:
                yield from ((client, KEPT) for client in clients)
            elif request.job.ask == "samples":
                rows = samples(
                    federation.evaluator,
                    shared,
                    clients,
                    request.load_state,
                    int(request.config()["per-client"]),
                    federation.seed,
                    client_only,
                    server_round=request.job.server_round,
                )
                for client in clients:
                    shown = [
                        {**row, "png": base64.b64encode(row["png"]).decode()}
                        for row in rows
                        if row["client"] == client
                    ]
                    yield client, json_reply(shown)
            else:
                # Encoded now, or found in the cache, so that no round pays for it.
                try:
                    federation.inputs.encode()
                except (
                    FedPGPError
                ) as error:  # the same for each of them: they are not tried one by one
                    yield from ((client, request.reason(error)) for client in clients)
                    return
                for row in client_table(federation.federated_split, clients):
                    yield row["id"], json_reply(row)

        return request.run(work)

    return app


app = client_app()
