"""All that can be said of a run's configuration before anything is started or written."""

from collections.abc import Mapping
from pathlib import Path

from experiments.run_folder import RunFolder
from experiments.runtimes.check import check_runtime
from fedpgp.build import check_config
from fedpgp.clip import resolve_device
from fedpgp.config import Config
from fedpgp.errors import FedPGPError
from fedpgp.precision import native_bfloat16, resolve_dtype
from fedpgp.updates.configured import configured_steps
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


def choose_dtype(config: Mapping) -> dict:
    """Return the configuration with ``dtype=auto`` decided, and say how: by this machine, once for
    all processes of the run.

    Args:
        config: resolved and checked.

    Raises:
        FedPGPError: no such device on this machine.
    """
    model = config["model"]["name"]
    chosen = resolve_dtype(config["dtype"], config["device"], model)
    if chosen != config["dtype"]:
        device = resolve_device(config["device"])
        native = native_bfloat16(device)
        said = {True: "native", False: "not native", None: "not known to be native"}[native]
        reason = f"bfloat16 is {said} on this machine's {device.type}"
        if native and chosen != "bfloat16":
            reason = f"model {model} is not known to share a prefix (docs/models.md)"
        print(f"note: dtype=auto is {chosen}: {reason}")
    return {**config, "dtype": chosen}


def open_checked(path: Path) -> tuple[RunFolder, dict]:
    """Return a run's folder and the configuration it was started with, as
    :meth:`experiments.run_folder.RunFolder.open`.

    Raises:
        FedPGPError: it is no run's folder; a setting there cannot work, with the name of the file.
    """
    folder, config = RunFolder.open(path)
    check_stored(path, config)
    return folder, config


def check_stored(path: Path, config: Mapping) -> None:
    """Refuse the configuration of a run's folder where a setting cannot work.

    Args:
        path: the folder.
        config: that was read there.

    Raises:
        FedPGPError: naming the file and the setting.
    """
    try:
        check_config(config)
    except FedPGPError as error:
        raise FedPGPError(f"{path / 'config.yaml'}: {error}") from error
