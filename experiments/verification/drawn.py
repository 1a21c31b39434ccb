"""Whether the clients that a run evaluated are those that its configuration draws."""

from collections.abc import Collection
from types import SimpleNamespace

from experiments.reporting.runs import Run, number
from experiments.run_folder import MEMBERS
from experiments.verification.attack import attackers_by_settings
from experiments.verification.checks import NotChecked, listed, selection_of
from fedpgp.errors import FedPGPError
from fedpgp.seeding import generator
from strategies.sampling import MOST_EVALUATED, draw_evaluated, sample

_TESTED = SimpleNamespace(is_tested_after=lambda server_round: True)


def refuse_other_draws(run: Run, evaluated: Collection[int]) -> None:
    """Refuse evaluations of fewer or other clients than ``evaluate_clients`` draws.

    Args:
        run: as recorded.
        evaluated: clients of ``clients.csv``, which are those of the last evaluation.

    Raises:
        FedPGPError: some were drawn where all are asked; more or fewer were drawn; others were.
        NotChecked: some were drawn, and who could be is not in the folder.
    """
    table, left = run.partition["clients"], tuple(run.config.get("left") or ())
    wanted, members = run.config.get("evaluate_clients"), len(table) - len(left)
    rows = [row for row in run.evals if "drawn_clients" in row]
    everybody = members <= MOST_EVALUATED or selection_of(run) == "validation"
    if rows and wanted is None and everybody:
        raise FedPGPError(
            f"metrics.jsonl says that {rows[0]['drawn_clients']} clients were drawn after round "
            f"{rows[0]['round']}; evaluate_clients=null asks all {members}"
        )
    unsure = _why_unsure(run)
    if not unsure:
        _refuse_other_members(run, members)
    config = SimpleNamespace(
        evaluate_clients=wanted,
        left=left,
        seed=run.config["seed"],
        protocol={"selection": selection_of(run)},
    )
    attackers = attackers_by_settings(run)
    split = SimpleNamespace(clients=[_TESTED] * len(table))
    for row in run.evals:
        last = row is run.evals[-1]
        if wanted is None and "drawn_clients" not in row and not (last and rows):
            continue  # all were asked: runs of an earlier version ask all of more clients too
        asked = draw_evaluated(config, split, row["round"], attackers)
        said = row.get("drawn_clients", len(asked) if unsure else members)
        if said > len(asked) or (said < len(asked) and not unsure):
            raise FedPGPError(
                f"{said} clients were drawn after round {row['round']}; evaluate_clients={wanted} "
                f"draws {len(asked)}"
            )
        if last and not unsure and drew_each_round(run, evaluated):
            continue
        if last and not unsure and (others := set(evaluated) - set(asked)):
            raise FedPGPError(
                f"clients.csv has clients that evaluate_clients={wanted} does not draw after round "
                f"{row['round']}: {listed(others)}"
            )
    if rows and unsure:
        raise NotChecked(f"some clients were drawn, and who could be is not known: {unsure}")


def drew_each_round(run: Run, evaluated: Collection[int]) -> bool:
    """Return whether a run drew other clients for each evaluation, as those of before
    ``evaluate_clients`` stayed with the same.

    Args:
        run: as recorded.
        evaluated: clients of its last evaluation.
    """
    last = run.evals[-1] if run.evals else {}
    if "drawn_clients" not in last or not evaluated:
        return False
    seed = run.config["seed"]
    out = {*(run.config.get("left") or ()), *attackers_by_settings(run)}
    able = [client for client in range(len(run.partition["clients"])) if client not in out]
    size = min(int(number(last["drawn_clients"])), len(able))
    once = generator(seed, "evaluate", last["round"]).choice(able, size=size, replace=False)
    return {*evaluated} <= {*once.tolist()} and not {*evaluated} <= {*sample(seed, able, size)}


def _why_unsure(run: Run) -> str:
    """Return why the folder does not say who could be drawn; empty where it does."""
    if run.choice("partition") == "own" or run.choice("runtime") == "flower":
        return "its clients were nodes"
    if run.config.get(MEMBERS):
        return "clients joined or left between its rounds"
    if run.summary.get("lifelong") or run.choice("protocol") == "lifelong":
        return "not all clients are tested in each round"
    return ""


def _refuse_other_members(run: Run, members: int) -> None:
    for row in run.evals:
        if row.get("all_clients", members) != members:
            raise FedPGPError(
                f"metrics.jsonl has {row['all_clients']} clients after round {row['round']}, "
                f"partition.json {members}"
            )
