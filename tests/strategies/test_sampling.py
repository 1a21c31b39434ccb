"""How many clients an evaluation asks."""

from types import SimpleNamespace

import numpy as np
import pytest

from fedpgp.protocols import ClientSplit, EvalSet
from strategies.sampling import MOST_EVALUATED, draw_evaluated


def drawn(
    clients: int, evaluate_clients: float | None, selection: str = "last", asked=None
) -> list[int]:
    rows = np.arange(2)
    each = ClientSplit(rows, (0, 1), {"local": EvalSet(rows, (0, 1))})
    config = SimpleNamespace(
        evaluate_clients=evaluate_clients, left=(), seed=0, protocol={"selection": selection}
    )
    return draw_evaluated(config, SimpleNamespace(clients=[each] * clients), 1, asked=asked)


@pytest.mark.parametrize(
    ("clients", "evaluate_clients", "asked"),
    [
        (MOST_EVALUATED, None, MOST_EVALUATED),
        (MOST_EVALUATED + 1, None, MOST_EVALUATED),
        (3000, 2500, 2500),
        (3000, 5000, 3000),
        (300, 0.1, 30),
        (3, 0.1, 1),
        (3, 1, 1),
    ],
)
def test_so_many_clients_are_asked(clients, evaluate_clients, asked):
    found = drawn(clients, evaluate_clients)
    assert len(set(found)) == len(found) == asked
    assert set(found) <= set(range(clients))


def test_rounds_that_are_compared_are_of_the_same_clients():
    assert drawn(1200, None, "validation") == list(range(1200))


def test_a_run_that_asked_all_of_more_clients_goes_on_to():
    """As a run of an earlier version, before its first round or in a later one."""
    for server_round in (0, 3):
        assert drawn(1200, None, asked=np.full(1200, server_round)) == list(range(1200))
    first, later = np.full(1200, -1), np.full(1200, 0)
    first[:MOST_EVALUATED] = 0
    later[MOST_EVALUATED:] = 5
    for asked in (first, later, np.full(1200, -1)):
        assert len(drawn(1200, None, asked=asked)) == MOST_EVALUATED
    assert len(drawn(1200, 1100, asked=np.zeros(1200, dtype=int))) == 1100
