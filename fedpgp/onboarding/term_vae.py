"""A conditional variational autoencoder of low-rank terms, after SG-LoRA (Li et al., CVPR 2026,
arXiv 2509.10535).

    q(z | x, c) = N(mu_q, diag e^(s_q))      (mu_q, s_q) = E(x, c)
    p(z | c)    = N(mu_p, diag e^(s_p))      (mu_p, s_p) = P(c)
    p(x | z, c) = N(D(z, c), noise^2 I)
    ELBO        = E_q log p(x | z, c) - KL(q | p)

x is a term, c what is known of its client. E and D have one hidden ReLU layer, P is linear.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fedpgp.layers import Params, linear_start


@dataclass(frozen=True)
class VAESize:
    """The size of an autoencoder.

    Attributes:
        term: numbers of x.
        condition: numbers of c.
        latent: numbers of z.
        hidden: width of the hidden layers.
    """

    term: int
    condition: int
    latent: int = 4
    hidden: int = 32


def vae_start(size: VAESize, rng: np.random.Generator) -> Params:
    """Return the networks E, P and D as torch starts them, float64."""
    return {
        **linear_start("encoder.0", size.hidden, size.term + size.condition, rng),
        **linear_start("encoder.1", 2 * size.latent, size.hidden, rng),
        **linear_start("prior", 2 * size.latent, size.condition, rng),
        **linear_start("decoder.0", size.hidden, size.latent + size.condition, rng),
        **linear_start("decoder.1", size.term, size.hidden, rng),
    }


def encoded(params: Params, x: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and log-variance of q(z | x, c), each (N, latent)."""
    return _network(params, "encoder", torch.cat([x, c], dim=-1)).chunk(2, dim=-1)


def prior(params: Params, c: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and log-variance of p(z | c), each (N, latent)."""
    return _linear(params, "prior", c).chunk(2, dim=-1)


def decoded(params: Params, z: Tensor, c: Tensor) -> Tensor:
    """Return the mean of p(x | z, c), (N, term)."""
    return _network(params, "decoder", torch.cat([z, c], dim=-1))


def elbo(params: Params, x: Tensor, c: Tensor, draw: Tensor, noise: float) -> Tensor:
    """Return the evidence lower bound of each term, (N,), with one draw of z.

    Args:
        params: the networks.
        x, c: terms and what is known of their clients, (N, ...).
        draw: standard normal, (N, latent).
        noise: deviation of a number of x.
    """
    mean, log_var = encoded(params, x, c)
    prior_mean, prior_log_var = prior(params, c)
    z = mean + (log_var / 2).exp() * draw
    square = (x - decoded(params, z, c)).square().sum(-1)
    constant = x.shape[-1] * math.log(2 * math.pi * noise**2)
    likelihood = -(square / noise**2 + constant) / 2
    ratio = (log_var.exp() + (mean - prior_mean).square()) / prior_log_var.exp()
    divergence = (prior_log_var - log_var + ratio - 1).sum(-1) / 2
    return likelihood - divergence


def fit(
    x: Tensor,
    c: Tensor,
    size: VAESize,
    rng: np.random.Generator,
    *,
    noise: float,
    steps: int,
    rate: float,
) -> Params:
    """Train an autoencoder with Adam on all terms at once.

    Args:
        x, c: terms and what is known of their clients, (N, ...) float64.
        size: of the networks.
        rng: of their start and of z.
        noise: deviation of a number of x.
        steps, rate: of Adam.
    """
    params = {name: tensor.requires_grad_() for name, tensor in vae_start(size, rng).items()}
    optimizer = torch.optim.Adam(list(params.values()), lr=rate)
    with torch.enable_grad():
        for _ in range(steps):
            draw = torch.from_numpy(rng.standard_normal((len(x), size.latent)))
            optimizer.zero_grad()
            (-elbo(params, x, c, draw, noise).mean()).backward()
            optimizer.step()
    return {name: tensor.detach() for name, tensor in params.items()}


def _network(params: Params, name: str, x: Tensor) -> Tensor:
    return _linear(params, f"{name}.1", _linear(params, f"{name}.0", x).relu())


def _linear(params: Params, name: str, x: Tensor) -> Tensor:
    return F.linear(x, params[f"{name}.weight"], params[f"{name}.bias"])
