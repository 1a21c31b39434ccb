"""What a run's federation gives away: trained again under attack, and scored
(:mod:`fedpgp.audit`)."""

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

from experiments.auditing.canaries import canaries
from experiments.auditing.membership import clients, images
from experiments.auditing.updates import classes, features
from experiments.auditing.victim import NotTried, Victim
from experiments.run_checks import open_checked
from experiments.settings import composed
from fedpgp.build import split_configured
from fedpgp.data_record import check_same_data, data_record
from fedpgp.errors import FedPGPError, check_number
from fedpgp.federation import Progress
from fedpgp.protocols import FederatedSplit
from strategies.checkpoint import latest_checkpoint

PARTS = ("canaries", "images", "clients", "classes", "features")


@torch.no_grad()
def audit(
    run: Path,
    parts: Sequence[str] = PARTS,
    *,
    shadows: int = 16,
    canary_runs: int = 10,
    seed: int = 0,
    progress: Progress = lambda done, total, what: None,
) -> dict:
    """Attack a run's federation.

    Args:
        run: its folder; a simulation.
        parts: of :data:`PARTS`.
        shadows: runs with half of the images, and as many with half of the clients; at least 4.
        canary_runs: runs in which half of the clients are canaries.
        seed: of the coins.
        progress: is told how many runs are done.

    Returns:
        ``run``, ``method``, ``privacy`` (what the run claims), ``settings``, a key for each part,
        and ``left_out``: part -> why it was not tried.

    Raises:
        FedPGPError: a deployment, other data than the run's, an attack in the run, or settings that
            cannot work.
    """
    check_number("--shadows", shadows, least=4, whole=True)
    check_number("--canary-runs", canary_runs, least=1, whole=True)
    config, summary, split = _of_run(run)
    victim = Victim(config, split, seed, progress)
    work = {
        "canaries": partial(canaries, victim, canary_runs, summary),
        "images": partial(images, victim, shadows),
        "clients": partial(clients, victim, shadows),
        "classes": partial(classes, victim),
        "features": partial(features, victim),
    }
    found = {
        "run": str(run),
        "method": config["method"]["name"],
        "privacy": summary.get("privacy"),
        "settings": {"shadows": shadows, "canary_runs": canary_runs, "seed": seed},
    }
    left_out = {}
    for part in parts:
        try:
            found[part] = work[part]()
        except NotTried as reason:
            left_out[part] = str(reason)
    return {**found, "left_out": left_out}


def _of_run(run: Path) -> tuple[dict, dict, FederatedSplit]:
    """The configuration as it is attacked, the run's summary, and who owns what."""
    folder, config = open_checked(run)
    if config["runtime"]["name"] == "flower" or config["partition"]["scheme"] == "own":
        raise FedPGPError(
            "an audit trains the federation again, many times, and this run's clients are on "
            "machines of their own: audit a simulation with the same settings"
        )
    if config.get("attack", {}).get("name", "none") != "none":
        raise FedPGPError(
            f"{run} was attacked already (attack={config['attack']['name']}): audit a run without"
        )
    checkpoint = latest_checkpoint(run / "checkpoint", lambda text: None)
    if checkpoint is None:
        raise FedPGPError(f"{run} has no checkpoint: finish the run first")
    config = json.loads(json.dumps(config))
    config["runtime"] = {
        **composed(["runtime=inline"])["runtime"],
        **{key: config["runtime"].get(key) for key in ("cohort_size", "cache_dir")},
    }
    config |= {"evaluate_every": 0, "evaluate_clients": 1}
    config["protocol"] = {**config["protocol"], "selection": "last"}
    split = split_configured(config)
    check_same_data(run, checkpoint[1].get("data"), data_record(split))
    return config, folder.summary(), split
