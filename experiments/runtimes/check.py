"""Whether a configuration is for the command that was given it."""

from collections.abc import Mapping

from fedpgp.errors import FedPGPError


def check_runtime(config: Mapping, *, deployed: bool) -> None:
    """Refuses a deployment that Flower does not start, clients' own images anywhere but in a
    deployment, and a deadline that nobody could keep.

    Raises:
        FedPGPError: saying which command it is for.
    """
    name = config["runtime"]["name"]
    if not deployed and name == "flower":
        raise FedPGPError(
            "runtime=flower is started by: python -m experiments.deploy local, or flwr run "
            "(docs/deployment.md)"
        )
    if deployed and name != "flower":
        raise FedPGPError(f"runtime={name} is for experiments.run; a deployment has runtime=flower")
    if not deployed and config["partition"]["scheme"] == "own":
        raise FedPGPError(
            "partition=own is for a deployment: python -m experiments.deploy local --data FOLDER"
        )
    if name == "inline" and config["runtime"]["round_timeout"] is not None:
        raise FedPGPError(
            "runtime.round_timeout cannot be kept with runtime=inline: client code runs in the "
            "server's own process, and nobody could end it; leave it out, or use runtime=ray"
        )
