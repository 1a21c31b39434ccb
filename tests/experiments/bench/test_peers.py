"""All sides of the comparison train the same: the textbook learner, Flower's and pfl's programs
against this project."""

import importlib.util
import sys

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from PIL import Image

from experiments.bench.__main__ import main
from experiments.bench.measure import relative
from experiments.bench.peers import compare, plain_flower
from experiments.bench.peers.learner import PromptLearner, train_one_round
from experiments.bench.peers.problem import Problem
from experiments.bench.peers.watched import Watched, watch
from experiments.settings import composed
from fedpgp.build import build_federation
from fedpgp.errors import FedPGPError


@pytest.fixture(scope="module")
def overrides(tmp_path_factory):
    """Two clients with four images of each of three classes, which are noise."""
    root, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for split, images in (("train", 8), ("test", 2)):
        for name in ("cat", "dog", "tea cup"):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(images):
                pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png")
    few = ["clients=2", "rounds=2", "batch_size=5", "local_epochs=1", "device=cpu"]
    return [*few, "dataset=folder", f"dataset.root={root}", "partition=iid", "protocol=personal"]


@pytest.fixture(scope="module", params=compare.METHODS)
def case(request, overrides, tmp_path_factory):
    """A federation, and its problem as another process reads it, in a folder."""
    folder = tmp_path_factory.mktemp("problem")
    named = [f"method={request.param}", "runtime=inline", f"runtime.cache_dir={folder}"]
    config = composed([*overrides, *named])
    Problem.of(config, workers=1, threads=1).save(folder)
    return build_federation(config), folder


def ours(federation, server_round, shared, states):
    """Client -> loss, update and private tensors of a round by this project."""
    results = federation.train(shared, [0, 1], server_round, states.get)
    return {r.client: (r.metrics["loss"], r.update, r.state) for r in results}


def test_the_textbook_learner_trains_the_same(case):
    federation, folder = case
    problem = Problem.load(folder)
    learner, shared = PromptLearner(problem), federation.models.initial_shared()
    expected = ours(federation, 1, shared, {})
    for client, data in enumerate(problem.clients):
        learner.load_state_dict(problem.shared | problem.personal)
        loss, update, state = expected[client]
        assert len(data) == 12 and data.order.shape == (2, 3, 5)
        assert train_one_round(learner, data, 1) == pytest.approx(loss, rel=1e-5)
        trained = learner.state_dict()
        assert trained.keys() == update.keys() | state.keys()
        for name, tensor in trained.items():
            reference = torch.as_tensor(update[name] if name in update else state[name])
            assert relative(tensor, reference) < 1e-4, name
            assert not torch.equal(tensor, (problem.shared | problem.personal)[name]), name


def test_flowers_app_keeps_a_clients_private_tensors(case):
    """Two rounds of a client, each from the same global tensors."""
    TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = 1, 1, 1
    federation, folder = case
    shared = federation.models.initial_shared()
    context = Context(1, 1, {"partition-id": 1}, RecordDict(), {})
    states: dict[int, dict] = {}
    for server_round in (1, 2):
        content = {
            "arrays": ArrayRecord({n: torch.from_numpy(a) for n, a in shared.items()}),
            "config": ConfigRecord({"folder": str(folder), "server-round": server_round}),
        }
        message = Message(RecordDict(content), dst_node_id=1, message_type="train")
        reply = plain_flower.client_app(message, context)
        expected = ours(federation, server_round, shared, states)
        loss, update, _ = expected[1]
        assert reply.content["metrics"]["loss"] == pytest.approx(loss, rel=1e-5)
        assert reply.content["metrics"]["num-examples"] == 12
        sent = reply.content["arrays"].to_torch_state_dict()
        assert sent.keys() == update.keys()
        assert relative(sent["p_G"], torch.from_numpy(update["p_G"])) < 1e-4
        states = {client: state for client, (_, _, state) in expected.items()}


def test_the_other_methods_and_devices_are_refused(monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    for options, said in (
        (["--rounds", "1"], "--rounds 1: the first round is start-up; take 2 or more"),
        (["--device", "cuda"], "--device cuda: peers are compared on the CPU"),
        (["--methods", "cocoop"], "--methods cocoop: peers have promptfl and fedpgp alone"),
    ):
        assert main(["peers", *options]) == 2
        assert capsys.readouterr().err == f"error: {said}\n"


def test_without_pfl_the_extra_is_named(monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["peers"]) == 2
    said = "error: peers needs the package pfl: pip install 'fedpgp[bench-peers]'\n"
    assert capsys.readouterr().err == said


def test_a_command_is_watched_to_its_end(tmp_path):
    (tmp_path / "side").mkdir()
    file = tmp_path / "side" / "lines.jsonl"
    code = f"open({str(file)!r}, 'w').write('{{\"round\": 1}}\\n{{\"round\": 2}}\\n')"
    watched = watch([sys.executable, "-c", code], file, {})
    assert watched.records == [{"round": 1}, {"round": 2}]
    assert len(watched.seconds) == 2 and watched.peak_mb > 0
    with pytest.raises(FedPGPError, match="failed:\n(.|\n)*no such thing"):
        watch([sys.executable, "-c", "raise SystemExit('no such thing')"], file, {})


def test_start_up_is_what_comes_before_a_usual_round(case):
    problem = Problem.load(case[1])
    records = [
        {"kind": "eval", "round": 0, "seconds": 2.0},
        {"kind": "train", "round": 1, "loss": 3.0},
        {"kind": "train", "round": 2, "loss": 2.0},
    ]
    losses, row = compare.figures(Watched(records, [7.0, 10.0, 14.0], 100.0), problem)
    assert losses == [3.0, 2.0] and row["round_seconds"] == 4 and row["clients_per_second"] == 0.5
    assert row["start_seconds"] == 10 - 4 - 2 and row["peak_mb"] == 100
    with pytest.raises(FedPGPError, match="of 2 rounds 1 were recorded"):
        compare.figures(Watched(records[:2], [7.0, 10.0], 100.0), problem)


@pytest.mark.slow
@pytest.mark.parametrize("method", compare.METHODS)
def test_a_plain_flower_simulation_trains_the_same(method, overrides, tmp_path):
    sides = (compare.OURS, compare.FLOWER)
    first, second = compare.compared(sides, [f"method={method}", *overrides], 1, tmp_path)
    assert (first["what"], second["what"]) == ("this project", "flower")
    assert second["loss_difference"] < 1e-5 and second["prompt_difference"] < 1e-4
    assert second["peak_mb"] > 100 and second["start_seconds"] > 0


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("pfl") is None,
    reason="the package pfl is not installed: pip install 'fedpgp[bench-peers]'",
)
@pytest.mark.parametrize("method", compare.METHODS)
@pytest.mark.parametrize("workers", [0, 2])
def test_pfl_research_trains_the_same(method, workers, overrides, tmp_path):
    sides = (compare.OURS, compare.PFL)
    _, row = compare.compared(sides, [f"method={method}", *overrides], workers, tmp_path)
    assert row["what"] == "pfl" and row["processes"] == max(1, workers)
    assert row["loss_difference"] < 1e-5 and row["prompt_difference"] < 1e-4
