"""``strategy=text_filter``: whom it leaves out, of which methods, and what a run says of it.

Its formula end to end: test_every_strategy.py."""

import json

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from experiments.runner import resume, start
from experiments.settings import composed
from fedpgp.class_embeddings import class_embeddings_of
from fedpgp.config import Config
from fedpgp.errors import FedPGPError
from fedpgp.methods import METHODS
from strategies.aggregation.base import FILTERED, StrategyContext
from strategies.aggregation.text_filter import distances, outliers
from strategies.checkpoint import checkpoints, read_checkpoint
from strategies.flower_strategies import make_strategy
from strategies.wrappers import configured_strategy
from tests.helpers.small import small_config, small_federation
from tests.strategies.test_flower_strategies import Ids

CLASSES, WIDTH = 5, 8
WITHOUT = [name for name in METHODS if METHODS[name].no_class_embeddings]


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def around(rng, clients: int, noise: float) -> tuple[np.ndarray, np.ndarray]:
    """Class embeddings that were sent, and those of clients that moved them all alike and a little
    by themselves."""
    sent = unit(rng.normal(size=(CLASSES, WIDTH)))
    way = rng.normal(size=sent.shape)
    own = noise * rng.normal(size=(clients, CLASSES, WIDTH))
    return sent, unit(sent + 0.3 * way + own)


def aggregated(sent: np.ndarray, embeddings: np.ndarray, **options) -> tuple[np.ndarray, list[int]]:
    """What the strategy makes of prompts that are their own class embeddings, weighted 1, 2, …; and
    whom it left out."""
    context = StrategyContext(class_embeddings=lambda shared: shared["p"])
    strategy = make_strategy("text_filter", options, context)
    arrays = ArrayRecord({"p": Array(sent)})
    list(strategy.configure_train(1, arrays, ConfigRecord(), Ids(None)))
    replies = []
    for client, own in enumerate(embeddings):
        message = Message(RecordDict(), dst_node_id=client, message_type="train")
        metrics = MetricRecord({"num-examples": client + 1})
        content = RecordDict({"arrays": ArrayRecord({"p": Array(own)}), "metrics": metrics})
        replies.append(Message(content, reply_to=message))
    mean, said = strategy.aggregate_train(1, replies)
    return mean["p"].numpy(), list(said[FILTERED])


@pytest.mark.parametrize("seed", range(3))
def test_who_is_far_is_left_out_and_the_others_are_averaged_by_their_images(seed):
    """One client far away, one that goes the other way but not far."""
    rng = np.random.default_rng(seed)
    sent, embeddings = around(rng, 12, 0.02)
    embeddings[3] = unit(rng.normal(size=(CLASSES, WIDTH)))
    embeddings[7] = unit(2 * sent - embeddings[7])
    mean, left_out = aggregated(sent, embeddings)
    assert {3, 7} <= set(left_out) and len(left_out) <= 5
    kept = [client for client in range(12) if client not in left_out]
    weights = np.array(kept) + 1.0
    expected = np.einsum("k,kve->ve", weights / weights.sum(), embeddings[kept])
    np.testing.assert_allclose(mean, expected, rtol=1e-12)
    assert aggregated(sent, embeddings, threshold=1e6)[1] == []


def test_distances_and_outliers_against_loops():
    vectors = np.random.default_rng(1).normal(size=(6, 3, 4))
    middle = np.sort(vectors, axis=0)[2:4].mean(0)
    for client, found in enumerate(distances(vectors)):
        cosines = [
            sum(a * b) / np.sqrt(sum(a * a)) / np.sqrt(sum(b * b))
            for a, b in zip(vectors[client], middle, strict=True)
        ]
        assert found == pytest.approx(1 - sum(cosines) / 3, rel=1e-12)
    vectors[2, 0, 0] = np.nan  # a huge update
    found = distances(vectors)
    assert np.isfinite(found).tolist() == [i != 2 for i in range(len(vectors))]
    assert outliers(found, 3.0)[2]
    assert outliers([1.0, 2.0, 3.0, 4.0, 5.9, 6.1], 1.3).tolist() == [False] * 5 + [True]


def test_a_client_that_sends_nothing_and_one_that_is_alone():
    """No direction is no error: the client is at a right angle to the others."""
    sent, embeddings = around(np.random.default_rng(0), 5, 0.02)
    embeddings[2] = sent
    assert 2 in aggregated(sent, embeddings)[1]
    mean, left_out = aggregated(sent, embeddings[:1])
    np.testing.assert_allclose(mean, embeddings[0], rtol=1e-12)
    assert left_out == []


@pytest.mark.parametrize("name", [name for name in METHODS if name not in WITHOUT])
def test_a_methods_class_embeddings_follow_what_its_clients_send(name, tmp_path):
    federation = small_federation(json.dumps(small_config(tmp_path, f"method={name}")))
    embed, shared = (
        class_embeddings_of(federation.models, federation.base),
        federation.models.initial_shared(),
    )
    rng = np.random.default_rng(0)
    first = embed(shared)
    moved = embed({n: t + 0.1 * rng.normal(size=t.shape) for n, t in shared.items()})
    assert first.shape == moved.shape and first.shape[1] == 16 and len(first) % 6 == 0
    np.testing.assert_allclose(np.linalg.norm(moved, axis=-1), 1, rtol=1e-9)
    assert np.abs(moved - first).max() > 1e-4


@pytest.mark.parametrize("name", WITHOUT)
def test_a_method_without_class_embeddings_is_refused(name):
    why = METHODS[name].no_class_embeddings
    with pytest.raises(FedPGPError, match=f"none of method={name}: {why}"):
        configured_strategy(Config.of(composed([f"method={name}", "strategy=text_filter"])))
    if not METHODS[name].averages_itself:
        configured_strategy(Config.of(composed([f"method={name}", "strategy=norm_clipping"])))


def test_frozen_class_embeddings_are_those_that_do_not_move(tmp_path):
    for name in ("vpt", "fedclip", "fedmvp"):
        federation = small_federation(json.dumps(small_config(tmp_path, f"method={name}")))
        shared = federation.models.initial_shared()
        embed = class_embeddings_of(federation.models, federation.base)
        moved = {n: t + 1.0 for n, t in shared.items()}
        np.testing.assert_array_equal(embed(moved), embed(shared))


def test_a_run_says_who_was_left_out(tmp_path, capsys):
    """The attacker is, in each round; a resumed run has the same numbers."""
    words = ("method=promptfl", "rounds=2", "participation=1", "clients=8", "evaluate_every=0")
    words += ("attack=sign_flip", "attack.share=0.1", "strategy=text_filter")
    config = small_config(tmp_path, *words)
    summary = start(config, federation_of=small_federation)
    (attacker,) = summary["attack"]["clients"]
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    trains = [line for line in lines if line["kind"] == "train"]
    assert all(attacker in line["filtered"] and line["dropped"] == [] for line in trains)
    assert [line["clients"] for line in trains] == [8 - len(line["filtered"]) for line in trains]
    honest = sum(len(line["filtered"]) for line in trains) - 2
    assert summary["attack"]["left_out"] == {"attackers": 2, "honest": honest}
    assert f"2 of their updates and {honest} of" in (tmp_path / "report.html").read_text()

    last = read_checkpoint(checkpoints(tmp_path / "checkpoint")[-1])[0]
    checkpoints(tmp_path / "checkpoint")[-1].unlink()
    (tmp_path / "summary.json").unlink()
    assert resume(tmp_path, federation_of=small_federation)["attack"] == summary["attack"]
    again = read_checkpoint(checkpoints(tmp_path / "checkpoint")[-1])[0]
    for key, tensor in last.items():
        np.testing.assert_array_equal(again[key], tensor, err_msg=key)
