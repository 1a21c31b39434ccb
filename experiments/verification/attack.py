"""Whether a run was attacked by whom, and with the effect, that its other files say."""

from __future__ import annotations

from collections.abc import Mapping

from experiments.reporting.runs import Run
from experiments.verification.checks import listed, refuse_differences, selection_of
from fedpgp.attacks import drawn_attackers, make_attack
from fedpgp.attacks.success import mean_rates
from fedpgp.errors import FedPGPError
from fedpgp.evaluation import select
from strategies.records import left_out_of


def attackers_by_settings(run: Run) -> tuple[int, ...]:
    """Return the clients that attack a run, as its settings draw them; none without an attack.

    Raises:
        FedPGPError: no attack can have these settings.
    """
    attack = make_attack(run.config)
    if attack is None:
        return ()
    rows = run.partition["clients"]
    able = [row["id"] for row in rows if row.get("trains", True) and row["train_images"] > 0]
    return drawn_attackers(attack, able, run.config["seed"])


def check_attack(run: Run) -> str:
    """Say whether ``attack`` of ``summary.json`` is the attack of the settings, and its figures
    are those of the rounds.

    Raises:
        FedPGPError: naming what is not.
    """
    told, clients = run.summary.get("attack") or {}, attackers_by_settings(run)
    named = tuple(told.get("clients") or ())
    if named != clients:
        raise FedPGPError(
            f"summary.json names as attackers {listed(named)}, by its settings {listed(clients)}"
        )
    if not clients:
        return "none is claimed"
    settings = run.config["attack"]
    for key in ("name", "share"):
        if told.get(key) != settings[key]:
            raise FedPGPError(
                f"summary.json says attack.{key} {told.get(key)}, config.yaml {settings[key]}"
            )
    measured = _measured(run, clients)
    recorded = {key: told[key] for key in measured if key in told}  # an older run has not all
    expected = {key: measured[key] for key in recorded}
    refuse_differences({"attack": expected}, {"attack": recorded}, "summary.json", "metrics.jsonl")
    return f"{settings['name']} by {listed(clients)}, drawn by its settings"


def _measured(run: Run, attackers: tuple[int, ...]) -> Mapping[str, object]:
    _, chosen = select(run.evals, selection_of(run))
    rates = [row["success_rate"] for row in run.evals if row["round"] in chosen and _rated(row)]
    gone = [client for row in run.trains for client in left_out_of(row)]
    hostile = sum(client in attackers for client in gone)
    return {
        "success_rate": mean_rates(rates) if rates else None,
        "left_out": {"attackers": hostile, "honest": len(gone) - hostile},
    }


def _rated(row: Mapping) -> bool:
    return row.get("success_rate") is not None
