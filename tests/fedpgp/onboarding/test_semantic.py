"""The autoencoder of terms against its equations in numpy, and what a newcomer gets of it."""

import math

import numpy as np
import pytest
import torch

from fedpgp.onboarding import make_onboarding
from fedpgp.onboarding.budget import make_newcomer
from fedpgp.onboarding.descriptions import describe
from fedpgp.onboarding.term_vae import VAESize, decoded, elbo, encoded, fit, prior, vae_start
from fedpgp.protocols.onboarding_options import OnboardingOptions
from tests.helpers.newcomers import NEWCOMERS, trained_federation

SIZE = VAESize(term=7, condition=3, latent=2, hidden=5)


@pytest.fixture(scope="module")
def trained():
    return trained_federation()


def layer(params, name, x):
    weight, bias = (params[f"{name}.{part}"].numpy() for part in ("weight", "bias"))
    return np.array([sum(w * a for w, a in zip(row, x, strict=True)) for row in weight]) + bias


def network(params, name, x):
    return layer(params, f"{name}.1", np.maximum(layer(params, f"{name}.0", x), 0))


def test_the_bound_is_likelihood_less_divergence():
    rng = np.random.default_rng(0)
    params = vae_start(SIZE, rng)
    x, c, draw = (rng.normal(size=(4, n)) for n in (7, 3, 2))
    noise, found = 0.6, elbo(params, *map(torch.from_numpy, (x, c, draw)), 0.6)
    for i in range(4):
        q, p = network(params, "encoder", [*x[i], *c[i]]), layer(params, "prior", c[i])
        (mean, variance), (prior_mean, prior_variance) = (
            (each[:2], np.exp(each[2:])) for each in (q, p)
        )
        z = mean + np.sqrt(variance) * draw[i]
        centre = network(params, "decoder", [*z, *c[i]])
        total = 0.0
        for value, middle in zip(x[i], centre, strict=True):
            density = math.exp(-((value - middle) ** 2) / (2 * noise**2))
            total += math.log(density / math.sqrt(2 * math.pi * noise**2))
        for k in range(2):
            total -= math.log(math.sqrt(prior_variance[k] / variance[k]))
            square = variance[k] + (mean[k] - prior_mean[k]) ** 2
            total -= square / (2 * prior_variance[k]) - 0.5
        assert found[i].item() == pytest.approx(total, rel=1e-10)


def test_training_raises_the_bound():
    rng = np.random.default_rng(1)
    c = torch.from_numpy(rng.normal(size=(6, 3)))
    x = c @ torch.from_numpy(rng.normal(size=(3, 7)))
    before = vae_start(SIZE, np.random.default_rng(5))
    after = fit(x, c, SIZE, np.random.default_rng(5), noise=0.5, steps=200, rate=0.02)
    draw = torch.zeros(6, 2).double()
    bounds = [elbo(params, x, c, draw, 0.5).mean().item() for params in (before, after)]
    assert bounds[1] > bounds[0] + 5
    again = fit(x, c, SIZE, np.random.default_rng(5), noise=0.5, steps=200, rate=0.02)
    assert all(torch.equal(after[name], again[name]) for name in after)
    written = decoded(after, prior(after, c)[0], c)
    assert (written - x).square().mean() < 0.5 * x.square().mean()
    assert encoded(after, x, c)[0].shape == (6, 2)


def test_a_newcomers_term_is_decoded_from_the_mixture_of_its_nearest(trained):
    federation, known = trained
    options = OnboardingOptions(onboard="semantic", top_k=2, tau=0.2)
    way = make_onboarding("semantic", options, *trained)
    clients = sorted(known.terms)
    terms = [(known.terms[c]["U"].double() @ known.terms[c]["V"].double()).numpy() for c in clients]

    def mixture(e):
        cosines = {
            c: float(e @ v / np.sqrt((e @ e) * (v @ v))) for c, v in known.descriptions.items()
        }
        nearest = sorted(cosines, key=lambda c: -cosines[c])[:2]
        powers = [math.exp(cosines[c] / 0.2) for c in nearest]
        return sum(p * known.descriptions[c] for p, c in zip(powers, nearest, strict=True)) / sum(
            powers
        )

    own = np.array([mixture(known.descriptions[c]) for c in clients])
    spread = np.sqrt(((own - own.mean(0)) ** 2).mean())
    mine = make_newcomer(federation, NEWCOMERS[0], 0, 0)
    e = describe("names", federation, mine.rows, mine.labels)
    c = (mixture(e) - own.mean(0)) / spread
    params = way.autoencoder
    z = layer(params, "prior", c)
    latent = z[: len(z) // 2]
    size = np.sqrt(np.mean(np.square(terms)))
    term = (network(params, "decoder", [*latent, *c]) * size).reshape(terms[0].shape)
    left, values, right = np.linalg.svd(term)
    cut = left[:, :2] * values[:2] @ right[:2]
    (found,) = way.onboard([mine])
    np.testing.assert_allclose(found.state["U"] @ found.state["V"], cut, atol=1e-10)
    assert found.bytes_up == e.nbytes and found.bytes_down == 2 * (4 + 32) * 8


def test_draws_are_of_the_seed_and_of_the_newcomer(trained):
    way = make_onboarding(
        "semantic", OnboardingOptions(onboard="semantic", decode="draw"), *trained
    )
    first, again, other = (
        way.generated(trained[1].descriptions[0], client) for client in (2, 2, 5)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)
