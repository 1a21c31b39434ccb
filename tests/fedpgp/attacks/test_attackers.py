"""Who attacks, and what attackers do to their images."""

import numpy as np
import pytest
from PIL import Image

from experiments.settings import choices, composed
from fedpgp.attacks import ATTACKS, attackers_of, poisoned
from fedpgp.build import split_configured
from fedpgp.data import ArraySplit, Dataset
from fedpgp.data.joint import Concat
from fedpgp.data.poisoned import CELLS, PatchedSplit, patched, relabelled
from fedpgp.errors import FedPGPError
from fedpgp.protocols import ClientSplit, EvalSet, FederatedSplit

NAMES = ["ant", "bee", "cat", "dog", "elk"]


def split(clients: int = 10, never: tuple[int, ...] = ()) -> FederatedSplit:
    rng = np.random.default_rng(0)
    parts = [
        ArraySplit(rng.integers(256, size=(6 * clients, 12, 12, 3), dtype=np.uint8), labels)
        for labels in (rng.integers(1, 5, 6 * clients), rng.integers(0, 5, 6 * clients))
    ]
    dataset = Dataset("small", NAMES, "a {}.", parts[0], None, parts[1])
    rows = np.arange(6 * clients).reshape(clients, 6)
    classes = (1, 2, 3, 4)
    own = [
        ClientSplit(r, classes, {"local": EvalSet(r, classes)}, trains=c not in never)
        for c, r in enumerate(rows)
    ]
    return FederatedSplit(dataset, classes, (0,), own)


def config(name: str, seed: int = 0, **settings) -> dict:
    chosen = composed([f"attack={name}", "runtime=inline"])["attack"] | settings
    return {"attack": chosen, "runtime": {"name": "inline"}, "seed": seed}


def test_every_attack_is_a_choice():
    assert set(choices()["attack"]) == {"none", *ATTACKS}


def test_attackers_are_drawn_from_the_seed_among_those_that_train():
    drawn = {
        seed: attackers_of(config("ipm", seed, share=0.3), split(never=(0, 1, 2))).clients
        for seed in range(20)
    }
    assert len(set(drawn.values())) > 5 and all(len(clients) == 2 for clients in drawn.values())
    assert all(client > 2 for clients in drawn.values() for client in clients)
    assert drawn[3] == attackers_of(config("noise", 3, share=0.3), split(never=(0, 1, 2))).clients
    assert len(attackers_of(config("ipm", share=0.01), split()).clients) == 1
    with pytest.raises(FedPGPError, match="attack.share=0.96 of 10 training clients leaves nobody"):
        attackers_of(config("ipm", share=0.96), split())


def test_without_an_attack_on_data_the_split_is_the_same_object():
    honest = split()
    for name in set(ATTACKS) - {"label_flip", "backdoor"} | {"none"}:
        assert poisoned(config(name), honest) is honest


def test_labels_are_flipped_among_the_client_s_classes():
    honest = split()
    attackers = attackers_of(config("label_flip"), honest).clients
    found = poisoned(config("label_flip"), honest)
    before, after = honest.dataset.train, found.dataset.train
    mine = np.concatenate([honest.clients[client].train for client in attackers])
    others = np.setdiff1d(np.arange(len(before)), mine)
    assert len(attackers) == 2 and found.clients == honest.clients
    np.testing.assert_array_equal(after.labels[mine], 5 - before.labels[mine])  # of 1, 2, 3, 4
    np.testing.assert_array_equal(after.labels[others], before.labels[others])
    assert after.fingerprint == before.fingerprint  # the same features
    assert found.dataset.test is honest.dataset.test


def test_a_joint_split_is_relabelled_part_by_part():
    parts = [split().dataset.train, split(3).dataset.train]
    joint = Concat(parts, [0, 5])
    wanted = joint.labels[::-1].copy()
    found = relabelled(joint, wanted)
    np.testing.assert_array_equal(found.labels, wanted)
    assert [part.fingerprint for part in found.parts] == [part.fingerprint for part in parts]
    assert found.image(61).tobytes() == parts[1].image(1).tobytes()


def test_a_backdoor_s_images():
    """Half of an attacker's images carry the patch and are of the target class; the others are as
    they were. Every client is tested on its own images of other classes, with the patch."""
    honest, chosen = split(), config("backdoor", target="cat", patch=0.25)
    attackers = attackers_of(chosen, honest).clients
    found = poisoned(chosen, honest)
    train, test = found.dataset.train, found.dataset.test
    for client, own in enumerate(found.clients):
        before = honest.clients[client]
        moved = own.train != before.train
        assert moved.sum() == (3 if client in attackers else 0)
        assert (train.labels[own.train[moved]] == NAMES.index("cat")).all()
        for old, new in zip(before.train[moved], own.train[moved], strict=True):
            expected = patched(honest.dataset.train.image(old), 0.25)
            assert train.image(new).tobytes() == expected.tobytes()
        np.testing.assert_array_equal(
            train.labels[before.train], honest.dataset.train.labels[before.train]
        )
        local, attack = own.eval_sets["local"], own.eval_sets["attack"]
        assert local is before.eval_sets["local"]
        rows = local.indices[honest.dataset.test.labels[local.indices] != NAMES.index("cat")]
        assert len(attack.indices) == len(rows) and attack.classes == local.classes
        assert (test.labels[attack.indices] == NAMES.index("cat")).all()
        for old, new in zip(rows, attack.indices, strict=True):
            expected = patched(honest.dataset.test.image(old), 0.25)
            assert test.image(new).tobytes() == expected.tobytes()


@pytest.mark.parametrize("target", ["ant", "cow", ["cat"]])  # nobody trains it; it is not there
def test_a_target_has_to_be_trained(target):
    with pytest.raises(FedPGPError, match="unknown class of attack.target"):
        poisoned(config("backdoor", target=target), split())


@pytest.mark.parametrize("size", [(40, 40), (60, 40), (40, 90)])
def test_the_patch_is_in_the_corner_that_a_model_sees(size):
    """A model sees the central square."""
    grey = Image.new("RGB", size, (90, 90, 90))
    before, after = np.asarray(grey), np.asarray(patched(grey, 0.3))
    changed = (before != after).any(-1)
    side, (width, height) = 12, size
    right, bottom = (width + 40) // 2, (height + 40) // 2
    assert changed[bottom - side : bottom, right - side : right].all()
    assert changed.sum() == side * side
    cell = side // CELLS
    corners = after[bottom - side : bottom : cell, right - side : right : cell, 0]
    np.testing.assert_array_equal(corners, [[0, 255, 0], [255, 0, 255], [0, 255, 0]])


def test_a_patched_split_has_features_of_its_own():
    images = split().dataset.test
    keys = {images.fingerprint} | {PatchedSplit(images, 2, s).fingerprint for s in (0.1, 0.2)}
    assert len(keys) == 3


def test_the_embedded_federation_under_attack():
    """Through the configuration, as a run has it."""
    words = ["runtime=inline", "clients=6", "attack=backdoor", "attack.share=0.3"]
    chosen = composed(words)
    found, honest = split_configured(chosen), split_configured(composed(words[:2]))
    attackers = attackers_of(chosen, honest).clients
    assert len(attackers) == 2 and attackers_of(chosen, found).clients == attackers
    for client, own in enumerate(found.clients):
        same = np.array_equal(own.train, honest.clients[client].train)
        assert same == (client not in attackers) and "attack" in own.eval_sets
    assert found.dataset.train.parts[0].fingerprint == honest.dataset.train.fingerprint
