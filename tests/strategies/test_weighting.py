"""How the server weighs clients of different sizes, method by method, through a whole round."""

import json

import numpy as np
import pytest

from experiments.runner import start
from fedpgp.methods import METHODS
from strategies.checkpoint import checkpoints, read_checkpoint
from tests.helpers.small import small_config, small_federation

EQUAL = {"dp_fpl", "ditto", "scaffold", "fedtpg", "fedmvp", "fedclip", "fedalt"}
EQUAL |= {"prototype", "ridge"}  # sums of features
"""Alike: linhhtran/DP-FPL, cce74b479525, federated_main.py 163; litian96/ditto, 26d9b29a62f3,
flearn/trainers_MTL/ditto.py 165; boschresearch/FedTPG, f141c2994b5a, federated/server.py 160;
mainaksingha01/FedMVP, 246800efae53, federated/server.py 146; microsoft/PersonalizedFL,
441670edb574, fedclip/methods/fed_at_clip.py 159; jmbian/FedALT, ff9b4862a9b4, server.py 48;
SCAFFOLD's paper, algorithm 1. By images: average_weights with datanumber_client of
HongxiaLee/FedOTP, 9948611a2325; TianyuCuiOvO/FedPGP, d43045b33f42; CYFang6/FedPHA, 1ab33df39520;
ljaiverson/pFedMoAP, a481de35edc7; sajjad-ucsb/pFedMMA, 84197bb89b6d; and PanBikang/PromptFolio,
8f729aab78b2. Sums of features are the clients' own counts already."""


def test_methods_weigh_as_their_code_does():
    assert {name for name, method in METHODS.items() if method.equal_weights} == EQUAL


@pytest.mark.parametrize(
    ("name", "more", "equal"),
    [
        ("dp_fpl", (), True),
        ("ditto", (), True),
        ("ditto", ("method.weighting=images",), False),
        ("promptfl", (), False),
        ("promptfl", ("method.weighting=equal",), True),
    ],
)
def test_a_round_of_unequal_clients(tmp_path, name, more, equal):
    config = small_config(
        tmp_path / "run", f"method={name}", *more, "participation=1", "rounds=1", "evaluate_every=0"
    )
    start(config, federation_of=small_federation)
    server, _ = read_checkpoint(checkpoints(tmp_path / "run" / "checkpoint")[-1])
    fed = small_federation(json.dumps(config))
    results = list(fed.train(fed.models.initial_shared(), range(6), 1, {}.get))
    images = np.array([r.num_examples for r in results], dtype=float)
    assert len(set(images)) > 1
    updates = np.stack([r.update["p_G"] for r in results])
    means = {True: updates.mean(0), False: np.average(updates, axis=0, weights=images)}
    assert np.abs(means[True] - means[False]).max() > 1e-6
    np.testing.assert_allclose(server["shared/p_G"], means[equal], rtol=0, atol=1e-12)
