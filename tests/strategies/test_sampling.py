"""How many clients an evaluation asks."""

from types import SimpleNamespace

import numpy as np
import pytest

from fedpgp.protocols import ClientSplit, EvalSet
from strategies.sampling import MOST_EVALUATED, draw_evaluated


def drawn(
    clients: int,
    evaluate_clients: float | None,
    selection: str = "last",
    asked=None,
    *,
    server_round: int = 1,
    left: tuple[int, ...] = (),
    attackers: tuple[int, ...] = (),
    late: tuple[int, ...] = (),
) -> list[int]:
    """Clients that are evaluated; those that are ``late`` are tested from round 5 on."""
    rows = np.arange(2)
    each, later = (
        ClientSplit(rows, (0, 1), {"local": EvalSet(rows, (0, 1), since=since)}) for since in (0, 5)
    )
    config = SimpleNamespace(
        evaluate_clients=evaluate_clients, left=left, seed=0, protocol={"selection": selection}
    )
    split = SimpleNamespace(clients=[later if c in late else each for c in range(clients)])
    return draw_evaluated(config, split, server_round, attackers, asked)


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


@pytest.mark.parametrize("size", [8, 0.4])
def test_each_round_is_of_the_same_clients(size):
    first = drawn(20, size, server_round=0)
    assert all(drawn(20, size, server_round=r) == first for r in (1, 2, 9))
    assert len(first) == 8 and first != list(range(8))


def test_who_joins_leaves_attacks_or_is_tested_later_moves_few_others():
    first = {*drawn(20, 8)}
    gone, late = min(first), max(first)
    assert first - {gone} < {*drawn(20, 8, left=(gone,))}
    assert first - {gone} < {*drawn(20, 8, attackers=(gone,))}
    assert late not in drawn(20, 8, late=(late,), server_round=4)
    assert {*drawn(20, 8, late=(late,), server_round=5)} == first
    assert {client for client in drawn(23, 8) if client < 20} <= first


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
