"""All that can be said of a run's configuration before anything is started or written."""

from collections.abc import Mapping

from experiments.runtimes.check import check_runtime
from fedpgp.build import check_config
from fedpgp.config import Config
from fedpgp.updates.configured import configured_steps
from strategies.sampling import check_evaluate_clients
from strategies.wrappers import configured_strategy


def check_run(config: Mapping, *, deployed: bool) -> None:
    """Refuse a configuration that cannot work, whatever the data: settings, runtime, strategy with
    its wrappers, update steps.

    Args:
        config: resolved.
        deployed: whether Flower starts the clients, each on images of its own node.

    Raises:
        FedPGPError: naming the setting and what to do.
    """
    check_config(config)
    check_runtime(config, deployed=deployed)
    configured_steps(config)
    typed = Config.of(config)
    configured_strategy(typed)
    check_evaluate_clients(typed)
