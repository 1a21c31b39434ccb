"""The audit of a small federation: every part, and an accountant who is lied to."""

import json
from functools import partial

import numpy as np
import pytest

import fedpgp.updates.client_privacy as client_privacy
from experiments import audit as command
from experiments.auditing import updates
from experiments.auditing.canaries import canaries
from experiments.auditing.membership import clients, images
from experiments.auditing.updates import classes, features
from experiments.auditing.victim import NotTried, Victim
from experiments.quiet import quiet
from experiments.runner import start
from fedpgp.errors import FedPGPError
from tests.helpers.small import small_config, small_federation


def victim(*overrides: str) -> Victim:
    config = small_config("unused", "evaluate_every=0", "evaluate_clients=1", *overrides)

    def build(config, split):
        federation = small_federation(json.dumps({**config, "attack": {"name": "none"}}))
        federation.federated_split = split
        return federation

    quiet(False)
    split = small_federation(json.dumps(config)).federated_split
    return Victim(config, split, 0, lambda done, total, what: None, build)


PRIVATE = ("method=promptfl", "clients=20", "rounds=1", "participation=1", "privacy=client")
CLAIM = 1.0


def bound(*overrides: str) -> dict:
    about = {"privacy": {"delta": 1e-3}}
    attacked = victim(*PRIVATE, f"privacy.epsilon={CLAIM}", "privacy.delta=1e-3", *overrides)
    return canaries(attacked, 8, about)


def test_the_bound_stays_below_the_claim_and_exceeds_it_without_the_noise(monkeypatch):
    """Nobody tells the accountant that the noise is off."""
    honest = bound()
    assert honest["canaries"] == 80 and honest["epsilon"] < CLAIM < honest["limit"]
    monkeypatch.setattr(client_privacy, "standard_normal", lambda shape, rng: np.zeros(shape))
    caught = bound()
    assert caught["epsilon"] > CLAIM and caught["right"] > 0.9 * caught["guesses"]


@pytest.fixture(scope="module")
def plain() -> Victim:
    return victim("method=fedpgp", "rounds=2", "participation=1", "lr=0.3")


def test_images_are_told_by_what_each_attacker_sees(plain):
    found = images(plain, 8)
    assert set(found) == {"global", "server", "personal"}
    for figures in found.values():
        assert 0 <= figures["auc"] <= 1 and figures["targets"] > 50
    assert found["server"]["auc"] > 0.6 and found["personal"]["auc"] > 0.6


def test_clients_are_told_by_the_global_prompt(plain):
    found = clients(plain, 8)
    assert set(found) == {"global"} and found["global"]["targets"] > 20


def test_one_update_tells_classes_and_features(plain, monkeypatch):
    monkeypatch.setattr(updates, "INVERTED", 2)
    assert classes(plain)["auc"] > 0.6
    found = features(plain)
    assert found["one_image"]["cosine"] > found["one_image"]["guess"] + 0.05
    assert found["update"]["targets"] >= 2


def test_what_there_is_nothing_of_is_not_tried():
    alone = victim("method=coop", "rounds=1")
    for part in (partial(canaries, alone, 1, {}), partial(clients, alone, 4)):
        with pytest.raises(NotTried, match="shares"):
            part()
    with pytest.raises(NotTried, match="shares no model"):
        classes(alone)
    several = victim("method=plot", "rounds=1")
    with pytest.raises(NotTried, match="more than one feature a class"):
        features(several)
    assert set(images(alone, 4)) == {"personal"}


@pytest.mark.parametrize(
    ("overrides", "said"),
    [(("attack=noise", "rounds=1"), "was attacked already"), ((), "--shadows")],
)
def test_what_cannot_be_audited_is_refused(tmp_path, overrides, said):
    start(small_config(tmp_path, "rounds=1", *overrides), federation_of=small_federation)
    with pytest.raises(FedPGPError, match=said):
        command.audit(tmp_path, shadows=16 if overrides else 2)


@pytest.mark.slow
def test_the_command_audits_a_run_of_the_embedded_federation(tmp_path, capsys):
    from experiments.settings import composed

    words = ["method=promptfl", "recipe=short", "runtime=inline", "rounds=2", "privacy=client"]
    start(composed([*words, f"run_dir={tmp_path}/run", "privacy.epsilon=8"]))
    capsys.readouterr()
    target = tmp_path / "audit.json"
    about = ["--shadows", "4", "--canary-runs", "3", "--json", str(target)]
    assert command.main(["--run", str(tmp_path / "run"), *about]) == 0
    said, found = capsys.readouterr().out, json.loads(target.read_text())
    assert "epsilon at least" in said and "The run claims epsilon 8 " in said
    assert found["privacy"]["epsilon"] == pytest.approx(8, abs=0.01)
    assert found["canaries"]["epsilon"] < 8 and not found["left_out"]
    assert {"images", "clients", "classes", "features"} <= set(found)


CLAIMS = {
    "claims no differential privacy": None,
    "claims epsilon 4 at delta 0.001, of each image": ("image", 4.0, 1e-3, 2.0),
    "adds no noise": ("client", None, 1e-3, 0.0),
    "adds noise whose epsilon is not accounted": ("none", None, None, 1.5),  # dp_fpl's own
}


@pytest.mark.parametrize("said", CLAIMS)
def test_what_a_run_claims_is_said(said, capsys):
    """A run without an epsilon may add noise all the same."""
    keys = ("unit", "epsilon", "delta", "noise_multiplier")
    claim = CLAIMS[said] and dict(zip(keys, CLAIMS[said], strict=True))
    command._print({"left_out": {}, "privacy": claim})
    assert f"{said}." in " ".join(capsys.readouterr().out.split())
