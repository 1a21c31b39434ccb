"""Adapters of unequal ranks through the server: whose update counts, and against what it is
measured."""

import json

import numpy as np
import pytest

from clients.disclosure import Disclosure, Limits
from clients.private_state import PrivateStore
from experiments.runner import start
from strategies.checkpoint import latest_checkpoint
from strategies.screening import update_norms
from tests.helpers.small import small_config, small_federation

RANKS = "method.ranks=[8,8,2]"


def of_rank_8(folder, *overrides: str) -> dict:
    config = small_config(folder, "evaluate_every=0", *overrides)
    config["method"]["rank"] = 8
    return config


def run(folder, *overrides: str) -> list[dict]:
    start(of_rank_8(folder, *overrides), federation_of=small_federation)
    lines = (json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["kind"] == "train"]


@pytest.mark.parametrize("method", ["hetlora", "flexlora"])
def test_no_client_is_left_out_for_its_lower_rank(tmp_path, method):
    rounds = run(tmp_path / "run", "rounds=2", f"method={method}", RANKS, "lr=0.003")
    assert len(rounds) == 2 and all(line["dropped"] == [] for line in rounds)


def test_nor_for_lowering_it(tmp_path):
    """A penalty that outweighs the images lets every tail fade."""
    decaying = ("method=hetlora", RANKS, "method.decay=0.5", "method.penalty=10")
    rounds = run(tmp_path / "run", "rounds=4", "lr=0.003", *decaying)
    assert len(rounds) == 4 and all(line["dropped"] == [] for line in rounds)
    tensors, _ = latest_checkpoint(tmp_path / "run" / "checkpoint", print)
    ranks = tensors["memory/ranks"]
    assert (ranks < np.resize([8, 8, 2], len(ranks))).any() and ranks.min() >= 1


def test_hetlora_starts_from_the_adapters_of_another_method(tmp_path):
    run(tmp_path / "one", "rounds=1", "method=fedit")
    begun = f"init_from={tmp_path / 'one'}"
    assert run(tmp_path / "two", "rounds=1", "method=hetlora", RANKS, begun)


@pytest.mark.parametrize("name", ["hetlora", "flexlora"])
def test_a_change_is_measured_where_a_client_has_something(tmp_path, name):
    config = of_rank_8(tmp_path / "run", f"method={name}", RANKS)
    method = small_federation(json.dumps(config)).method
    rng, shared, update, squares = np.random.default_rng(0), {}, {}, 0.0
    for place in method.places:
        A, B = (method.init_shared(rng)[f"{place}.{part}"].shape for part in "AB")
        shared[f"{place}.A"], shared[f"{place}.B"] = rng.normal(size=A), rng.normal(size=B)
        change_A, change_B = rng.normal(size=A), rng.normal(size=B)
        change_A[:, 2:] = change_B[:, :, 2:] = 0
        update[f"{place}.A"] = (shared[f"{place}.A"] + change_A) * (np.arange(8) < 2)[:, None]
        update[f"{place}.B"] = (shared[f"{place}.B"] + change_B) * (np.arange(8) < 2)
        squares += np.square(change_A).sum() + np.square(change_B).sum()
    begun = method.begun_with(shared, update)
    assert update_norms(update, begun, ())[0] == pytest.approx(squares**0.5)
    all_sent = {n: t + 1 for n, t in shared.items()}
    for n, tensor in method.begun_with(shared, all_sent).items():
        assert np.array_equal(tensor, shared[n])
    store = PrivateStore(tmp_path, "run", 1)
    Disclosure(store, Limits(10, 20.0)).trained(begun, update)
    record = json.loads((store.folder / "answered.json").read_text())
    assert record["norms"] == [pytest.approx(squares**0.5)]
