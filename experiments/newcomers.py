"""Newcomers of a simulation: onboarded after its training, from what the run has on disk."""

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from clients.private_state import PrivateStore
from experiments.callbacks.console import Console
from fedpgp.client_models import State
from fedpgp.config import Config
from fedpgp.onboarding.measure import Measured, measure
from fedpgp.onboarding.share import bytes_shared, trained_of
from fedpgp.protocols import make_protocol
from fedpgp.protocols.onboarding_options import OnboardingOptions
from strategies.exchange import Interrupted
from strategies.server import Server

ENOUGH = 0.95
"""Of a trained client's accuracy, which newcomers are to reach."""


def onboard_newcomers(
    config: Mapping, server: Server, folder: Path, stop: threading.Event, console: Console
) -> dict:
    """Onboard the clients that never trained, and count what trained ones shared.

    Args:
        config: of the run.
        server: after its last round.
        folder: of the run.
        stop: ends it.
        console: told what is at work.

    Returns:
        ``shared_terms`` (who shared, bytes) with ``method.share_terms``; ``onboarding``, a line a
        way, budget and number of steps, where ``protocol.onboard`` is more than ``global``.

    Raises:
        FedPGPError: a way that cannot work, or a private state that cannot be read.
        Interrupted: the person asked to stop.
    """
    typed, protocol = Config.of(config), make_protocol(config["protocol"])
    options = protocol if isinstance(protocol, OnboardingOptions) else OnboardingOptions()
    share, onboards = typed.method.share_terms, options.ways != ["global"]
    if not (share or onboards):
        return {}
    state, federation = server.state, server.federation
    store = PrivateStore(folder / "private", server.job.run, server.job.attempt)

    def load_state(client: int) -> State | None:
        gone = client in typed.left
        return None if gone else store.load(client, int(state.committed[client]))

    about = (state.shared, state.server_state, load_state if share else None)
    trained = trained_of(federation, *about, options.description)
    found: dict = {}
    if share:
        found["shared_terms"] = {
            "clients": sorted(trained.terms),
            "bytes_up": bytes_shared(trained),
        }

    def going_on(what: str) -> None:
        if stop.is_set():
            raise Interrupted
        console.stage(what)

    if onboards:
        found["onboarding"] = list(map(_row, measure(federation, trained, options, going_on)))
    return found


def with_newcomers(summary: Mapping, found: Mapping) -> dict:
    """Return a run's summary with what :func:`onboard_newcomers` found.

    ``onboarding.trained`` is the mean accuracy of trained clients on their own test images;
    ``onboarding.images_needed`` says of each way from how many images a class newcomers have 95 %
    of it, with the most steps (null: with none of the budgets).
    """
    if not found:
        return dict(summary)
    rows = found.get("onboarding", [])
    up = sum(row["bytes_up"] for row in rows) + found.get("shared_terms", {}).get("bytes_up", 0)
    down = sum(row["bytes_down"] for row in rows)
    whole = {**summary, **found}
    whole |= {"bytes_up": summary["bytes_up"] + up, "bytes_down": summary["bytes_down"] + down}
    if rows:
        trained = (summary["accuracy"].get("personal") or {}).get("local")
        needed = {row["way"]: images_needed(rows, row["way"], trained) for row in rows}
        whole["onboarding"] = {"trained": trained, "images_needed": needed, "results": rows}
    return whole


def images_needed(rows: Sequence[Mapping], way: str, trained: float | None) -> int | str | None:
    """Return the fewest images a class with which newcomers have 95 % of a trained client's
    accuracy, after the most steps; ``all``; None: no budget was enough, or nobody trained."""
    mine = [row for row in rows if row["way"] == way]

    def most(budget: int | None) -> int:
        return max(row["steps"] for row in mine if row["budget"] == budget)

    enough = [
        row["budget"]
        for row in mine
        if row["steps"] == most(row["budget"])
        and trained is not None
        and row["unseen"] >= ENOUGH * trained
    ]
    counted = [budget for budget in enough if budget is not None]
    return min(counted) if counted else "all" if enough else None


def _row(measured: Measured) -> dict:
    """Return one line of ``summary.json``'s ``onboarding``."""
    return {
        "way": measured.way,
        "budget": measured.budget,
        "steps": measured.steps,
        "unseen": measured.unseen,
        "clients": {str(client): value for client, value in measured.accuracies.items()},
        "bytes_up": measured.bytes_up,
        "bytes_down": measured.bytes_down,
    }
