"""Which clients take part in a round, and which are evaluated: who can, who is drawn, who drops
out.

All draws come from (seed, purpose, round), and those of the evaluated from (seed, purpose), so that
a run that is resumed draws the same clients.
"""

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from fedpgp.client_table import train_images_at
from fedpgp.config import Config
from fedpgp.errors import FedPGPError
from fedpgp.protocols import FederatedSplit
from fedpgp.seeding import generator
from fedpgp.updates import StopTraining
from fedpgp.updates.sum_check import LEAST_CLIENTS


def able_clients(
    table: Sequence[Mapping], server_round: int, left: Collection[int] = ()
) -> list[int]:
    """Return the clients that can train: they have images to train on in this round, and are not of
    those that never do.

    Args:
        table: the clients' rows.
        server_round: the round.
        left: clients that have left for good.
    """
    return [
        client
        for client, row in enumerate(table)
        if train_images_at(row, server_round) != 0
        and row.get("trains", True)
        and client not in left
    ]


def participants(config: Config, able: int) -> int:
    """Return the number of clients that take part in a round, of those that are able to."""
    return min(able, max(1, round(config.participation * able)))


MOST_EVALUATED = 1000
"""Clients that an evaluation asks at most, where ``evaluate_clients`` does not say how many."""


def check_enough(config: Config, table: Sequence[Mapping], needed: int) -> None:
    """Refuse a run whose rounds could never have enough clients.

    Args:
        config: of the run.
        table: the clients' rows.
        needed: the fewest clients that the strategy can aggregate.

    Raises:
        FedPGPError: fewer take part than ``runtime.min_clients`` or the strategy needs.
    """
    least = config.runtime.min_clients
    changes = {phase["since"] for row in table for phase in row.get("phases", ())}
    for server_round in sorted({1, *changes} & set(range(1, config.rounds + 1))):
        able = able_clients(table, server_round, config.left)
        taking_part = participants(config, len(able))
        which = f"round {server_round}" if changes else "a round"
        if least > taking_part:
            raise FedPGPError(
                f"runtime.min_clients={least} is more than the {taking_part} clients that take "
                f"part in {which}"
            )
        if needed > taking_part:
            raise FedPGPError(
                f"strategy={config.strategy.name} needs {needed} clients in a round; clients "
                f"and participation give {taking_part}{f' in {which}' if changes else ''}"
            )


def draw_clients(config: Config, able: Sequence[int], server_round: int) -> list[int]:
    """Draw the clients of a round among those that can train, from (seed, round) alone."""
    if server_round == 1 and config.first_round == "all":
        return list(able)
    drawn = generator(config.seed, "participants", server_round).choice(
        able, size=participants(config, len(able)), replace=False
    )
    return sorted(int(client) for client in drawn)


def choose_clients(
    config: Config, table: Sequence[Mapping], server_round: int, needed: int, steps, states
) -> tuple[list[int], dict[int, str], int]:
    """Return the clients of a round, why others of those drawn drop out, and how many have to
    answer.

    Args:
        config: of the run.
        table: the clients' rows.
        server_round: the round.
        needed: the fewest clients that the strategy can aggregate.
        steps: the run's :class:`fedpgp.updates.pipeline.UpdatePipeline`; one of them may draw.
        states: of the steps.

    Raises:
        StopTraining: so many train no more that the others are too few.
    """
    members = able_clients(table, server_round, config.left)
    able = steps.able(members, server_round, states)
    drawn = steps.draw(able, server_round, states)
    if drawn is None:
        need = max(config.runtime.min_clients, needed)
        fewest = max(need, LEAST_CLIENTS if steps.settings.secure_sum else 0)
        if len(able) < len(members) and (rest := participants(config, len(able))) < fewest:
            raise StopTraining(
                f"{len(members) - len(able)} of the {len(members)} clients train no more; of the "
                f"others {rest} would take part in a round, and {fewest} are needed"
            )
        drawn = draw_clients(config, able, server_round)
        return *drop_out(config, server_round, drawn, need), need
    # Who stays must not depend on who else was drawn; nobody may be left, and nobody may answer.
    return *drop_out(config, server_round, drawn, 0), 0


def draw_evaluated(
    config: Config,
    split: FederatedSplit,
    server_round: int,
    attackers: Collection[int] = (),
    asked: np.ndarray | None = None,
) -> list[int]:
    """Draw the clients that are evaluated after a round, from the seed alone, so that rounds are of
    the same clients: as many, or the share that ``evaluate_clients`` says of those that are tested
    on something by then. None: all clients, or :data:`MOST_EVALUATED` of more.

    Args:
        config: of the run.
        split: the server's.
        server_round: the round; 0 is before training.
        attackers: are not drawn, since their figures do not count.
        asked: ``zero_shot_asked`` of the run's state: a run that asked all of more clients before
            goes on to; None: it asked nobody.
    """
    clients = [client for client in range(len(split.clients)) if client not in config.left]
    wanted, compared = config.evaluate_clients, config.protocol["selection"] == "validation"
    if wanted is None:
        if len(clients) <= MOST_EVALUATED or compared or _asked_more(asked):
            return clients
        wanted = MOST_EVALUATED
    honest = [c for c in clients if c not in attackers]
    able = [c for c in honest if split.clients[c].is_tested_after(server_round)] or honest
    size = int(wanted) if wanted >= 1 else max(1, round(wanted * len(able)))
    return sample(config.seed, able, size)


def sample(seed: int, able: Sequence[int], size: int) -> list[int]:
    """Return so many of these clients, drawn from the seed, ascending.

    Each client has a number of its own, and the lowest are drawn. So where clients join, leave, or
    are tested from a later round on, the others of a sample stay.
    """
    numbers = generator(seed, "evaluate").random(max(able, default=-1) + 1)
    return sorted(sorted(able, key=numbers.__getitem__)[:size])


def _asked_more(asked: np.ndarray | None) -> bool:
    """Whether one evaluation of the run asked more than :data:`MOST_EVALUATED` clients, as those of
    earlier versions did."""
    rounds = [] if asked is None else asked[asked >= 0]
    return len(rounds) > 0 and np.unique(rounds, return_counts=True)[1].max() > MOST_EVALUATED


def drop_out(
    config: Config, server_round: int, clients: Sequence[int], need: int
) -> tuple[list[int], dict[int, str]]:
    """Return the clients that stay, and why the others do not.

    Each drops out by a draw from (seed, round, client); ``need`` of them always stay.
    """
    chance = config.runtime.dropout
    draws = {c: float(generator(config.seed, "dropout", server_round, c).random()) for c in clients}
    most = max(0, len(clients) - need)
    gone = sorted((c for c in clients if draws[c] < chance), key=draws.__getitem__)[:most]
    reason = f"dropped out (runtime.dropout={chance})"
    return [c for c in clients if c not in gone], dict.fromkeys(gone, reason)
