"""The records of a round, as ``metrics.jsonl`` has them."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from flwr.app import MetricRecord

from fedpgp.attacks import Attackers
from fedpgp.attacks.success import success_rates
from fedpgp.evaluation import standard_errors, summarize
from fedpgp.evaluation.lifelong import task_accuracies
from strategies.exchange import Traffic
from strategies.observer import Rows
from strategies.requests import Request
from strategies.run_state import RunState


def train_record(
    server_round: int,
    metrics: Mapping[int, MetricRecord],
    weights: Mapping[int, float],
    dropped: Mapping[int, str],
    filtered: Sequence[int],
    seconds: float,
    traffic: Traffic,
) -> dict:
    """Return the record of a training round.

    Args:
        server_round: the round.
        metrics: client -> the metrics of its training, of the clients that count; without a loss,
            or with NaN, where it tells none.
        weights: client -> its weight in the round's loss.
        dropped: client -> why it does not count.
        filtered: clients that the strategy left out; they do not count either.
        seconds: that the round took.
        traffic: bytes of the round.
    """
    metrics = {client: said for client, said in metrics.items() if client not in filtered}
    losses = {client: said.get("loss", math.nan) for client, said in metrics.items()}
    losses = {client: loss for client, loss in losses.items() if not math.isnan(loss)}
    weight = np.array([weights[client] for client in losses], dtype=np.float64)
    loss = float(np.average(list(losses.values()), weights=weight)) if losses else None
    return {
        "kind": "train",
        "round": server_round,
        "loss": loss,
        "clients": len(metrics),
        "seconds": seconds,
        "bytes_up": traffic.up,
        "bytes_down": traffic.down,
        "dropped": [{"client": c, "reason": reason} for c, reason in sorted(dropped.items())],
    }


def extras(
    images: Mapping[int, int],
    caps: Mapping[int, int],
    filtered: Sequence[int],
    told: Mapping[str, Mapping[str, float]],
) -> dict:
    """Return what the record of a training round has beside :func:`train_record`'s, where there is
    something to say.

    Args:
        images: client -> its images.
        caps: client -> its weight, of those that have more images than they count for.
        filtered: clients that the strategy left out.
        told: update step -> what it says of the round.
    """
    capped = [{"client": c, "images": images[c], "weight": caps[c]} for c in caps]
    found = {"capped": capped, "filtered": sorted(filtered), "updates": told}
    return {key: value for key, value in found.items() if value}


def evaluation_rows(table: Rows, figures: Mapping[int, MetricRecord], state: RunState) -> Rows:
    """Return one row for each client that was evaluated: who it is and its figures.

    Args:
        table: the clients' rows.
        figures: client -> the metrics of its evaluation.
        state: of the run, which has the zero-shot figures.
    """
    rows = []
    for client, row in enumerate(table):
        if client in figures:
            own = {name: value for name, value in figures[client].items() if "." in name}
            told = {name.partition(".")[2] for name in own}  # of eval sets that count now
            zero_shot = state.zero_shot_of(client).items()
            known = {name: value for name, value in zero_shot if name.partition(".")[2] in told}
            rows.append({"id": row["id"], "domain": row["domain"], **known, **own})
    return rows


def left_out_of(record: Mapping) -> list[int]:
    """Return the clients whose update is not in a round's average.

    Args:
        record: of the round's training, as metrics.jsonl has it.
    """
    return [entry["client"] for entry in record["dropped"]] + record.get("filtered", [])


def evaluation_record(
    request: Request,
    rows: Sequence[Mapping],
    clients: int,
    seconds: float,
    traffic: Traffic,
    attackers: Attackers | None = None,
) -> dict:
    """Return the record of an evaluation; ``drawn_clients`` says how many were asked, where it was
    not all of them, and ``standard_error`` how far that may be from the mean of all.

    Args:
        request: to the clients.
        rows: of the clients that were evaluated.
        clients: number of all clients.
        seconds: that it took.
        traffic: bytes of the evaluation.
        attackers: whose figures do not count; None without an attack.
    """
    honest = [row for row in rows if attackers is None or row["id"] not in attackers.clients]
    measured = attackers is not None and attackers.attack.measured
    drawn = {}
    if len(request.clients) < clients:
        errors = standard_errors(honest, clients)
        drawn = {"drawn_clients": len(request.clients), "standard_error": errors}
    return {
        "kind": "eval",
        "round": request.server_round,
        "clients": len(honest),
        "all_clients": clients,
        **drawn,
        **summarize(honest),
        **task_accuracies(honest),
        **({"success_rate": success_rates(honest)} if measured else {}),
        "seconds": seconds,
        "bytes_up": traffic.up,
        "bytes_down": traffic.down,
    }
