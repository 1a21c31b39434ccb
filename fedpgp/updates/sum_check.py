"""What does not go with a secure sum (``privacy.secure_sum``), and why."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from fedpgp.attacks import ATTACKS
from fedpgp.errors import FedPGPError
from fedpgp.updates.base import UpdateStep
from fedpgp.updates.client_privacy import LINEAR
from fedpgp.updates.configured import metrics_of

LEAST_CLIENTS = 3
"""Of a sum without noise: each client knows its own update, and the sum of the others is of two."""


def check_secure_sum(config: Mapping, method, steps: Sequence[UpdateStep]) -> None:
    """Refuse a run whose server has to see single updates, or whose sums would hide nothing.

    Args:
        config: resolved.
        method: the run's :class:`fedpgp.methods.Method`.
        steps: its update steps.

    Raises:
        FedPGPError: naming the setting, and why the two do not go together.
    """
    strategy = config["strategy"]["name"]
    attack = config.get("attack", {}).get("name", "none")
    selection = config["protocol"].get("selection")
    combiner = next((step for step in steps if step.combines), None)
    deployed = config["runtime"]["name"] == "flower"
    # A simulation's figures are the researcher's.
    telling = [
        step.name
        for step in steps
        if deployed
        and metrics_of([step], updates_only=True)
        or step.extra_tensors()
        and not step.combines
    ]
    drawn = max(1, round(config["participation"] * config["clients"]))
    images = config["privacy"].get("secure_sum_images", 0)
    why = None
    if not method.learns or not method.init_shared(np.random.default_rng(0)):
        why = f"method={method.name}: nothing leaves a client that could be added up"
    elif method.needs_each_update:
        why = (
            f"method={method.name}: its server reads each client's update by itself; it would see "
            "their sum alone"
        )
    elif strategy not in LINEAR or config["strategy"].get("wrap"):
        name = f"strategy={strategy}" if strategy not in LINEAR else "strategy.wrap"
        why = (
            f"{name}: it looks at updates one by one, and the server sees their sum alone; take "
            f"one of {', '.join(LINEAR)}"
        )
    elif deployed and selection == "validation":
        why = (
            "protocol.selection=validation in a deployment: no accuracy leaves a client by which a "
            "round could be chosen; take last"
        )
    elif attack != "none" and ATTACKS[attack].colludes:
        why = f"attack={attack}: its attackers read the updates of others, which nobody sees"
    elif combiner is not None and type(combiner).sum_limits is UpdateStep.sum_limits:
        why = f"the update step {combiner.name}: it combines single updates"
    elif telling:
        why = (
            f"the update step {telling[0]}: numbers of each client's update leave it beside the sum"
        )
    elif combiner is None and images * config["clients"] >= 2**32:
        why = (
            f"privacy.secure_sum_images={images:,} and {config['clients']:,} clients: their sum "
            "has to stay below 2**32"
        )
    elif combiner is not None and config["privacy"].get("noise") == 0:
        why = "privacy.noise=0: where one client is drawn alone, its noise is what hides it"
    elif combiner is not None and config["privacy"].get("epsilon") == math.inf:
        why = "privacy.epsilon=inf: where one client is drawn alone, noise is what hides it"
    elif combiner is None and drawn < LEAST_CLIENTS:
        why = (
            f"{drawn} clients a round (clients, participation): a sum says too much of each; it "
            f"takes {LEAST_CLIENTS}"
        )
    if why:
        raise FedPGPError(f"privacy.secure_sum=true does not go with {why}")
