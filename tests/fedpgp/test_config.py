"""The typed configuration: made of a mapping, checked, and tolerant of older runs."""

import dataclasses

import pytest

from experiments.settings import composed
from fedpgp.config import Config, RuntimeSection, TrainingSection
from fedpgp.errors import FedPGPError

CONFIG = composed(["runtime=inline"])


def changed(key: str, value: object) -> dict:
    group, _, name = key.rpartition(".")
    if not group:
        return {**CONFIG, name: value}
    return {**CONFIG, group: {**CONFIG[group], name: value}}


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("rouns", 3, "unknown setting 'rouns'; did you mean rounds"),
        ("runtime.worker", 3, "unknown setting 'runtime.worker'; did you mean runtime.workers"),
        ("training.beta", 3, "unknown setting 'training.beta'; did you mean training.betas"),
        ("dataset.root", "???", "dataset.root has no value; give it one: dataset.root=..."),
        ("lr", "fast", "lr=fast cannot work; it is a number above 0"),
        ("lr", float("nan"), "lr=nan cannot work"),
        ("evaluate_clients", 1.0, "evaluate_clients=1.0 cannot work; write 1 for one client, "),
        ("evaluate_clients", 2.5, "evaluate_clients=2.5 cannot work; it is a whole number of "),
        ("lr", float("inf"), "lr=inf cannot work"),
        ("clients", True, "clients=true cannot work; it is a whole number, 1 or more"),
        ("clients", None, "clients=null cannot work"),
        (
            "shots",
            0,
            "shots=0 cannot work; it is a whole number, 1 or more, or null for all images",
        ),
        ("n_ctx", 2.5, "n_ctx=2.5 cannot work"),
        ("verbose", 1, "verbose=1 cannot work; it is true or false"),
        ("run_dir", 5, "run_dir=5 cannot work; it is a text, or null; write \"run_dir='5'\""),
        ("device", "gpu", "unknown value of device 'gpu'; did you mean cpu"),
        ("training", 5, "training=5 cannot work; it is a group of settings"),
        ("training.momentum", 1, "training.momentum=1 cannot work; .* 0 or more and below 1"),
        (
            "training.optimizer",
            "sdg",
            "unknown value of training.optimizer 'sdg'; did you mean sgd",
        ),
        ("training.betas", [0.9, 1], r"training.betas=.* it is 2 numbers, \[0.9,0.999\], each a"),
        ("dataset.views", "life", "whole number, 1 or more, or live"),
        ("runtime.cohort_size", 0, "runtime.cohort_size=0 cannot work; .*, 1 or more, or auto"),
        ("runtime.round_timeout", 0, "a number of seconds above 0, or null to wait for ever"),
        ("runtime.max_step", 0, "runtime.max_step=0 cannot work"),
        ("strategy.wrap", "clip", "strategy.wrap='clip' cannot work; it is a list of names"),
        ("strategy.wrap", True, "strategy.wrap=True cannot work; it is a list of names"),
        ("updates", 5, "updates=5 cannot work; it is a list of names"),
        ("lr", 10**30, "lr=1000.* cannot work; write it with a decimal point or exponent"),
        ("batch_size", 10**30, "batch_size=1000.* cannot work; it is at most 9223372036854775807"),
        pytest.param("rounds", 10**5000, r"rounds=\(a number of .* at most", id="long"),
        pytest.param("lr", 10**5000, r"lr=\(a number of .* write it with", id="lr"),
        ("method.weighting", "same", "unknown value of method.weighting 'same'"),
        ("partition.min_size", 0, "partition.min_size=0 cannot work"),
        ("context_init", "normal", "n_ctx=null takes the number"),
        ("runtime.slow_clients", 0.5, "runtime.slow_clients needs local_epochs=2 or more"),
    ],
)
def test_what_cannot_work_is_named_with_what_can(key, value, said):
    config = changed(key, value)
    if key == "context_init":
        config["n_ctx"] = None
    if key == "runtime.slow_clients":
        config["local_epochs"] = 1
    with pytest.raises(FedPGPError, match=said):
        Config.of(config)


def test_a_seed_may_have_thirty_digits():
    assert Config.of({**CONFIG, "seed": 10**30}).seed == 10**30


def test_values_are_read_as_they_stand():
    config = Config.of(CONFIG)
    assert config.rounds == CONFIG["rounds"] and config.lr == CONFIG["lr"]
    assert config.method.own == {
        key: value
        for key, value in CONFIG["method"].items()
        if key not in ("name", "optimizer_state", "personal_start", "share_terms")
    }
    assert config.partition.options == {"beta": 0.05, "balance": True}
    own = {"name": "component", "component": "a.B", "settings": {"rank": 4}}
    assert Config.of({**CONFIG, "method": own}).method.own == {"rank": 4}


# What stands for the keys that came after the first runs.
OLDER = {
    "first_round": "sampled",
    "init_from": None,
    "evaluate_clients": None,
    "updates": (),
    "model.pretrained": None,
    "dataset.views": 1,
    "dataset.on_bad_image": "error",
    "dataset.evaluate_on": "test",
    "method.optimizer_state": "reset",
    "method.personal_start": "shared",
    "method.weighting": None,
    "strategy.wrap": (),
    "strategy.max_update_norm": None,
    "strategy.max_weight": None,
    "runtime.cohort_size": "auto",
    "runtime.cache_dir": None,
    "runtime.dropout": 0.0,
    "runtime.slow_clients": 0.0,
    "runtime.debug": False,
    "runtime.live": False,
    "runtime.metrics_port": None,
    "runtime.metrics_host": "127.0.0.1",
    "runtime.seats": "key",
    "logger.project": "fedpgp",
    "privacy.name": "none",
    "attack.name": "none",
}


def test_a_run_that_is_older_than_a_key_has_what_it_did_then():
    old = {key: dict(value) if isinstance(value, dict) else value for key, value in CONFIG.items()}
    for key in OLDER:
        group, _, name = key.rpartition(".")
        (old[group] if group else old).pop(name, None)
    del old["privacy"], old["attack"]
    config = Config.of(old)
    for key, value in OLDER.items():
        group, _, name = key.rpartition(".")
        assert getattr(getattr(config, group) if group else config, name) == value, key


def test_what_is_the_server_s_business_may_be_left_out():
    """A caller of ``build_federation`` has no server."""
    whole = composed(["runtime=inline"])
    server = ("strategy", "runtime", "participation", "evaluate_every", "privacy", "attack")
    config = Config.of({key: value for key, value in whole.items() if key not in server})
    assert (config.strategy.name, config.runtime.name) == ("fedavg", "inline")
    assert (config.participation, config.evaluate_every) == (1.0, 1)
    assert RuntimeSection.of({"cohort_size": 4}).min_clients == 1


def test_a_section_checks_itself_and_stays_as_it_is():
    with pytest.raises(FedPGPError, match="runtime.dropout=1 cannot work"):
        RuntimeSection(name="inline", round_timeout=None, min_clients=1, dropout=1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        TrainingSection().momentum = 0.5
