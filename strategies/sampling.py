"""Which clients take part in a round: who can, who is drawn, who drops out.

All draws come from (seed, purpose, round), so that a run that is resumed draws the same clients.
"""

from collections.abc import Mapping, Sequence

from fedpgp.errors import FedPGPError
from fedpgp.seeding import generator


def able_clients(table: Sequence[Mapping]) -> list[int]:
    """Return the clients that can train: they have images to train on, and are not of those that
    never do.

    Args:
        table: the clients' rows.
    """
    return [
        client
        for client, row in enumerate(table)
        if row["train_images"] > 0 and row.get("trains", True)
    ]


def participants(config: Mapping, able: int) -> int:
    """Return the number of clients that take part in a round, of those that are able to."""
    return min(able, max(1, round(config["participation"] * able)))


def check_enough(config: Mapping, table: Sequence[Mapping], needed: int) -> None:
    """Refuse a run whose rounds could never have enough clients.

    Args:
        config: of the run.
        table: the clients' rows.
        needed: the fewest clients that the strategy can aggregate.

    Raises:
        FedPGPError: fewer take part than ``runtime.min_clients`` or the strategy needs.
    """
    taking_part = participants(config, len(able_clients(table)))
    least = config["runtime"]["min_clients"]
    if least > taking_part:
        raise FedPGPError(
            f"runtime.min_clients={least} is more than the {taking_part} clients that take part in "
            "a round"
        )
    if needed > taking_part:
        raise FedPGPError(
            f"strategy={config['strategy']['name']} needs {needed} clients in a round; clients and "
            f"participation give {taking_part}"
        )


def draw_clients(config: Mapping, table: Sequence[Mapping], server_round: int) -> list[int]:
    """Draw the clients of a round among those that can train, from (seed, round) alone."""
    able = able_clients(table)
    if server_round == 1 and config.get("first_round") == "all":
        return able
    drawn = generator(config["seed"], "participants", server_round).choice(
        able, size=participants(config, len(able)), replace=False
    )
    return sorted(int(client) for client in drawn)


def drop_out(
    config: Mapping, server_round: int, clients: Sequence[int], need: int
) -> tuple[list[int], dict[int, str]]:
    """Return the clients that stay, and why the others do not.

    Each drops out by a draw from (seed, round, client); ``need`` of them always stay.
    """
    chance = config["runtime"].get("dropout", 0.0)
    draws = {
        c: float(generator(config["seed"], "dropout", server_round, c).random()) for c in clients
    }
    most = max(0, len(clients) - need)
    gone = sorted((c for c in clients if draws[c] < chance), key=draws.__getitem__)[:most]
    reason = f"dropped out (runtime.dropout={chance})"
    return [c for c in clients if c not in gone], dict.fromkeys(gone, reason)
