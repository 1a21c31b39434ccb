"""A plain Flower simulation: a ServerApp with FedAvg, a ClientApp that trains one client a message,
Flower's own Ray backend. As Flower's documentation has it: the model of a process is made once, a
client's private tensors are kept in its ``context.state``.

    python -m experiments.bench.peers.plain_flower FOLDER
"""

import sys
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from experiments.bench.peers.learner import PromptLearner, train_one_round
from experiments.bench.peers.problem import Problem
from experiments.bench.peers.records import write_prompts, write_round
from experiments.quiet import quiet
from experiments.runtimes.ray_session import private_session

PERSONAL = "personal"

client_app = ClientApp()


@cache
def learner_of(folder: str) -> tuple[Problem, PromptLearner]:
    """The problem and its learner, once a process."""
    problem = Problem.load(Path(folder))
    return problem, PromptLearner(problem)


@client_app.train()
def train(message: Message, context: Context) -> Message:
    """Train the client of this partition for a round."""
    config = message.content["config"]
    problem, learner = learner_of(config["folder"])
    torch.set_num_threads(problem.settings.threads)
    data = problem.clients[context.node_config["partition-id"]]
    personal = problem.personal
    if PERSONAL in context.state:
        personal = context.state[PERSONAL].to_torch_state_dict()
    learner.load_state_dict({**message.content["arrays"].to_torch_state_dict(), **personal})
    loss = train_one_round(learner, data, config["server-round"])
    trained = learner.state_dict()
    if personal:
        context.state[PERSONAL] = ArrayRecord({name: trained[name] for name in personal})
    content = {
        "arrays": ArrayRecord({name: trained[name] for name in problem.shared}),
        "metrics": MetricRecord({"loss": loss, "num-examples": len(data)}),
    }
    return Message(RecordDict(content), reply_to=message)


class RecordedFedAvg(FedAvg):
    """FedAvg that writes down each round as it ends.

    Args:
        folder: of the records.
        options: of FedAvg.
    """

    def __init__(self, folder: Path, **options):
        super().__init__(**options)
        self._folder = folder

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        replies = list(replies)
        for reply in replies:
            if reply.has_error():  # FedAvg would go on without that client
                raise RuntimeError(f"a client failed: {reply.error.reason}")
        arrays, metrics = super().aggregate_train(server_round, replies)
        write_round(self._folder, server_round, metrics["loss"])
        return arrays, metrics


def server_app(folder: Path) -> ServerApp:
    """Return the ServerApp of a problem's folder."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        problem = Problem.load(folder)
        clients = problem.settings.clients
        strategy = RecordedFedAvg(
            folder, fraction_evaluate=0.0, min_train_nodes=clients, min_available_nodes=clients
        )
        result = strategy.start(
            grid=grid,
            initial_arrays=ArrayRecord(problem.shared),
            train_config=ConfigRecord({"folder": str(folder)}),
            num_rounds=problem.settings.rounds,
        )
        write_prompts(folder, result.arrays.to_torch_state_dict())

    return app


def main(folder: Path) -> None:
    """Run the simulation. Its Ray is as Flower starts it, but asks for a token."""
    quiet(False)
    settings = Problem.load(folder).settings
    with private_session() as session:
        from flwr.simulation import run_simulation  # with Ray, which is imported in the session

        run_simulation(
            server_app(folder),
            client_app,
            settings.clients,
            backend_config={
                "client_resources": {"num_cpus": settings.threads, "num_gpus": 0.0},
                "init_args": {
                    "address": "local",
                    "num_cpus": settings.workers * settings.threads,
                    "_temp_dir": session.temp_dir,
                },
            },
        )


if __name__ == "__main__":
    from experiments.bench.peers.plain_flower import main as imported  # by its name in Ray's actors

    imported(Path(sys.argv[1]))
