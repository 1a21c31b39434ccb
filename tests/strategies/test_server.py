"""The round loop: sampling, checks of replies, retries, what is saved. A small real
federation, in process."""

import json

import numpy as np
import pytest

from experiments.runner import resume, start
from experiments.settings import composed
from fedpgp.config import Config
from fedpgp.errors import FedPGPError
from fedpgp.seeding import generator
from strategies.checkpoint import checkpoints, read_checkpoint
from strategies.sampling import participants
from tests.helpers.small import small_config, small_federation


def run(run_dir, *overrides, faults=None):
    return start(small_config(run_dir, *overrides, faults=faults), federation_of=small_federation)


def metrics(run_dir, kind):
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == kind]


def final(run_dir):
    return read_checkpoint(checkpoints(run_dir / "checkpoint")[-1])


def same_tensors(one, other, **tolerance):
    for name, tensor in final(one)[0].items():
        np.testing.assert_allclose(
            final(other)[0][name], tensor, err_msg=name, **(tolerance or {"rtol": 0, "atol": 0})
        )


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("nan", "loss is NaN or Inf at round 1, step 1"),
        ("raise", "RuntimeError: client 2 fell over (tests/helpers/small.py:"),
        ("inf_update", "tensor p_G of its update is NaN or Inf"),
        ("wrong_shape", r"tensor p_G is float64[3, 32] instead of float64[4, 32]"),
        ("wrong_count", "says it trained on 1000000 images, but it has 5"),
        ("no_steps", "did not send the metrics num-examples, steps, epochs"),
    ],
)
def test_a_bad_client_is_named_and_left_out(tmp_path, fault, said):
    """The others' average is that of a federation that does not ask it."""
    run(tmp_path / "a", "rounds=1", "participation=1", "evaluate_every=0", faults={fault: [2]})
    (line,) = metrics(tmp_path / "a", "train")
    assert line["clients"] == 5 and [d["client"] for d in line["dropped"]] == [2]
    assert line["dropped"][0]["reason"].startswith(said)
    assert all(
        np.isfinite(tensor).all()
        for name, tensor in final(tmp_path / "a")[0].items()
        if name.startswith("shared/")
    )
    assert final(tmp_path / "a")[0]["committed"].tolist() == [1, 1, 0, 1, 1, 1]
    if fault != "raise":
        run(
            tmp_path / "b", "rounds=1", "participation=1", "evaluate_every=0", faults={"raise": [2]}
        )
        same_tensors(tmp_path / "a", tmp_path / "b", rtol=1e-9, atol=1e-12)


def test_a_client_that_says_more_than_others_ends_nobody_s_run(tmp_path):
    run(
        tmp_path / "a",
        "rounds=1",
        "participation=1",
        "evaluate_every=0",
        faults={"extra_metric": [2]},
    )
    (line,) = metrics(tmp_path / "a", "train")
    assert line["clients"] == 6 and line["dropped"] == []


def test_too_few_clients_stop_the_run_saved(tmp_path, capsys):
    faults = {"raise": [0, 1, 2, 3, 4], "round": 2}
    with pytest.raises(
        FedPGPError,
        match="round 2: 1 of 6 clients gave a usable reply, 2 are needed .*client 0 fell over",
    ):
        run(
            tmp_path / "a",
            "participation=1",
            "runtime.min_clients=2",
            "evaluate_every=0",
            faults=faults,
        )
    assert "asking the others again" in capsys.readouterr().out
    assert final(tmp_path / "a")[1]["round"] == 1
    summary = json.loads((tmp_path / "a" / "summary.json").read_text())
    assert summary["status"] == "interrupted"


def test_clients_come_from_seed_and_round(tmp_path):
    run(tmp_path / "a", "evaluate_every=0")
    committed = final(tmp_path / "a")[0]["committed"]
    expected = np.zeros(6, dtype=int)
    for server_round in (1, 2, 3):
        expected[
            generator(0, "participants", server_round).choice(range(6), size=4, replace=False)
        ] = server_round
    assert committed.tolist() == expected.tolist()


def test_all_clients_may_train_in_the_first_round(tmp_path):
    """TianyuCuiOvO/FedPGP, d43045b33f42, federated_main.py 330-334: all users in epoch 0, a
    fraction of them later."""
    run(tmp_path / "a", "evaluate_every=0", "first_round=all")
    assert [line["clients"] for line in metrics(tmp_path / "a", "train")] == [6, 4, 4]
    run(tmp_path / "b", "evaluate_every=0")
    assert [line["clients"] for line in metrics(tmp_path / "b", "train")] == [4, 4, 4]


@pytest.mark.parametrize(
    ("clients", "fraction", "count"),
    [(10, 0.1, 1), (10, 0.001, 1), (10, 1.0, 10), (100, 0.1, 10), (24, 0.5, 12)],
)
def test_number_of_participants(clients, fraction, count):
    assert participants(Config.of(composed([f"participation={fraction}"])), clients) == count


def test_metrics_say_what_was_sent(tmp_path):
    summary = run(tmp_path / "a", "evaluate_every=0")
    trains, evals = metrics(tmp_path / "a", "train"), metrics(tmp_path / "a", "eval")
    assert [line["round"] for line in trains] == [1, 2, 3] and [
        line["round"] for line in evals
    ] == [0, 3]
    prompt = 4 * 32 * 8
    for line in trains:
        assert line["clients"] == 4 and 4 * prompt < line["bytes_up"] < 4 * prompt + 4 * 256
        assert 4 * prompt < line["bytes_down"] < 4 * prompt + 4 * 256
    assert summary["bytes_up"] == sum(line["bytes_up"] for line in trains + evals)
    assert summary["bytes_down"] == sum(line["bytes_down"] for line in trains + evals)


@pytest.mark.parametrize("method", ["promptfl", "coop", "zero_shot"])
def test_other_methods(tmp_path, method):
    summary = run(tmp_path / "a", f"method={method}", "rounds=2")
    assert summary["status"] == "finished"
    assert (summary["accuracy"]["global"] is None) == (method == "coop")
    assert (
        summary["accuracy"]["personal"]["local"] is not None
        and summary["accuracy"]["zero_shot"]["local"] is not None
    )
    assert len(metrics(tmp_path / "a", "train")) == (0 if method == "zero_shot" else 2)


@pytest.mark.parametrize("strategy", ["fedadam", "fedavgm"])
def test_momentum_survives_a_restart(tmp_path, strategy):
    """Stopped in round 3 and resumed: the same as never stopped, to the bit."""
    common = (
        "participation=1",
        f"strategy={strategy}",
        "evaluate_every=0",
        "runtime.min_clients=6",
    )
    run(tmp_path / "whole", *common)
    marker = tmp_path / "mended"
    with pytest.raises(FedPGPError):
        run(tmp_path / "parts", *common, faults={"raise": [1], "round": 3, "until": str(marker)})
    marker.touch()
    resume(tmp_path / "parts", federation_of=small_federation)
    same_tensors(tmp_path / "whole", tmp_path / "parts")


def test_a_strategy_that_needs_more_clients_is_refused(tmp_path):
    with pytest.raises(FedPGPError, match="strategy=bulyan needs 7 clients in a round; .* give 4"):
        run(tmp_path / "a", "strategy=bulyan")
    with pytest.raises(FedPGPError, match="runtime.min_clients=5 is more than the 4 clients"):
        run(tmp_path / "a", "runtime.min_clients=5")
    assert not (tmp_path / "a").exists()  # the name is free for the next try
