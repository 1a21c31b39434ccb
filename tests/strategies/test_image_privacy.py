"""``privacy=image`` from end to end: what goes with it, the account of a run that is killed, rolled
back or out of budget."""

import csv
import json

import numpy as np
import pytest

from experiments.runner import resume, start
from fedpgp.errors import FedPGPError
from fedpgp.updates.image_privacy import ImagePrivacy, ImagePrivacySettings
from strategies.aggregator import Aggregator
from strategies.connected_clients import ConnectedClients
from tests.helpers.small import small_config, small_federation

PRIVATE = ("privacy=image", "privacy.clip=0.5", "participation=1.0")
SHORT = (*PRIVATE, "rounds=2", "evaluate_every=0", "clients=3")


def run(folder, *overrides: str, **faults) -> dict:
    config = small_config(folder, *overrides, **faults)
    return start(config, federation_of=small_federation)


def trained(folder) -> list[dict]:
    lines = (json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["kind"] == "train"]


@pytest.mark.parametrize("method", ["fedpgp", "coop", "scaffold", "pfedmoap", "vpt"])
def test_a_run_says_what_its_clients_spent(method, tmp_path):
    """With personal tensors, with nothing shared, with a server of its own, inside a tower."""
    summary = run(tmp_path / "run", *SHORT, f"method={method}")
    assert summary["privacy"]["unit"] == "image" and summary["privacy"]["epsilon"] > 0
    assert trained(tmp_path / "run")[-1]["updates"]["image"]["epsilon"] > 0


@pytest.mark.parametrize(
    ("overrides", "why"),
    [
        (["method=fedtpg"], "method=fedtpg"),
        (["method=fedclip"], "method.loss=contrastive"),
        (["method=dp_fpl", "method.epsilon=1"], "method.epsilon"),
        (["method=fedpgp", "method.personal=lora_sb"], "method.personal=lora_sb"),
        (["attack=alie"], "attack=alie"),
        (["protocol=unseen_clients", "protocol.adapt_epochs=1"], "protocol.adapt_epochs"),
    ],
)
def test_what_is_not_in_the_account_is_refused(overrides, why, tmp_path):
    with pytest.raises(FedPGPError, match=f"does not go with {why}"):
        run(tmp_path / "run", *SHORT, *overrides)


@pytest.mark.parametrize("method", ["fedpgp", "coop"])
def test_a_run_killed_behind_its_clients_spends_a_round_once(method, tmp_path, monkeypatch):
    """The clients have trained, and nobody knows: asked again, they release what they have."""
    overrides = (*PRIVATE, f"method={method}", "clients=3", "evaluate_every=0")
    whole = run(tmp_path / "whole", *overrides)
    aggregate, losses = Aggregator.aggregate, []

    def killed(self, strategy, state, server_round, answered):
        if server_round == 2:
            good = answered.good
            losses.append([good[c].content["metrics"]["loss"] for c in sorted(good)])
            if len(losses) == 1:
                raise KeyboardInterrupt
        return aggregate(self, strategy, state, server_round, answered)

    monkeypatch.setattr(Aggregator, "aggregate", killed)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed", *overrides)
    again = resume(tmp_path / "killed", federation_of=small_federation)
    assert losses[0] == losses[1]  # noise of its own would have given others
    assert again["privacy"] == whole["privacy"]


def test_an_account_that_cannot_be_read_leaves_the_summary(tmp_path, monkeypatch, capsys):
    overrides = (*SHORT, "method=fedpgp")
    whole = run(tmp_path / "whole", *overrides)
    ask = ConnectedClients.ask_samples

    def damaged(self, state):
        path = next((tmp_path / "run" / "private").glob("client_00001/*.safetensors"))
        path.write_bytes(b"damaged")
        return ask(self, state)

    monkeypatch.setattr(ConnectedClients, "ask_samples", damaged)
    summary = run(tmp_path / "run", *overrides)
    assert summary["status"] == "finished" and summary["privacy"] == whole["privacy"]
    assert json.loads((tmp_path / "run" / "summary.json").read_text()) == summary
    said = " ".join(capsys.readouterr().out.split())
    assert "private state of client 1 cannot be read" in said and "there is no privacy.csv" in said
    assert not (tmp_path / "run" / "privacy.csv").exists()


def test_a_seeded_run_is_the_same_again_and_says_so(tmp_path, capsys):
    overrides = (*SHORT, "method=fedpgp", "privacy.seeded_noise=true", "privacy.epsilon=4")
    one, other = (run(tmp_path / name, *overrides) for name in ("one", "other"))
    assert one["accuracy"] == other["accuracy"] and one["privacy"] == other["privacy"]
    assert one["privacy"]["seeded"] and one["privacy"]["epsilon"] <= 4
    assert "who knows the seed takes the noise off again" in " ".join(
        capsys.readouterr().out.split()
    )


def test_a_client_whose_budget_is_spent_trains_no_more(tmp_path):
    """Clients of 3 to 6 images in batches of 4: those of two steps a round end first."""
    overrides = (*PRIVATE, "method=promptfl", "evaluate_every=0", "clients=4", "rounds=6")
    summary = run(tmp_path / "run", *overrides, "privacy.noise=2", "privacy.max_epsilon=2")
    assert [line["clients"] for line in trained(tmp_path / "run")] == [4, 4, 2]
    assert "epsilon of every client larger than 2" in summary["stopped"]
    assert 1.8 < summary["privacy"]["epsilon"] <= 2 and summary["status"] == "finished"
    assert summary["accuracy"]["global"]["local"] is not None


def test_what_a_lost_round_spent_is_not_forgotten():
    step = ImagePrivacy(ImagePrivacySettings())
    before = {"accounts": np.array([[1, 0.1, 1, 0.5, 10, 0], [np.nan] * 6])}
    lost = {"accounts": np.array([[2, 0.1, 1, 0.5, 20, 0], [1, 0.1, 1, 0.5, 5, 0]])}
    np.testing.assert_array_equal(step.after_rollback(lost, before)["accounts"], lost["accounts"])
    np.testing.assert_array_equal(step.after_rollback({}, before)["accounts"], before["accounts"])
    assert step.privacy(lost, 2)["epsilon"] == 2


def test_a_round_whose_reply_was_left_out_was_spent_all_the_same(tmp_path):
    """Client 0, with the fewest images, counts in no average; its account is the largest."""
    overrides = (*PRIVATE, "rounds=2", "evaluate_every=0", "clients=3", "method=promptfl")
    whole = run(tmp_path / "whole", *overrides)
    summary = run(tmp_path / "run", *overrides, faults={"inf_update": [0], "round": 2})
    assert [entry["client"] for entry in trained(tmp_path / "run")[-1]["dropped"]] == [0]
    assert summary["privacy"] == whole["privacy"]
    tables = [(tmp_path / name / "privacy.csv").read_text() for name in ("whole", "run")]
    assert tables[0] == tables[1]
    with open(tmp_path / "run" / "privacy.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["id"] for row in rows] == ["0", "1", "2"]
    assert summary["privacy"]["epsilon"] == max(float(row["epsilon"]) for row in rows)
