"""Runs with attackers, end to end: what they send, whose figures count, what is said of it."""

import csv
import json
import signal
from pathlib import Path

import numpy as np
import pytest

from experiments.runner import resume, start
from fedpgp.attacks import ATTACKS
from fedpgp.build import check_config
from fedpgp.errors import FedPGPError
from fedpgp.evaluation import summarize
from strategies import strategy_requests
from strategies.checkpoint import checkpoints, read_checkpoint
from tests.experiments.test_resume import launch, mend
from tests.helpers.small import small_config, small_federation

COMMON = ("rounds=2", "participation=1", "method=promptfl", "attack.share=0.3")
ATTACKERS = (0, 3)
"""Of six clients, drawn from seed 0."""


def run(folder: Path, *overrides: str, faults: dict | None = None) -> dict:
    config = small_config(folder, *overrides, faults=faults)
    check_config(config)
    return start(config, federation_of=small_federation)


def lines(folder: Path, kind: str) -> list[dict]:
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in found if line["kind"] == kind]


def tensors(folder: Path, server_round: int = -1) -> dict[str, np.ndarray]:
    return read_checkpoint(checkpoints(folder / "checkpoint")[server_round])[0]


def same(one: Path, other: Path) -> None:
    first, second = tensors(one), tensors(other)
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        np.testing.assert_array_equal(second[name], tensor, err_msg=name)


@pytest.fixture
def round_updates(monkeypatch) -> list[dict]:
    """For each round what the server screens: client -> tensors."""
    seen, collude = [], strategy_requests.collude

    def watch(attackers, good, *args):
        collude(attackers, good, *args)
        seen.append(
            {c: {n: a.numpy() for n, a in m.content["arrays"].items()} for c, m in good.items()}
        )

    monkeypatch.setattr(strategy_requests, "collude", watch)
    return seen


def test_no_attack_is_a_run_as_before(tmp_path, round_updates):
    run(tmp_path / "a", "rounds=2", "attack=none")
    config = small_config(tmp_path / "b", "rounds=2")
    del config["attack"]  # of a version without attacks
    start(config, federation_of=small_federation)
    same(tmp_path / "a", tmp_path / "b")
    for folder in ("a", "b"):
        assert json.loads((tmp_path / folder / "summary.json").read_text())["attack"] is None
        assert all("success_rate" not in line for line in lines(tmp_path / folder, "eval"))


@pytest.mark.parametrize("method", ["promptfl", "scaffold"])
@pytest.mark.parametrize("name", list(ATTACKS))
def test_every_attack(tmp_path, capsys, round_updates, name, method):
    """Honest clients' first updates are those of a run without an attack; attackers' are not."""
    common = (*COMMON[:2], f"method={method}")
    run(tmp_path / "honest", *common)
    honest = round_updates[0]
    round_updates.clear()
    summary = run(tmp_path / "run", *common, f"attack={name}", "attack.share=0.3")
    first = round_updates[0]
    for client, update in first.items():
        for key, tensor in update.items():
            if client not in ATTACKERS:
                np.testing.assert_allclose(tensor, honest[client][key], rtol=1e-9, atol=1e-12)
    for client in ATTACKERS:
        assert any(not np.allclose(first[client][k], honest[client][k]) for k in first[client])
    said = capsys.readouterr().out
    assert f"attack={name} by 2 of 6 clients (0, 3); the figures are of the others" in said
    assert summary["attack"].items() >= {"name": name, "share": 0.3, "clients": [0, 3]}.items()
    assert (summary["attack"]["success_rate"] is None) == (name != "backdoor")
    page = (tmp_path / "run" / "report.html").read_text()
    assert f"{name} by 2 of 6 clients" in page
    assert "Of 4 of 6 clients: the others attack, or did not answer" in page


@pytest.mark.parametrize("name", ["alie", "ipm", "min_max"])
def test_colluding_attackers_send_alike(tmp_path, round_updates, name):
    run(tmp_path / "run", *COMMON, f"attack={name}", "attack.share=0.3")
    for updates in round_updates:
        np.testing.assert_array_equal(*(updates[client]["p_G"] for client in ATTACKERS))
        others = [updates[client]["p_G"] for client in updates if client not in ATTACKERS]
        assert len({other.tobytes() for other in others}) == 4


def test_figures_are_of_honest_clients(tmp_path):
    summary = run(tmp_path / "run", *COMMON, "attack=backdoor", "attack.share=0.3")
    rows = list(csv.DictReader((tmp_path / "run" / "clients.csv").open()))
    assert {int(row["id"]) for row in rows} == set(range(6))
    honest = [row for row in rows if int(row["id"]) not in ATTACKERS]
    for model, block in summary["accuracy"].items():
        own = [float(row["local"]) for row in honest if row["model"] == model]
        np.testing.assert_allclose(block["local"], np.mean(own))
    last = lines(tmp_path / "run", "eval")[-1]
    assert (last["clients"], last["all_clients"]) == (4, 6) == (summary["evaluated_clients"], 6)
    assert last["success_rate"] == summary["attack"]["success_rate"]
    assert summarize([])["personal"] is None


def test_the_rate_of_success_is_that_of_the_patched_images(tmp_path):
    """Asked of the federation itself: how many of the honest clients' patched images of other
    classes are called the target class."""
    words = (*COMMON, "attack=backdoor", "attack.share=0.3", "attack.target=clover")
    summary = run(tmp_path / "run", *words)
    config = small_config(tmp_path / "run", *words)
    federation = small_federation(json.dumps(config))
    shared = {"p_G": tensors(tmp_path / "run")["shared/p_G"]}
    labels, task = federation.dataset.test.labels, federation.method.task
    classes = task.class_set(range(6))
    texts = federation.models.global_classifier(shared, classes)[0]
    features = federation.inputs.features("test")
    rates = []
    for client in set(range(6)) - set(ATTACKERS):
        local = federation.federated_split.clients[client].eval_sets["local"].indices
        patched = [
            row
            for row in range(36, len(labels))
            if federation.dataset.test.parts[1].split.rows[row - 36] in local
        ]
        assert len(patched) == sum(labels[row] != 3 for row in local)
        answers = (features[patched] @ texts.T).argmax(-1)
        rates.append(100 * float((answers == 3).double().mean()))
    rate = summary["attack"]["success_rate"]
    np.testing.assert_allclose(rate["global"], np.mean(rates), rtol=1e-9)
    assert rate["personal"] == rate["global"] and 0 <= rate["zero_shot"] <= 100


def test_one_attacker_under_plain_fedavg(tmp_path):
    """Beyond strategy.max_update_norm the server leaves it out, and the run is as if it had not
    answered; below it does not."""
    words = (*COMMON[:3], "attack=sign_flip", "attack.share=0.1", "evaluate_every=0")
    summary = run(tmp_path / "a", *words, "attack.scale=1000")
    (attacker,) = summary["attack"]["clients"]
    for line in lines(tmp_path / "a", "train"):
        (entry,) = line["dropped"]
        assert entry["client"] == attacker and "strategy.max_update_norm=20" in entry["reason"]
    run(tmp_path / "b", *COMMON[:3], "evaluate_every=0", faults={"raise": [attacker]})
    np.testing.assert_allclose(
        tensors(tmp_path / "a")["shared/p_G"], tensors(tmp_path / "b")["shared/p_G"], rtol=1e-9
    )
    run(tmp_path / "c", *words, "attack.scale=2")
    assert all(line["dropped"] == [] for line in lines(tmp_path / "c", "train"))


@pytest.mark.parametrize("name", ["noise", "min_max", "backdoor"])
def test_workers_change_nothing(tmp_path, name):
    """Clients trained one by one, as on as many nodes."""
    words = (*COMMON, f"attack={name}", "attack.share=0.3")
    run(tmp_path / "a", *words)
    run(tmp_path / "b", *words, "runtime.cohort_size=1")
    one, other = (tensors(tmp_path / folder)["shared/p_G"] for folder in "ab")
    np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-12)


def test_a_killed_run_resumes_to_the_same_numbers(tmp_path):
    words = ["method=promptfl", "attack=noise", "attack.share=0.3", "rounds=3"]
    process = launch("start", tmp_path / "a", *words, faults={"kill_server_at": 2})
    process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL
    mend(tmp_path / "a")
    resume(tmp_path / "a", federation_of=small_federation)
    run(tmp_path / "b", *words)
    one, other = (tensors(tmp_path / folder)["shared/p_G"] for folder in "ab")
    np.testing.assert_array_equal(one, other)
    keys = ("attack", "accuracy")
    first, second = (
        json.loads((tmp_path / folder / "summary.json").read_text()) for folder in "ab"
    )
    assert [first[key] for key in keys] == [second[key] for key in keys]


def test_a_deployment_refuses_attacks(tmp_path):
    with pytest.raises(FedPGPError, match="attack=ipm is for a simulation"):
        check_config(small_config(tmp_path / "run", "runtime=flower", "attack=ipm"))
