"""Whole runs over tasks that come one after the other, from the protocol to the run's folder."""

import json
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from experiments.runner import resume, start
from fedpgp.attacks import poisoned
from fedpgp.errors import FedPGPError
from fedpgp.evaluation.lifelong import lifelong_figures
from fedpgp.methods import PHASE
from fedpgp.protocols import SplitRequest, split_clients
from strategies.checkpoint import checkpoints, read_checkpoint
from tests.experiments.test_resume import results
from tests.helpers.small import CLASSES, small_config, small_federation

ROOT = Path(__file__).resolve().parents[2]
TASKS = [["cat", "airplane"], ["clover", "tea cup"], ["golden retriever", "swimming pool"]]
MODELS = ("zero_shot", "global", "personal")


def federation(text: str, seen: dict | None = None, kill: int = 0):
    """The small federation, split by the configuration's protocol.

    Args:
        text: the configuration.
        seen: (round, client) -> phase that the method is told; filled as it trains.
        kill: a round in which the process is killed.
    """
    config, made = json.loads(text), small_federation(text)
    request = SplitRequest(made.dataset, config["clients"], config["seed"], None, {"scheme": "iid"})
    made.federated_split = poisoned(config, split_clients(request, config["protocol"]))
    made.federated_split.check_rounds(config["rounds"])
    plain = made.method

    class Told(type(plain)):
        def gradients(self, params, batch, classes, step):
            if step.server_round == kill:
                os.kill(os.getpid(), signal.SIGKILL)
            for client, phase in zip(step.clients, params[PHASE].tolist(), strict=True):
                seen[step.server_round, client] = phase
            return super().gradients(params, batch, classes, step)

    if seen is not None:
        made.method = Told(plain.settings, plain.task)  # before any part is made of it
        made.method.buffers = (*made.method.buffers, PHASE)
    return made


def config_of(run_dir, *overrides: str) -> dict:
    words = ["rounds=6", "participation=1", "method=fedpgp", "evaluate_every=0", *overrides]
    config = small_config(run_dir, "protocol=lifelong", *words)
    config["protocol"] |= {"rounds_per_task": 2, "tasks": config["protocol"]["tasks"] or TASKS}
    return config


def evaluations(run_dir) -> list[dict]:
    rows = map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines())
    return [row for row in rows if row["kind"] == "eval"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """(folder, phases that the method was told) of a run whose clients switch at different
    rounds."""
    run_dir, seen = tmp_path_factory.mktemp("lifelong") / "run", {}
    config = config_of(run_dir, "protocol.arrival=staggered")
    start(config, federation_of=partial(federation, seen=seen))
    return run_dir, seen


def test_an_evaluation_follows_every_task_whatever_evaluate_every_is(whole):
    run_dir, _ = whole
    records = evaluations(run_dir)
    assert [record["round"] for record in records] == [0, 2, 4, 6]
    assert [record.get("task") for record in records] == [None, 1, 2, 3]
    lifelong = json.loads((run_dir / "summary.json").read_text())["lifelong"]
    for model in MODELS:
        matrix = [record["tasks"][model] for record in records[1:]]
        assert lifelong[model] == lifelong_figures(matrix)
        assert np.shape(matrix) == (3, 3)


def test_the_last_row_is_the_accuracy_of_the_last_models_on_each_task(whole):
    run_dir, _ = whole
    config = config_of(run_dir, "protocol.arrival=staggered")
    made = federation(json.dumps(config))
    tensors, _ = read_checkpoint(checkpoints(run_dir / "checkpoint")[-1])
    shared = {
        name.removeprefix("shared/"): torch.as_tensor(tensor).unsqueeze(0)
        for name, tensor in tensors.items()
        if name.startswith("shared/")
    }
    classes, test = made.method.task.class_set(tuple(range(6))), made.dataset.test
    features = torch.as_tensor(made.inputs.features("test"))
    with torch.no_grad():
        text = made.method.global_classifier(shared, classes)[0]
    right = {
        "global": ((features @ text.T).argmax(1).numpy() == test.labels),
        "zero_shot": ((features @ classes.zero_shot.T).argmax(1).numpy() == test.labels),
    }
    lifelong = json.loads((run_dir / "summary.json").read_text())["lifelong"]
    for model, hits in right.items():
        for task, names in enumerate(TASKS):
            own = [CLASSES.index(name) for name in names]
            of_clients = [
                100 * hits[client.test[np.isin(test.labels[client.test], own)]].mean()
                for client in made.federated_split.clients
            ]
            assert lifelong[model]["matrix"][-1][task] == pytest.approx(np.mean(of_clients))


def test_a_method_is_told_the_phase_of_each_client(whole):
    run_dir, seen = whole
    split = federation(json.dumps(config_of(run_dir, "protocol.arrival=staggered"))).federated_split
    assert len(seen) == 36
    for (server_round, client), phase in seen.items():
        assert phase == split.clients[client].phase_at(server_round)
    assert {phase for (server_round, _), phase in seen.items() if server_round == 5} == {1, 2}


def test_a_run_killed_in_the_middle_of_a_task_resumes_to_the_same_numbers(whole, tmp_path):
    code = "import sys; from tests.strategies.test_lifelong import main; main(sys.argv[1])"
    process = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "run")], cwd=ROOT, capture_output=True
    )
    assert process.returncode == -signal.SIGKILL, process.stderr.decode()
    assert evaluations(tmp_path / "run")[-1]["task"] == 1
    resume(tmp_path / "run", federation_of=partial(federation, seen={}))
    assert results(tmp_path / "run") == results(whole[0])
    before, after = (
        json.loads((folder / "summary.json").read_text())["lifelong"]
        for folder in (whole[0], tmp_path / "run")
    )
    assert before == after


def main(run_dir: str) -> None:
    """A run that is killed in round 4, the second of task 2."""
    config = config_of(run_dir, "protocol.arrival=staggered")
    start(config, federation_of=partial(federation, seen={}, kill=4))


def test_clients_without_a_task_and_clients_that_leave(tmp_path):
    config = config_of(tmp_path / "run", "protocol.leaving=0.34", "protocol.absent=0.2")
    start(config, federation_of=federation)
    split = federation(json.dumps(config)).federated_split
    lines = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    for line in lines:
        if line["kind"] == "train":
            here = [c for c in split.clients if len(c.train_at(line["round"]))]
            assert line["clients"] == len(here) and line["dropped"] == []
    lifelong = json.loads((tmp_path / "run" / "summary.json").read_text())["lifelong"]
    assert np.isfinite(np.array(lifelong["personal"]["matrix"], dtype=float)).all()
    # A client that has left is in no mean of zero-shot CLIP either, whose figures are kept.
    left = {i for i, c in enumerate(split.clients) if "local" not in c.eval_sets_at(6)}
    assert left
    rows = (tmp_path / "run" / "clients.csv").read_text().splitlines()[1:]
    assert left.isdisjoint(int(row.split(",")[0]) for row in rows)


def test_all_tasks_at_once(tmp_path):
    config = config_of(tmp_path / "run", "protocol.arrival=joint", "method=promptfl")
    seen: dict = {}
    start(config, federation_of=partial(federation, seen=seen))
    assert set(seen.values()) == {0}
    found = json.loads((tmp_path / "run" / "summary.json").read_text())["lifelong"]
    assert found["personal"] == found["global"]


@pytest.mark.parametrize(
    "words",
    [
        ["privacy=client", "privacy.clip=0.1", "privacy.seeded_noise=true", "method=promptfl"],
        ["attack=label_flip", "strategy=fedmedian"],
    ],
    ids=["privacy", "attack"],
)
def test_it_goes_with_privacy_and_with_attacks(tmp_path, words):
    start(config_of(tmp_path / "run", *words), federation_of=federation)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert np.shape(summary["lifelong"]["global"]["matrix"]) == (3, 3)
    if "privacy=client" in words:
        assert summary["privacy"]["rounds"] == 6
    else:
        assert summary["attack"]["clients"]


def test_a_target_that_comes_later_is_refused_with_the_reason(tmp_path):
    words = ["attack=backdoor", "attack.target='swimming pool'"]
    with pytest.raises(FedPGPError, match="does not train this class in every round"):
        start(config_of(tmp_path / "run", *words), federation_of=federation)


def test_rounds_that_do_not_fit_are_refused_before_anything_is_done(tmp_path):
    with pytest.raises(FedPGPError, match="rounds=5: 3 tasks of 2 rounds take rounds=6"):
        start(config_of(tmp_path / "run", "rounds=5"), federation_of=federation)
    assert not (tmp_path / "run").exists()
