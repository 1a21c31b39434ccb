"""What a run leaves at its end: summary.json and report.html."""

import os
import shlex
from collections.abc import Mapping, Sequence

from clients.disclosure import NO_FIGURES, updates_only
from clients.failures import describe
from clients.machine import peak_rss_mb
from experiments.callbacks.console import Console
from experiments.newcomers import with_newcomers
from experiments.reporting.page import write_report
from experiments.run_folder import RunFolder
from experiments.spreadsheet import csv_text
from fedpgp.atomic_files import write_atomically
from fedpgp.attacks.success import mean_rates
from fedpgp.config import PrivacySection
from fedpgp.errors import FedPGPError
from fedpgp.evaluation import select
from fedpgp.evaluation.lifelong import lifelong_summary
from fedpgp.updates.base import State
from fedpgp.updates.image_privacy import NO_BOUND, ImagePrivacy
from strategies.image_accounts import spent_by_clients, state_of
from strategies.records import left_out_of
from strategies.server import Server


def finish(
    folder: RunFolder,
    config: Mapping,
    server: Server | None,
    status: str,
    console: Console,
    newcomers: Mapping | None = None,
) -> dict:
    """Writes summary.json and report.html; a page that cannot be made is a warning,
    and the result stands. ``newcomers``: of :func:`experiments.newcomers.onboard_newcomers`."""
    selection = config["protocol"].get("selection", "last")
    accuracy, rounds = select(folder.evaluations, selection)
    last = folder.evaluations[-1] if folder.evaluations else {}
    summary = {
        "method": config["method"]["name"],
        "dataset": config["dataset"]["name"],
        "model": config["model"]["name"],
        "partition": config["partition"]["scheme"],
        "protocol": config["protocol"]["name"],
        "seed": config["seed"],
        "rounds": config["rounds"],
        "clients": len(folder.table) or config["clients"],
        "status": status,
        "accuracy": accuracy,
        "evaluated_clients": last.get("clients"),
    }
    if "standard_error" in last:
        summary["standard_error"] = last["standard_error"]
    privacy = PrivacySection.of(config.get("privacy", {}))
    if updates_only(privacy, deployed=config["runtime"]["name"] == "flower"):
        summary["no_figures"] = NO_FIGURES
    if (lifelong := lifelong_summary(folder.evaluations)) is not None:
        summary["lifelong"] = lifelong
    if selection != "last":
        summary["selected_rounds"] = rounds
    if server is not None:
        summary["one_prompt"] = server.federation.method.shares_one_model
        done = server.state.server_round
        of_steps = server.steps.privacy(_step_state(server, folder, console), done)
        summary["privacy"] = of_steps or server.federation.method.privacy(done)
        if server.state.stopped:
            summary["stopped"] = server.state.stopped
        summary["attack"] = _attack(server, folder, rounds)
        summary = with_newcomers(summary | _cost(server), newcomers or {})
        folder.json("machines.json", {"trained_on": dict(sorted(server.state.placed.items()))})
    folder.json("summary.json", summary)
    try:
        write_report(folder.path)
    except Exception as error:
        again = shlex.join(["python", "-m", "experiments.report", str(folder.path)])
        console.warn(
            f"report.html could not be made ({describe(error)}); the result stands. Try again: "
            f"{again}"
        )
    return summary


def _step_state(server: Server, folder: RunFolder, console: Console) -> Mapping[str, State]:
    """What the update steps keep; with ``privacy=image`` in a simulation, what each client has
    spent by its own account, which privacy.csv gets too. Where an account cannot be read, what the
    clients said with their updates has to do."""
    private, states = server.federation.private, server.state.step_state
    if private is None or server.configuration is not None:
        return states
    try:
        spent = spent_by_clients(private, server.folder / "private", server.job)
    except FedPGPError as error:
        console.warn(
            f"{error}. Without it, the epsilon of summary.json is what the clients said with the "
            "updates that counted, and there is no privacy.csv"
        )
        return states
    lines: list[list] = [["id", "epsilon", "delta", "noise_multiplier", "rate", "steps"]]
    for client, said in sorted(spent.items()):
        epsilon = said["epsilon"] if said["epsilon"] != NO_BOUND else ""
        about = [said["delta"], said["noise"], said["rate"], int(said["steps"])]
        lines.append([client, epsilon, *about])
    write_atomically(folder.path / "privacy.csv", csv_text(lines).encode())
    return {**states, ImagePrivacy.name: state_of(spent, server.federation.num_clients)}


def _attack(server: Server, folder: RunFolder, rounds: Sequence[int]) -> dict | None:
    """Who attacked the run, the rates of success (percent, a mean over the rounds that the accuracy
    is of) where the attack has one, and how many updates were left out of the averages."""
    if server.attackers is None:
        return None
    attack = server.attackers.attack
    counted = [record for record in folder.evaluations if record["round"] in rounds]
    rates = [record["success_rate"] for record in counted] if attack.measured else []
    left_out = [client for record in folder.trained for client in left_out_of(record)]
    attackers = sum(client in server.attackers.clients for client in left_out)
    return {
        "name": attack.name,
        "share": attack.share,
        "clients": list(server.attackers.clients),
        "success_rate": mean_rates(rates) if rates else None,
        "left_out": {"attackers": attackers, "honest": len(left_out) - attackers},
    }


def _cost(server: Server) -> dict:
    state, traffic = server.state, server.state.traffic
    busy = sum(state.seconds[what] for what in ("encode", "train", "evaluate"))
    own = peak_rss_mb()
    mine = f"/{os.getpid()}"
    return {
        "bytes_up": traffic.up,
        "bytes_down": traffic.down,
        "wire_bytes_up": traffic.wire_up,
        "wire_bytes_down": traffic.wire_down,
        "seconds": {**state.seconds, "overhead": max(0.0, state.seconds["total"] - busy)},
        "images_per_second": state.images / state.seconds["train"]
        if state.images and state.seconds["train"]
        else None,
        "peak_rss_mb": own
        + sum(
            peak for process, peak in server.costs.peak_memory.items() if not process.endswith(mine)
        ),
        "peak_gpu_mb": sum(server.costs.peak_gpu_memory.values()) or None,
    }


def save_what_there_is(
    folder: RunFolder, config: Mapping, server: Server | None, console: Console
) -> dict:
    """Write the summary of a run that did not finish, as far as that is possible."""
    try:
        return finish(folder, config, server, "interrupted", console)
    except FedPGPError as error:  # a full disk must not hide why the run stopped
        console.warn(str(error))
        return {"status": "interrupted", "accuracy": None}
