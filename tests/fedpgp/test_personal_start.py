"""Where clients' private tensors start: alike, and for some methods at the shared prompt."""

import json

import pytest
import torch

from experiments.settings import composed
from fedpgp.build import build_federation
from fedpgp.errors import FedPGPError
from fedpgp.federation import Federation
from fedpgp.methods import METHODS
from tests.helpers.small import small_config, small_federation


def federation(task, name: str, personal_start: str = "shared", seed: int = 0) -> Federation:
    settings = METHODS[name].Settings(**METHODS[name].small)
    return Federation(
        METHODS[name](settings, task),
        None,
        None,
        None,
        None,
        seed=seed,
        personal_start=personal_start,
    )


def same(a: dict, b: dict) -> bool:
    return all(torch.equal(a[n], b[n]) for n in a)


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.learns])
def test_all_clients_start_alike_unless_told(task, name):
    start, other = (federation(task, name).models.initial_state(client) for client in (0, 5))
    assert same(start, other)
    own, others = (
        federation(task, name, "per_client").models.initial_state(client) for client in (0, 5)
    )
    drawn = not same(own, others)
    assert drawn != same(start, federation(task, name, seed=1).models.initial_state(0))
    assert drawn == ("personal_start" in composed([f"method={name}"])["method"])


def test_some_private_prompts_start_at_the_shared_one(task):
    """Ditto, algorithm 1: v_k starts at w_0 (arXiv 2012.04221). FedAMP, FedPer and local CoOp: all
    clients load the one model that was built (PanBikang/PromptFolio,
    8f729aab78b27ad78ad441b75deebb0e51d5b26c, federated_main.py)."""
    p_G = torch.from_numpy(federation(task, "promptfl").models.initial_shared()["p_G"])
    assert p_G.std() > 0.01
    for name in ("ditto", "fedamp", "coop"):
        assert torch.equal(federation(task, name).models.initial_state(3)["p"], p_G), name
        assert not torch.equal(
            federation(task, name, "per_client").models.initial_state(3)["p"], p_G
        ), name
    fedper = federation(task, "fedper")
    halves = (
        torch.from_numpy(fedper.models.initial_shared()["p_G"]),
        fedper.models.initial_state(3)["p"],
    )
    assert torch.equal(torch.cat(halves), p_G)


@pytest.mark.parametrize(
    ("name", "private"),
    [("fedotp", "p"), ("promptfolio", "p"), ("fedpha", "p_L"), ("dp_fpl", "p_L")],
)
def test_other_second_prompts_are_draws_of_their_own(task, name, private):
    """One tensor with a row for each of the two, or two calls of ``normal_``: HongxiaLee/FedOTP,
    9948611a2325, trainers/GLP_OT.py 95-96; PanBikang/PromptFolio, 8f729aab78b2,
    trainers/PromptFolio.py 116-117; CYFang6/FedPHA, 1ab33df39520, trainers/GL_SVDMSE.py 92-97;
    linhhtran/DP-FPL, cce74b479525, trainers/DP_FPL.py 119-127."""
    fed = federation(task, name)
    p_G = torch.from_numpy(fed.models.initial_shared()["p_G"])
    assert (
        torch.nn.functional.cosine_similarity(
            p_G.flatten(), fed.models.initial_state(0)[private].flatten(), 0
        ).abs()
        < 0.4
    )


def small(name: str, *overrides: str) -> Federation:
    config = small_config("/nowhere", f"method={name}", "clients=2", "participation=1", *overrides)
    return small_federation(json.dumps(config))


def first_updates(fed: Federation) -> list[dict]:
    shared = fed.models.initial_shared()
    return [r.update for r in fed.train(shared, range(2), 1, {}.get)]


@pytest.mark.parametrize(("start", "alike"), [("shared", True), ("per_client", False)])
def test_fedamp_attention_is_alive_from_random_prompts(start, alike):
    """The weight of the other client's prompt in u_i after a round: alpha at most."""
    fed = small(
        "fedamp",
        "n_ctx=4",
        "context_init=normal",
        "method.sigma=0.01",
        "method.alpha=0.5",
        "lr=0.0002",
        f"method.personal_start={start}",
    )
    fed.method.task.context_init = "normal"
    updates = dict(enumerate(first_updates(fed)))
    shared, server_state = fed.server.update(
        updates[0],
        server_round=1,
        num_rounds=2,
        global_params=fed.models.initial_shared(),
        updates=updates,
        weights={0: 1, 1: 1},
        server_state=fed.server.initial_state(),
    )
    u = fed.server.download_for(0, server_state)["u"]
    p, other = (torch.from_numpy(updates[k]["p_G"]) for k in (0, 1))
    weight = (torch.from_numpy(u) - p).norm() / (other - p).norm()
    assert (weight > 0.2) == alike and (weight < 1e-3) == (not alike), weight


@pytest.mark.parametrize(
    ("start", "least", "most"), [("shared", 0.25, 0.95), ("per_client", -0.05, 0.05)]
)
def test_pfedmma_clients_move_the_shared_matrix_alike(start, least, most):
    """It stands between two private projections: the updates agree only where those are alike.
    Officially every client loads the one model that was built (sajjad-ucsb/pFedMMA,
    84197bb89b6ded3fb8e9b96e1cdd9f8ebc4a5fd2, federated_main.py 506-521)."""
    fed = build_federation(
        composed(
            [
                "runtime=inline",
                "method=pfedmma",
                "model=tiny_vit",
                "protocol=personal",
                "partition=iid",
                "clients=2",
                "shots=8",
                "local_epochs=1",
                "device=cpu",
                f"method.personal_start={start}",
            ]
        )
    )
    shared = fed.models.initial_shared()
    a, b = (
        torch.from_numpy(u["middle.weight"] - shared["middle.weight"]).flatten()
        for u in first_updates(fed)
    )
    assert least < torch.nn.functional.cosine_similarity(a, b, 0) < most


def test_an_unknown_start_is_refused(task):
    with pytest.raises(FedPGPError, match="personal_start.*did you mean shared"):
        federation(task, "ditto", "share")
