"""What attackers send, in float64, against the papers' formulas written another way."""

import math

import numpy as np
import pytest

from fedpgp.attacks import ATTACKS, AttackContext, Attackers, make_attack
from fedpgp.attacks.alie import z_max
from fedpgp.errors import FedPGPError
from fedpgp.seeding import generator

RNG = np.random.default_rng(0)
SENT = {"p_G": RNG.normal(size=(3, 4)), "c": RNG.normal(size=5)}
UPDATES = {
    client: {name: RNG.normal(size=tensor.shape) for name, tensor in SENT.items()}
    for client in range(9)
}
CHANGES = {  # c is sent as a difference already
    client: np.concatenate([(own["p_G"] - SENT["p_G"]).ravel(), own["c"]])
    for client, own in UPDATES.items()
}
SEED = 5


def attackers(name: str, clients=(2, 6), **settings) -> Attackers:
    return Attackers(ATTACKS[name](share=0.2, **settings), clients, ("c",), SEED)


def sent(update) -> np.ndarray:
    """What an update changes, as one vector."""
    return np.concatenate([(update["p_G"] - SENT["p_G"]).ravel(), update["c"]])


def forged(name: str, client: int = 2, server_round: int = 3, **settings) -> np.ndarray:
    return sent(attackers(name, **settings).forge(client, UPDATES[client], SENT, server_round))


def colluded(name: str, clients=(2, 6), **settings) -> np.ndarray:
    found = attackers(name, clients, **settings).collude(UPDATES, SENT, 3)
    assert set(found) == set(clients)
    for update in found.values():
        np.testing.assert_array_equal(sent(update), sent(found[clients[0]]))
    return sent(found[clients[0]])


def honest(clients=(2, 6)) -> np.ndarray:
    return np.stack([change for client, change in CHANGES.items() if client not in clients])


@pytest.mark.parametrize("scale", [0.0, 1.0, 10.0])
def test_sign_flip_and_scaling(scale):
    np.testing.assert_allclose(forged("sign_flip", scale=scale), -scale * CHANGES[2], atol=1e-14)
    np.testing.assert_allclose(forged("scaling", scale=scale), scale * CHANGES[2], atol=1e-14)


@pytest.mark.parametrize("name", ["label_flip", "backdoor"])
def test_attacks_on_data_scale_what_they_trained(name):
    more = {"target": None, "poisoned": 0.5, "patch": 0.2} if name == "backdoor" else {}
    np.testing.assert_allclose(forged(name, scale=4.0, **more), 4 * CHANGES[2], atol=1e-14)


def test_noise_has_the_size_of_the_change():
    rng = generator(SEED, "attack noise", 2, 3)
    wanted = {}
    for name in ("c", "p_G"):
        change = UPDATES[2][name] - (SENT[name] if name == "p_G" else 0)
        size = math.sqrt(sum(x * x for x in change.ravel()) / change.size)
        wanted[name] = 10 * size * rng.standard_normal(change.shape)
    expected = np.concatenate([wanted["p_G"].ravel(), wanted["c"]])
    np.testing.assert_allclose(forged("noise", scale=10.0), expected, rtol=1e-12)
    assert not np.allclose(forged("noise", scale=10.0, server_round=4), expected)


def test_a_free_rider_sends_what_it_was_sent():
    """Fraboni et al., equation 8: theta + sigma t^-gamma e."""
    assert not forged("free_rider", scale=0.0).any()
    rng = generator(SEED, "attack noise", 2, 4)
    c, prompt = rng.standard_normal(5), rng.standard_normal((3, 4))
    expected = 0.02 * 4**-1.0 * np.concatenate([prompt.ravel(), c])
    got = forged("free_rider", scale=0.02, server_round=4)
    np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-15)


def test_an_honest_client_sends_its_own():
    for name in ("sign_flip", "scaling", "noise", "free_rider"):
        assert attackers(name, scale=3.0).forge(3, UPDATES[3], SENT, 1) is UPDATES[3]
    assert attackers("ipm", scale=1.0).forge(2, UPDATES[2], SENT, 1) is UPDATES[2]
    assert attackers("sign_flip", scale=3.0).collude(UPDATES, SENT, 1) == {}


# With knowledge of the honest updates. ------------------------------------------------------------


def largest_quantile(n: int, m: int) -> float:
    """Baruch et al., algorithm 3: by bisection of the normal distribution's integral."""
    share = (n - m - (math.floor(n / 2 + 1) - m)) / (n - m)
    low, high = -10.0, 10.0
    for _ in range(200):
        middle = (low + high) / 2
        if 0.5 * (1 + math.erf(middle / math.sqrt(2))) < share:
            low = middle
        else:
            high = middle
    return low


@pytest.mark.parametrize(("n", "m"), [(50, 12), (24, 5), (24, 7), (51, 24), (10, 4)])
def test_alie_s_z(n, m):
    np.testing.assert_allclose(z_max(n - m, m), largest_quantile(n, m), atol=1e-9)


def test_alie_s_z_where_the_paper_has_none():
    assert z_max(22, 2) == 0  # too few to be covered by the others
    assert z_max(1, 1) == z_max(1, 8) == 0 and math.isfinite(z_max(3, 8))


def test_alie():
    others = honest()
    columns = list(zip(*others, strict=True))
    mean = np.array([math.fsum(column) / len(column) for column in columns])
    spread = np.array(
        [
            math.sqrt(math.fsum((x - m) ** 2 for x in column) / len(column))
            for column, m in zip(columns, mean, strict=True)
        ]
    )
    np.testing.assert_allclose(colluded("alie", scale=1.5), mean - 1.5 * spread, rtol=1e-10)
    clients = (1, 2, 3, 6)
    mean, spread = honest(clients).mean(0), honest(clients).std(0)
    expected = mean - largest_quantile(9, 4) * spread
    np.testing.assert_allclose(colluded("alie", clients, scale=None), expected, rtol=1e-7)


def test_ipm():
    total = sum(honest())
    np.testing.assert_allclose(colluded("ipm", scale=0.5), -0.5 * total / 7, rtol=1e-12)
    assert colluded("ipm", scale=0.5) @ (total / 7) < 0


def halving(others: np.ndarray, p: np.ndarray) -> float:
    """Shejwalkar & Houmansadr, algorithm 1: gamma by halving steps."""
    mean = others.mean(0)
    farthest = max(np.linalg.norm(a - b) for a in others for b in others)
    step, gamma, best = 50.0, 50.0, 0.0
    while step > 1e-12:
        sent = mean + gamma * p
        step /= 2
        if max(np.linalg.norm(sent - other) for other in others) <= farthest:
            best, gamma = gamma, gamma + step
        else:
            gamma -= step
    return best


@pytest.mark.parametrize("direction", ["unit", "std", "sign"])
def test_min_max(direction):
    others = honest()
    mean = others.mean(0)
    p = {"unit": -mean / np.linalg.norm(mean), "std": -others.std(0), "sign": -np.sign(mean)}
    p = p[direction]
    gamma = halving(others, p)
    assert 0 < gamma < 50
    got = colluded("min_max", scale=1.0, direction=direction)
    np.testing.assert_allclose(got, mean + gamma * p, rtol=1e-8)
    half = colluded("min_max", scale=0.5, direction=direction)
    np.testing.assert_allclose(half, mean + gamma / 2 * p, rtol=1e-8)


def test_clients_alike_leave_min_max_no_way_to_go():
    same = {client: UPDATES[0] for client in range(5)}
    for direction in ("unit", "std", "sign"):
        attack = attackers("min_max", (2,), scale=1.0, direction=direction)
        np.testing.assert_allclose(
            sent(attack.collude(same, SENT, 1)[2]), CHANGES[0], rtol=1e-6, atol=1e-6
        )


def test_without_anybody_honest_nobody_colludes():
    attack = attackers("ipm", (0, 1), scale=1.0)
    assert attack.collude({c: UPDATES[c] for c in (0, 1)}, SENT, 1) == {}
    assert attack.collude({c: UPDATES[c] for c in (3, 4)}, SENT, 1) == {}


# Settings. ----------------------------------------------------------------------------------------


def config(name: str, runtime: str = "inline", **settings) -> dict:
    return {"attack": {"name": name, **settings}, "runtime": {"name": runtime}}


def test_no_attack():
    assert make_attack({"runtime": {"name": "ray"}}) is None  # of a run from before
    assert make_attack(config("none", "flower")) is None


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (config("sign_flop"), "unknown attack 'sign_flop'; did you mean sign_flip"),
        (config("ipm", share=0.2, scale=1, power=3), "unknown setting of attack ipm 'power'"),
        (config("ipm", share=1.0, scale=1), "attack.share=1.0 cannot work"),
        (config("noise", share=0.1, scale=-1), "attack.scale=-1 cannot work"),
        (config("alie", share=0.1, scale=-1), "attack.scale=-1 cannot work"),
        (
            config("min_max", share=0.1, scale=1, direction="up"),
            "unknown value of attack.direction",
        ),
        (
            config("backdoor", share=0.1, scale=1, target=None, poisoned=0, patch=0.1),
            "attack.poisoned=0 cannot work",
        ),
        (config("ipm", "flower", share=0.2, scale=1), "attack=ipm is for a simulation"),
    ],
)
def test_what_cannot_work_is_named(given, said):
    with pytest.raises(FedPGPError, match=said):
        make_attack(given)


def test_noise_depends_on_client_and_round_alone():
    contexts = [AttackContext(t, c, SEED) for t in (1, 2) for c in (0, 1)]
    drawn = {tuple(context.rng().standard_normal(3)) for context in contexts}
    assert len(drawn) == 4
    assert tuple(AttackContext(2, 1, SEED).rng().standard_normal(3)) in drawn
