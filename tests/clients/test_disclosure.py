"""What a node with its own images tells, and an attack that reads its labels without it."""

import json

import numpy as np
import pytest

from clients.disclosure import (
    MODELS_A_ROUND,
    Disclosure,
    Limits,
    Withheld,
    in_hundredths,
    pin,
    rounded,
    two_digits,
)
from clients.node_config import IncompatibleNode, NodeConfig
from clients.private_state import PrivateStore
from fedpgp.config import RuntimeSection
from fedpgp.errors import FedPGPError
from fedpgp.evaluation.figures import ACCURACIES, BESIDE


def disclosure(folder, images: int = 10, step: float = 20.0) -> Disclosure:
    return Disclosure(PrivateStore(folder, "run", 1), Limits(images, step), ("c",))


def tensors(value: float) -> dict[str, np.ndarray]:
    return {"p_G": np.full((2, 2), value), "c": np.full(3, 1e9 * value)}


@pytest.mark.parametrize(
    ("value", "images", "told"),
    [
        (12.5, 8, 0.0),
        (37.5, 8, 50.0),
        (73.0, 100, 70.0),
        (76.0, 100, 80.0),
        (73.0, 400, 75.0),
        (100.0, 10, 100.0),
    ]
    + [(12.0, 1, 0.0), (88.0, 3, 100.0)],
)
def test_a_figure_is_rounded_to_what_its_images_allow(value, images, told):
    np.testing.assert_allclose(rounded(value, images), told, atol=1e-12)


@pytest.mark.parametrize("images", [10, 57, 100, 1000])
def test_a_rounded_count_hides_some_images(images):
    """Each figure that can be told is that of several counts: at least sqrt(n) / 2 of them."""
    counts = {}
    for right in range(images + 1):
        counts.setdefault(rounded(100 * right / images, images), []).append(right)
    assert min(len(alike) for alike in counts.values()) >= np.sqrt(images) / 2
    assert max(counts) == 100.0 and min(counts) == 0.0


def test_a_loss_has_two_digits():
    assert two_digits(1.23456) == 1.2 and two_digits(0.0) == 0.0 and two_digits(204.7) == 200.0


def test_a_loss_of_few_images_is_not_told(tmp_path):
    disclosure = Disclosure(PrivateStore(tmp_path, "a", 1), Limits(10, 20.0))
    assert disclosure.loss(1.23456, 10) == {"loss": 1.2} and disclosure.loss(1.23456, 9) == {}


def test_numbers_of_update_steps_are_hundredths_of_their_range():
    ranges = {"a.share": (0.0, 1.0), "b.norm": (-10.0, 30.0)}
    told = in_hundredths({"a.share": 1 / 3, "b.norm": 29.9}, ranges)
    np.testing.assert_allclose([told["a.share"], told["b.norm"]], [0.33, 30.0], atol=1e-12)
    assert in_hundredths({"b.norm": -10.0}, ranges) == {"b.norm": -10.0}


def test_few_images_tell_nothing(tmp_path):
    images = {"local": 100, "novel": 9, "ece": 100}
    told = disclosure(tmp_path).figures(
        {"personal.local": 73.0, "personal.novel": 50.0, "global.local": 4.0}, images
    )
    assert set(told) == {"personal.local", "global.local"}
    np.testing.assert_allclose([told["personal.local"], told["global.local"]], [70.0, 0.0])


def test_an_error_of_calibration_is_not_told(tmp_path):
    """Where all answers are one class with confidence c it is |accuracy - c|: c moves the point
    where the rounding turns, so that some prompts read the accuracy to an image or two."""
    told = disclosure(tmp_path).figures(
        {"global.local": 50.0, "global.ece": 20.0}, {"local": 64, "ece": 64}
    )
    assert set(told) == {"global.local"}


def test_what_is_said_beside_accuracies_is_not_told(tmp_path):
    """Balanced accuracy of a model that answers one class is 1 over the number of classes; FPR95 of
    one whose score is high for one class is that class's share of the images."""
    metrics = {f"personal.{name}": 50.0 for name in (*ACCURACIES, *BESIDE)}
    assert {"personal.f1_macro", "personal.balanced", "personal.auroc"} < set(metrics)
    told = disclosure(tmp_path).figures(metrics, dict.fromkeys((*ACCURACIES, *BESIDE), 64))
    assert set(told) == {f"personal.{name}" for name in ACCURACIES}


def test_the_same_tensors_under_other_settings_are_another_model(tmp_path):
    def counted(**config: object) -> None:
        store = PrivateStore(tmp_path, "run", 1)
        Disclosure(store, Limits(10, 20.0), (), config).count(tensors(1), 3)

    counted(method="promptfl", runtime=1, rounds=3)
    counted(method="promptfl", runtime=2, rounds=9)  # resumed on other workers, to more rounds
    counted(method="fedotp")
    with pytest.raises(Withheld, match="2 models of round 3 were scored already"):
        counted(method="ditto")


def test_a_round_scores_two_models(tmp_path):
    for value in range(MODELS_A_ROUND):
        disclosure(tmp_path).count(tensors(value), 3)
    disclosure(tmp_path).count(tensors(0), 3)  # again, after a restart: the same figures
    with pytest.raises(Withheld, match="2 models of round 3 were scored already"):
        disclosure(tmp_path).count(tensors(7), 3)
    disclosure(tmp_path).count(tensors(7), 4)


def test_tensors_that_are_far_are_not_answered_to(tmp_path):
    """The measure is the median of the node's own updates, here 1; what is no model is not
    measured."""
    disclosure(tmp_path).admit(tensors(0.0), 0)  # the first are taken as they are
    for norm in (0.5, 1.0, 1000.0):
        disclosure(tmp_path).trained(
            tensors(0.0), {"p_G": np.full((2, 2), norm / 2), "c": np.zeros(3)}
        )
    disclosure(tmp_path).admit(tensors(9.9), 1)  # 19.8 away
    with pytest.raises(
        Withheld, match=r"moved 40.2 in 1 round\(s\); this node answers to 20 at most"
    ):
        disclosure(tmp_path).admit(tensors(30.0), 2)
    disclosure(tmp_path).admit(tensors(30.0), 4)  # it was away for three rounds
    for bad in (np.nan, np.inf, 1e200):
        with pytest.raises(Withheld):
            disclosure(tmp_path).admit(tensors(bad), 5)
    disclosure(tmp_path).admit(tensors(30.0), 5)  # and those before count still


@pytest.mark.parametrize(
    ("node", "server", "limits"),
    [({}, {}, (10, 20.0)), ({}, {"min_report": 1, "max_step": 1e9}, (10, 20.0))]
    + [({"min-report": 2, "max-step": 50}, {"min_report": 1, "max_step": 30}, (2, 30.0))]
    + [({"min-report": 2}, {"min_report": 25}, (25, 20.0))],
)
def test_the_stricter_of_owner_and_server_holds(node, server, limits):
    own = NodeConfig.of({"client-id": 0, "state-dir": "/x", **node})
    assert Limits.of(
        own,
        RuntimeSection.of({"name": "inline", "round_timeout": None, "min_clients": 1, **server}),
    ) == Limits(*limits)


@pytest.mark.parametrize("wrong", [{"min-report": 0}, {"min-report": "many"}, {"max-step": 0}])
def test_limits_that_are_none(wrong):
    with pytest.raises(FedPGPError, match=f"{next(iter(wrong))} .* cannot work"):
        NodeConfig.of({"client-id": 0, "state-dir": "/x", **wrong})


def test_a_run_has_one_choice_of_data(tmp_path):
    """With another half of the classes as base classes, the number of train images would be
    that of other labels."""
    store = PrivateStore(tmp_path, "run", 1)
    config = {
        "dataset": {"class_names": ["cat", "dog"]},
        "partition": {},
        "protocol": {"class_order": 1},
        "seed": 0,
    }
    pin(store, json.dumps({**config, "rounds": 3, "shots": None}))
    pin(
        store, json.dumps({"shots": None, **config, "rounds": 9, "runtime": {"min_report": 1}})
    )  # resumed
    for other in (
        {"protocol": {"class_order": 2}},
        {"shots": 1},
        {"dataset": {"class_names": ["dog", "cat"]}},
    ):
        with pytest.raises(
            IncompatibleNode,
            match="came with other settings of dataset, partition, protocol, shots, seed, privacy",
        ):
            pin(store, json.dumps({**config, "shots": None, **other}))


@pytest.mark.parametrize("name", ["client", "image"])
@pytest.mark.parametrize("change", [{"rounds": 2}, {"participation": 0.1}, {"clients": 900}])
def test_what_the_noise_of_an_epsilon_follows_from_stays(change, name, tmp_path):
    """Said to be of fewer rounds, rarer draws or more clients, a round would need less noise."""
    config = {"seed": 0, "rounds": 20, "participation": 0.5, "clients": 9}
    config |= {"privacy": {"name": name, "epsilon": 3.0}}
    store = PrivateStore(tmp_path / "a", "run", 1)
    pin(store, json.dumps(config))
    pin(store, json.dumps({**config, "left": []}))
    ((key, _),) = change.items()
    with pytest.raises(IncompatibleNode, match=f"{key}={config[key]} before.* privacy.epsilon"):
        pin(store, json.dumps({**config, **change}))
    # An earlier version kept none of these; without an epsilon nothing follows from them.
    known = json.loads((tmp_path / "a" / "data_choice.json").read_bytes())
    del known[key]
    (tmp_path / "a" / "data_choice.json").write_text(json.dumps(known))
    pin(store, json.dumps({**config, **change}))
    other, free = PrivateStore(tmp_path / "b", "run", 1), {"name": name, "epsilon": None}
    pin(other, json.dumps({**config, "privacy": free}))
    pin(other, json.dumps({**config, "privacy": free, **change}))


def test_a_damaged_account_is_named(tmp_path):
    one = disclosure(tmp_path)
    one.count(tensors(0), 0)
    (tmp_path / "answered.json").write_text("{")
    with pytest.raises(FedPGPError, match="answered.json cannot be read"):
        disclosure(tmp_path)


def test_last_tensors_that_are_damaged_are_named(tmp_path):
    """A flipped bit may make a number as large as can be: nothing would be answered any more."""
    disclosure(tmp_path).admit(tensors(1.0), 0)
    path = tmp_path / "last_shared.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 0x40
    path.write_bytes(data)
    with pytest.raises(FedPGPError, match="last_shared.safetensors is damaged .* remove it"):
        one = disclosure(tmp_path)
        one.trained(tensors(0.0), tensors(1.0))
        one.admit(tensors(1.0), 1)
