"""The configuration of a command line: overrides are read by Hydra's grammar and composed from
``conf/`` to a plain nested dict.

Hydra says what is wrong in its own words; here it is one line.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from experiments.overrides import typed
from fedpgp.errors import FedPGPError
from fedpgp.plain_text import written_out

CONF = Path(__file__).resolve().parents[1] / "conf"


def composed(overrides: Iterable[str] = ()) -> dict:
    """Return the configuration as a plain nested dict.

    Raises:
        FedPGPError: what Hydra refuses, in a line.
    """
    register_resolvers()
    active = GlobalHydra.instance().hydra
    try:
        GlobalHydra.instance().clear()
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return resolved(compose("config", overrides=list(overrides)))
    except HydraException as error:
        raise FedPGPError(" ".join(str(error).split())) from error
    finally:
        GlobalHydra.instance().hydra = active


def resolved(config: DictConfig) -> dict:
    """Return a configuration as a plain nested dict, with its interpolations resolved.

    Raises:
        FedPGPError: what OmegaConf refuses, in a line: an interpolation of a key that is not there.
    """
    try:
        return OmegaConf.to_container(config, resolve=True)
    except OmegaConfBaseException as error:
        raise FedPGPError(" ".join(str(error).split())) from error


def parse(arguments: Sequence[str]) -> list[Override]:
    """Return command-line overrides, read by Hydra's grammar.

    Raises:
        FedPGPError: one that cannot be read.
    """
    found = []
    for argument in arguments:
        check_text(argument)
        try:
            found += OverridesParser.create().parse_overrides([argument])
        except HydraException:
            advice = "quotes around values that hold , = or brackets"
            if not argument.isascii():  # Hydra's grammar has no other letters without quotes
                advice = "quotes around each name that is not plain ASCII: \"key=['Bär','cat']\""
            key, _, text = argument.partition("=")
            if text and not text.startswith(("[", "{")):
                advice += f"; as one text it is {typed(key, text)}"
            raise FedPGPError(f"cannot read {argument!r}; write key=value, with {advice}") from None
    return found


def check_text(argument: str) -> None:
    """Refuses an argument that no configuration file can hold.

    Raises:
        FedPGPError: it has bytes that are not UTF-8.
    """
    try:
        argument.encode()
    except UnicodeEncodeError:
        raise FedPGPError(
            f"{written_out(argument)} has bytes that are not UTF-8, and a configuration cannot "
            "hold them: rename the file or folder, or give a link to it another name"
        ) from None


def choices() -> dict[str, list[str]]:
    """Return group -> its choices."""
    return {
        folder.name: sorted(file.stem for file in folder.glob("*.yaml"))
        for folder in sorted(CONF.iterdir())
        if folder.is_dir()
    }


def swept_by(experiment: str) -> list[str]:
    """Return the keys that an experiment of conf/experiment has several values of."""
    try:
        config = yaml.safe_load((CONF / "experiment" / f"{experiment}.yaml").read_text()) or {}
    except OSError:  # null, or unknown, which is said elsewhere
        return []
    return list(config.get("hydra", {}).get("sweeper", {}).get("params", {}))


def flatten(config: Mapping, prefix: str = "") -> dict[str, object]:
    """Nested -> {"a.b": value}."""
    flat: dict[str, object] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def register_resolvers() -> None:
    """What conf/ computes: a sweep's folder, and ``few_shot`` (``few`` where ``shots``
    is set, else ``full``)."""
    if not OmegaConf.has_resolver("sweep_folder"):
        from experiments.run_folder import sweep_folder

        OmegaConf.register_new_resolver("sweep_folder", sweep_folder, use_cache=True)
        OmegaConf.register_new_resolver(
            "few_shot", lambda shots, few, full: full if shots is None else few
        )
