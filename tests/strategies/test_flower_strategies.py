"""Strategies: all by name, and the state of each survives a restart."""

import re

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import DifferentialPrivacyServerSideAdaptiveClipping, FedAvg

from experiments.runner import start
from experiments.runtimes.inline import InlineGrid
from experiments.settings import choices, composed
from fedpgp.errors import FedPGPError
from strategies.aggregation.base import STRATEGIES, StrategyContext
from strategies.flower_strategies import (
    beyond_theorem,
    clients_needed,
    make_strategy,
    restore_strategy,
    strategy_state,
)
from tests.helpers.small import small_config, small_federation

CLIENTS = 8


class Ids(InlineGrid):
    def get_node_ids(self):
        return list(range(CLIENTS))


def one_round(strategy, server_round: int, shared: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    arrays = ArrayRecord({name: Array(tensor) for name, tensor in shared.items()})
    np.random.seed(server_round)
    messages = sorted(
        strategy.configure_train(server_round, arrays, ConfigRecord(), Ids(None)),
        key=lambda m: m.metadata.dst_node_id,
    )
    replies = []
    for message in messages:
        client = message.metadata.dst_node_id
        rng = np.random.default_rng([server_round, client])
        update = {
            name: Array(tensor + rng.normal(size=tensor.shape)) for name, tensor in shared.items()
        }
        metrics = MetricRecord({"num-examples": 1 + client, "norm_bit": 1.0})
        replies.append(
            Message(
                RecordDict({"arrays": ArrayRecord(update), "metrics": metrics}), reply_to=message
            )
        )
    aggregated, _ = strategy.aggregate_train(server_round, replies)
    return {name: aggregated[name].numpy() for name in shared}


def adaptive():
    return DifferentialPrivacyServerSideAdaptiveClipping(
        FedAvg(), noise_multiplier=0.5, num_sampled_clients=CLIENTS
    )


CONTEXT = StrategyContext(class_embeddings=lambda shared: shared["a"])
MAKERS = {name: (lambda name=name: make_strategy(name, {}, CONTEXT)) for name in STRATEGIES} | {
    "momentum": lambda: make_strategy("fedavgm", {"server_momentum": 0.9}),
    "wrapped": adaptive,
}


@pytest.mark.parametrize("name", MAKERS)
def test_a_restart_changes_nothing(name):
    start = {"a": np.zeros((2, 3)), "b": np.ones(4)}
    strategy = MAKERS[name]()
    shared = one_round(strategy, 2, one_round(strategy, 1, start))
    tensors, values = strategy_state(strategy)
    fresh = MAKERS[name]()
    restore_strategy(fresh, tensors, values)
    for server_round in (3, 4):
        expected, got = (
            one_round(strategy, server_round, shared),
            one_round(fresh, server_round, shared),
        )
        for key in shared:
            np.testing.assert_array_equal(expected[key], got[key])
        shared = expected


def test_momentum_steps_from_what_was_sent():
    """Flower's FedAvgM continues from its own last result, where a method's server part
    has made others of it."""
    strategy = make_strategy("fedavgm", {"server_momentum": 0.0, "server_learning_rate": 0.5})
    one_round(strategy, 1, {"a": np.zeros(3)})
    sent = {"a": np.full(3, 7.0)}
    mean = one_round(make_strategy("fedavg", {}), 2, sent)["a"]
    np.testing.assert_allclose(one_round(strategy, 2, sent)["a"], (sent["a"] + mean) / 2)


def test_the_strategies_are_those_of_conf():
    assert set(STRATEGIES) == set(choices()["strategy"])
    for name in STRATEGIES:
        strategy = composed([f"strategy={name}"])["strategy"]
        make_strategy(strategy.pop("name"), strategy)


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("fedavgg", {}, "did you mean fedavg"),
        ("fedavgm", {"momentum": 0.9}, "did you mean server_momentum"),
        ("fedtrimmedavg", {"beta": 0.7}, "strategy=fedtrimmedavg: .*range"),
        ("fedavg", {"fraction_train": 0.5}, "fraction_train"),
    ],
)
def test_unknown_names_and_values_are_refused(name, options, said):
    with pytest.raises(FedPGPError, match=said):
        make_strategy(name, options)


def test_clients_a_strategy_needs():
    assert clients_needed(make_strategy("fedavg", {})) == 1
    assert clients_needed(make_strategy("bulyan", {"num_malicious_nodes": 2})) == 11
    assert clients_needed(make_strategy("krum", {"num_malicious_nodes": 2})) == 5


@pytest.mark.parametrize(
    ("name", "malicious", "clients", "said"),
    [
        ("krum", 2, 7, ""),
        ("krum", 2, 6, "needs 2 f .* 7 clients a round, and 6 take part; with 6 .* at most 1"),
        ("multikrum", 3, 8, "needs 2 f .* 9 clients a round"),
        ("bulyan", 1, 7, ""),
        ("bulyan", 2, 10, "needs 4 f .* 11 clients a round, .* holds for at most 1"),
        ("krum", 1, 2, "with 2 clients it holds for none"),
        ("fedmedian", None, 2, ""),
    ],
)
def test_more_malicious_clients_than_a_theorem_allows(name, malicious, clients, said):
    options = {} if malicious is None else {"num_malicious_nodes": malicious}
    found = beyond_theorem(make_strategy(name, options), clients)
    assert re.search(said, found) and bool(found) == bool(said)


def test_a_run_is_told_so(tmp_path, capsys):
    config = small_config(tmp_path / "a", "strategy=krum", "rounds=1", "evaluate_every=0")
    start(config, federation_of=small_federation)
    said = " ".join(capsys.readouterr().out.split())
    assert "warning: strategy.num_malicious_nodes=1: " in said and "5 clients a round" in said


def test_a_round_that_clients_drop_out_of_is_told_so(tmp_path, capsys):
    """Once for each smaller number of clients."""
    words = ["strategy=krum", "rounds=3", "evaluate_every=0", "participation=1"]
    config = small_config(tmp_path / "a", *words, faults={"raise": [0, 4]})
    start(config, federation_of=small_federation)
    said = " ".join(capsys.readouterr().out.split())
    assert said.count("strategy.num_malicious_nodes=1: ") == 1
    assert "warning: round 1: strategy.num_malicious_nodes=1: " in said
    assert "5 clients a round, and 4 take part" in said
