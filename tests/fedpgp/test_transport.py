"""Transport plans against Sinkhorn's iteration in plain logarithms, one problem at a time."""

import math

import pytest
import torch
from torch.testing import assert_close

from fedpgp.transport import plans


def plain(
    cost: torch.Tensor,
    mass: float,
    epsilon: float,
    threshold: float,
    iterations: int,
    unbalanced: bool,
):
    """One problem (N, M)."""
    columns, rows = cost.shape
    log_K, log_v = -cost / epsilon, torch.zeros(columns, dtype=cost.dtype)
    for _ in range(iterations):
        log_u = -math.log(rows) - (log_K + log_v[:, None]).logsumexp(0)
        log_u = log_u.clamp(max=0) if unbalanced else log_u
        before, log_v = (
            log_v,
            math.log((mass if unbalanced else 1) / columns) - (log_K + log_u).logsumexp(1),
        )
        if (log_v - before).abs().mean() < threshold:
            break
    return (log_K + log_u + log_v[:, None]).exp()


@pytest.mark.parametrize("unbalanced", [True, False])
@pytest.mark.parametrize("epsilon", [1.0, 0.1, 0.01, 0.001])
@pytest.mark.parametrize("spread", [0.05, 1.0])
def test_plans_at_any_entropy(epsilon, unbalanced, spread):
    """Kernels of 0.001 span e^2000; problems stop after different numbers of
    iterations, each by itself."""
    draw = torch.Generator().manual_seed(1)
    cost = 1 - spread * (2 * torch.rand(2, 3, 4, 9, generator=draw, dtype=torch.float64) - 1)
    found = plans(cost, 0.8, epsilon, 1e-3, 100, unbalanced=unbalanced)
    single = plans(cost.float(), 0.8, epsilon, 1e-3, 100, unbalanced=unbalanced)
    for at in [(i, j) for i in range(2) for j in range(3)]:
        expected = plain(cost[at], 0.8, epsilon, 1e-3, 100, unbalanced)
        assert_close(found[at], expected, rtol=1e-9, atol=1e-13)
        assert_close(single[at].double(), expected, rtol=0, atol=1e-6 / epsilon + 1e-5)
